"""The prompts of all requests: which of them run, and whose tokens share the forward of the core with the rows."""

from collections import deque
from dataclasses import astuple

import torch

from modeling_recurrent.halting_recurrent import HaltingRule

from .core import DepthCore
from .prefill import Prompt, TokenPrefill, open_prefill
from .rows import Row
from .slots import PartPlace


class PromptGroup:
    """
    Parts of prompts that have begun together, so that all of them stand at the same recurrence.

    Each of their tokens is a row of the core's forward and leaves it as soon as it has halted.

    Args:
        core (`DepthCore`): Runs the model.
        parts (`list` of `TokenPrefill`): The prompts, each with a part begun.
        rule (`HaltingRule`): Decides about the tokens of all parts, in their order.

    Attributes:
        state, inputs (`torch.Tensor` of shape `(tokens, 1, hidden)`): Those of the tokens that are left.
        recurrence (`int`): The recurrence that they take, counted from 1.
    """

    def __init__(self, core: DepthCore, parts: list[TokenPrefill], rule: HaltingRule):
        self.core, self.rule = core, rule
        self.recurrence = 0
        self.inputs, self.state = core.start_parts(parts)
        # By number, the parts that have tokens left.
        self._parts = dict(enumerate(parts))
        sizes = [part.done - part.start for part in parts]
        tokens = [
            (index, position) for index, part in self._parts.items() for position in range(part.start, part.done)
        ]
        # Of each token that is left: the number of its part, its position, and its place in what has halted.
        self._tokens = torch.tensor([(*token, place) for place, token in enumerate(tokens)], device=core.device)
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self._slices = [slice(end - size, end) for end, size in zip(ends, sizes)]
        self._halted, self._counts = torch.empty_like(self.state), torch.zeros_like(rule.counts)
        self._positions = self._find_positions()

    @property
    def num_tokens(self) -> int:
        """The number of tokens that are left."""
        return len(self._tokens)

    @property
    def parts(self) -> list[TokenPrefill]:
        """The parts that have tokens left."""
        return list(self._parts.values())

    def next(self) -> list[PartPlace]:
        """Turns to the next recurrence. Returns where the tokens that are left read and write."""
        self.recurrence += 1
        if self.recurrence > 1:
            for part in self._parts.values():
                part._open_slot(self.recurrence, part.start, part.done)
        return [
            PartPlace(self._parts[number].row.region, positions, self.recurrence)
            for number, positions in self._positions.items()
        ]

    def take(self, state: torch.Tensor) -> list[tuple[TokenPrefill, torch.Tensor, int]]:
        """
        Takes the state after the recurrence, and lets go of the tokens that have halted.

        Returns the parts that are complete: the part, the last states of its tokens `(tokens, 1, hidden)`, and the
        count of its last token.
        """
        self.state = state
        self.core.judge_parts(self.rule, self.recurrence, state)
        done = self.rule.taken > 0
        staying = (~done).nonzero().flatten()
        if len(staying) == len(done):
            return []
        leaving = done.nonzero().flatten()
        halted = self._tokens[leaving, 2]
        self._halted[halted] = state[leaving]
        self._counts[halted] = self.recurrence
        before, complete = self._parts, []
        self._keep(staying)
        for number, part in before.items():
            if number not in self._parts:
                part._fill_deeper(self.recurrence, part.start, part.done)
                place = self._slices[number]
                complete.append((part, self._halted[place], int(self._counts[place.stop - 1])))
        return complete

    def drop(self, part: TokenPrefill) -> None:
        """Gives up a part."""
        number = next(number for number, other in self._parts.items() if other is part)
        self._keep((self._tokens[:, 0] != number).nonzero().flatten())

    def _keep(self, tokens):
        self.rule.keep(tokens)
        self.state, self.inputs, self._tokens = self.state[tokens], self.inputs[tokens], self._tokens[tokens]
        self._positions = self._find_positions()
        self._parts = {number: self._parts[number] for number in self._positions}

    def _find_positions(self):
        positions: dict[int, list[int]] = {}
        for number, position, _ in self._tokens.tolist():
            positions.setdefault(number, []).append(position)
        return positions


