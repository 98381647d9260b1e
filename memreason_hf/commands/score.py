"""
`memreason score`: judges generated texts of any origin: verdicts, accuracy, steps, and where errors come from.

    memreason score runs/strategy_qa/test.jsonl --data data/strategy_qa --output_file scores.jsonl
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memreason_hf.analysis.solution_scores import (
    comparison_of_files,
    judge_answers,
    judge_scored,
    measure_scores,
    score_lines,
    score_report,
    score_texts,
    shows_steps,
)
from memreason_hf.command_line.answer_judge_flags import (
    ANSWER_JUDGE,
    ANSWER_REPLIES_SUFFIX,
    AskedJudges,
    measure_answer_judge,
)
from memreason_hf.command_line.chat_flags import chat_section
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.judge_flags import JUDGE, REPLIES_SUFFIX, SHOWN_FLAGS
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.data.questions.answer_types import ANSWER_TYPES
from memreason_hf.data.questions.memory_reason import NAMES
from memreason_hf.data.questions.own_data import QuestionDataError, load_questions, read_columns
from memreason_hf.data.questions.own_files import holds_study_files
from memreason_hf.evaluation.known_truth.agreement import agreement_by_kind
from memreason_hf.evaluation.solutions.answers import ANSWER_RULES
from memreason_hf.evaluation.solutions.generation_files import SUMMARY_SUFFIX
from memreason_hf.evaluation.solutions.text_files import COLUMNS, TextFile, join_questions, read_texts
from memreason_hf.file_sets import reserved, writing_together
from memreason_hf.files import check_places, whole_file, write_json
from memreason_hf.messages import visible
from memreason_hf.steps import StepScheme


PROG = "memreason score"
DESCRIPTION = """\
Judges generated texts: what each of them answers and whether that is right, which steps it has, and at a step of which
kind it first goes wrong, for right and for wrong answers apart. Prints the accuracy with a bootstrap interval over
questions, and keeps every verdict with --output_file.

FILES are files of memreason evaluate-steps, files of the study (a list of generated_text and result), or JSON lines,
JSON lists or parquet files of anybody's, whose columns --columns names. Verdicts that a file holds are compared with
those of the rule, text by text.

The right answers are in the file (reference), or come from the questions of --data: a text belongs to the question
that it begins with. Where no text shows marks of steps that can be read, a warning stands in place of numbers by kind:
the marks may be of another scheme, or the texts were decoded with a wrong tokenizer.

The judge of the steps is a rule that compares with reference steps, or a language model (--judge llm), which does
without. Next to its name stands how it agrees with the known truth of the test bed: precision, recall and
false alarms by kind of error.

A free-text answer in other words than those of the right answers is wrong, or a language model judges it
(--answer_judge llm). Its name and verdict stand in the line of the text. A reply that is neither yes nor no is asked
for once more; after that the answer counts as wrong and as undecided.
"""
EPILOG = """\
examples:
  memreason score runs/strategy_qa/test.jsonl --data data/strategy_qa --output_file scores.jsonl
  memreason score published.json --data FOLDER_WITH_JSON --name strategy_qa
  memreason score a.json b.json --data FOLDER_WITH_JSON --name strategy_qa,truthful_qa --judge none
  memreason score mine.jsonl --data questions.jsonl --split train --answer_rule lenient
  memreason score mine.jsonl --columns text=output,reference=gold,options=choices
  memreason score a.jsonl b.jsonl c.jsonl --judge none                      # a table of three files
  memreason score test.jsonl --judge llm --llm MODEL --endpoint http://127.0.0.1:8000/v1 --output_file scores.jsonl
  memreason score test.jsonl --judge llm --llm FOLDER_OF_AN_INSTRUCT_MODEL --agreement 0
  memreason score free_text.jsonl --answer_judge llm --llm MODEL --endpoint http://127.0.0.1:8000/v1 --judge none

