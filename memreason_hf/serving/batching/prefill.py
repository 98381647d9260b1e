"""Prompts: run by the model's own forward, a row alone, and moved into the row's region."""

import torch

from modeling_recurrent import RecurrentDepthCache

from .memory import CacheMemory


class Prefill:
    """
    The prompt of one request on its way through the model, in parts.

    Args:
        model (`RecurrentDepthForCausalLM`): The model.
        row (`Row`): The row, with its region.
    """

    def __init__(self, model, row):
        self.model, self.row = model, row
        self.prompt = torch.tensor([row.tokens], device=model.device)
        self.cache = RecurrentDepthCache(model.config, cache_recurrences="all")
        self.done = 0

    @property
    def remaining(self) -> int:
        """The tokens of the prompt that have not been run."""
        return self.prompt.shape[1] - self.done

    def advance(self, most: int) -> tuple[int, torch.Tensor | None, int]:
        """
        Runs up to `most` further tokens; the whole prompt where it has one count, which must not be cut.

        Returns how many tokens ran and, after the last one, its logits `(1, vocab)` and its recurrences.
        """
        depth = self.row.depth
        count = self.remaining if depth.whole else min(most, self.remaining)
        end = self.done + count
        arguments = depth.of_prompt(self.prompt, self.done, end)
        output = self.model(
            self.prompt[:, self.done : end],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            state_seed=self.row.state_seed,
            **arguments,
        )
        self.done = end
        if self.remaining:
            return count, None, 0
        return count, output.logits[:, -1], int(output.num_recurrences.flatten()[-1])

    def move(self, memory: CacheMemory) -> int:
        """Copies the keys and values into the region of the row. Returns the slots that are filled."""
        shape, region, length = memory.shape, self.row.region, self.done
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


__all__ = ["Prefill"]
