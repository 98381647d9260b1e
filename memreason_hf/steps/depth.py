"""
Depth by the kind of step: recall shallowly, reason deeply, with a recurrent-depth model.

    depths = DepthByKind(tokenizer, {"memory": 2, "reason": 16}, otherwise=8)
    output = model.generate(input_ids, depth_schedule=depths, return_dict_in_generate=True)
    recurrences_by_kind(depths.kinds, output.sequences, output.num_recurrences)

A token is of the kind whose tokens last came before it, itself included; the question, and prefix tokens, which come
before the kind is told, are of none. Every row changes on its own.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from memreason_hf.steps.scheme import KINDS, PREFIX
from memreason_hf.steps.tokenization import step_token_ids


NO_KIND_YET = "none"


class StepKinds:
    """
    The kinds of the tokens of texts in ids.

    Args:
        tokens: the tokenizer that was extended, or the ids of every group, as `step_token_ids` gives them.

    Attributes:
        names: what the numbers of `read` stand for: `"none"`, then the kinds that have tokens.

    Raises:
        ValueError: a scheme whose tokens tell no kinds.
    """

    def __init__(self, tokens: PreTrainedTokenizerBase | Mapping[str, Sequence[int]]):
        groups = step_token_ids(tokens) if isinstance(tokens, PreTrainedTokenizerBase) else tokens
        self.names = [NO_KIND_YET, *(kind for kind in KINDS if groups.get(kind))]
        if len(self.names) == 1:
            raise ValueError("The scheme has no tokens for kinds of steps: nothing in the ids tells them.")
        known = dict.fromkeys(groups.get(PREFIX, ()), 0)
        known |= {token_id: number for number, kind in enumerate(self.names) for token_id in groups.get(kind, ())}
        self.ids, self.numbers = map(torch.tensor, zip(*sorted(known.items())))

    def read(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """`(batch, tokens)` ids from the start of a text -> the kind of each token, a number of `names`."""
        ids, numbers = self.ids.to(input_ids.device), self.numbers.to(input_ids.device)
        code = torch.searchsorted(ids, input_ids.contiguous()).clamp_max(len(ids) - 1)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(ids[code] == input_ids, places, -1).cummax(1).values
        return numbers[code].gather(1, last.clamp_min(0)).masked_fill(last < 0, 0)


class DepthByKind:
    """
    A `depth_schedule` for `generate`: each token's count, or the most that it takes where a criterion decides.

    Args:
        tokens: as for `StepKinds`.
        depths: recurrences by kind.
        otherwise: those of all other kinds, of the question and of prefix tokens.

    Raises:
        ValueError, TypeError: a kind without tokens, a depth that is no positive int.
    """

    def __init__(
        self,
        tokens: PreTrainedTokenizerBase | Mapping[str, Sequence[int]],
        depths: Mapping[str, int],
        otherwise: int,
    ):
        self.kinds = StepKinds(tokens)
        for name, depth in {**depths, "otherwise": otherwise}.items():
            if name not in (*self.kinds.names[1:], "otherwise"):
                raise ValueError(f"{name}={depth}: there are no tokens of kind {name!r}, only {self._known()}.")
            if isinstance(depth, bool) or not isinstance(depth, int):
                raise TypeError(f"{name}={depth!r} recurrences is no int.")
            if depth < 1:
                raise ValueError(f"{name}={depth} recurrences must be at least 1.")
        self.depths = torch.tensor([otherwise, *(depths.get(kind, otherwise) for kind in self.kinds.names[1:])])

    def __call__(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """`(batch, tokens)` ids -> recurrences of each token."""
        return self.depths.to(input_ids.device)[self.kinds.read(input_ids)]

    def _known(self):
        return ", ".join(self.kinds.names[1:])


def read_depths(text: str) -> dict[str, int]:
    """
    `"memory=2,reason=16"` -> `{"memory": 2, "reason": 16}`.

    Raises:
        ValueError: anything else.
    """
    depths = {}
    for part in text.split(","):
        kind, _, depth = part.partition("=")
        kind = kind.strip()
        if kind not in KINDS or not depth.strip().isdecimal() or kind in depths:
            raise ValueError(
                f"{part!r} in {text!r} is no depth of a kind: write, for example, memory=2,reason=16, each of "
                f"{', '.join(KINDS)} at most once."
            )
        depths[kind] = int(depth)
    return depths


def recurrences_by_kind(
    kinds: StepKinds,
    sequences: torch.LongTensor,
    num_recurrences: torch.LongTensor,
    num_tokens: Sequence[int] | None = None,
) -> list[dict[str, list[int]]]:
    """
    What generated tokens cost: a new token costs the recurrences of the position before it, and counts for its kind.

    Args:
        sequences: `(rows, tokens)`, as `generate` returns them, prompts included.
        num_recurrences: `(rows, new tokens)`, from the same output; 0 behind the end of a text, where nothing counts.
        num_tokens: how many of its new tokens count, of each row; None for all.

    Returns:
        For each row `{kind: [tokens, recurrences]}`, kinds without tokens left out.
    """
    new = num_recurrences.shape[1]
    # The position before the first new token is the last of the prompt.
    numbers = kinds.read(sequences)[:, -new - 1 : -1].tolist()
    rows = []
    for row, (of_kind, counts) in enumerate(zip(numbers, num_recurrences.tolist())):
        end = new if num_tokens is None else num_tokens[row]
        totals = {}
        for number, count in zip(of_kind[:end], counts[:end]):
            if not count:
                continue
            total = totals.setdefault(kinds.names[number], [0, 0])
            total[0] += 1
            total[1] += count
        rows.append(totals)
    return rows


def mean_recurrences_by_kind(rows: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, float]:
    """The mean recurrences of a token by kind, from what `recurrences_by_kind` gives; none first, then by `KINDS`."""
    totals = {}
    for row in rows:
        for kind, (tokens, recurrences) in row.items():
            total = totals.setdefault(kind, [0, 0])
            total[0] += tokens
            total[1] += recurrences
    order = [kind for kind in (NO_KIND_YET, *KINDS) if kind in totals]
    return {kind: totals[kind][1] / totals[kind][0] for kind in order}
