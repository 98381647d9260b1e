"""
The table that compares schemes or models: accuracy with its interval, tokens, and steps by kind.

    rows = [ComparisonRow("plain LoRA", accuracy=0.61, num_items=687), ComparisonRow("memory and reason", …)]
    print(comparison_table(rows, format="markdown"))
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path

from memreason_hf.checks import check_choice, check_int, check_number, check_sequence, check_type
from memreason_hf.evaluation.solutions.generation_files import items_of
from memreason_hf.tables import format_table


FORMATS = ("text", "markdown", "latex", "json")
_SUFFIXES = {".txt": "text", ".md": "markdown", ".tex": "latex", ".json": "json"}
# What makes a row another one; several rows may share some of these, but not all.
IDENTITY = ("name", "model", "data")
_EMPTY = {"text": "-", "markdown": "-", "latex": "--"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_"},
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$<>&])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "|": "&#124;", "$": "&#36;"}


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """
    One line of a comparison: a scheme or a model on a data set.

    Args:
        name (`str`): What is compared: a scheme, a way to prompt, or a model.
        accuracy (`float`): The share of right answers, 0 to 1.
        num_items (`int`): The number of items that `accuracy` is the mean over.
        accuracy_interval (`tuple[float, float]`, *optional*): An interval of `accuracy`, both ends 0 to 1.
        confidence (`float`, *optional*, defaults to 0.95): The confidence of the interval.
        num_tokens (`float`, *optional*): The mean number of generated tokens of a question.
        steps_by_kind (`Mapping[str, float]`, *optional*): The mean number of steps of each kind in a solution.
        model (`str`, *optional*): The model, where rows of several models are compared.
        data (`str`, *optional*): The data set, where rows of several data sets are compared.
        scores (`Mapping[str, float]`, *optional*):
            Further shares of 0 to 1, by the title of their column, for example `{"pass@8": 0.9}`.
        num_samples (`int`, *optional*, defaults to 1):
            The number of solutions of each item. `accuracy`, `num_tokens` and `steps_by_kind` are means over all.

    Raises:
        ValueError, TypeError: a value is out of its range or of another type.

    Example:

    ```python
    >>> from memreason_hf.analysis.comparison_tables import ComparisonRow, comparison_table

    >>> row = ComparisonRow(
    ...     name="memory and reason",
    ...     accuracy=0.706,
    ...     num_items=687,
    ...     accuracy_interval=(0.67, 0.74),
    ...     num_tokens=182.4,
    ...     steps_by_kind={"memory": 2.1, "reason": 1.4},
    ... )
    >>> print(comparison_table([row]))
    name               items  accuracy, %  95 % interval  tokens  memory  reason
    -----------------  -----  -----------  -------------  ------  ------  ------
    memory and reason    687         70.6   67.0 to 74.0   182.4    2.10    1.40
    ```
    """

    name: str
    accuracy: float
    num_items: int
    accuracy_interval: tuple[float, float] | None = None
    confidence: float = 0.95
    num_tokens: float | None = None
    steps_by_kind: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None
    data: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    num_samples: int = 1

    def __post_init__(self):
        check_type("name", self.name, str, "a text")
        if not self.name.strip():
            raise ValueError(f"name={self.name!r} is blank. Name what the row shows.")
        for name in ("model", "data"):
            check_type(name, getattr(self, name), str | None, "a text or None")
        check_number("accuracy", self.accuracy, 0, 1)
        check_int("num_items", self.num_items, least=1)
        check_int("num_samples", self.num_samples, least=1)
        check_number("confidence", self.confidence, above=0, below=1)
        if self.num_tokens is not None:
            check_number("num_tokens", self.num_tokens, least=0)
        for name, most in (("steps_by_kind", None), ("scores", 1)):
            values = getattr(self, name)
            check_type(name, values, Mapping, "a mapping from titles of columns to numbers")
            for key, value in values.items():
                check_type(f"a key of {name}", key, str, "a text")
                check_number(f"{name}[{key!r}]", value, 0, most)
            object.__setattr__(self, name, dict(values))
        if self.accuracy_interval is not None:
            self._check_interval()

    def _check_interval(self):
        interval = self.accuracy_interval
        check_sequence("accuracy_interval", interval, "a pair of numbers")
        ends = tuple(interval)
        if len(ends) != 2:
            raise ValueError(f"accuracy_interval={interval!r} must be a pair, the lower end first.")
        for end in ends:
            check_number("accuracy_interval", end, 0, 1)
        if ends[0] > ends[1]:
            raise ValueError(f"accuracy_interval={interval!r} must have its lower end first.")
        # A list, as JSON gives it, and a pair are the same interval.
        object.__setattr__(self, "accuracy_interval", ends)

    @classmethod
    def from_results(
        cls,
        name: str,
        results: Mapping,
        *,
        num_tokens: int | None = None,
        model: str | None = None,
        data: str | None = None,
        scores: Mapping[str, float] | None = None,
    ) -> "ComparisonRow":
        """
        The row of the results of `measure_solutions`, or of a `.summary.json` of `memreason evaluate-steps`.

        Args:
            name (`str`): What the row is called.
            results (`Mapping`):
                With `accuracy`, `accuracy_interval`, `num_items` and `steps_by_kind`, and where items have several
                solutions `num_texts` and `num_samples`.
            num_tokens (`int`, *optional*):
                The tokens of all solutions together. Default: `results["num_tokens"]`, if it is there.
            model, data, scores: As for the class.

        Raises:
            ValueError: the results lack a number.
        """
        check_type("results", results, Mapping, "the results of measure_solutions")
        missing = [key for key in ("accuracy", "num_items", "steps_by_kind") if key not in results]
        if missing:
            raise ValueError(f"The results of {name!r} lack {' and '.join(missing)}. Measure the solutions again.")
        check_int("num_items", results["num_items"], least=1)
        count = results.get("num_texts", results["num_items"])
        check_int("num_texts", count, least=1)
        total = results.get("num_tokens") if num_tokens is None else num_tokens
        return cls(
            name=name,
            accuracy=results["accuracy"],
            num_items=items_of(results),
            num_samples=results.get("num_samples", 1),
            accuracy_interval=results.get("accuracy_interval"),
            num_tokens=None if total is None else total / count,
            steps_by_kind={kind: number / count for kind, number in results["steps_by_kind"].items()},
            model=model,
            data=data,
            scores=scores or {},
        )


def comparison_table(
    rows: Iterable[ComparisonRow], format: str = "text", *, caption: str | None = None, mark_best: bool = True
) -> str:
    """
    The table of some rows, in their order. A column that is empty in all rows is left out.

    Args:
        rows (`Iterable[ComparisonRow]`): The rows.
        format (`str`, *optional*, defaults to `"text"`):
            `"text"` for a terminal, `"markdown"`, `"latex"` (a `table` with the rules of the package booktabs), or
            `"json"`: a list of objects with the fields of `ComparisonRow`, which `read_rows` reads.
        caption (`str`, *optional*): A line before the table in text and Markdown, its caption in LaTeX.
        mark_best (`bool`, *optional*, defaults to `True`):
            Print the highest accuracy of every data set and model in bold in Markdown and LaTeX, if it has several
            rows. Equal ones are all bold.

    Raises:
        ValueError: there are no rows, two rows have the same name, model and data set, or the format is unknown.
    """
    check_choice("format", format, FORMATS)
    check_sequence("rows", rows, "a list of ComparisonRow")
    rows = list(rows)
    for index, row in enumerate(rows):
        check_type(f"rows[{index}]", row, ComparisonRow, "a ComparisonRow")
    if not rows:
        raise ValueError("There are no rows to compare. Pass at least one ComparisonRow.")
    seen = set()
    for row in rows:
        identity = tuple(getattr(row, name) for name in IDENTITY)
        if identity in seen:
            shown = ", ".join(f"{name}={value!r}" for name, value in zip(IDENTITY, identity) if value is not None)
            raise ValueError(f"Two rows have {shown}. Give each row a name of its own.")
        seen.add(identity)
    if format == "json":
        return json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False, allow_nan=False)
    header, lines = _cells(rows, format, _best(rows) if mark_best else set())
    if format == "latex":
        return _latex(header, lines, caption, len(_names(rows)))
    table = format_table(header, lines) if format == "text" else _markdown(header, lines, len(_names(rows)))
    return table if caption is None else f"{_escape(caption, format)}\n\n{table}"


def table_format(path: str | PathLike) -> str:
    """
    The format of a table in a file of this name.

    Raises:
        ValueError: the suffix is none of `.txt`, `.md`, `.tex` and `.json`.

    Example:

        >>> table_format("table.tex")
        'latex'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"table={str(path)!r} must end with one of {', '.join(_SUFFIXES)}.")
    return _SUFFIXES[suffix]


