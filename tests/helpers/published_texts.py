"""The authors' generated texts, and which item of a data set each of them answers."""

from collections.abc import Sequence

from memreason_hf.evaluation.solutions.text_files import match_questions


def match_items(texts: Sequence[str], questions: Sequence[str]) -> list[int]:
    """`match_questions` for questions alone, of which no two are the same item."""
    return match_questions(texts, [{"question": question, "answer": item} for item, question in enumerate(questions)])
