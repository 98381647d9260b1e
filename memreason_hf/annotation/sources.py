"""The questions that the study annotated, from where they were published: rows of the Hub as rows of the schema."""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from datasets import Dataset, DatasetDict, NamedSplit

from memreason_hf.checks import check_choice
from memreason_hf.data.questions.own_files import read_raw
from memreason_hf.data.questions.own_rows import read_row
from memreason_hf.data.questions.schema import FEATURES
from memreason_hf.messages import first_few


@dataclass(frozen=True)
class QuestionSource:
    """
    A published set of questions.

    Args:
        hub_name, config: its name and configuration on the Hub.
        answer_type: of its answers.
        read: makes a row with `question`, `options` and `answer` of a row of the set; raises KeyError where a column
            is missing.
    """

    hub_name: str
    config: str | None
    answer_type: str
    read: Callable[[Mapping], dict]


def _strategy_qa(row):
    return {"question": row["question"], "answer": row["answer"]}


def _commonsense_qa(row):
    return {"question": row["question"], "options": row["choices"], "answer": row["answerKey"]}


def _mmlu_pro(row):
    return {"question": row["question"], "options": row["options"], "answer": row["answer"]}


def _truthful_qa(row):
    """The right answer comes first in the source, so that the options are put into an order of the question's own."""
    choices = list(zip(row["mc1_targets"]["choices"], row["mc1_targets"]["labels"], strict=True))
    digest = hashlib.sha256(row["question"].encode()).digest()
    random.Random(int.from_bytes(digest[:8])).shuffle(choices)
    right = [index for index, (_, label) in enumerate(choices) if label == 1]
    if len(right) != 1:
        raise ValueError(f"mc1_targets has {len(right)} right answers, and must have one.")
    return {"question": row["question"], "options": [text for text, _ in choices], "answer": right[0]}


SOURCES: dict[str, QuestionSource] = {
    "strategy_qa": QuestionSource("ChilleD/StrategyQA", None, "true_false", _strategy_qa),
    "commonsense_qa": QuestionSource("tau/commonsense_qa", None, "letters", _commonsense_qa),
    "truthful_qa": QuestionSource("truthfulqa/truthful_qa", "multiple_choice", "letters", _truthful_qa),
    "mmlu_pro": QuestionSource("TIGER-Lab/MMLU-Pro", None, "letters", _mmlu_pro),
}


def load_source(
    name: str, data: str | None = None, *, split: str | None = None, revision: str | None = None
) -> DatasetDict:
    """
    Loads a published set of questions with the columns of `load_questions`, without steps.

    Args:
        name: one of `SOURCES`.
        data: a copy of its rows: a file (`.jsonl`, `.json`, `.parquet`) or a folder. None: the Hub.
        split: the only split to read. The test split of CommonsenseQA has no answers, and cannot be read.
        revision: a branch, tag or commit, for the Hub.

    Raises:
        ValueError: rows lack a column or an answer; the first of them are named.
        OSError: the source cannot be fetched.
    """
    check_choice("source", name, SOURCES)
    source = SOURCES[name]
    if data is None:
        raw = read_raw(source.hub_name, source.config, split=split, revision=revision)
    else:
        raw = read_raw(data, split=split, revision=revision)
    splits = {}
    for part, pieces in raw.items():
        rows, problems = [], []
        for piece in pieces:
            for place, row in piece.rows:
                try:
                    rows.append(_row(source, row))
                except (ValueError, TypeError) as error:
                    problems.append(f"{piece.where}, {piece.unit} {place}: {error}")
        if problems:
            listed = first_few([problem.rstrip(".") for problem in problems], 3)
            total = len(rows) + len(problems)
            raise ValueError(
                f"source={name!r}: {len(problems):,} of {total:,} rows of split {part} cannot be used: {listed}."
            )
        splits[part] = Dataset.from_list(rows, features=FEATURES, split=NamedSplit(part))
    return DatasetDict(splits)


def _row(source, row):
    if isinstance(row, ValueError):
        raise row
    try:
        values = source.read(row)
    except (KeyError, TypeError) as error:
        raise ValueError(f"lacks {error}; it has {', '.join(map(str, row))}") from None
    return read_row(values).finished(source.answer_type)
