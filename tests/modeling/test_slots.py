"""Key-value slots: one module without weights for each layer and recurrence, in which engines see the loop."""

import copy
import json

import pytest
import torch
from engines import greedy_texts, shared_slots, varied_model
from recurrent_models import DECODING_GRID, grid_ids, lively_model, random_ids, tiny_config, tiny_model
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModel, DynamicCache

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.slots_recurrent import MOST_SLOTS, KeyValueSlot


def physical_layers(config):
    """The layers of a forward pass in the order in which they run, from the definition."""
    prelude, loop, coda = config.num_prelude_layers, config.num_recurrent_layers, config.num_coda_layers
    order = list(range(prelude))
    for _ in range(config.num_recurrences):
        order += range(prelude, prelude + loop)
    return order + list(range(prelude + loop, prelude + loop + coda))


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=grid_ids(DECODING_GRID))
def test_one_module_for_each_layer_and_recurrence(style, extra):
    model = tiny_model(style, **extra)
    config, slots = model.config, model.model.key_value_slots
    order = physical_layers(config)
    assert isinstance(slots, nn.ModuleList) and len(slots) == len(order) == config.num_hidden_layers
    assert [slot.layer_idx for slot in slots] == list(range(len(order)))
    assert len({id(slot) for slot in slots}) == len(slots)
    assert config.layer_types == [config.physical_layer_types[layer] for layer in order]
    for slot, layer in zip(slots, order, strict=True):
        attention = next(module for module in model.model.layers[layer].modules() if hasattr(module, "layer_idx"))
        assert slot.config is config and slot.is_causal is True
        for name in ("scaling", "head_dim", "num_key_value_groups", "sliding_window"):
            if hasattr(attention, name):
                assert getattr(slot, name) == getattr(attention, name), name
        assert not list(slot.parameters()) and not list(slot.buffers())


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=grid_ids(DECODING_GRID))
def test_every_slot_attends_once_in_its_order(style, extra):
    """With the keyword arguments of the call, at the shape that engines use."""
    model = lively_model(style, extra)
    seen = []

    def attend(module, query, key, value, mask, witness=None, **kwargs):
        seen.append((module, witness))
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("witnessing", attend)
    model.config._attn_implementation = "witnessing"
    witness, slots = object(), model.model.key_value_slots
    call = {"use_cache": False, "position_ids": torch.arange(5)[None], "witness": witness}
    with torch.no_grad():
        model.model(random_ids(1, 5), return_dict=False, **call)
        assert [module for module, _ in seen] == list(slots)
        assert all(given is witness for _, given in seen)
        seen.clear()
        # Recurrences beyond those of the config attend in the slots of the last one.
        model.model(random_ids(1, 5), num_recurrences=5, **call)
    assert len(seen) == len(slots) + 2 * model.config.num_recurrent_layers
    assert {id(module) for module, _ in seen} == {id(slot) for slot in slots}


class SmallEngine:
    """
    Keeps keys and values of one text by `layer_idx`, as vLLM does, and knows nothing of recurrences.

    Its attention function finds it in the keyword argument `attention_instances`.
    """

    def __init__(self, model):
        self.model = model
        self.memory, self.start = {}, 0
        AttentionInterface.register("small_engine", self.attend)
        model.config._attn_implementation = "small_engine"

    @staticmethod
    def attend(module, query, key, value, mask, attention_instances, scaling=None, sliding_window=None, **kwargs):
        engine, slot = attention_instances, module.layer_idx
        assert mask is None
        if engine.start:
            past = (states[:, :, : engine.start] for states in engine.memory[slot])
            key, value = (torch.cat(pair, 2) for pair in zip(past, (key, value), strict=True))
        engine.memory[slot] = key, value
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        places = torch.arange(key.shape[2])
        back = places[engine.start :, None] - places
        visible = (back >= 0) & (back < (sliding_window or len(places)))
        scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
        return (scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value).transpose(1, 2), None

    @torch.no_grad()
    def text(self, row, new_tokens=6):
        self.memory, self.start, ids, text = {}, 0, row, []
        for _ in range(new_tokens):
            hidden = self.model.model(
                input_ids=ids[None],
                position_ids=torch.arange(self.start, self.start + len(ids))[None],
                use_cache=False,
                attention_instances=self,
                return_dict=False,
            )[0]
            self.start += len(ids)
            ids = self.model.compute_logits(hidden[0, -1:]).argmax(-1)
            text.append(int(ids))
        return text


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=grid_ids(DECODING_GRID))
def test_an_engine_that_knows_nothing_of_loops(style, extra):
    """With the control: in shared slots, it writes other texts."""
    rows = [random_ids(length) for length in (13, 4, 9)]
    model = varied_model(style, extra, rows)
    expected = greedy_texts(model, rows)
    engine = SmallEngine(model)
    assert [engine.text(row) for row in rows] == expected
    with shared_slots(model):
        assert [engine.text(row) for row in rows] != expected


