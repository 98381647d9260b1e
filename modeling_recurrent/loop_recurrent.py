"""The loop: the same layers applied again and again to the rows that still need it."""

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from .blocks_recurrent import run_own_layer
from .families_recurrent import run_family_layer
from .gradients_recurrent import SeparateGradients
from .halting_recurrent import HaltingRule


# The number of logits that a criterion reads at once. With a vocabulary of 32,000 this is 512 tokens.
READ_OUT_SLICE = 2**24


@dataclass
class LoopTrace:
    """
    What a forward pass reports about its recurrences.

    Attributes:
        states, attentions (`list`, *optional*): Collect `hidden_states` and `attentions` of the output; `None` if they
            were not requested.
        on_recurrence (`Callable`, *optional*), recurrences_to_show, backprop_from (`Collection[int]`, *optional*):
            See `RecurrentDepthKwargs`.
        on_gate (`Callable`, *optional*): Called before `on_recurrence`, after every recurrence, with its index and
            what the exit gate gives for the state, before the sigmoid, of shape `(batch, sequence)`.
        separation (`SeparateGradients`, *optional*): Keeps the gradients of later recurrences from shared weights.
    """

    states: list | None
    attentions: list | None
    on_recurrence: Callable | None
    recurrences_to_show: Collection[int] | None = None
    backprop_from: Collection[int] | None = None
    separation: SeparateGradients | None = None
    on_gate: Callable | None = None