class PromptQueue:
    """
    The prompts of requests that have memory, in their order.

    Args:
        core (`DepthCore`): Runs the model.
        most (`int`): The tokens of prompts that run at once.

    Attributes:
        tokens_done (`int`): The tokens of prompts that have been run so far.
    """

    def __init__(self, core: DepthCore, most: int):
        self.core, self.most = core, most
        self.tokens_done = 0
        self.groups: list[PromptGroup] = []
        self._waiting: deque[Prompt] = deque()

    def __len__(self) -> int:
        return len(self._waiting) + sum(len(group.parts) for group in self.groups)

    def add(self, row: Row) -> None:
        """Adds the prompt of a row to the end."""
        self._waiting.append(open_prefill(self.core, row))

    def drop(self, row: Row) -> None:
        """Gives up the prompt of a row, if it is here."""
        self._waiting = deque(prompt for prompt in self._waiting if prompt.row is not row)
        for group in self.groups:
            for part in group.parts:
                if part.row is row:
                    group.drop(part)
        self._close_groups()

    def begin(self) -> list[tuple[Row, torch.Tensor | None, Exception | None]]:
        """
        Runs prompts that go through the model's own forward, and begins parts of the others, as far as `most` allows.

        A part is not cut to the room that is left, because it takes as many forwards as its deepest token however
        short it is. Prompts keep their order.

        Returns the rows whose prompt is complete, with its logits `(1, vocab)`, or whose schedule has failed, with the
        error.
        """
        left = self.most - sum(group.num_tokens for group in self.groups)
        ended, begun = [], []
        while self._waiting and left > 0:
            prompt = self._waiting[0]
            is_part, logits = isinstance(prompt, TokenPrefill), None
            size = min(prompt.remaining, self.most)
            if is_part and size > left:
                break
            try:
                if is_part:
                    begun.append((prompt, prompt.begin(size)))
                else:
                    size, logits, prompt.row.recurrence = prompt.advance(left)
                    self.tokens_done += size
            except Exception as problem:  # a schedule of the request must not end the others
                self._waiting.popleft()
                ended.append((prompt.row, None, problem))
                continue
            left -= size
            if is_part or logits is not None:
                self._waiting.popleft()
            if logits is not None:
                ended.append((prompt.row, logits, None))
        self._open_groups(begun)
        return ended

    def take(self, state: torch.Tensor) -> list[tuple[Row, torch.Tensor]]:
        """
        Takes the state of all groups after a recurrence, `(tokens, 1, hidden)`.

        Returns the rows whose prompt is complete, each with its logits `(1, vocab)`.
        """
        complete = []
        for group, states in zip(self.groups, state.split([group.num_tokens for group in self.groups])):
            complete += group.take(states)
        self._close_groups()
        if not complete:
            return []
        parts = [part for part, _, _ in complete]
        hidden_states = self.core.finish_parts(parts, [states for _, states, _ in complete])
        self.tokens_done += sum(part.done - part.start for part in parts)
        self._waiting.extendleft(part for part in reversed(parts) if part.remaining)
        ended = [index for index, part in enumerate(parts) if not part.remaining]
        for index in ended:
            parts[index].row.recurrence = complete[index][2]
        if not ended:
            return []
        logits = self.core.model.compute_logits(hidden_states[ended])
        return [(parts[index].row, logits[place : place + 1]) for place, index in enumerate(ended)]

    def _open_groups(self, begun):
        groups: dict[tuple | None, list[tuple[TokenPrefill, HaltingRule]]] = {}
        for part, rule in begun:
            criterion = rule.criterion
            key = None if criterion is None else (type(criterion), *astuple(criterion), rule.min_recurrences)
            groups.setdefault(key, []).append((part, rule))
        for members in groups.values():
            parts, rules = zip(*members)
            self.groups.append(PromptGroup(self.core, list(parts), _one_rule(rules)))

    def _close_groups(self):
        self.groups = [group for group in self.groups if group.num_tokens]


def _one_rule(rules):
    """One rule over the tokens of all parts, on one axis, so that tokens can leave as the rows of a batch do."""
    first, limit = rules[0], max(rule.limit for rule in rules)
    limits = None
    if any(rule.limits is not None or rule.limit != limit for rule in rules):
        limits = [torch.full_like(rule.counts, rule.limit) if rule.limits is None else rule.limits for rule in rules]
        limits = torch.cat([values.flatten() for values in limits])
    counts = torch.cat([rule.counts.flatten() for rule in rules])
    return HaltingRule(limit, counts, first.criterion, first.min_recurrences, "token", limits)


__all__ = ["PromptGroup", "PromptQueue"]
