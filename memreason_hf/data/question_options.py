"""The options of a question: labels and texts, read from where the question lists them."""

import re
from collections.abc import Iterable, Mapping


TRUE_FALSE = {"True": "True", "False": "False"}
_LABEL = re.compile(r"(?<!\S)([A-Z])\.\s*")
_LIST_MARKER = re.compile(r"\b(?:Options|Answer choices):", re.IGNORECASE)
# What the text before a label ends with, where no marker tells that options follow; an initial ("J.") ends nothing.
_SENTENCE_END = re.compile("(?<!\\s[A-Z])[.?!:;\u2026\"'\u201d\u2019)\\]]\\s*\\Z")


def find_options(question: str) -> dict[str, str]:
    """
    The options that a question lists: `… A. bank B. library`, labels to texts, `{}` if there are none.

    Labels run A, B, C, … without a gap; every other letter with a full stop (`A. A. Milne`, `the U.S.`) is text. After
    `Options:` each label counts where it first comes; elsewhere it should begin a sentence.
    """
    markers = list(_LIST_MARKER.finditer(question))
    start = markers[-1].end() if markers else 0
    labels = []
    while True:
        expected = chr(ord("A") + len(labels))
        position = labels[-1].end() if labels else start
        candidates = [match for match in _LABEL.finditer(question, position) if match[1] == expected]
        if not markers:
            candidates = [m for m in candidates if _SENTENCE_END.search(question[: m.start()])] or candidates
        if not candidates or expected > "Z":
            break
        labels.append(candidates[0])
    if len(labels) < 2:
        return {}
    ends = [*(match.start() for match in labels[1:]), len(question)]
    return {match[1]: question[match.end() : end].strip() for match, end in zip(labels, ends)}


def options_column(options: Mapping[str, str]) -> list[dict[str, str]]:
    """Options as a row of a data set holds them."""
    return [{"label": label, "text": text} for label, text in options.items()]


def options_by_label(column: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The inverse of `options_column`."""
    return {option["label"]: option["text"] for option in column}