class RecurrentLoop:
    """
    The part of a recurrent-depth decoder that applies its core layers.

    The decoder has a `config`, its `layers` with their `layer_types`, the `key_value_slots` in which they attend, the
    last `norm`, and, depending on the config, an `injection`, a `state_norm`, an `exit_gate` and a `recurrence_lora`.
    """

    def stack_range(self, name: str) -> range:
        """The indices of the layers of the `"prelude"`, the loop (`"recurrent"`) or the `"coda"`."""
        config = self.config
        loop = config.num_prelude_layers + config.num_recurrent_layers
        return {
            "prelude": range(config.num_prelude_layers),
            "recurrent": range(config.num_prelude_layers, loop),
            "coda": range(loop, config.num_physical_layers),
        }[name]

    @property
    def prelude_layers(self) -> list:
        """The layers before the loop."""
        return [self.layers[index] for index in self.stack_range("prelude")]

    @property
    def recurrent_layers(self) -> list:
        """The layers in the loop."""
        return [self.layers[index] for index in self.stack_range("recurrent")]

    @property
    def coda_layers(self) -> list:
        """The layers after the loop."""
        return [self.layers[index] for index in self.stack_range("coda")]

    # The parameters of these methods are positional, so that no further argument of a call can have their names.
    def loop(self, state, rows, depth, trace, head, start=0, /, **kwargs):
        """
        Runs the loop: injects the input, applies the layers to the active rows, and drops the rows that have halted.

        If `depth` is an `int`, there is no halting rule, so that no decision depends on a tensor. `state` has already
        taken `start` recurrences. Returns the state of all rows in their order, and the recurrences that each row or
        token took.
        """
        rule = depth if isinstance(depth, HaltingRule) else None
        limit = depth if rule is None else rule.limit
        slots, held, finished = rows.slots, None, []
        for recurrence in range(start + 1, limit + 1):
            rows.recurrence = recurrence
            if recurrence == 2 and trace.separation is not None:
                state, rows.inputs = trace.separation.begin(state, rows.inputs)
            if slots is not None:
                slots.recurrence = recurrence
            with self._gradients(rule, recurrence, limit, trace.backprop_from):
                updated = self._inject(state, rows.inputs, is_first=recurrence == 1)
                updated = self.run_layers("recurrent", updated, rows, trace, **kwargs)
            state = updated if held is None else torch.where(held[..., None], state, updated)
            state = self._cut(rule, recurrence, state)
            self._show(recurrence, state, rows, trace, **kwargs)
            if rule is None:
                continue

            self._judge(rule, recurrence, state, rows, head, **kwargs)
            by_token = rule.granularity == "token"
            done = (rule.taken > 0).all(-1) if by_token else rule.taken > 0
            if done.any():
                leaving, staying = done.nonzero().flatten(), (~done).nonzero().flatten()
                indices = leaving if rows.indices is None else rows.indices[leaving]
                finished.append((indices, state[leaving], rule.taken[leaving]))
                if not len(staying):
                    break
                state, rows = state[staying], rows.keep(staying)
                rule.keep(staying)
            if by_token:
                slots.held = held = rule.taken > 0

        if slots is not None:
            slots.keep(None)
            slots.held = None
        if rule is None:
            return state, torch.full((state.shape[0],), limit, device=state.device)
        indices, pieces, counts = (torch.cat(parts) for parts in zip(*finished))
        order = indices.argsort()
        return pieces[order], counts[order]

    def run_layers(self, stack, hidden_states, rows, trace=None, /, **kwargs):
        """Applies the layers of a stack, `"prelude"`, `"recurrent"` or `"coda"`, to the active rows."""
        attentions = None if trace is None else trace.attentions
        indices = self.stack_range(stack)
        if stack == "recurrent" and self.recurrence_lora is not None:
            self.recurrence_lora.attach(self.recurrent_layers)
            kwargs.setdefault("recurrence", rows.recurrence)
        run = run_own_layer if self.config.block_model_type is None else run_family_layer
        offset = self.key_value_slots.offset(stack, rows.recurrence)
        for index in indices:
            kind = self.layer_types[index]
            mask, angles = rows.masks[kind], rows.angles.get(kind)
            slot = self.key_value_slots[index + offset]
            hidden_states, weights = run(
                self.layers[index], hidden_states, mask, angles, rows.slots, slot, interface=rows.interface, **kwargs
            )
            if attentions is not None:
                # A row that has halted repeats the map of this layer in the previous recurrence.
                before = attentions[-len(indices)] if rows.indices is not None else None
                attentions.append(rows.spread(weights, before))
        return hidden_states

    def _inject(self, state, inputs, is_first):
        if is_first and self.config.state_init == "embedding":
            return state
        state_norm = self.norm if self.config.state_norm == "last" else self.state_norm
        if not is_first and state_norm is not None:
            state = state_norm(state)
        if self.config.input_injection == "add":
            return state + inputs
        if self.config.input_injection == "concat":
            # PEFT and quantisation may replace this linear layer by their own.
            return self.injection(torch.cat((state, inputs), dim=-1))
        if self.config.input_injection == "gate":
            return self.injection(state, inputs)
        return state

    def finish(self, state, rows, trace=None, /, **kwargs):
        """Applies the coda to the state after the loop."""
        if rows.slots is not None:
            # The coda computes all tokens, including those that have halted.
            rows.slots.held = None
        if self.config.coda_norm:
            state = self.norm(state)
        return self.run_layers("coda", state, rows, trace, **kwargs)

    def _show(self, recurrence, state, rows, trace, /, **kwargs):
        """Passes the state after a recurrence to the lists and the callback of `trace`."""
        if trace.states is not None:
            trace.states.append(rows.spread(state, trace.states[-1]))
        if trace.on_gate is not None:
            trace.on_gate(recurrence, self.exit_gate(self.norm(state))[..., 0])
        shown = trace.recurrences_to_show
        if trace.on_recurrence is not None and (shown is None or recurrence in shown):
            trace.on_recurrence(recurrence, rows.indices, self.finish(state, rows, **kwargs))

    def _judge(self, rule, recurrence, state, rows, head, /, **kwargs):
        """Passes the rule what its criterion reads, for each row's last real token or for every token."""

        def log_probs(hidden_states):
            return head(hidden_states).float().log_softmax(-1)

        by_token = rule.granularity == "token"
        if rule.reads is None:
            rule.update(recurrence, None)
        elif by_token and rule.reads == "log_probs":
            at_once = max(READ_OUT_SLICE // self.config.vocab_size, 1)
            rule.update(recurrence, self.norm(state), read=log_probs, at_once=at_once)
        else:
            read = self.finish(state, rows, **kwargs) if rule.reads == "log_probs" else state
            if not by_token:
                read = read[torch.arange(len(read), device=read.device), rows.last]
            if rule.reads == "log_probs":
                read = log_probs(self.norm(read))
            elif rule.reads == "exit_gate":
                read = self.exit_gate(self.norm(read)).float().sigmoid()
            rule.update(recurrence, read.float())

    def _gradients(self, rule, recurrence, limit, backprop_from=None):
        """Records no gradients in recurrences that `backprop_recurrences` cuts off for all rows."""
        reach = self.config.backprop_recurrences
        if reach is None or (rule is not None and rule.criterion is not None):
            return contextlib.nullcontext()
        last = limit if rule is None else int(rule.counts.min())
        ends = (last, *(backprop_from or ()))
        reached = any(0 <= end - recurrence < reach for end in ends)
        return contextlib.nullcontext() if reached else torch.no_grad()

    def _cut(self, rule, recurrence, state):
        """Detaches the state of rows and tokens whose last `backprop_recurrences` recurrences come later."""
        reach = self.config.backprop_recurrences
        if reach is None or rule is None or rule.criterion is not None or not state.requires_grad:
            return state
        later = rule.counts - recurrence >= reach
        later = later[..., None] if later.ndim == 2 else later[:, None, None]
        return torch.where(later, state.detach(), state)


__all__ = ["LoopTrace", "RecurrentLoop"]
