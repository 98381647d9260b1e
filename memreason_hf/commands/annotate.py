"""
`memreason annotate`: a language model writes the memory and reason steps of questions.

    memreason annotate --data questions.jsonl --llm MODEL --endpoint http://127.0.0.1:8000/v1 \\
        --output_file data/own/train.jsonl
"""

import sys

from memreason_hf.command_line.annotation import annotation_parser, run_annotation
from memreason_hf.command_line.errors import USER_ERRORS, user_errors
from memreason_hf.command_line.parser import CommandParser


PROG = "memreason annotate"
STOPPED = "the answers that have arrived are kept, and the same command goes on from there"


def make_parser() -> CommandParser:
    return annotation_parser(PROG)


def main(argv: list[str] | None = None) -> int:
    """Annotates; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    # Optional libraries that are missing are errors of the user, too.
    with user_errors(PROG, *USER_ERRORS, ImportError, stopped=STOPPED):
        return run_annotation(make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
