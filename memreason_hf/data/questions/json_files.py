"""The JSON files of the memory-and-reason study: read from a folder or a URL, with every item checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from memreason_hf.data.questions.options import TRUE_FALSE, find_options
from memreason_hf.data.questions.solution_texts import known_labels, labelled_step
from memreason_hf.data.questions.text import check_characters, one_line
from memreason_hf.files import parse_json, read_bytes
from memreason_hf.messages import first_few
from memreason_hf.steps import NO_KIND, QUESTION_MARKER, Step


AUTHORS_URL = (
    "https://raw.githubusercontent.com/MingyuJ666/Disentangling-Memory-and-Reasoning/"
    "1a2aa58a73bd3a7855bd9adccd198d5d702f3c3e/load_data/dataset_folder"
)
FILE_NAMES = {
    "strategy_qa": "StrategyQA_{split}_clean.json",
    "commonsense_qa": "commonsense_qa_{split}_clean_CC.json",
    "truthful_qa": "truthful_qa_{split}_clean_CC.json",
}
SPLITS = ("train", "test")

_FIELDS = ("question", "answer", "cot_steps")


@dataclass
class SourceItem:
    """
    One question of a file.

    Attributes:
        question: the question with its options, without `Question: ` before it.
        options: labels to texts; empty if the answer is a number.
        answer: a label, or a number.
        steps: the steps that have a text, in order.
        num_empty_steps: number of steps without a text, which are left out.
        num_both_kinds: number of steps with labels of both kinds.
    """

    question: str
    options: dict[str, str]
    answer: str
    steps: list[Step] = field(default_factory=list)
    num_empty_steps: int = 0
    num_both_kinds: int = 0


def read_source(name: str, source: str) -> dict[str, list[SourceItem]]:
    """
    Reads the files of one data set.

    Args:
        name: a key of `FILE_NAMES`.
        source: a folder or its URL, of any kind that fsspec reads: `https://…`, `file://…`, `hf://…`.

    Returns:
        The items of each split that has a file.

    Raises:
        FileNotFoundError: no split has a file.
        OSError: a file cannot be fetched.
        ValueError: a file is not JSON, or an item is malformed; names the file and the item.
    """
    items = {}
    names = {split: FILE_NAMES[name].format(split=split) for split in SPLITS}
    for split, file_name in names.items():
        content = _fetch(source, file_name)
        if content is not None:
            items[split] = parse_items(content, f"{source.rstrip('/')}/{file_name}", split, name)
    if not items:
        raise FileNotFoundError(
            f"source={source!r} holds neither {' nor '.join(names.values())}, so it is not the data set {name!r}. "
            "Give the folder or URL with the study's JSON files."
        )
    return items


def parse_items(content: bytes, where: str, split: str, name: str) -> list[SourceItem]:
    """
    The items of one file.

    Args:
        content: the contents of the file.
        where: the name of the file, for messages.
        split, name: the split and the data set that the file must hold.

    Raises:
        ValueError: the file is not JSON, or an item is malformed; names the file and the item.
    """
    try:
        rows = parse_json(content.decode("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{where} is not a JSON file (damaged or cut off?): {error}") from None
    if not isinstance(rows, list) or not rows:
        contents = "an empty list" if rows == [] else f"a {type(rows).__name__}"
        raise ValueError(f"{where} must hold a list of items, and holds {contents}.")
    items = []
    for index, row in enumerate(rows):
        try:
            items.append(_item(row, split, name))
        except ValueError as error:
            raise ValueError(f"{where}, item {index}: {error}") from None
    return items


def _fetch(source, file_name):
    """The bytes of a file; None if it does not exist."""
    is_http = source.startswith(("http://", "https://"))
    # Proxies are set in the environment.
    options = {"client_kwargs": {"trust_env": True}} if is_http else {}
    try:
        fs, path = url_to_fs(f"{source.rstrip('/')}/{file_name}", **options)
        return read_bytes(path) if isinstance(fs, LocalFileSystem) else fs.cat_file(path)
    except FileNotFoundError:
        return None
    except Exception as error:  # each file system has its own errors; those of aiohttp are not OSErrors
        raise OSError(f"{source}/{file_name} cannot be fetched: {type(error).__name__} {error}") from error


def _item(row, split, name):
    if not isinstance(row, Mapping):
        raise ValueError(f"must be an object with {', '.join(_FIELDS)}, got a {type(row).__name__}.")
    missing = [key for key in _FIELDS if key not in row]
    if missing:
        raise ValueError(f"lacks {first_few(missing)}; it has {first_few(list(row))}.")
    if row.get("split", split) != split:
        raise ValueError(f"split={row['split']!r}, but the file is for the split {split!r}.")
    question, steps = row["question"], row["cot_steps"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question={question!r} must be a text.")
    if not isinstance(steps, list):
        raise ValueError(f"cot_steps={steps!r} must be a list of texts.")
    for text in (question, *steps):
        check_characters(text)
    question = one_line(question.strip().removeprefix(QUESTION_MARKER))
    options = dict(TRUE_FALSE) if name == "strategy_qa" else find_options(question)
    item = SourceItem(question, options, _answer(row["answer"], options))
    for step in steps:
        _add_step(item, step)
    return item


def _answer(answer, options):
    answer = str(answer).strip() if isinstance(answer, (str, bool)) else answer
    if not options:
        raise ValueError("the question lists no options A., B., …")
    if not isinstance(answer, str) or answer not in options:
        raise ValueError(f"answer={answer!r} must be one of the options {', '.join(options)}.")
    return answer


def _add_step(item, step):
    if not isinstance(step, str):
        raise ValueError(f"the step {step!r} must be a text.")
    kinds, text = labelled_step(step)
    if not kinds:
        raise ValueError(f"the step {step[:60]!r} has no label. It must begin with {known_labels()}.")
    if not text:
        item.num_empty_steps += 1
        return
    item.num_both_kinds += len(kinds) > 1
    item.steps.append(Step(kinds.pop() if len(kinds) == 1 else NO_KIND, text))
