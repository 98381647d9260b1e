"""
A page to look at a model: its answer token by token, the depth of every token, and what it would say at other depths.

The logic (`depth_choice`, `prompts`, `answers`, `lens`, `comparison`, `rendering`) does not need Gradio; `page` does.
"""