def read_rows(text: str) -> list[ComparisonRow]:
    """
    The rows of a table in JSON: `read_rows(comparison_table(rows, "json")) == rows`.

    Raises:
        ValueError: the text is not such a table.
    """
    check_type("text", text, str, "a table in JSON")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"The table must be JSON ({error}).") from None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError("The table must be a list of objects with the fields of ComparisonRow.")
    known = {entry.name for entry in fields(ComparisonRow)}
    rows = []
    for index, value in enumerate(values):
        unknown = [name for name in value if name not in known]
        missing = [name for name in ("name", "accuracy", "num_items") if name not in value]
        if unknown or missing:
            what = f"lacks {', '.join(missing)}" if missing else f"has the unknown fields {', '.join(unknown)}"
            raise ValueError(f"Row {index} of the table {what}.")
        try:
            rows.append(ComparisonRow(**value))
        except (TypeError, ValueError) as error:
            raise ValueError(f"Row {index} of the table: {error}") from None
    return rows


def _names(rows: Sequence[ComparisonRow]) -> list[str]:
    """The fields that name a row, which are the first columns."""
    return [name for name in IDENTITY if any(getattr(row, name) is not None for row in rows)]


def _best(rows):
    """Indices of the rows with the highest accuracy on their data set and model, where it has several rows."""
    groups: dict[tuple, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row.model, row.data), []).append(index)
    best = set()
    for indices in groups.values():
        highest = max(rows[index].accuracy for index in indices)
        if len(indices) > 1:
            best |= {index for index in indices if rows[index].accuracy == highest}
    return best


