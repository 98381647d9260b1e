"""How well a model predicts text after each recurrence: perplexity, and the tasks of lm-eval."""
