"""
The mask between the steps of a text, and the mask and attention functions that are registered with the library.

The library calls a registered mask function with the config of a model, but with neither the ids of the tokens nor the
cache. These belong to one forward of one model (`ForwardSteps`). They are available while that forward runs, in its
thread.
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

from memreason_hf.checks import shortened
from memreason_hf.steps.kinds import PREFIX


VARIANTS = ("own", "tokens")
# Each kernel, and the registered name of the same kernel with a mask between steps.
IMPLEMENTATIONS = {kernel: f"memreason_steps_{kernel}" for kernel in ("eager", "sdpa")}


class StepTokens:
    """
    The ids of step tokens, and the steps of texts in ids.

    A step starts at a step token that does not continue the group before it. The text before the first step is the
    question. The step of a token depends only on the tokens before it.

    Args:
        groups (`Mapping[str, Sequence[int]]`):
            The ids of every group in order, as `step_token_ids` returns them. The prefix is the group `"prefix"`.

    Raises:
        ValueError: no ids, or the same id twice.

    Example:

    ```python
    >>> import torch
    >>> tokens = StepTokens({"prefix": [7], "memory": [8], "reason": [9]})
    >>> tokens.read(torch.tensor([[1, 2, 7, 8, 3, 7, 9, 4]]))[1]
    tensor([[0, 0, 1, 1, 1, 2, 2, 2]])
    ```
    """

    def __init__(self, groups: Mapping[str, Sequence[int]]):
        self.groups = {name: list(ids) for name, ids in groups.items()}
        ids = sorted(token_id for group in self.groups.values() for token_id in group)
        if not ids:
            raise ValueError(
                f"tokens={shortened(self.groups)}: the scheme has no tokens (marks 'words' or 'none'), so its steps "
                "cannot be found in the ids. Use a scheme with tokens."
            )
        if len(set(ids)) < len(ids):
            raise ValueError(f"The groups of step tokens {self.groups} contain an id twice.")
        self.ids = torch.tensor(ids)
        prefix = self.groups.get(PREFIX, [])
        # Whether the second of two tokens continues the group of the first. The last index means: not a step token.
        self.continues = torch.zeros(len(ids) + 1, len(ids) + 1, dtype=torch.bool)
        for name, group in self.groups.items():
            chain = group if name == PREFIX else [*prefix[-1:], *group]
            for before, after in pairwise(chain):
                self.continues[ids.index(before), ids.index(after)] = True

    def read(self, ids: torch.LongTensor, real: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Finds the steps of texts.

        Args:
            ids (`torch.LongTensor` of shape `(batch, tokens)`): The texts from their start.
            real (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*):
                `False` on padding, which may be anywhere and changes nothing.

        Returns:
            Two tensors of shape `(batch, tokens)`: whether a token is a step token, and the step that it belongs to,
            0 for the question and from 1 on for the steps.
        """
        known, continues = self.ids.to(ids.device), self.continues.to(ids.device)
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
        return is_step_token, (is_step_token & ~continues[before, code]).cumsum(1)


@dataclass
class ForwardSteps:
    """
    The steps of the tokens in one forward.

    Attributes:
        owner (`object`): The hooks of the decoder that runs.
        config ([`~transformers.PreTrainedConfig`]): The config of the decoder. Its masks follow these steps.
        variant (`str`): One of `VARIANTS`.
        ids (`torch.LongTensor` of shape `(batch, tokens)`): Past and new tokens.
        is_step_token, step (`torch.Tensor` of shape `(batch, tokens)`): The results of `StepTokens.read`.
        cache ([`~transformers.Cache`], *optional*): The cache that the forward was given.
        rows (`ContextVar`, *optional*):
            The rows of the batch that are still computed, for models that drop rows on their way. `None`, or a
            variable without a value, means all rows.
        outer (`ForwardSteps`, *optional*): Those of the forward around this one.
    """

    owner: object
    config: object
    variant: str
    ids: torch.Tensor
    is_step_token: torch.Tensor
    step: torch.Tensor
    cache: object | None
    rows: ContextVar | None
    outer: "ForwardSteps | None" = None

    def mask_function(self, device):
        """A function of (row, head, place of the query, place of the key): whether the query attends to the key."""
        is_step_token, step = self.is_step_token.to(device), self.step.to(device)
        rows = None if self.rows is None else self.rows.get()
        if rows is not None:
            is_step_token, step = is_step_token[rows.to(device)], step[rows.to(device)]

        def attends(row, head, query, key):
            visible = is_step_token[row, query] | (step[row, query] == step[row, key])
            if self.variant == "tokens":
                visible = visible | is_step_token[row, key] | (step[row, key] == 0)
            return visible

        return attends

    def enter(self) -> None:
        """Makes the masks of this thread follow these steps until `leave`."""
        self.outer = _CURRENT.get()
        if self.outer is not None and self.outer.owner is self.owner:
            # An interrupted forward of the same decoder never left.
            self.outer = self.outer.outer
        _CURRENT.set(self)

    @staticmethod
    def leave(owner) -> "ForwardSteps | None":
        """Ends the forward of `owner` and returns its steps, or `None` if it has not entered."""
        current = _CURRENT.get()
        if current is None or current.owner is not owner:
            return None
        _CURRENT.set(current.outer)
        return current


_CURRENT: ContextVar[ForwardSteps | None] = ContextVar("forward_steps", default=None)


def _register(kernel, name):
    def make_mask(*args, mask_function=causal_mask_function, config=None, device="cpu", **kwargs):
        current = _CURRENT.get()
        if current is None or current.config is not config:
            raise ValueError(
                "Attention between steps needs the ids of the text, so its masks can only be made inside a forward of "
                "the model. Do not use a static cache (cache_implementation='static'), and call set_step_attention "
                "instead of setting attn_implementation to its registered name."
            )
        return ALL_MASK_ATTENTION_FUNCTIONS[kernel](
            *args,
            **{
                **kwargs,
                "mask_function": and_masks(mask_function, current.mask_function(device)),
                "allow_is_causal_skip": False,
                "config": config,
                "device": device,
            },
        )

    def attend(module, *args, **kwargs):
        # Every family defines its own eager function in the module of its attention class, without registering it.
        # The slots of a recurrent-depth model know that of their layers.
        eager = getattr(module, "eager_attention", None)
        if eager is None:
            eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if kernel == "eager" and eager is None:
            raise ValueError(f"{type(module).__name__} has no eager attention. Use attn_implementation='sdpa'.")
        return ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager)(module, *args, **kwargs)

    AttentionMaskInterface.register(name, make_mask)
    AttentionInterface.register(name, attend)


for _kernel, _name in IMPLEMENTATIONS.items():
    _register(_kernel, _name)
