"""Labels of tokens. This module imports nothing, because building a data set should not wait for torch."""

# The label that the cross entropy of torch ignores.
IGNORED_LABEL = -100
