"""Generated solutions: texts, answers, judges."""
