"""
Who sees whom between the steps of a text, and the library's mask and attention functions that ask for it.

The library calls a registered mask function with the config of a model and no more: neither the ids of the tokens nor
the cache. What it needs to know besides belongs to one forward of one model (`Sight`), and is there as long as that
forward runs, in the thread where it runs.
"""

import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    AttentionMaskInterface,
    and_masks,
    causal_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from memreason_hf.steps.scheme import PREFIX


VARIANTS = ("own", "tokens")
# What computes the attention, and the name under which the same with a mask between steps is registered.
IMPLEMENTATIONS = {kernel: f"memreason_steps_{kernel}" for kernel in ("eager", "sdpa")}


class StepTokens:
    """
    The ids that mark steps, and the steps of texts in ids.

    A step starts at a step token that does not go on with the group before it; what stands before the first step is
    the question. A token's step depends on the tokens before it alone.

    Args:
        groups: the ids of every group in order, the prefix under `"prefix"`, as `step_token_ids` gives them.

    Raises:
        ValueError: no ids, or an id twice.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]]):
        self.groups = {name: list(ids) for name, ids in groups.items()}
        ids = sorted(token_id for group in self.groups.values() for token_id in group)
        if not ids:
            raise ValueError("The scheme has no tokens (marks 'words' or 'none'): nothing in the ids tells its steps.")
        if len(set(ids)) < len(ids):
            raise ValueError(f"The groups of step tokens {self.groups} hold an id twice.")
        self.ids = torch.tensor(ids)
        prefix = self.groups.get(PREFIX, [])
        # Of every pair of step tokens, and of no step token as the last: whether the second goes on with the first.
        self.goes_on = torch.zeros(len(ids) + 1, len(ids) + 1, dtype=torch.bool)
        for name, group in self.groups.items():
            chain = group if name == PREFIX else [*prefix[-1:], *group]
            for before, after in pairwise(chain):
                self.goes_on[ids.index(before), ids.index(after)] = True

    def read(self, ids: torch.LongTensor, real: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            ids: `(batch, tokens)`, from the start of the text.
            real: `(batch, tokens)`, False on padding, which changes nothing wherever it stands; None without padding.

        Returns:
            Which are step tokens, `(batch, tokens)` and bool, and the step that each token belongs to, `(batch,
            tokens)`: 0 for the question, then counted from 1.
        """
        known, goes_on = self.ids.to(ids.device), self.goes_on.to(ids.device)
        none = len(known)
        code = torch.searchsorted(known, ids.contiguous()).clamp_max(none - 1)
        code = torch.where(known[code] == ids, code, none)
        before = torch.nn.functional.pad(code[:, :-1], (1, 0), value=none)
        if real is not None:
            code = torch.where(real, code, none)
            places = torch.arange(ids.shape[1], device=ids.device)
            last = torch.where(real, places, -1).cummax(1).values
            last = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
            before = torch.where(last < 0, none, code.gather(1, last.clamp_min(0)))
        is_step_token = code < none
        return is_step_token, (is_step_token & ~goes_on[before, code]).cumsum(1)


@dataclass
class Sight:
    """
    Who sees whom in one forward, beside the causal mask and padding.

    Attributes:
        owner, config: whose forward it is; the masks of that config's model are made by it.
        variant: one of `VARIANTS`.
        ids: `(batch, tokens)`, past and new ones.
        is_step_token, step: those of `StepTokens.read`.
        cache: what the forward was given for its past, if anything.
        rows: holds the rows of the batch that are still computed, for models that drop some on their way; None
            without a value stands for all.
        outer: of the forward around this one, if there is one.
    """

    owner: object
    config: object
    variant: str
    ids: torch.Tensor
    is_step_token: torch.Tensor
    step: torch.Tensor
    cache: object | None
    rows: ContextVar | None
    outer: "Sight | None" = None

    def mask_function(self, device):
        """`(row, head, place of the query, place of the key)` -> whether it is seen; broadcasts."""
        is_step_token, step = self.is_step_token.to(device), self.step.to(device)
        rows = None if self.rows is None else self.rows.get()
        if rows is not None:
            is_step_token, step = is_step_token[rows.to(device)], step[rows.to(device)]

        def is_seen(row, head, query, key):
            seen = is_step_token[row, query] | (step[row, query] == step[row, key])
            if self.variant == "tokens":
                seen = seen | is_step_token[row, key] | (step[row, key] == 0)
            return seen

        return is_seen

    def enter(self) -> None:
        """From now on masks are made by it, in this thread."""
        self.outer = _SIGHT.get()
        if self.outer is not None and self.outer.owner is self.owner:
            # Left by a forward that was interrupted.
            self.outer = self.outer.outer
        _SIGHT.set(self)

    @staticmethod
    def leave(owner) -> "Sight | None":
        """Ends and returns the sight of `owner`'s forward; None if it has not entered."""
        sight = _SIGHT.get()
        if sight is None or sight.owner is not owner:
            return None
        _SIGHT.set(sight.outer)
        return sight


_SIGHT: ContextVar[Sight | None] = ContextVar("sight", default=None)


def _register(kernel, name):
    def make_mask(*args, mask_function=causal_mask_function, config=None, device="cpu", **kwargs):
        sight = _SIGHT.get()
        if sight is None or sight.config is not config:
            raise ValueError(
                "Attention between steps needs the ids of the text, which only a forward of the model has: masks "
                "cannot be made outside of it. Do not use a static cache (cache_implementation='static'), and set "
                "attention by set_step_attention, not by its implementation's name."
            )
        return ALL_MASK_ATTENTION_FUNCTIONS[kernel](
            *args,
            **{
                **kwargs,
                "mask_function": and_masks(mask_function, sight.mask_function(device)),
                "allow_is_causal_skip": False,
                "config": config,
                "device": device,
            },
        )

    def attend(module, *args, **kwargs):
        # Every family has an eager function of its own, beside its attention module; it is registered nowhere.
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if kernel == "eager" and eager is None:
            raise ValueError(
                f"{type(module).__name__} has no eager attention of its own: use attn_implementation='sdpa'."
            )
        return ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager)(module, *args, **kwargs)

    AttentionMaskInterface.register(name, make_mask)
    AttentionInterface.register(name, attend)


for _kernel, _name in IMPLEMENTATIONS.items():
    _register(_kernel, _name)
