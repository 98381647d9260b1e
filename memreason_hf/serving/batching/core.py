"""The forward passes of the decode loop: start tokens, one recurrence of all, logits of those that halted."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_recurrent.families_recurrent import scale_embeddings
from modeling_recurrent.inputs_recurrent import initial_state
from modeling_recurrent.modeling_recurrent import attention_interface
from modeling_recurrent.positions_recurrent import ROPE_BY_LENGTH

from .memory import CacheMemory
from .slots import GatheredSlots, PartPlace, Place, RegionSlots


@dataclass
class CoreRows:
    """What the layers of the model read of `ActiveRows`. There is no padding, so there are no masks."""

    masks: dict
    angles: dict
    slots: RegionSlots
    interface: object
    recurrence: int = 1
    indices: None = None


def fixed_positions(rotary) -> int | None:
    """
    The number of positions whose rotation angles do not depend on the longest position of a call; `None` if all.

    Dynamic and longrope rotations choose other frequencies beyond it.
    """
    parameters = {} if rotary is None else rotary.config.rope_parameters
    nested = [values for values in parameters.values() if isinstance(values, dict)]
    ends = [
        values.get("original_max_position_embeddings") or rotary.config.max_position_embeddings
        for values in nested or [parameters]
        if values.get("rope_type") in ROPE_BY_LENGTH
    ]
    return min(ends, default=None)


class AngleTable:
    """The rotation angles of all positions, computed once."""

    def __init__(self, decoder):
        self.decoder = decoder
        self.room = 0
        self.most = fixed_positions(decoder.rotary_emb)
        self.angles: dict = {}

    def of(self, hidden_states: torch.Tensor, positions: list[int]) -> dict:
        """The angles for the decoder's layers, of rows of one token at `positions`."""
        if self.decoder.rotary_emb is None:
            return {}
        if max(positions) >= self.room:
            self.room = max(2 * self.room, max(positions) + 1, 256)
            if self.most is not None:
                # Longer texts are refused.
                self.room = min(self.room, self.most)
            places = torch.arange(self.room, device=hidden_states.device)[None]
            angles = self.decoder._angles(hidden_states[:1], places)
            # Types of layers may share one pair.
            pairs = {id(pair): tuple(angle.transpose(0, -2) for angle in pair) for pair in angles.values()}
            self.angles = {kind: pairs[id(pair)] for kind, pair in angles.items()}
        index = torch.tensor(positions, device=hidden_states.device)
        pairs = {id(pair): pair for pair in self.angles.values()}
        chosen = {name: tuple(angle.index_select(0, index) for angle in pair) for name, pair in pairs.items()}
        return {kind: chosen[id(pair)] for kind, pair in self.angles.items()}


