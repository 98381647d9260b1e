"""The authors' generated texts, and which item of a data set each of them answers."""

from collections.abc import Sequence

from paths import PUBLISHED, QUESTIONS

from memreason_hf.data.questions.memory_reason import build_memory_reason
from memreason_hf.data.questions.options import options_by_label
from memreason_hf.evaluation.solutions.answers import judge_answer, read_published
from memreason_hf.evaluation.solutions.text_files import match_questions


# The data set of each file, and how many items it has, how many of them are right by the authors' verdicts, and how
# many have no answer.
VERDICTS = {
    "stratgeqa_agent_llama-2-7b-chat.json": ("strategy_qa", 686, 485, 1),
    "commonsenseqa_agent_llama-2-7b-chat.json": ("commonsense_qa", 1200, 858, 0),
    "truthfulqa_agent_llama-2-7b-chat.json": ("truthful_qa", 164, 127, 1),
}


def match_items(texts: Sequence[str], questions: Sequence[str]) -> list[int]:
    """`match_questions` for questions alone, of which no two are the same item."""
    return match_questions(texts, [{"question": question, "answer": item} for item, question in enumerate(questions)])


def judge_published(name, **kwargs):
    """The rows, our verdicts and the published ones of a file of `VERDICTS`, item by item."""
    texts, published = read_published(PUBLISHED / name)
    test = build_memory_reason(VERDICTS[name][0], str(QUESTIONS)).dataset["test"]
    rows = [test[item] for item in match_items(texts, test["question"][:])]
    verdicts = [
        judge_answer(text, row["answer"], options_by_label(row["options"]), question=row["question"], **kwargs)
        for text, row in zip(texts, rows)
    ]
    return rows, verdicts, published
