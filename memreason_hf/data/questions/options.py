"""The options of a question: labels and texts, read from where the question lists them."""

import re
from collections.abc import Iterable, Mapping

from memreason_hf.data.questions.text import last_visible


TRUE_FALSE = {"True": "True", "False": "False"}
YES_NO = {"Yes": "Yes", "No": "No"}
_LABEL = re.compile(r"(?<!\S)([A-Z])\.\s*")
_LIST_MARKER = re.compile(r"\b(?:Options|Answer choices):", re.IGNORECASE)
# The text before a label ends with one of these, where no marker announces the options.
_SENTENCE_ENDS = frozenset(".?!:;\u2026\"'\u201d\u2019)]")
_INITIAL = re.compile(r"\s[A-Z]")


def find_options(question: str) -> dict[str, str]:
    """
    The options that a question lists (`… A. bank B. library`), labels to texts; `{}` if it lists none.

    Labels are A, B, C, … without a gap; any other letter with a full stop (`A. A. Milne`, `the U.S.`) is text. After
    `Options:` the first occurrence of each label counts. Otherwise a label must begin a sentence, so that
    `Franklin D. Roosevelt` is text, unless fewer than two labels do.

    Example:

        >>> find_options("Who? A. George W. Bush. B. Franklin D. Roosevelt.")
        {'A': 'George W. Bush.', 'B': 'Franklin D. Roosevelt.'}
    """
    markers = list(_LIST_MARKER.finditer(question))
    start = markers[-1].end() if markers else 0
    found = list(_LABEL.finditer(question, start))
    labels = []
    if not markers:
        labels = _consecutive([match for match in found if _begins_sentence(question, match.start())])
    if len(labels) < 2:
        labels = _consecutive(found)
    if len(labels) < 2:
        return {}
    ends = [*(match.start() for match in labels[1:]), len(question)]
    return {match[1]: question[match.end() : end].strip() for match, end in zip(labels, ends)}


def _begins_sentence(text, position):
    end = last_visible(text, position)
    # An initial ("J.") does not end a sentence.
    return end >= 0 and text[end] in _SENTENCE_ENDS and not _INITIAL.match(text, max(end - 2, 0), end)


def _consecutive(matches):
    """The first A, the first B after it, and so on."""
    labels = []
    for match in matches:
        if match[1] == chr(ord("A") + len(labels)):
            labels.append(match)
    return labels


def options_column(options: Mapping[str, str]) -> list[dict[str, str]]:
    """Options as the column `options` of a data set."""
    return [{"label": label, "text": text} for label, text in options.items()]


def options_by_label(column: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The inverse of `options_column`."""
    return {option["label"]: option["text"] for option in column}