--output_file X writes X (a line for each text: its verdict, answer, steps, and what the judge said of each step) and
X.summary.json (the numbers that are printed). X.replies.jsonl keeps the replies of a language model as they arrive:
the same command again, after it was stopped, does not ask for them again. X.answer_replies.jsonl keeps those about
answers.
"""


@dataclass
class TextsArguments:
    """The generated texts."""

    files: list[str] = field(metadata={"help": "Files of generated texts."})
    columns: str | dict[str, str] | None = field(
        default=None,
        metadata={
            "help": f"Names of the files' columns, as in text=output,reference=gold. What can be named: "
            f"{', '.join(COLUMNS)}."
        },
    )


@dataclass
class QuestionsArguments:
    """The questions that the texts answer."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "The questions, with right answers and reference steps: a file, a folder or a data set on the "
            "Hub, as for memreason evaluate-steps; or, with the study's --name, the folder or URL of its JSON files. "
            "Default: the files of texts hold the right answers."
        },
    )
    name: list[str] | str | None = field(
        default=None,
        metadata={
            "help": f"The study's data set ({', '.join(NAMES)}), or the configuration of a data set on the Hub; "
            "separated by commas, one for each of FILES. Default: for the study's data, the one that a file of "
            "memreason evaluate-steps was made with."
        },
    )
    data_revision: str | None = field(
        default=None, metadata={"help": "The branch, tag or commit of a data set on the Hub."}
    )
    data_columns: str | dict[str, str] | None = field(
        default=None,
        metadata={"help": "Names of the columns of --data, where they differ: question=query,answer=target."},
    )
    answer_type: Literal[ANSWER_TYPES] | None = field(
        default=None,
        metadata={"help": "The type of all answers. Default: it follows from the options, or from the answers."},
    )
    split: str = field(default="test", metadata={"help": "Split of the data set."})

    def rows(self, files: Sequence[TextFile]) -> list[list[dict]] | None:
        """
        The questions of each file; None without `data`.

        Raises:
            ValueError, OSError: the data cannot be read, or have no such split; or the names are not as many as the
                files.
        """
        if self.data is None:
            for name in ("name", "data_revision", "data_columns"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)!r} is of a data set of --data, which is not given.")
            return None
        names = self._names(files)
        read = {name: self._read(name) for name in dict.fromkeys(names)}
        return [read[name] for name in names]

    def _names(self, files):
        """The name of the data set of each file."""
        if self.name is None:
            is_study = Path(self.data).is_dir() and holds_study_files(Path(self.data))
            return [file.data_name if is_study and file.data_name in NAMES else None for file in files]
        names = self.name if isinstance(self.name, list) else [name.strip() for name in self.name.split(",")]
        if len(names) == 1:
            return names * len(files)
        if len(names) != len(files):
            raise ValueError(
                f"name={','.join(names)!r} names {len(names)} data sets for {len(files)} files. Give one name for "
                "all, or one for each."
            )
        return names

    def _read(self, name):
        columns = read_columns(self.data_columns)
        settings = {"columns": columns, "answer_type": self.answer_type, "revision": self.data_revision}
        try:
            dataset = load_questions(self.data, name, **settings)
        except QuestionDataError:
            # It lists the rows.
            raise
        except (OSError, ValueError) as error:
            raise ValueError(f"data={self.data!r}: {error}") from error
        if self.split not in dataset:
            raise ValueError(f"split={self.split!r} is not in the data. Its splits are {', '.join(dataset)}.")
        return list(dataset[self.split])


