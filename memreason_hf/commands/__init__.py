"""The verbs of `memreason`, one module each: `make_parser()`, and `main(argv=None)`, which returns the exit code."""
