r"""
Builds a data set of annotated questions (seconds):

    python data_scripts/build_memory_reason.py --name strategy_qa --output_dir data/strategy_qa

From a folder with the study's JSON files instead of the authors' repository:

    python data_scripts/build_memory_reason.py --name truthful_qa --source FOLDER --output_dir data/truthful_qa
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.data.questions.memory_reason import (
    NAMES,
    build_memory_reason,
    check_output_folder,
    may_be_same,
    save_memory_reason,
)


PROG = "build_memory_reason.py"
EXPLANATION = """
strategy_qa, commonsense_qa and truthful_qa are the questions of "Disentangling Memory and Reasoning Ability in Large
Language Models", whose steps recall knowledge ([rag]) or reason over it ([reason]). The steps of gsm8k and aqua_rat
are the lines of their rationales, without kinds. Dropped steps and items are counted, printed and written to
report.json; the rules are in data_scripts/README.md. The result is read with datasets.load_from_disk(DIR).
"""


@dataclass
class BuildArguments:
    """The data set, and where it comes from and goes to."""

    name: str = field(metadata={"help": "The data set.", "choices": list(NAMES)})
    output_dir: str = field(metadata={"help": "Folder for the data set. It is created if it does not exist."})
    source: str | None = field(
        default=None,
        metadata={
            "help": "Folder or URL with the JSON files; for gsm8k and aqua_rat a folder or a name on the Hub. "
            "Default: the authors' repository, or the Hub."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace another data set in the folder."})


def make_parser() -> CommandParser:
    sections = [Section("data", BuildArguments, "data set")]
    return CommandParser(sections, recipe=None, prog=PROG, description=__doc__ + EXPLANATION)


def main(argv: list[str] | None = None) -> int:
    """Builds the data set; returns the exit code. A wrong flag or input ends it with code 2 and one message."""
    with user_errors(PROG):
        (arguments,) = make_parser().parse_sections(argv)
        folder = Path(arguments.output_dir)
        # The same command again changes nothing. Any other is refused before it reads its source.
        same = may_be_same(folder, arguments.name, arguments.source)
        check_output_folder(folder, overwrite=arguments.overwrite or same)
        data = build_memory_reason(arguments.name, arguments.source)
        save_memory_reason(data, arguments.output_dir, overwrite=arguments.overwrite)
        print(data.report.describe())
        print(f"written to {arguments.output_dir}")
        return 0


if __name__ == "__main__":
    sys.exit(main())
