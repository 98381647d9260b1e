"""
What a figure shows of a text: words or tokens, of all steps or of chosen ones.

    shown = show_tokens(solution, unit="word", steps="2-4,answer")
    attention_figure(shown.solution, shown.reduce(attention_map), text_length=shown.text_length)
"""

import dataclasses
import re
from dataclasses import dataclass

import numpy as np

from memreason_hf.analysis.attention_maps import AttentionMap
from memreason_hf.analysis.solution_tokens import PLAN, SolutionTokens
from memreason_hf.checks import check_choice, check_type
from memreason_hf.messages import first_few


UNITS = ("word", "token")
_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


@dataclass(frozen=True)
class ShownTokens:
    """
    The units that a figure shows.

    Attributes:
        solution: the shown units in place of tokens, with their spans; `ids` are those of their first tokens.
        starts: index of the first token of every unit of the whole text.
        kept: indices of the shown units among them.
    """

    solution: SolutionTokens
    starts: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def text_length(self) -> int:
        """Number of units of the whole text."""
        return len(self.starts)

    def weights(self, weights: np.ndarray) -> np.ndarray:
        """
        Attention between the shown units: what goes to the tokens of a word is added up, and words attend as their
        tokens do on average. In a crop the rows sum to less than 1.

        Args:
            weights: attending by attended token of the whole text, shape `(..., tokens, tokens)`.
        """
        sizes = np.diff([*self.starts, weights.shape[-1]])
        weights = np.add.reduceat(weights, self.starts, axis=-1)
        weights = np.add.reduceat(weights, self.starts, axis=-2) / sizes[:, None]
        return weights[..., self.kept, :][..., self.kept]

    def reduce(self, whole: AttentionMap) -> AttentionMap:
        """A map of the shown units."""
        return AttentionMap(whole.recurrence, self.weights(whole.weights).astype(np.float32))


def show_tokens(solution: SolutionTokens, *, unit: str = "word", steps: str | None = None) -> ShownTokens:
    """
    Chooses what a figure shows.

    Args:
        solution: the tokens of the whole text.
        unit: `"word"` joins the tokens of a word, `"token"` shows them as they are.
        steps: see `choose_spans`; None for all.

    Raises:
        ValueError: another unit, words that are not known, or steps that the text does not have.
    """
    check_choice("unit", unit, UNITS)
    starts, labels = tuple(range(len(solution))), solution.labels
    if unit == "word":
        starts, labels = solution.word_starts, solution.word_labels
        if not starts:
            raise ValueError("unit='word': the words of this text are not known. Use unit='token'.")
    spans = range(len(solution.spans)) if steps is None else choose_spans(solution, steps)
    kept, shown_spans = [], []
    for index in spans:
        span = solution.spans[index]
        own = [place for place, start in enumerate(starts) if span.start <= start < span.end]
        shown_spans.append(dataclasses.replace(span, start=len(kept), end=len(kept) + len(own)))
        kept += own
    shown = dataclasses.replace(
        solution,
        ids=tuple(solution.ids[starts[place]] for place in kept),
        labels=tuple(labels[place] for place in kept),
        spans=tuple(shown_spans),
        is_mark=tuple(solution.is_mark[starts[place]] for place in kept),
        word_starts=(),
        word_labels=(),
    )
    return ShownTokens(shown, starts, tuple(kept))


def choose_spans(solution: SolutionTokens, steps: str) -> list[int]:
    """
    The indices of the spans that a choice names, in the order of the text.

    Args:
        steps: numbers of steps, ranges of them, and kinds or `begin`, `question` and `plan`, with commas between them:
            `"2-4,answer"`.

    Raises:
        ValueError: the choice has another form, or names what the text does not have.

    Example:

    ```python
    choose_spans(solution, "question,1-2")
    ```
    """
    check_type("steps", steps, str, "a text such as 2-4,answer")
    numbers = {span.number: i for i, span in enumerate(solution.spans) if span.number and span.kind != PLAN}
    kinds = list(dict.fromkeys(span.kind for span in solution.spans))
    chosen = set()
    for entry in steps.split(","):
        name, match = entry.strip(), _RANGE.fullmatch(entry.strip())
        if match is None:
            own = {index for index, span in enumerate(solution.spans) if span.kind == name}
        else:
            own = {numbers.get(number) for number in range(int(match[1]), int(match[2] or match[1]) + 1)}
        if not own or None in own:
            raise ValueError(
                f"steps={steps!r}: the text has no {name!r}. It has the steps {_numbers(numbers)} and the kinds "
                f"{first_few(kinds, 12)}. Write, for example, 1-2,answer."
            )
        chosen |= own
    return sorted(chosen)


def _numbers(numbers):
    return "none" if not numbers else f"{min(numbers)} to {max(numbers)}"
