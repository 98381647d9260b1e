"""Demonstrations: solved questions to put before a question, the same ones for the same question and seed."""

import random

from datasets import Dataset

from memreason_hf.checks import check_int, check_row, check_sequence, check_type
from memreason_hf.data.questions.memory_reason import reference_solution
from memreason_hf.steps import Step


class Demonstrations:
    """
    Draws demonstrations from the items of a data set that have steps. A question is never its own demonstration.

    Args:
        dataset: a split of annotated questions, usually the training split.
        num_demonstrations: number of demonstrations for each question.
        seed: decides, together with the question, which ones are drawn.

    Raises:
        ValueError: the number is negative, or not below the number of distinct questions with steps.

    Example:

    ```python
    demonstrations = Demonstrations(dataset["train"], num_demonstrations=4)
    prompt = encode_prompt(tokenizer, question, demonstrations(question))
    ```
    """

    def __init__(self, dataset: Dataset, num_demonstrations: int, *, seed: int = 0):
        # Each question once. Otherwise a repeated question could be drawn twice, or leave one demonstration too few.
        check_sequence("dataset", dataset, "a split of annotated questions")
        check_int("num_demonstrations", num_demonstrations)
        check_int("seed", seed)
        for row in dataset:
            check_row("row", row, ("question", "steps", "answer"))
            break
        rows = {row["question"]: row for row in dataset if row["steps"]} if num_demonstrations else {}
        if num_demonstrations < 0 or num_demonstrations > max(len(rows) - 1, 0):
            raise ValueError(
                f"num_demonstrations={num_demonstrations} must be between 0 and {max(len(rows) - 1, 0)}, one less "
                "than the number of questions with steps."
            )
        self.num_demonstrations = num_demonstrations
        self.seed = seed
        self.pool = [(row["question"], reference_solution(row)) for row in rows.values()]

    def __call__(self, question: str) -> list[tuple[str, list[Step]]]:
        """Pairs of a question and its solution, the answer last; none of them is `question`."""
        check_type("question", question, str, "a text")
        if not self.num_demonstrations:
            return []
        generator = random.Random(f"{self.seed}:{question}")
        drawn = generator.sample(self.pool, self.num_demonstrations + 1)
        return [pair for pair in drawn if pair[0] != question][: self.num_demonstrations]
