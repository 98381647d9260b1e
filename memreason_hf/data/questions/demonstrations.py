"""Solved questions to put in front of a question: k demonstrations, the same for the same question and seed."""

import random

from datasets import Dataset

from memreason_hf.data.questions.memory_reason import reference_solution
from memreason_hf.steps import Step


class Demonstrations:
    """
    Draws demonstrations from the items of a data set that have steps.

    Args:
        dataset: a split of annotated questions, the training split as a rule.
        num_demonstrations: how many for each question.
        seed: with the question it decides which ones.

    Raises:
        ValueError: a negative number, or more than the data set has (one is kept back: a question is never its own
            demonstration).
    """

    def __init__(self, dataset: Dataset, num_demonstrations: int, *, seed: int = 0):
        # Each question once: a second copy of it would be drawn beside it, or left out beside it.
        rows = {row["question"]: row for row in dataset if row["steps"]} if num_demonstrations else {}
        if num_demonstrations < 0 or num_demonstrations > max(len(rows) - 1, 0):
            raise ValueError(
                f"num_demonstrations={num_demonstrations} must be between 0 and {max(len(rows) - 1, 0)}, one less "
                "than the questions with steps."
            )
        self.num_demonstrations = num_demonstrations
        self.seed = seed
        self.pool = [(row["question"], reference_solution(row)) for row in rows.values()]

    def __call__(self, question: str) -> list[tuple[str, list[Step]]]:
        """Pairs of a question and its solution, the answer last; none of them is `question`."""
        if not self.num_demonstrations:
            return []
        generator = random.Random(f"{self.seed}:{question}")
        drawn = generator.sample(self.pool, self.num_demonstrations + 1)
        return [pair for pair in drawn if pair[0] != question][: self.num_demonstrations]
