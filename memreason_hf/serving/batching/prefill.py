"""Prompts: a row alone runs its own, in parts, until it has the logits of the first new token."""

import torch

from modeling_recurrent import RecurrentDepthCache
from modeling_recurrent.halting_recurrent import HaltingRule, resolve_depth

from .core import DepthCore


class Prefill:
    """
    The prompt of one request on its way through the model's own forward, which runs all tokens until the deepest has
    halted.

    Args:
        core (`DepthCore`): Runs the model.
        row (`Row`): The row, with its region.
    """

    def __init__(self, core: DepthCore, row):
        self.core, self.row = core, row
        self.prompt = torch.tensor([row.tokens], device=core.device)
        self.done = 0

    @property
    def remaining(self) -> int:
        """The tokens of the prompt that have not been run."""
        return self.prompt.shape[1] - self.done

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


class TokenPrefill(Prefill):
    """
    A prompt whose tokens have their own depths. A token leaves as soon as it has halted, and keys and values are
    written where the row keeps them.
    """

    def _run(self, start, end, arguments):
        core, row = self.core, self.row
        rule = self._rule(end - start, arguments)
        inputs, state = core.start_prompt(row, start, end)
        places = torch.arange(start, end, device=core.device)
        final, counts, recurrence = torch.empty_like(state), torch.zeros_like(rule.counts), 0
        while len(places):
            recurrence += 1
            if recurrence > 1:
                self._open_slot(recurrence, start, end)
            state = core.recur_prompt(row, places, recurrence, state, inputs)
            core.judge_prompt(rule, recurrence, state)
            done = rule.taken > 0
            staying = (~done).nonzero().flatten()
            if len(staying) == len(places):
                continue
            leaving = done.nonzero().flatten()
            final[:, places[leaving] - start] = state[:, leaving]
            counts[places[leaving] - start] = recurrence
            places, state, inputs = places[staying], state[:, staying], inputs[:, staying]
            rule.keep(staying)
        self._fill_deeper(recurrence, start, end)
        final = core.finish_prompt(row, start, end, final)
        return (None, 0) if self.remaining else (core.model.compute_logits(final), int(counts[-1]))

    def _rule(self, tokens, arguments):
        """Decides about each token of a part, as the model's own forward does."""
        device = self.core.device
        rule = resolve_depth(self.core.config, (1, tokens), device, **arguments)
        if not isinstance(rule, HaltingRule):
            rule = HaltingRule(rule, torch.full((1, tokens), rule, device=device), None, 1, "token")
        limits = None if rule.limits is None else rule.limits.flatten()
        # One axis, so that tokens can leave as the rows of a batch do.
        return HaltingRule(rule.limit, rule.counts.flatten(), rule.criterion, rule.min_recurrences, "token", limits)

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


def open_prefill(core: DepthCore, row) -> Prefill:
    """The prompt of a row: token by token where depths differ, by the model's own forward where they cannot."""
    return (TokenPrefill if row.depth.by_token else Prefill)(core, row)


__all__ = ["Prefill", "TokenPrefill", "open_prefill"]
