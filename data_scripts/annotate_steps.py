r"""
Lets a language model write the memory and reason steps of questions, as `memreason annotate` does:

    python data_scripts/annotate_steps.py --data questions.jsonl --llm MODEL --endpoint http://127.0.0.1:8000/v1 \
        --output_file data/own/train.jsonl
"""

import sys

from memreason_hf.command_line.annotation import DESCRIPTION, annotation_parser, run_annotation
from memreason_hf.command_line.errors import USER_ERRORS, user_errors
from memreason_hf.command_line.parser import CommandParser


PROG = "annotate_steps.py"
STOPPED = "the answers that have arrived are kept, and the same command goes on from there"


def make_parser() -> CommandParser:
    return annotation_parser(PROG, description=f"{__doc__}\n{DESCRIPTION}")


def main(argv: list[str] | None = None) -> int:
    """Annotates; returns the exit code. A wrong flag or input ends it with code 2 and one message."""
    with user_errors(PROG, *USER_ERRORS, ImportError, stopped=STOPPED):
        return run_annotation(make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