@dataclass
class ScoringArguments:
    """How the texts are read and judged."""

    answer_rule: Literal[ANSWER_RULES] = field(
        default="published",
        metadata={"help": "How answers are read. lenient also reads **(A)**, boxes, Answer: A and the like."},
    )
    match_option_text: bool = field(
        default=False, metadata={"help": "Accept the text of an option as an answer, in place of its letter."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap interval."})
    no_progress: bool = field(default=False, metadata={"help": "Hide progress bars."})


@dataclass
class ScoresOutput:
    """Where the verdicts go."""

    output_file: str | None = field(
        default=None, metadata={"help": "File of JSON lines for the verdicts. Default: only the numbers are printed."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace files that exist. Kept replies stay."})

    def paths(self) -> list[Path]:
        """
        The files for verdicts and numbers; none where nothing is written.

        Raises:
            OSError: the output file is a folder.
        """
        if self.output_file is None:
            return []
        path = Path(self.output_file)
        check_places([path], overwrite=True)
        return [path, path.with_name(path.name + SUMMARY_SUFFIX)]

    def replies(self, suffix: str) -> Path | None:
        """The file for the replies of a language model; None where nothing is written."""
        return None if self.output_file is None else Path(f"{self.output_file}{suffix}")


SECTIONS = [
    Section("texts", TextsArguments, "texts", key="inputs"),
    Section("questions", QuestionsArguments, "questions", key="inputs"),
    Section(
        "steps",
        StepScheme,
        "marks of steps; by default those of a file's own settings, or tokens of any number",
        shown=("marks", "layout"),
    ),
    Section("scoring", ScoringArguments, "scoring"),
    JUDGE,
    ANSWER_JUDGE,
    chat_section(title="language model as judge of steps or answers", shown=SHOWN_FLAGS),
    Section("output", ScoresOutput, "output"),
]


def make_parser() -> CommandParser:
    return CommandParser(SECTIONS, places=("files",), prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Scores; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        parser = make_parser()
        texts, questions, _, scoring, judging, answering, chat, output = parser.parse_sections(argv)
        _, given = parser.parse_recipe(argv)
        judging.check(chat, is_asked=answering.is_llm)
        answering.check(chat)
        columns = read_text_columns(texts.columns)
        # Before anything is loaded: another process may be writing the files.
        with reserved(output.paths(), overwrite=output.overwrite):
            files = _read(texts.files, columns, questions)
            schemes = [
                StepScheme(**given["steps"]) if given["steps"] else file.scheme or StepScheme() for file in files
            ]
            return _score(files, schemes, scoring, judging, answering, chat, output)


def read_text_columns(columns: str | dict[str, str] | None) -> dict[str, str]:
    """
    Names of columns, as `text=output,reference=gold` or as a mapping of a recipe.

    Raises:
        ValueError: the text has another form.

    Example:

        >>> read_text_columns("text=output,reference=gold")
        {'text': 'output', 'reference': 'gold'}
    """
    if columns is None or isinstance(columns, dict):
        return dict(columns or {})
    pairs = [part.split("=", 1) for part in columns.split(",")]
    if not all(len(pair) == 2 and all(name.strip() for name in pair) for pair in pairs):
        raise ValueError(f"columns={columns!r} must name columns as in text=output,reference=gold.")
    return {name.strip(): column.strip() for name, column in pairs}


def _read(paths, columns, questions) -> list[TextFile]:
    """The files, with the answers of the data set if there is one."""
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"files={path!r}: no such file. Pass files of generated texts.")
    files = [read_texts(path, columns) for path in paths]
    names = [str(file.path.resolve()) for file in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"files: {Path(twice).name} is given twice. Name each file once.")
    rows = questions.rows(files)
    if rows is None:
        return [_typed(file, questions.answer_type) for file in files]
    return [dataclasses.replace(file, rows=join_questions(file, part)) for file, part in zip(files, rows)]


def _typed(file, answer_type):
    """A file whose answers are of the type that a flag gives."""
    if answer_type is None:
        return file
    return dataclasses.replace(
        file, rows=[dataclasses.replace(row, answer_type=row.answer_type or answer_type) for row in file.rows]
    )


def _score(files, schemes, scoring, judging, answering, chat, output):
    names = _short_names([file.path for file in files])
    scored = []
    for file, scheme in zip(files, schemes):
        try:
            rules = {"answer_rule": scoring.answer_rule, "match_option_text": scoring.match_option_text}
            scored.append(score_texts(file.rows, scheme, **rules))
        except ValueError as error:
            raise ValueError(f"{file.path}, {error}") from None
    for name, scheme, entries in zip(names, schemes, scored):
        _warn_of_marks(name, scheme, entries)
    progress = not scoring.no_progress
    with (
        judging.open(chat, output.replies(REPLIES_SUFFIX), progress=progress) as judge,
        answering.open(
            chat, output.replies(ANSWER_REPLIES_SUFFIX), step_judge=judge, progress=progress
        ) as answer_judge,
    ):
        agreement = known = None
        if answer_judge is not None:
            # First: a judge that cannot be used is found before it is asked about every text.
            known = measure_answer_judge(answer_judge) if judging.agreement != 0 else None
            scored = [judge_answers(entries, answer_judge) for entries in scored]
        if judge is not None and not _can_judge(judge, scored, schemes):
            print("steps are not judged: no text has both readable marks and reference steps to compare with\n")
            judge = None
        if judge is not None:
            kinds = [kind for scheme in schemes for kind in scheme.kinds]
            agreement = judging.measure(judge, judging.name(chat), kinds)
            scored = [judge_scored(entries, scheme, judge) for entries, scheme in zip(scored, schemes)]
    scores = {
        name: measure_scores(entries, scheme, seed=scoring.seed)
        for name, entries, scheme in zip(names, scored, schemes)
    }
    said = _Said(judge, judging.name(chat), agreement, answer_judge, known)
    _print(scores, said)
    if output.paths():
        _write(output, names, scored, {"files": scores, **said.summary()})
    else:
        print("\nNothing was written. --output_file FILE keeps every verdict.")
    return 0


class _Said(AskedJudges):
    """The judges that were asked."""

    def summary(self) -> dict:
        """What the summary says of the judges."""
        summary: dict = {"judge": None if self.judge is None else self.name}
        if self.agreement is not None:
            counts = self.agreement[0]
            summary["agreement"] = {"counts": counts, "by_kind": agreement_by_kind(counts)}
        return summary | self.answer_summary()


def _can_judge(judge, scored, schemes):
    """Whether there is a solution that a judge can say something about."""
    needs_references = getattr(judge, "needs_references", True)
    return any(
        shows_steps(entry, scheme) and (entry.row.steps or not needs_references)
        for entries, scheme in zip(scored, schemes)
        for entry in entries
    )


def _short_names(paths):
    """Names of files for tables: as short as they differ, without the folders of this machine."""
    most = max(len(path.parts) for path in paths)
    for length in range(1, most + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _warn_of_marks(name, scheme, entries):
    num_without = sum(not shows_steps(entry, scheme) for entry in entries)
    if num_without:
        count = (
            "no text shows" if num_without == len(entries) else f"{num_without:,} of {len(entries):,} texts show no"
        )
        print(
            f"{PROG}: warning: {visible(name)}: {count} readable marks of steps, so nothing is said about their "
            "steps. If they have steps, the scheme is another one (--marks, --layout), or the texts were decoded with "
            "the tokenizer of another model.",
            file=sys.stderr,
            flush=True,
        )


def _print(scores, said):
    names = {
        "judge": said.name if said.judge is not None else None,
        "answer_judge": None if said.answer_judge is None else said.answer_judge.name,
    }
    print("\n\n".join(visible(score_report(name, part, **names)) for name, part in scores.items()))
    if len(scores) > 1:
        print(f"\n{visible(comparison_of_files(scores))}")
    for line in said.lines():
        print(line)


def _write(output, names, scored, summary):
    path, summary_path = output.paths()
    with writing_together([path, summary_path], overwrite=output.overwrite):
        with whole_file(path, overwrite=output.overwrite) as temporary:
            lines = (line for name, entries in zip(names, scored) for line in score_lines(name, entries))
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            temporary.write_text(text, encoding="utf-8")
        write_json(summary_path, summary, overwrite=output.overwrite, ensure_ascii=False)
    print(f"\nWrote {path} and {summary_path}.")


if __name__ == "__main__":
    sys.exit(main())
