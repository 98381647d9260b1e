"""The file of generated solutions: JSON lines that a kill leaves readable, and the settings that they depend on."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from memreason_hf.checks import shortened
from memreason_hf.files import parse_json, read_bytes, read_json, write_json


FIELDS = (
    "index",
    "question",
    "text",
    "steps",
    "verdict",
    "answer",
    "reference",
    "is_truncated",
    "is_cut",
    "num_tokens",
)
# Not every run has these: the recurrences of a recurrent model, the number of a text of which there are several, and
# what a judge of answers said.
OPTIONAL_FIELDS = ("recurrences", "sample", "answer_judge")
# Files next to it: what its texts depend on, and a command's summary of them.
SETTINGS_SUFFIX = ".settings.json"
SUMMARY_SUFFIX = ".summary.json"


class GenerationFile:
    """
    Reads the solutions that a file holds, and adds others.

    A line belongs to an item by its index and its question, because benchmarks repeat questions; where an item has
    several texts, a line also has the number of its sample. An unfinished last
    line, which a killed run leaves, is removed.

    Args:
        path: the file; it and its folder are created when something is added.
        questions: the questions of the items, in order.
        settings: what the texts depend on, as JSON values; written next to the file, and compared with it later.
        overwrite: whether to start again. The old contents are deleted when the first lines are added.

    Raises:
        ValueError: the file was written with other settings.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        questions: Sequence[str],
        settings: Mapping | None = None,
        *,
        overwrite: bool = False,
    ):
        self.path = Path(path)
        self.questions = list(questions)
        self.settings_path = self.path.with_name(self.path.name + SETTINGS_SUFFIX)
        self.settings = None if settings is None else json.loads(json.dumps(dict(settings)))
        self._starts_again = overwrite
        self._check_settings()

    def read(self) -> list[dict]:
        """
        The last line of every item, or of every sample of it, that the file holds. Lines of items beyond `questions`
        are ignored.

        Raises:
            ValueError: a line is damaged, or belongs to another data set; names the line.
        """
        if self._starts_again or not self.path.is_file():
            return []
        whole, unfinished = _split_unfinished(self.path)
        if unfinished:
            # Removed at once, because the next line would be appended to it.
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        lines = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            if line.strip():
                values = self._parsed(line, number)
                if values["index"] < len(self.questions):
                    lines[values["index"], values.get("sample")] = values
        return list(lines.values())

    def add(self, lines: Iterable[Mapping]) -> None:
        """Appends lines to the file, and syncs them to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._starts_again:
            for suffix in (SUMMARY_SUFFIX, "", SETTINGS_SUFFIX):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._starts_again = False
        if self.settings is not None and not self.path.is_file():
            write_json(self.settings_path, self.settings)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with open(self.path, "ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _parsed(self, line, number):
        values = _parse_line(line, self.path, number)
        index, question = values["index"], values["question"]
        if index < len(self.questions) and self.questions[index] != question:
            raise ValueError(
                f"{self.path}, line {number}: item {index} is {question[:60]!r} in the file, but "
                f"{self.questions[index][:60]!r} in the data. The file holds solutions of other data. Choose another "
                "file."
            )
        return values

    def _check_settings(self):
        if self._starts_again or self.settings is None or not self.path.is_file():
            return
        if not self.settings_path.is_file():
            if os.path.lexists(self.settings_path):
                raise OSError(f"{self.settings_path} must be a file. Remove it, and {self.path}.")
            return
        try:
            before = read_json(self.settings_path)
        except ValueError as error:
            raise ValueError(f"{error} Remove the file, and {self.path}.") from None
        if not isinstance(before, dict):
            raise ValueError(f"{self.settings_path} must hold an object. Remove the file, and {self.path}.")
        names = [*before, *(name for name in self.settings if name not in before)]
        changed = [name for name in names if before.get(name) != self.settings.get(name)]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.path} was written with {name}={before.get(name)!r}, now it is {self.settings.get(name)!r}. "
                "Choose another file, or overwrite this one."
            )


def items_of(results: Mapping) -> int:
    """The number of items behind some results. Summaries of earlier releases count the texts as `num_items`."""
    return results["num_items"] if "num_texts" in results else results["num_items"] // results.get("num_samples", 1)


def read_generations(path: str | os.PathLike, sample: int = 0) -> dict[int, dict]:
    """
    The last line of every item that a file holds, by the index of the item. The file is not changed; an unfinished
    last line is ignored.

    Args:
        path: the file.
        sample: the number of the text to read where an item has several, from 0.

    Raises:
        ValueError: a line is damaged; names the line.
    """
    whole, _ = _split_unfinished(path)
    whole = whole.split(b"\n")
    lines = (_parse_line(line, path, number) for number, line in enumerate(whole, start=1) if line.strip())
    return {values["index"]: values for values in lines if values.get("sample") in (None, sample)}


def _split_unfinished(path):
    """The whole lines of a file, and the line that a killed run began to write at its end."""
    content = read_bytes(path)
    end = content.rfind(b"\n") + 1
    whole, unfinished = content[:end], content[end:]
    # Anything but the beginning of a line of ours belongs to somebody else.
    start = b'{"index":'
    if unfinished and not unfinished.startswith(start[: len(unfinished)]):
        raise ValueError(
            f"{path} must hold JSON lines of generated solutions, but ends with {shortened(unfinished[:20])}. Choose "
            "another file."
        )
    return whole, unfinished


def _parse_line(line, path, number):
    try:
        values = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error}). Remove the line or the file.") from None
    missing = [name for name in FIELDS if not isinstance(values, dict) or name not in values]
    if missing:
        raise ValueError(f"{path}, line {number}: lacks {', '.join(missing)}. Remove the line or the file.")
    if not isinstance(values["index"], int) or values["index"] < 0:
        raise ValueError(
            f"{path}, line {number}: index={values['index']!r} must be at least 0. Remove the line or the file."
        )
    return {name: values[name] for name in (*FIELDS, *OPTIONAL_FIELDS) if name in values}
