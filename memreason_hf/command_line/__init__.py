"""The command line: the parser, the flags that verbs share, and error messages."""
