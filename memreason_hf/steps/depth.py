"""
Depth by the kind of a step: a recurrent-depth model recalls with few recurrences and reasons with many.

    depths = DepthByKind(tokenizer, {"memory": 2, "reason": 16}, otherwise=8)
    output = model.generate(input_ids, depth_schedule=depths, return_dict_in_generate=True)
    recurrences_by_kind(depths.kinds, output.sequences, output.num_recurrences)

A token has the kind of the last step token up to and including itself. The question has no kind, and neither have
prefix tokens, which come before the token of the kind. Each row changes its depth on its own.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from memreason_hf.checks import check_type
from memreason_hf.steps.kinds import PREFIX, is_kind, is_random_group, kind_order
from memreason_hf.steps.tokenization import token_groups


NO_KIND_YET = "none"


class StepKinds:
    """
    Finds the kinds of the tokens of texts in ids.

    Args:
        tokens ([`~transformers.PreTrainedTokenizerBase`] or `Mapping`):
            The extended tokenizer, or the ids of every group, as `step_token_ids` returns them.

    Attributes:
        names (`list[str]`):
            What the numbers of `read` stand for: `"none"`, then the kinds that have tokens, answer and step last.

    Raises:
        ValueError: the scheme has no tokens for kinds.

    Example:

    ```python
    >>> import torch
    >>> kinds = StepKinds({"memory": [8], "reason": [9]})
    >>> [kinds.names[number] for number in kinds.read(torch.tensor([[1, 8, 2, 9]]))[0]]
    ['none', 'memory', 'memory', 'reason']
    ```
    """

    def __init__(self, tokens: PreTrainedTokenizerBase | Mapping[str, Sequence[int]]):
        groups = token_groups(tokens)
        # Groups of random marks say nothing about kinds.
        kinds = [name for name, ids in groups.items() if ids and name != PREFIX and not is_random_group(name)]
        self.names = [NO_KIND_YET, *kind_order(kinds)]
        if len(self.names) == 1:
            raise ValueError("The scheme has no tokens for kinds of steps, so the ids do not show them.")
        known = dict.fromkeys(groups.get(PREFIX, ()), 0)
        known |= {token_id: number for number, kind in enumerate(self.names) for token_id in groups.get(kind, ())}
        self.ids, self.numbers = map(torch.tensor, zip(*sorted(known.items())))

    def read(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """
        The kind of each token.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, tokens)`): Texts from their start.

        Returns:
            `torch.LongTensor` of shape `(batch, tokens)`, indices of `names`.
        """
        ids, numbers = self.ids.to(input_ids.device), self.numbers.to(input_ids.device)
        code = torch.searchsorted(ids, input_ids.contiguous()).clamp_max(len(ids) - 1)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = torch.where(ids[code] == input_ids, places, -1).cummax(1).values
        return numbers[code].gather(1, last.clamp_min(0)).masked_fill(last < 0, 0)


class DepthByKind:
    """
    A `depth_schedule` for `generate`: the number of recurrences of each token, or the most of them where a halting
    criterion decides.

    Args:
        tokens ([`~transformers.PreTrainedTokenizerBase`] or `Mapping`): As for `StepKinds`.
        depths (`Mapping[str, int]`): The recurrences of each kind.
        otherwise (`int`): The recurrences of all other kinds, of the question and of prefix tokens.

    Raises:
        ValueError, TypeError: a kind without tokens, or a depth that is not a positive int.
    """

    def __init__(
        self,
        tokens: PreTrainedTokenizerBase | Mapping[str, Sequence[int]],
        depths: Mapping[str, int],
        otherwise: int,
    ):
        check_type("depths", depths, Mapping, "a mapping from kinds to numbers of recurrences")
        self.kinds = StepKinds(tokens)
        for name, depth in {**depths, "otherwise": otherwise}.items():
            if name not in (*self.kinds.names[1:], "otherwise"):
                kinds = ", ".join(self.kinds.names[1:])
                raise ValueError(f"{name}={depth}: the scheme has no tokens of kind {name!r}, only of {kinds}.")
            if isinstance(depth, bool) or not isinstance(depth, int):
                raise TypeError(f"{name}={depth!r} must be an int, the number of recurrences.")
            if depth < 1:
                raise ValueError(f"{name}={depth} must be at least 1.")
        self.depths = torch.tensor([otherwise, *(depths.get(kind, otherwise) for kind in self.kinds.names[1:])])

    def __call__(self, input_ids: torch.LongTensor) -> torch.LongTensor:
        """The recurrences of each token of `input_ids`; both have the shape `(batch, tokens)`."""
        return self.depths.to(input_ids.device)[self.kinds.read(input_ids)]


def read_depths(text: str) -> dict[str, int]:
    """
    Reads depths of kinds from a flag.

    Args:
        text (`str`): For example `"memory=2,reason=16"`. `DepthByKind` checks which kinds a scheme has.

    Raises:
        ValueError: the text has another form.

    Example:

    ```python
    >>> read_depths("memory=2,reason=16")
    {'memory': 2, 'reason': 16}
    ```
    """
    depths = {}
    for part in text.split(","):
        kind, _, depth = part.partition("=")
        kind = kind.strip()
        if not is_kind(kind) or not depth.strip().isdecimal() or kind in depths:
            raise ValueError(
                f"{part!r} in {text!r} is not the depth of a kind. Write, for example, memory=2,reason=16, each kind "
                "at most once."
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
    The recurrences of generated tokens by kind.

    A new token takes the recurrences of the position before it, and counts for the kind of that position.

    Args:
        kinds (`StepKinds`): Finds the kinds of tokens.
        sequences (`torch.LongTensor` of shape `(rows, tokens)`): What `generate` returned, prompts included.
        num_recurrences (`torch.LongTensor` of shape `(rows, new tokens)`):
            From the same output. It is 0 after the end of a text, where nothing counts.
        num_tokens (`Sequence[int]`, *optional*): How many new tokens of each row count. Default: all of them.

    Returns:
        `list[dict[str, list[int]]]`: for each row `{kind: [tokens, recurrences]}`, without kinds that have no tokens.
    """
    new = num_recurrences.shape[1]
    # The position before the first new token is the last one of the prompt.
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
    """The mean recurrences of a token by kind, over the rows of `recurrences_by_kind`. `"none"` is the first kind."""
    totals = {}
    for row in rows:
        for kind, (tokens, recurrences) in row.items():
            total = totals.setdefault(kind, [0, 0])
            total[0] += tokens
            total[1] += recurrences
    order = sorted(kind_order(totals), key=lambda kind: kind != NO_KIND_YET)
    return {kind: totals[kind][1] / totals[kind][0] for kind in order}
