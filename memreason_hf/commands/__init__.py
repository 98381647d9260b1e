"""One module a subcommand of `memreason`: `make_parser()` and `main(argv=None)`, which returns the exit code."""
