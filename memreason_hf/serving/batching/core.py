"""The forward passes of the decode loop: start tokens, one recurrence of all rows, logits of those that halted."""

from dataclasses import dataclass

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_recurrent.families_recurrent import scale_embeddings
from modeling_recurrent.inputs_recurrent import initial_state
from modeling_recurrent.modeling_recurrent import attention_interface
from modeling_recurrent.positions_recurrent import ROPE_BY_LENGTH

from .memory import CacheMemory
from .prompt_slots import PromptSlots
from .slots import GatheredSlots, Place, RegionSlots


@dataclass
class CoreRows:
    """What the layers of the model read of `ActiveRows`. There is no padding, so there are no masks."""

    masks: dict
    angles: dict
    slots: RegionSlots | PromptSlots
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

    def of(self, hidden_states: torch.Tensor, positions: list[int], index: torch.LongTensor) -> dict:
        """The angles for the decoder's layers, of rows of one token at `positions`; `index` holds them as a tensor."""
        chosen = self.of_row(hidden_states, max(positions), index)
        # Types of layers may share one pair.
        rows = {id(pair): tuple(angle.transpose(0, -2) for angle in pair) for pair in chosen.values()}
        return {kind: rows[id(pair)] for kind, pair in chosen.items()}

    def of_row(self, hidden_states: torch.Tensor, most: int, index: torch.LongTensor) -> dict:
        """The angles of one row of tokens at the positions `index`, of which none is above `most`."""
        if self.decoder.rotary_emb is None:
            return {}
        if most >= self.room:
            self.room = max(2 * self.room, most + 1, 256)
            if self.most is not None:
                # Longer texts are refused.
                self.room = min(self.room, self.most)
            places = torch.arange(self.room, device=hidden_states.device)[None]
            self.angles = self.decoder._angles(hidden_states[:1], places)
        pairs = {id(pair): pair for pair in self.angles.values()}
        chosen = {name: tuple(angle.index_select(-2, index) for angle in pair) for name, pair in pairs.items()}
        return {kind: chosen[id(pair)] for kind, pair in self.angles.items()}


class DepthCore:
    """
    Runs the parts of the model for rows of one token each.

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

    def start(self, rows: list) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Embeds the newest token of each row and runs the prelude.

        Returns the input of the loop and the state before the first recurrence, both `(rows, 1, hidden)`.
        """
        decoder, config, device = self.decoder, self.config, self.device
        positions = torch.tensor([[row.position] for row in rows], device=device)
        ids = torch.tensor([[row.tokens[row.position]] for row in rows], device=device)
        hidden_states = self._embed(ids, positions)
        if config.num_prelude_layers:
            hidden_states = decoder.run_layers("prelude", hidden_states, self._open(rows, "prelude", hidden_states))
        if config.state_init in ("embedding", "zeros"):
            return hidden_states, initial_state(config, hidden_states, positions, 0)
        states = [
            initial_state(config, hidden_states[index : index + 1], positions[index : index + 1], row.state_seed)
            for index, row in enumerate(rows)
        ]
        return hidden_states, torch.cat(states)

    def recur(self, rows: list, state: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """One recurrence of all rows, at whatever recurrence each stands."""
        first = [index for index, row in enumerate(rows) if row.recurrence == 1]
        decoder = self.decoder
        if len(first) in (0, len(rows)):
            updated = decoder._inject(state, inputs, bool(first))
        else:
            updated = decoder._inject(state, inputs, False)
            if updated is not state:
                first = torch.tensor(first, device=state.device)
                updated = updated.index_copy(0, first, decoder._inject(state[first], inputs[first], True))
        kwargs = {}
        if decoder.recurrence_lora is not None:
            recurrences = [row.recurrence for row in rows]
            same = len(set(recurrences)) == 1
            kwargs["recurrence"] = recurrences[0] if same else torch.tensor(recurrences, device=state.device)
        return decoder.run_layers("recurrent", updated, self._open(rows, "recurrent", updated), **kwargs)

    def finish(self, rows: list, state: torch.Tensor) -> torch.Tensor:
        """The hidden states behind the logits, `(rows, hidden)`: after the coda and the last norm."""
        decoder = self.decoder
        if self.config.coda_norm:
            state = decoder.norm(state)
        if self.config.num_coda_layers:
            state = decoder.run_layers("coda", state, self._open(rows, "coda", state))
        return decoder.norm(state)[:, 0]

    # ---- The prompt of one row: many tokens, of which some may have halted ----

    def start_prompt(self, row, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Embeds the tokens from `start` to `end` of a row and runs the prelude.

        Returns the input of the loop and the state before the first recurrence, both `(1, tokens, hidden)`.
        """
        positions = torch.arange(start, end, device=self.device)
        hidden_states = self._embed(torch.tensor([row.tokens[start:end]], device=self.device), positions[None])
        hidden_states = self._run_prompt("prelude", hidden_states, row, positions)
        return hidden_states, initial_state(self.config, hidden_states, positions[None], row.state_seed)

    def recur_prompt(self, row, places: torch.LongTensor, recurrence: int, state, inputs) -> torch.Tensor:
        """One recurrence of the tokens of a row at the positions `places`."""
        updated = self.decoder._inject(state, inputs, recurrence == 1)
        return self._run_prompt("recurrent", updated, row, places, recurrence)

    def judge_prompt(self, rule, recurrence: int, state: torch.Tensor) -> None:
        """Passes the rule, whose units are the tokens of `state`, what it reads."""
        self.decoder._judge(rule, recurrence, state[0], None, self.model.compute_logits)

    def finish_prompt(self, row, start: int, end: int, state: torch.Tensor) -> torch.Tensor:
        """The hidden state behind the logits of the last token, `(1, hidden)`: after the coda and the last norm."""
        if self.config.coda_norm:
            state = self.decoder.norm(state)
        state = self._run_prompt("coda", state, row, torch.arange(start, end, device=self.device))
        return self.decoder.norm(state[:, -1])

    def _run_prompt(self, stack, hidden_states, row, places, recurrence=1):
        decoder = self.decoder
        if not len(decoder.stack_range(stack)):
            return hidden_states
        slots = PromptSlots(self.memory, row.region, places, recurrence, self.windows, self.plain)
        angles = self.angles.of_row(hidden_states, slots.length - 1, places)
        looped = stack == "recurrent" and decoder.recurrence_lora is not None
        kwargs = {"recurrence": recurrence} if looped else {}
        return decoder.run_layers(stack, hidden_states, CoreRows(self.masks, angles, slots, self.interface), **kwargs)

    def _embed(self, ids, positions):
        decoder = self.decoder
        hidden_states = decoder.embed_tokens(ids)
        if decoder.block_config is not None:
            hidden_states = scale_embeddings(hidden_states, decoder.block_config)
        elif self.config.embedding_scale != 1:
            hidden_states = hidden_states * self.config.embedding_scale
        return decoder.embedding_dropout(decoder._add_positions(hidden_states, positions, 0))

    def _open(self, rows, stack, hidden_states):
        decoder = self.decoder
        places = [Place(row.region, row.position, row.recurrence) for row in rows]
        slots = self.slots(self.memory, places, self.windows, decoder.stack_range(stack), self.plain)
        positions = [row.position for row in rows]
        index = torch.tensor(positions, device=hidden_states.device)
        return CoreRows(self.masks, self.angles.of(hidden_states, positions, index), slots, self.interface)


__all__ = ["DepthCore"]