def _cells(rows, format, best):
    names = _names(rows)
    scores = list(dict.fromkeys(title for row in rows for title in row.scores))
    counts = [row.steps_by_kind for row in rows]
    # A kind that occurs nowhere has no column.
    kinds = [kind for kind in dict.fromkeys(k for c in counts for k in c) if any(c.get(kind) for c in counts)]
    confidences = sorted({row.confidence for row in rows if row.accuracy_interval is not None})
    has_tokens = any(row.num_tokens is not None for row in rows)
    interval_title = f"{' or '.join(f'{confidence:.0%}'.replace('%', ' %') for confidence in confidences)} interval"
    has_samples = any(row.num_samples > 1 for row in rows)
    header = [
        *names,
        "items",
        *(["samples"] if has_samples else []),
        "accuracy, %",
        *([interval_title] if confidences else []),
        *(f"{title}, %" for title in scores),
        *(["tokens"] if has_tokens else []),
        *kinds,
    ]
    lines = []
    for index, row in enumerate(rows):
        line = [_escape(getattr(row, name) or "", format) or _EMPTY[format] for name in names]
        line += [f"{row.num_items:,}", *([f"{row.num_samples:,}"] if has_samples else [])]
        line += [_bold(_percent(row.accuracy), format, index in best)]
        if confidences:
            ends = row.accuracy_interval
            line.append(_EMPTY[format] if ends is None else f"{_percent(ends[0])} to {_percent(ends[1])}")
        line += [_shown(row.scores.get(title), _percent, format) for title in scores]
        if has_tokens:
            line.append(_shown(row.num_tokens, "{:.1f}".format, format))
        # Without any steps recorded, a kind is unknown and not absent.
        unknown = None if not row.steps_by_kind else 0
        line += [_shown(row.steps_by_kind.get(kind, unknown), "{:.2f}".format, format) for kind in kinds]
        lines.append(line)
    return [_escape(title, format) for title in header], lines


def _shown(value, show, format):
    return _EMPTY[format] if value is None or math.isnan(value) else show(value)


def _percent(share):
    return f"{100 * share:.1f}"


def _bold(text, format, is_bold):
    if not is_bold or format == "text":
        return text
    return f"**{text}**" if format == "markdown" else rf"\textbf{{{text}}}"


def _escape(text, format):
    """Text of a user as it stands, in one line, whatever it means in Markdown or LaTeX."""
    text = " ".join(str(text).split())
    if format == "latex":
        return "".join(_LATEX.get(character, character) for character in text)
    if format == "markdown":
        return _MARKDOWN.sub(lambda match: _ENTITIES.get(match[1], f"\\{match[1]}"), text)
    return text


def _markdown(header, lines, num_names):
    rule = [":---"] * num_names + ["---:"] * (len(header) - num_names)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def _latex(header, lines, caption, num_names):
    alignment = "l" * num_names + "r" * (len(header) - num_names)
    rows = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            *([rf"\caption{{{_escape(caption, 'latex')}}}"] if caption is not None else []),
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(header) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )
