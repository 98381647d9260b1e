"""The prompt of one row: where its keys and values go, and how far it is."""

import torch

from modeling_recurrent import RecurrentDepthCache
from modeling_recurrent.halting_recurrent import HaltingRule, resolve_depth

from .core import DepthCore


class Prompt:
    """
    The prompt of one request on its way.

    Args:
        core (`DepthCore`): Runs the model.
        row (`Row`): The row, with its region.

    Attributes:
        done (`int`): The tokens that have been run, or run now.
    """

    def __init__(self, core: DepthCore, row):
        self.core, self.row = core, row
        self.prompt = torch.tensor([row.tokens], device=core.device)
        self.done = 0

    @property
    def remaining(self) -> int:
        """The tokens of the prompt that have not been run."""
        return self.prompt.shape[1] - self.done


class Prefill(Prompt):
    """A prompt that goes through the model's own forward, which runs all tokens until the deepest has halted."""

    def advance(self, most: int) -> tuple[int, torch.Tensor | None, int]:
        """
        Runs up to `most` further tokens; the whole prompt where it has one count, which must not be cut.

        Returns how many tokens ran and, after the last one, its logits `(1, vocab)` and its recurrences. The region of
        the row then holds the prompt.
        """
        count = self.remaining if self.row.depth.whole else min(most, self.remaining)
        start, self.done = self.done, self.done + count
        arguments = self.row.depth.of_prompt(self.prompt, start, self.done)
        return count, *self._run(start, self.done, arguments)

    def _run(self, start, end, arguments):
        if start == 0:
            self.cache = RecurrentDepthCache(self.core.config, cache_recurrences="all")
        output = self.core.model(
            self.prompt[:, start:end],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            state_seed=self.row.state_seed,
            **arguments,
        )
        if self.remaining:
            return None, 0
        self.row.deepest = self._move()
        return output.logits[:, -1], int(output.num_recurrences.flatten()[-1])

    def _move(self) -> int:
        """Copies the keys and values into the region of the row. Returns the slots that are filled."""
        memory, region, length = self.core.memory, self.row.region, self.done
        shape = memory.shape
        cells = memory.ready(self.cache.layers[0].keys)
        planes, looped = region.planes(cells), region.recurrences(cells)
        deepest = 1
        for index, layer in enumerate(self.cache.layers):
            for offset, buffer in enumerate((layer.keys, layer.values)):
                kept = buffer[:, 0, :, :length]
                if index in shape.loop:
                    deepest = len(kept)
                    looped[:deepest, 2 * (index - shape.loop.start) + offset, :, :length] = kept
                else:
                    planes[shape.plane_of(index, region.limit) + offset, :, :length] = kept[0]
        return deepest


class TokenPrefill(Prompt):
    """
    A prompt whose tokens have their own depths, of which one part is run in a `PromptGroup`.

    Attributes:
        start, done (`int`): Where the part begins and ends.
    """

    start = 0

    def begin(self, most: int) -> HaltingRule:
        """
        Turns to the next part, of up to `most` tokens. Returns what decides about each of its tokens.

        Raises:
            `Exception`: A schedule of the request fails.
        """
        self.start, self.done = self.done, self.done + min(most, self.remaining)
        arguments = self.row.depth.of_prompt(self.prompt, self.start, self.done)
        device, shape = self.core.device, (1, self.done - self.start)
        # As the model's own forward does.
        rule = resolve_depth(self.core.config, shape, device, **arguments)
        if not isinstance(rule, HaltingRule):
            rule = HaltingRule(rule, torch.full(shape, rule, device=device), None, 1, "token")
        return rule

    # The rule of the slots is that of `DepthBatcher`.

    def _open_slot(self, recurrence, start, end):
        """Fills the next slot with copies of the one before; the tokens that are computed are then written over."""
        slots = self.row.region.recurrences(self.core.memory.cells)
        first = start
        if recurrence > self.row.deepest:
            first, self.row.deepest = 0, recurrence
        slots[recurrence - 1, :, :, first:end] = slots[recurrence - 2, :, :, first:end]

    def _fill_deeper(self, recurrence, start, end):
        """Repeats the last recurrence of a part in the slots that an earlier part has opened beyond it."""
        slots = self.row.region.recurrences(self.core.memory.cells)
        slots[recurrence : self.row.deepest, :, :, start:end] = slots[recurrence - 1, :, :, start:end]


def open_prefill(core: DepthCore, row) -> Prompt:
    """The prompt of a row: token by token where depths differ, by the model's own forward where they cannot."""
    return (TokenPrefill if row.depth.by_token else Prefill)(core, row)


__all__ = ["Prefill", "Prompt", "TokenPrefill", "open_prefill"]
