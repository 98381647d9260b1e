"""Weights that belong to recurrences after the first: gates, low-rank updates, and who learns from whom."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from recurrent_models import random_ids, relative_error, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from memreason_hf.models import unroll_decoder
from modeling_recurrent import RecurrentDepthForCausalLM
from modeling_recurrent.gradients_recurrent import recurrence_parameters


STYLES = ("gpt2", "llama", "family:llama", "family:gemma3_text", "family:gpt2")
LORA = {"recurrence_lora_rank": 3, "recurrence_lora_count": 2, "num_prelude_layers": 1, "num_coda_layers": 1}


def with_updates(style, **extra):
    model = tiny_model(style, **{**LORA, **extra}).double()
    with torch.no_grad():
        for parameter in model.model.recurrence_lora.parameters():
            parameter.normal_(std=0.2)
    return model


def written_out(model, style, recurrences, updates=True):
    """A model without a loop that holds the looped layers `recurrences` times, with their updates in the weights."""
    fields = {**LORA, "recurrence_lora_rank": None, "num_recurrent_layers": 2 * recurrences, "num_recurrences": 1}
    plain = tiny_model(style, **fields).double()
    state = {name: value for name, value in model.state_dict().items() if "layers" not in name and "lora" not in name}
    order = [(0, None), *((1 + i, t) for t in range(1, recurrences + 1) for i in range(2)), (3, None)]
    for place, (index, recurrence) in enumerate(order):
        pairs = model.model.recurrence_lora[index - 1] if recurrence and updates else {}
        for name, value in model.model.layers[index].state_dict().items():
            key = name.removesuffix(".weight").replace(".", "/")
            if key in pairs and name.endswith(".weight") and recurrence > 1:
                delta = pairs[key].delta(recurrence)
                value = value + (delta.T if "family:gpt2" in style else delta)
            state[f"model.layers.{place}.{name}"] = value
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("style", STYLES)
def test_updates_are_those_of_merged_weights(style):
    model, ids = with_updates(style), random_ids(2, 7)
    with torch.no_grad():
        for recurrences in (1, 2, 3, 5):
            actual = model(ids, num_recurrences=recurrences).logits
            expected = written_out(model, style, recurrences)(ids).logits
            assert relative_error(actual, expected) < (1e-5 if "family" in style else 1e-12), recurrences
            control = written_out(model, style, recurrences, updates=False)(ids).logits
            assert (relative_error(control, actual) > 1e-3) == (recurrences > 1)


@pytest.mark.parametrize("style", STYLES)
def test_updates_start_without_effect(style):
    model = RecurrentDepthForCausalLM(tiny_config(style, **LORA)).eval()
    ids = random_ids(2, 7)
    plain = copy.deepcopy(model)
    plain.model.recurrence_lora = None
    with torch.no_grad():
        assert torch.equal(model(ids, num_recurrences=4).logits, plain(ids, num_recurrences=4).logits)
    pairs = dict(model.model.recurrence_lora.named_parameters())
    assert all(parameter.any() == name.endswith(".down") for name, parameter in pairs.items())


def test_a_copy_has_updates_of_its_own(tmp_path):
    model, ids = with_updates("family:llama"), random_ids(2, 7)
    with torch.no_grad():
        expected = model(ids, num_recurrences=4).logits
        twin = copy.deepcopy(model)
        for parameter in model.model.recurrence_lora.parameters():
            parameter.zero_()
        assert torch.equal(twin(ids, num_recurrences=4).logits, expected)
        assert not torch.equal(model(ids, num_recurrences=4).logits, expected)
    twin.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    with torch.no_grad():
        # To rounding: kernels of some processors depend on where in memory the weights lie.
        torch.testing.assert_close(loaded(ids, num_recurrences=4).logits, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("style", STYLES)
def test_gradient_checkpointing_runs_the_updates_of_the_same_recurrence(style):
    model, ids = with_updates(style).train(), random_ids(2, 7)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        getattr(model, f"gradient_checkpointing_{'enable' if checkpointing else 'disable'}")()
        torch.manual_seed(0)  # GPT-2 has dropout
        model(ids, labels=ids, num_recurrences=5).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        assert relative_error(gradients[1][name], gradient) < 1e-12, name


@pytest.mark.parametrize("is_attached", [False, True])
@torch.no_grad()
def test_an_adapter_that_is_merged_leaves_the_updates(is_attached):
    model, ids = with_updates("family:llama"), random_ids(2, 7)
    plain = model(ids, num_recurrences=4).logits
    if not is_attached:
        fresh = RecurrentDepthForCausalLM(model.config).double().eval()
        fresh.load_state_dict(model.state_dict())
        model = fresh
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    expected = adapted(ids, num_recurrences=4).logits
    assert relative_error(plain, expected) > 1e-3
    merged = adapted.merge_and_unload()
    # Rotations are computed in single precision.
    assert relative_error(merged(ids, num_recurrences=4).logits, expected) < 1e-5
    for parameter in merged.model.recurrence_lora.parameters():
        parameter.zero_()
    assert relative_error(merged(ids, num_recurrences=4).logits, expected) > 1e-3


@pytest.mark.parametrize("style", ["llama", "family:gemma3_text"])
@torch.no_grad()
@pytest.mark.slow
def test_a_fresh_model_compiles_whole_at_several_depths(style):
    model, ids = with_updates(style), random_ids(2, 7)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for recurrences in (2, 4):
        call = {"num_recurrences": recurrences, "use_cache": False}
        assert relative_error(compiled(ids, **call).logits, twin(ids, **call).logits) < 1e-6


def test_written_out_only_without_updates():
    model = with_updates("family:llama")
    assert unroll_decoder(model, 1).config.num_hidden_layers == 4
    with pytest.raises(ValueError, match="recurrence_lora"):
        unroll_decoder(model, 2)


# ---- Which weights learn from which recurrence ----


def gradients(model, ids, weights, depth):
    model.zero_grad()
    model(ids, labels=ids, num_recurrences=depth, recurrence_loss_weights=torch.tensor(weights)).loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("style", ["llama", "family:llama", "family:gemma2"])
def test_shared_weights_learn_from_the_first_recurrence_alone(style):
    fields = {"input_injection": "gate", "injection_gate_init": 0.5, "recurrence_gradients": "separate"}
    model, ids = with_updates(style, **fields).train(), random_ids(3, 8)
    own = {f"model.{name}" for name, _ in recurrence_parameters(model.model)}
    assert "model.injection.weight" in own and len(own) > 10
    together = gradients(model, ids, [1.0, 0.0, 0.5, 1.0], 4)
    first = gradients(model, ids, [1.0], 1)
    model.config.recurrence_gradients = "shared"
    shared = gradients(model, ids, [1.0, 0.0, 0.5, 1.0], 4)
    deep = gradients(model, ids, [0.0, 0.0, 0.5, 1.0], 4)
    for name, gradient in together.items():
        if name in own:
            assert gradient.any() and relative_error(gradient, deep[name]) < 1e-9, name
        else:
            assert gradient.any() and torch.equal(gradient, first[name]), name
            assert not torch.equal(gradient, shared[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_separate_gradients_are_refused_where_they_cannot_be():
    fields = {"input_injection": "gate", "recurrence_gradients": "separate"}
    model, ids = tiny_model("llama", **fields).train(), random_ids(2, 5)
    with pytest.raises(ValueError, match="one depth for all rows"):
        model(ids, labels=ids, num_recurrences=torch.tensor([1, 3]))
    with pytest.raises(ValueError, match="trains RecurrentDepthModel alone"):
        model.model(ids, num_recurrences=3)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(ids, labels=ids, num_recurrences=3)
    model.gradient_checkpointing_disable()
    # A failure in the middle leaves all weights trainable.
    with pytest.raises(RuntimeError, match="on purpose"):
        model(ids, labels=ids, num_recurrences=3, on_recurrence=_fail_at_the_third)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for wrong in ({"state_init": "zeros"}, {"input_injection": "add"}):
        with pytest.raises(StrictDataclassError, match="separate"):
            tiny_model("llama", **{**fields, **wrong})


def _fail_at_the_third(recurrence, rows, logits):
    if recurrence == 3:
        raise RuntimeError("on purpose")
