"""Notices in `generate` that the logits of the model are no numbers."""

import math

import torch
from transformers.generation import LogitsProcessor


# On a GPU the host would wait for the device at each look. The library itself waits once a token.
TOKENS_BETWEEN_LOOKS = 32


class FiniteLogits(LogitsProcessor):
    """
    Raises an error where logits are NaN or infinite, which decoding would take for token 0, or for a failed assertion
    on a GPU.

    It is the first processor, so that it sees the logits of the model. One reduction over them a token decides. On a
    CPU each token is looked at; on a GPU one in `TOKENS_BETWEEN_LOOKS`, and the last, so that the host rarely waits.
    Until then such a row gets equal scores, which can be sampled.

    Args:
        model (`RecurrentDepthForCausalLM`): The model that generates.
        num_recurrences (`int` or `torch.Tensor`, *optional*): The depth of the call, to find the recurrence.
    """

    def __init__(self, model, num_recurrences=None):
        self.model, self.num_recurrences = model, num_recurrences
        self.broken, self.calls, self.text = None, 0, None

    def __call__(self, input_ids, scores):
        # The largest of values with a NaN is NaN. Processors may forbid tokens by -inf.
        broken = ~(scores.amax(-1) < math.inf)
        if self.broken is not None and self.broken.shape != broken.shape:
            # Verified drafts come in varying numbers.
            broken_before, self.broken = self.broken.any(), None
            broken = broken | broken_before
        self.broken = broken if self.broken is None else self.broken | broken
        self.text, self.calls = input_ids, self.calls + 1
        if scores.device.type == "cpu" or self.calls % TOKENS_BETWEEN_LOOKS == 0:
            self.look()
        return scores.masked_fill(broken[..., None], 0.0)

    def look(self) -> None:
        """
        Reads what the processor has seen so far.

        Raises:
            `ValueError`: Logits were NaN or infinite. The message names the row and, where it can be found again, the
                recurrence.
        """
        if self.broken is None or not self.broken.any():
            return
        row = int(self.broken.nonzero()[0, 0])
        which = "" if self.text is None else f" of row {row}"
        raise ValueError(
            f"The logits{which} are NaN or infinite{self._where(row)}, so no token can be chosen. Check the weights "
            "with torch.isfinite, or load them with dtype=torch.float32 if they overflow in half precision."
        )

    @torch.no_grad()
    def _where(self, row):
        """Runs the decoder on the text of a row once more, to find the first state that is no number."""
        model = self.model.model
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        # Other processes would not take part in this forward pass. Embeddings are not at hand.
        if several or self.text is None or not self.text.shape[1]:
            return ""
        depth = self.num_recurrences if isinstance(self.num_recurrences, int) else model.config.num_recurrences
        found = model(
            self.text[row : row + 1],
            num_recurrences=depth,
            halting_criterion="none",
            output_hidden_states=True,
            use_cache=False,
        )
        for recurrence, state in enumerate(found.hidden_states):
            if not state.isfinite().all():
                return f", the state from recurrence {recurrence} on" if recurrence else ", as is the initial state"
        return "" if not found.last_hidden_state.isfinite().all() else ", though all states are finite"


__all__ = ["FiniteLogits"]
