"""The file of generated solutions: JSON lines that a killed run leaves readable, and the settings they depend on."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from memreason_hf.files import write_json


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
# Not of every model.
OPTIONAL_FIELDS = ("recurrences",)
# Beside the file: what its texts depend on, and what a command found in them.
SETTINGS_SUFFIX = ".settings.json"
SUMMARY_SUFFIX = ".summary.json"


class GenerationFile:
    """
    Reads what was generated before, and adds to it.

    A line belongs to an item by its index and its question: benchmarks repeat questions. A last line that a killed run
    left unfinished is taken off.

    Args:
        path: the file; it and its folder are made when something is added.
        questions: the questions of the items, in order.
        settings: what the texts depend on, as JSON values; kept beside the file and compared.
        overwrite: begin anew. What is there goes when the first lines are added, and not before.

    Raises:
        ValueError: the file was made with other settings.
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
        self._begins_anew = overwrite
        self._check_settings()

    def read(self) -> list[dict]:
        """
        The lines of the items, one for each: of several for the same item the last. Lines of items beyond the last
        one are left alone.

        Raises:
            ValueError: a line that is damaged, or of another data set; names the line.
        """
        if self._begins_anew or not self.path.is_file():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            # Taken off at once: what is added next must not be glued to it.
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))
        lines = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            if line.strip():
                values = self._parsed(line, number)
                if values["index"] < len(self.questions):
                    lines[values["index"]] = values
        return list(lines.values())

    def add(self, lines: Iterable[Mapping]) -> None:
        """Writes lines to the end of the file and makes sure that they are on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._begins_anew:
            for suffix in (SUMMARY_SUFFIX, "", SETTINGS_SUFFIX):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._begins_anew = False
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
                f"{self.path}, line {number}: item {index} is {question[:60]!r} there, but "
                f"{self.questions[index][:60]!r} in the data. The file was made with other data: choose another one."
            )
        return values

    def _check_settings(self):
        if self._begins_anew or self.settings is None or not self.settings_path.is_file() or not self.path.is_file():
            return
        try:
            before = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"{self.settings_path} is no JSON file. Remove it and {self.path}.") from None
        names = [*before, *(name for name in self.settings if name not in before)]
        changed = [name for name in names if before.get(name) != self.settings.get(name)]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.path} was made with {name}={before.get(name)!r}, now it is {self.settings.get(name)!r}. "
                "Choose another file, or overwrite this one."
            )


def read_generations(path: str | os.PathLike) -> dict[int, dict]:
    """
    The lines of a file by the index of their items, of several for the same item the last. The file is left as it is;
    a last line that is not finished is passed over.

    Raises:
        ValueError: a line that is damaged; names it.
    """
    whole = Path(path).read_bytes().split(b"\n")[:-1]
    lines = (_parse_line(line, path, number) for number, line in enumerate(whole, start=1) if line.strip())
    return {values["index"]: values for values in lines}


def _parse_line(line, path, number):
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: is no JSON ({error}). Remove the line or the file.") from None
    missing = [name for name in FIELDS if not isinstance(values, dict) or name not in values]
    if missing:
        raise ValueError(f"{path}, line {number}: lacks {', '.join(missing)}. Remove the line or the file.")
    if not isinstance(values["index"], int) or values["index"] < 0:
        raise ValueError(f"{path}, line {number}: index={values['index']!r} is no index. Remove the line or the file.")
    return {name: values[name] for name in (*FIELDS, *OPTIONAL_FIELDS) if name in values}
