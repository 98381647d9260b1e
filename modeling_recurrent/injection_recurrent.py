"""How the input of the loop enters the state again before a recurrence."""

import torch
from torch import nn
from transformers import initialization as init


class RecurrentDepthInjection(nn.Linear):
    """Linear adapter over state and input, for `input_injection="concat"`."""

    def __init__(self, hidden_size: int):
        super().__init__(2 * hidden_size, hidden_size, bias=False)

    def start(self, config) -> None:
        """The adapter starts as the sum of its two inputs."""
        init.copy_(self.weight, torch.eye(self.out_features).repeat(1, 2))


class RecurrentDepthGate(nn.Module):
    """
    A gate for each channel between the input of the loop and its state, for `input_injection="gate"`:
    `input + gate * (state - input)`.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, state: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        # Exact at 0 and at 1, where `input + gate * (state - input)` is rounded.
        return torch.lerp(inputs, state, self.weight.to(state.dtype))

    def start(self, config) -> None:
        init.constant_(self.weight, config.injection_gate_init)


INJECTIONS = {"concat": RecurrentDepthInjection, "gate": RecurrentDepthGate}


__all__ = ["INJECTIONS", "RecurrentDepthGate", "RecurrentDepthInjection"]