@pytest.mark.parametrize(
    ("fields", "call", "message"),
    [
        ({}, {"num_recurrences": 5}, "num_recurrences=5 in a call of an inference engine.*num_recurrences=3"),
        ({}, {"num_recurrences": 2}, "num_recurrences=2 in a call of an inference engine"),
        ({}, {"num_recurrences": torch.tensor([3])}, "counts per row or a halting criterion"),
        ({"halting_criterion": "state_difference"}, {}, "halting_criterion='state_difference' in the config"),
        ({"exit_gate": True, "halting_criterion": "exit_gate"}, {}, "halting_criterion='exit_gate' in the config"),
        ({"cache_recurrences": "last"}, {}, "cache_recurrences='last' is an approximation"),
        ({}, {"cache_recurrences": "last"}, "cache_recurrences='last' is an approximation"),
        ({}, {"use_cache": True, "num_recurrences": 4}, "num_recurrences=4 in a call"),
    ],
    ids=str,
)
def test_what_an_engine_cannot_run_is_refused(fields, call, message):
    model = lively_model("llama", fields)
    engine = SmallEngine(model)
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        model.model(random_ids(1, 5), attention_instances=engine, **call)
    assert not engine.memory


def test_an_engine_at_another_depth(tmp_path):
    """A depth that is set when loading, as by `--hf-overrides`, or in the config afterwards."""
    rows = [random_ids(length) for length in (13, 4)]
    model = varied_model("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add"}, rows)
    model.save_pretrained(tmp_path)
    texts = {depth: greedy_texts(model, rows, num_recurrences=depth) for depth in (3, 6)}
    loaded = RecurrentDepthForCausalLM.from_pretrained(tmp_path, num_recurrences=6).double()
    assert len(loaded.model.key_value_slots) == loaded.config.num_hidden_layers == 14
    engine = SmallEngine(loaded)
    assert [engine.text(row) for row in rows] == texts[6]
    loaded.config.num_recurrences = 3
    assert [engine.text(row) for row in rows] == texts[3]
    assert len(loaded.model.key_value_slots) == 8


def test_slots_change_nothing_that_is_saved(tmp_path):
    model = tiny_model("llama", num_prelude_layers=1, num_recurrences=5)
    assert not [name for name in model.state_dict() if "slot" in name]
    assert not [name for name, _ in model.named_parameters() if "slot" in name]
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert not {"layer_types", "num_hidden_layers"} & written.keys()
    # Whatever the depth it was saved at.
    other, info = RecurrentDepthForCausalLM.from_pretrained(tmp_path, num_recurrences=2, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(p.numel() for p in other.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_copy_has_slots_of_its_own():
    model = tiny_model("family:qwen3", num_prelude_layers=1)
    twin = copy.deepcopy(model)
    for slot, other in zip(model.model.key_value_slots, twin.model.key_value_slots, strict=True):
        assert isinstance(other, KeyValueSlot) and other is not slot and other.config is twin.config
    twin.set_attn_implementation("eager")
    assert {slot.config._attn_implementation for slot in model.model.key_value_slots} == {"sdpa"}
    ids = random_ids(2, 7)
    assert torch.allclose(twin(ids).logits, model(ids).logits, atol=1e-5)


def test_layer_types_cannot_be_set():
    with pytest.raises(TypeError, match="RecurrentDepthConfig has no field 'layer_types'"):
        RecurrentDepthConfig(layer_types=["full_attention"])


def test_a_depth_beyond_any_memory_has_no_slots():
    config = tiny_config("llama", num_recurrences=MOST_SLOTS)
    model = RecurrentDepthForCausalLM(config).eval()
    assert len(model.model.key_value_slots) == config.num_recurrent_layers
    ids = random_ids(1, 5)
    assert model(ids, num_recurrences=2).logits.shape == (1, 5, config.vocab_size)
    with pytest.raises(ValueError, match=f"key-value slots for each token, above the limit of {MOST_SLOTS}"):
        model(ids, attention_instances=SmallEngine(model))


def test_the_base_model_by_its_auto_class(tmp_path):
    """Engines make the base model with `AutoModel`, from the config alone."""
    tiny_model("family:llama", num_coda_layers=1).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_recurrences=4)
    model = AutoModel.from_config(config)
    assert model._supports_attention_backend and len(model.key_value_slots) == config.num_hidden_layers == 9


def test_a_cache_under_the_name_of_an_engine_is_refused():
    """It would be taken for the call of an engine, and never written."""
    model = tiny_model("llama")
    with pytest.raises(TypeError, match=r"cache is a DynamicCache, .* Did you mean past_key_values"):
        model(random_ids(1, 5), cache=DynamicCache(config=model.config))