class DepthCore:
    """
    Runs the parts of the model for rows of one token each, and for tokens of prompts, each of which is a row as well.

    Args:
        model (`RecurrentDepthForCausalLM`): The model.
        memory (`CacheMemory`): Where the rows keep their keys and values.
    """

    def __init__(self, model, memory: CacheMemory):
        self.model, self.decoder, self.config = model, model.model, model.config
        # The library looks for the device in all parameters, which takes as long as a layer.
        self.device = model.device
        self.memory = memory
        self.angles = AngleTable(self.decoder)
        self.masks = dict.fromkeys(self.decoder.layer_types)
        window = self.config.sliding_window
        self.windows = {
            index: window for index, kind in enumerate(self.decoder.layer_types) if kind == "sliding_attention"
        }
        sdpa = ALL_ATTENTION_FUNCTIONS.get("sdpa")
        like = self.decoder.embed_tokens.weight[:1, None]
        self.interface = attention_interface(self.config, like, False, self.decoder.block_config)
        self.plain = self.interface is sdpa and self.decoder.block_config is None
        self.slots = RegionSlots if self.device.type == "cpu" else GatheredSlots
        # Fields of a config take microseconds to read, which adds up over the forwards.
        self.stacks = {name: self.decoder.stack_range(name) for name in ("prelude", "recurrent", "coda")}
        self.has_noise = self.config.state_init not in ("embedding", "zeros")
        self.coda_norm = self.config.coda_norm

    def start(self, rows: list) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Embeds the newest token of each row and runs the prelude.

        Returns the input of the loop and the state before the first recurrence, both `(rows, 1, hidden)`.
        """
        tokens = [(row.tokens[row.position], row.position) for row in rows]
        return self._start(tokens, [(1, row.state_seed) for row in rows], rows, ())

    def start_parts(self, parts: list) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for all tokens of parts of prompts (`TokenPrefill`): `(tokens, 1, hidden)`."""
        places = [PartPlace(part.row.region, range(part.start, part.done), 1) for part in parts]
        tokens = [
            (part.row.tokens[position], position) for part, place in zip(parts, places) for position in place.positions
        ]
        seeds = [(len(place.positions), part.row.state_seed) for part, place in zip(parts, places)]
        return self._start(tokens, seeds, [], places)

    def _start(self, tokens, seeds, rows, parts):
        config = self.config
        ids, positions = torch.tensor(tokens, device=self.device).T[..., None]
        hidden_states = self._embed(ids, positions)
        hidden_states = self._run_outer("prelude", hidden_states, rows, parts)
        if not self.has_noise:
            return hidden_states, initial_state(config, hidden_states, positions, 0)
        sizes = [size for size, _ in seeds]
        units = zip(hidden_states.split(sizes), positions.split(sizes), seeds)
        return hidden_states, torch.cat([initial_state(config, *unit, seed) for *unit, (_, seed) in units])

    def recur(self, rows: list, state: torch.Tensor, inputs: torch.Tensor, parts: Sequence = ()) -> torch.Tensor:
        """
        One recurrence of all rows, at whatever recurrence each stands, and of the tokens of `parts` (`PartPlace`),
        which follow the rows in `state` and `inputs`.
        """
        decoder = self.decoder
        recurrences = [row.recurrence for row in rows]
        for part in parts:
            recurrences += [part.recurrence] * len(part.positions)
        first = [index for index, recurrence in enumerate(recurrences) if recurrence == 1]
        if len(first) in (0, len(recurrences)):
            updated = decoder._inject(state, inputs, bool(first))
        else:
            updated = decoder._inject(state, inputs, False)
            if updated is not state:
                first = torch.tensor(first, device=state.device)
                updated = updated.index_copy(0, first, decoder._inject(state[first], inputs[first], True))
        kwargs = {}
        if decoder.recurrence_lora is not None:
            same = len(set(recurrences)) == 1
            kwargs["recurrence"] = recurrences[0] if same else torch.tensor(recurrences, device=state.device)
        return decoder.run_layers("recurrent", updated, self._open(rows, parts, "recurrent", updated), **kwargs)

    def judge_parts(self, rule, recurrence: int, state: torch.Tensor) -> None:
        """Passes the rule, whose units are the tokens of `state` `(tokens, 1, hidden)`, what it reads."""
        self.decoder._judge(rule, recurrence, state[:, 0], None, self.model.compute_logits)

    def finish(self, rows: list, state: torch.Tensor) -> torch.Tensor:
        """The hidden states behind the logits, `(rows, hidden)`: after the coda and the last norm."""
        return self.decoder.norm(self._finish(state, rows, ()))[:, 0]

    def finish_parts(self, parts: list, states: list[torch.Tensor]) -> torch.Tensor:
        """
        The hidden states behind the logits of the last token of each part (`TokenPrefill`), `(parts, hidden)`.

        `states` holds the last states of all tokens of each part, `(tokens, 1, hidden)`.
        """
        if not self.stacks["coda"]:
            # Nothing else is read.
            return self.decoder.norm(self._finish(torch.cat([state[-1:] for state in states]), (), ()))[:, 0]
        places = [PartPlace(part.row.region, range(part.start, part.done), 1) for part in parts]
        state = self._finish(torch.cat(states), (), places)
        last = torch.tensor([len(place.positions) for place in places], device=state.device).cumsum(0) - 1
        return self.decoder.norm(state[last])[:, 0]

    def _finish(self, state, rows, parts):
        if self.coda_norm:
            state = self.decoder.norm(state)
        return self._run_outer("coda", state, rows, parts)

    def _run_outer(self, stack, hidden_states, rows, parts):
        if not self.stacks[stack]:
            return hidden_states
        return self.decoder.run_layers(stack, hidden_states, self._open(rows, parts, stack, hidden_states))

    def _embed(self, ids, positions):
        decoder = self.decoder
        hidden_states = decoder.embed_tokens(ids)
        if decoder.block_config is not None:
            hidden_states = scale_embeddings(hidden_states, decoder.block_config)
        elif self.config.embedding_scale != 1:
            hidden_states = hidden_states * self.config.embedding_scale
        return decoder.embedding_dropout(decoder._add_positions(hidden_states, positions, 0))

    def _open(self, rows, parts, stack, hidden_states):
        places = [Place(row.region, row.position, row.recurrence) for row in rows]
        slots = self.slots(self.memory, places, self.windows, self.stacks[stack], self.plain, parts)
        positions = [place.position for place in places]
        for part in parts:
            positions += part.positions
        angles = self.angles.of(hidden_states, positions)
        return CoreRows(self.masks, angles, slots, self.interface)


__all__ = ["DepthCore"]
