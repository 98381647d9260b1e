r"""
Builds a data set of annotated questions (seconds):

    python data_scripts/build_memory_reason.py --name strategy_qa --output_dir data/strategy_qa

From a folder with the study's JSON files instead of the authors' repository:

    python data_scripts/build_memory_reason.py --name truthful_qa --source FOLDER --output_dir data/truthful_qa

From questions of your own: a file (.jsonl, .json, .parquet), a folder of such files or of save_to_disk, or a data set
on the Hub. Here one fifth of the questions becomes the test split:

    python data_scripts/build_memory_reason.py --source questions.jsonl --test_fraction 0.2 --output_dir data/mine
    python data_scripts/build_memory_reason.py --source tau/commonsense_qa --columns options=choices,answer=answerKey \
        --output_dir data/commonsense_qa
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.data.questions.answer_types import ANSWER_TYPES
from memreason_hf.data.questions.memory_reason import (
    NAMES,
    build_memory_reason,
    check_output_folder,
    may_be_same,
    save_memory_reason,
)
from memreason_hf.data.questions.own_data import read_columns
from memreason_hf.data.questions.own_splits import build_questions, data_name, describe_answers


PROG = "build_memory_reason.py"
EXPLANATION = """
strategy_qa, commonsense_qa and truthful_qa are the questions of "Disentangling Memory and Reasoning Ability in Large
Language Models", whose steps recall knowledge ([rag]) or reason over it ([reason]). The steps of gsm8k and aqua_rat
are the lines of their rationales, without kinds. Dropped steps and items are counted, printed and written to
report.json.

A row of your own has a question and an answer, and may have options, steps with kinds, accepted_answers and an
answer_type (letters, true_false, yes_no, number, text); or it is a conversation (messages, or prompt and completion).
All rows are checked, and the bad ones are listed with their lines. The schema and the rules are in
data_scripts/README.md. The result is read with datasets.load_from_disk(DIR).
"""


@dataclass
class BuildArguments:
    """The data set, and where it comes from and goes to."""

    output_dir: str = field(metadata={"help": "Folder for the data set. It is created if it does not exist."})
    name: str | None = field(
        default=None,
        metadata={
            "help": f"The study's data set: {', '.join(NAMES)}. Of another data set on the Hub the configuration. A "
            "file or folder of your own needs no name."
        },
    )
    source: str | None = field(
        default=None,
        metadata={
            "help": "Questions of your own: a file, a folder, a URL or a name on the Hub. With the study's name the "
            "folder or URL of its JSON files; for gsm8k and aqua_rat a folder or a name on the Hub. Default: the "
            "authors' repository, or the Hub."
        },
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a data set of your own on the Hub."}
    )
    columns: str | dict[str, str] | None = field(
        default=None,
        metadata={"help": "The source's names of columns, where they differ: question=query,answer=target."},
    )
    answer_type: Literal[ANSWER_TYPES] | None = field(
        default=None,
        metadata={"help": "The type of all answers. Default: it follows from the options, or from the answers."},
    )
    test_fraction: float | None = field(
        default=None, metadata={"help": "Hold out this share of the training questions as the test split."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice of the test split."})
    overwrite: bool = field(default=False, metadata={"help": "Replace another data set in the folder."})

    @property
    def report_name(self) -> str | None:
        """The name that the report gives to the data."""
        is_own = self.source is not None and self.name not in NAMES
        return data_name(self.source, self.name) if is_own else self.name

    def build(self):
        """
        The data set with its report.

        Raises:
            ValueError, OSError: flags that contradict each other, or data that cannot be read or used.
        """
        if self.name in NAMES:
            for name in ("revision", "columns", "answer_type", "test_fraction"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)!r} is for data of your own, not for {self.name}.")
            return build_memory_reason(self.name, self.source)
        if self.source is None:
            given = "" if self.name is None else f"name={self.name!r} is none of the study's, and "
            raise ValueError(
                f"{given}source is not given. Pass --name, one of {', '.join(NAMES)}, or --source with a file, a "
                "folder or a data set on the Hub."
            )
        return build_questions(
            self.source,
            self.name,
            columns=read_columns(self.columns),
            answer_type=self.answer_type,
            revision=self.revision,
            test_fraction=self.test_fraction,
            seed=self.seed,
        )


def make_parser() -> CommandParser:
    sections = [Section("data", BuildArguments, "data set")]
    return CommandParser(sections, recipe=None, prog=PROG, description=__doc__ + EXPLANATION)


def main(argv: list[str] | None = None) -> int:
    """Builds the data set; returns the exit code. A wrong flag or input ends it with code 2 and one message."""
    with user_errors(PROG):
        (arguments,) = make_parser().parse_sections(argv)
        folder = Path(arguments.output_dir)
        # The same command again changes nothing. Any other is refused before it reads its source.
        same = may_be_same(folder, arguments.report_name, arguments.source)
        check_output_folder(folder, overwrite=arguments.overwrite or same)
        data = arguments.build()
        save_memory_reason(data, arguments.output_dir, overwrite=arguments.overwrite)
        print(data.report.describe())
        print(describe_answers(data.dataset))
        print(f"written to {arguments.output_dir}")
        return 0


if __name__ == "__main__":
    sys.exit(main())
