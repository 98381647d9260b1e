"""What the forward passes return: the outputs of the library, with the number of recurrences."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


@dataclass
class RecurrentDepthModelOutput(BaseModelOutputWithPast):
    """
    `BaseModelOutputWithPast` with the number of recurrences.

    Attributes:
        num_recurrences (`torch.LongTensor` of shape `(batch,)`, or `(batch, sequence)` where every token decides for
            itself): The recurrences that each row or token took; 0 on padding.
        hidden_states (`tuple` of `torch.Tensor`, *optional*): The initial state and the state after every recurrence.
            A row that has halted repeats its last one.
        attentions (`tuple` of `torch.Tensor`, *optional*): The maps in the order in which the layers ran: prelude,
            recurrence by recurrence, coda. A row that has halted repeats the map of its last recurrence.
    """

    num_recurrences: torch.LongTensor | None = None


@dataclass
class RecurrentDepthCausalLMOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` with `num_recurrences`, as in `RecurrentDepthModelOutput`."""

    num_recurrences: torch.LongTensor | None = None


__all__ = ["RecurrentDepthCausalLMOutput", "RecurrentDepthModelOutput"]
