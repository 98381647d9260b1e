"""The authors' generated texts, and which item of a data set each of them answers."""

from collections.abc import Sequence

from memreason_hf.steps import QUESTION_MARKER


def match_items(texts: Sequence[str], questions: Sequence[str]) -> list[int]:
    """
    The item of each text: the one whose question starts it, apart from white space and a `Question: ` before it.

    Returns:
        An index into `questions` for each text.

    Raises:
        ValueError: a text starts with the question of no item, or of several; names the index of the text.
    """
    items = {}
    for item, question in enumerate(questions):
        items.setdefault(_key(question), []).append(item)
    lengths = sorted({len(key) for key in items})
    matched = []
    for index, text in enumerate(texts):
        key = _key(text)
        matches = [item for length in lengths if length <= len(key) for item in items.get(key[:length], ())]
        if len(matches) != 1:
            what = "no question" if not matches else f"the questions of the items {', '.join(map(str, matches))}"
            raise ValueError(f"Text {index}, {text[:80]!r}, begins with {what} of the {len(questions)} items.")
        matched += matches
    return matched


def _key(text):
    return "".join(text.split()).removeprefix(QUESTION_MARKER.strip())
