"""Which weights each mode trains, and which layers are adapted."""

import re

import pytest
import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from small_adapters import SCHEME, adapted, as_if_trained, extended, save_base, some_ids
from small_tokenizers import MODELS, byte_level, gpt2, llama, recurrent
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from memreason_hf.adapters.modes import ADAPTER_MODES, AdapterArguments, add_adapter
from memreason_hf.adapters.targets import LORA_TARGETS, linear_layers, lora_targets
from memreason_hf.patches import restore_class
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer, new_rows
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


# The modes that change weights. Virtual tokens are inputs: test_prompt_tokens.py.
ADAPTERS = [mode for mode in ADAPTER_MODES if mode not in ("full", "prompt")]


def deep(vocab_size, tied=True, **config):
    """Layers before, in and after the loop, and a linear layer of the injection, which belongs to none of them."""
    return RecurrentDepthForCausalLM(
        RecurrentDepthConfig.llama_style(
            **{
                "vocab_size": vocab_size,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_attention_heads": 2,
                "num_prelude_layers": 1,
                "num_recurrent_layers": 2,
                "num_coda_layers": 1,
                "num_recurrences": 3,
                "input_injection": "concat",
                "state_norm": "rmsnorm",
                "tie_word_embeddings": tied,
                "bos_token_id": 0,
                "eos_token_id": 1,
                "pad_token_id": 2,
                **config,
            }
        )
    )


def opt(vocab_size, tied=True):
    """Its feed-forward layers are directly in the decoder layer."""
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 1}
    return OPTForCausalLM(OPTConfig(vocab_size=vocab_size, num_attention_heads=2, tie_word_embeddings=tied, **sizes))


def neox(vocab_size, tied=False):
    """Its head is called embed_out."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=vocab_size, tie_word_embeddings=tied, **sizes))


class ScaledEmbedding(torch.nn.Embedding):
    """As in Gemma: the embedding is multiplied by a constant."""

    embed_scale = torch.tensor(3.0)

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


def scaled(vocab_size, tied=True):
    model = llama(vocab_size, tied=tied)
    model.set_input_embeddings(ScaledEmbedding(vocab_size, 16, padding_idx=2, _weight=model.lm_head.weight.clone()))
    if tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    return model


FAMILIES = {**MODELS, "deep": deep, "opt": opt, "neox": neox}
LLAMA_MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
LLAMA_ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
OUR_ATTENTION = ["self_attn.qkv_proj", "self_attn.o_proj"]
# Decoder layers, and inside them the layers of the feed-forward network and of the attention.
EXPECTED = {
    "llama": (["model.layers.0"], LLAMA_MLP, LLAMA_ATTENTION),
    "qwen2": (["model.layers.0"], LLAMA_MLP, LLAMA_ATTENTION),
    "gpt2": (["transformer.h.0"], ["mlp.c_fc", "mlp.c_proj"], ["attn.c_attn", "attn.c_proj"]),
    "recurrent": (["model.layers.0"], ["mlp.up_proj", "mlp.down_proj"], OUR_ATTENTION),
    "deep": (
        [f"model.layers.{index}" for index in range(4)],
        ["mlp.gate_up_proj", "mlp.down_proj"],
        OUR_ATTENTION,
    ),
    "opt": (["model.decoder.layers.0"], ["fc1", "fc2"], [f"self_attn.{n}_proj" for n in ("q", "k", "v", "out")]),
    "neox": (
        ["gpt_neox.layers.0"],
        ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        ["attention.query_key_value", "attention.dense"],
    ),
}


# ---- Which layers are adapted ----


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_by_their_place_in_a_decoder_layer(family):
    model = FAMILIES[family](300)
    layers, mlp, attention = EXPECTED[family]
    expected = {
        "mlp": {f"{layer}.{name}" for layer in layers for name in mlp},
        "attention": {f"{layer}.{name}" for layer in layers for name in attention},
    }
    expected["all"] = expected["mlp"] | expected["attention"]
    for targets in LORA_TARGETS:
        found = lora_targets(model, targets)
        assert len(found) == len(set(found)) and set(found) == expected[targets]


@pytest.mark.parametrize("targets", LORA_TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_those_layers_are_wrapped(family, targets):
    tokenizer = byte_level()
    model = FAMILIES[family](len(tokenizer))
    expected = set(lora_targets(model, targets))
    extend_tokenizer(tokenizer, SCHEME, model)
    adapted = add_adapter(model, tokenizer, AdapterArguments("lora", lora_targets=targets, lora_r=3))
    wrapped = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): parameter.shape[0]
        for name, parameter in adapted.named_parameters()
        if ".lora_A." in name
    }
    assert wrapped == dict.fromkeys(expected, 3)


def test_many_layers():
    """From 20 paths on PEFT shortens them to endings, which must not match other layers."""
    tokenizer = byte_level()
    model = gpt2(len(tokenizer))
    config = model.config
    config.n_layer = 12
    model = type(model)(config)
    extend_tokenizer(tokenizer, SCHEME, model)
    adapted = add_adapter(model, tokenizer, AdapterArguments("lora", lora_targets="mlp"))
    wrapped = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A." in name}
    ends = [f"transformer.h.{layer}.mlp.{name}" for layer in range(12) for name in ("c_fc", "c_proj")]
    assert wrapped == {f"base_model.model.{end}" for end in ends}


class HeadInALayer(torch.nn.Module):
    """A decoder that predicts from its last layer, whose head is a part of that layer."""

    def __init__(self):
        super().__init__()
        block = {"mlp": torch.nn.Linear(4, 4), "mlp_head": torch.nn.Linear(4, 9)}
        self.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"ffn": torch.nn.ModuleDict(block)})])

    def get_output_embeddings(self):
        return self.layers[0]["ffn"]["mlp_head"]


def test_the_head_is_no_target_wherever_it_is():
    assert linear_layers(HeadInALayer()) == {"layers.0.ffn.mlp": "mlp"}


def test_a_model_without_such_layers_is_an_error_that_lists_its_layers():
    model = MambaForCausalLM(
        MambaConfig(vocab_size=300, hidden_size=16, state_size=4, num_hidden_layers=1, tie_word_embeddings=False)
    )
    with pytest.raises(ValueError, match="lora_targets='attention': MambaForCausalLM has no such layer") as error:
        lora_targets(model, "attention")
    assert "backbone.layers.0.mixer.in_proj (other)" in str(error.value)
    assert "lm_head (outside of decoder layers)" in str(error.value)
    with pytest.raises(ValueError, match="'mlp': MambaForCausalLM has no such layer"):
        lora_targets(model, "mlp")
    assert set(lora_targets(model, "all")) == set(linear_layers(model))
    with pytest.raises(ValueError, match=re.escape("lora_targets='head' must be one of mlp, attention")):
        lora_targets(model, "head")


# ---- Which weights are trained ----


def train(model, tokenizer, steps=2):
    """Two steps, because the first one changes only half of each low-rank update. The other half starts from zero."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        ids = some_ids(tokenizer)
        model(input_ids=ids, labels=ids).loss.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"no gradient: {without}"
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ("full", *ADAPTERS))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_weight_moves_and_no_other(family, mode, tied):
    tokenizer = byte_level()
    model = FAMILIES[family](len(tokenizer) + 20, tied=tied)
    ids = extend_tokenizer(tokenizer, SCHEME, model)
    adapted = add_adapter(model, tokenizer, AdapterArguments(mode, lora_targets="all", lora_dropout=0.0))
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    train(adapted, tokenizer)
    rows = 0
    for name, parameter in adapted.named_parameters():
        is_row = "trainable_tokens_delta" in name
        expected = mode == "full" or ("lora_" in name and "lora" in mode) or (is_row and "tokens" in mode)
        assert parameter.requires_grad == expected, name
        if is_row:
            assert parameter.shape == (len(ids), 16)
            moved = (parameter != before[name]).any(dim=1)
            assert moved.all() if expected else not moved.any(), name
            rows += 1
        else:
            assert torch.equal(parameter, before[name]) != expected, name
    # `lora` has frozen rows. A tied head has none of its own.
    assert rows == (0 if mode == "full" else 1 if tied else 2)


@torch.no_grad()
def matrices(model):
    """The matrices of embedding and head with the trained rows."""
    modules = model.get_input_embeddings(), model.get_output_embeddings()
    return [getattr(module, "token_adapter", module).get_merged_weights(["default"]).clone() for module in modules]


@pytest.mark.parametrize("mode", ["tokens", "lora+tokens"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "deep"])
def test_old_rows_stay_and_a_tied_head_follows(family, tied, mode, tmp_path):
    base = save_base(tmp_path / "base", FAMILIES[family], tied=tied, padding=30)
    model, tokenizer = adapted(base, mode)
    before = matrices(model)
    train(model, tokenizer)
    _, ids = new_rows(model)
    old = [row for row in range(len(before[0])) if row not in ids]
    after = matrices(model)
    for first, second in zip(before, after):
        assert torch.equal(first[old], second[old])
        assert (first[ids] != second[ids]).any(dim=1).all()
    assert torch.equal(*after) == tied


def test_an_adapter_changes_nothing_before_training(tmp_path):
    for tied in (True, False):
        base = save_base(tmp_path / f"base{tied}", tied=tied)
        plain, tokenizer, _ = extended(base)
        ids = some_ids(tokenizer)
        with torch.no_grad():
            expected = plain.eval()(input_ids=ids).logits
            for mode in ("full", *ADAPTERS):
                model, _ = adapted(base, mode)
                torch.testing.assert_close(model.eval()(input_ids=ids).logits, expected)


def test_frozen_rows_stay_frozen_whatever_switches_adapters_on():
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    extend_tokenizer(tokenizer, SCHEME, model)
    model = add_adapter(model, tokenizer, AdapterArguments("lora"))
    model.set_adapter("default")
    assert not any(p.requires_grad for n, p in model.named_parameters() if "tokens" in n)
    assert any(p.requires_grad for n, p in model.named_parameters() if "lora_A" in n)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ADAPTERS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "deep", "scaled"])
def test_gradients_are_those_of_peft(family, mode, tied, autocast, monkeypatch):
    """PEFT's layers compute a gradient of the whole matrix, and ours of the rows."""
    peft_forward, used = TrainableTokensLayer.forward_adapters, []
    monkeypatch.setattr(
        TrainableTokensLayer,
        "forward_adapters",
        lambda layer, *args, **kwargs: (used.append(layer), peft_forward(layer, *args, **kwargs))[1],
    )
    tokenizer = byte_level()
    model = {**FAMILIES, "scaled": scaled}[family](len(tokenizer) + 30, tied=tied)
    extend_tokenizer(tokenizer, SCHEME, model)
    model = add_adapter(model, tokenizer, AdapterArguments(mode, lora_targets="all", lora_dropout=0.0))
    as_if_trained(model)
    ids = some_ids(tokenizer)

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(input_ids=ids, labels=ids)
        outputs.loss.backward()
        return outputs.logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    logits, ours = gradients()
    # Frozen rows, and a forward without gradients, are left to PEFT.
    assert len(used) == (2 if mode == "lora" else 0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(model(input_ids=ids).logits, logits)
    for layer in model.token_layers():
        restore_class(layer, TrainableTokensLayer)
    expected_logits, expected = gradients()
    assert torch.equal(logits, expected_logits)
    assert ours.keys() == expected.keys() and len(ours) > 0
    for name, gradient in ours.items():
        assert gradient.dtype == expected[name].dtype == torch.float32
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < (2e-2 if autocast else 1e-5), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ["tokens", "lora+tokens"])
def test_a_disabled_adapter_is_the_base_also_with_gradients(mode, tied, tmp_path):
    base = save_base(tmp_path / "base", tied=tied, padding=40)
    plain, tokenizer, _ = extended(base)
    model, _ = adapted(base, mode)
    as_if_trained(model)
    ids = some_ids(tokenizer)
    with torch.no_grad():
        expected = plain.eval()(input_ids=ids).logits
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, expected)
    assert not torch.allclose(model(input_ids=ids).logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ADAPTERS)
def test_rows_in_place_give_the_same_logits_and_leave_no_trace(mode, tied, tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base", tied=tied, padding=40), mode)
    as_if_trained(model)
    ids = some_ids(tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(input_ids=ids).logits
    merged = matrices(model)
    layers = model.token_layers()
    assert len(layers) == 2
    for _ in range(2):
        with model.rows_in_place():
            assert torch.equal(model(input_ids=ids).logits, expected)
            for layer, matrix in zip(layers, merged):
                assert torch.equal(layer.get_base_layer().weight, matrix)
            with model.rows_in_place():
                assert torch.equal(model(input_ids=ids).logits, expected)
        assert torch.equal(model(input_ids=ids).logits, expected)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
    with pytest.raises(KeyError), model.rows_in_place():
        raise KeyError
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert torch.equal(model.state_dict()[name], before[name])


@pytest.mark.parametrize("mode", ADAPTERS)
def test_a_recurrent_base_keeps_its_arguments(mode):
    """The adapter passes on counts, shifted labels and the arguments of generate."""
    tokenizer = byte_level()
    model = deep(len(tokenizer))
    extend_tokenizer(tokenizer, SCHEME, model)
    model = as_if_trained(add_adapter(model, tokenizer, AdapterArguments(mode, lora_targets="all")))
    ids = some_ids(tokenizer)
    # With gradients, as below: a model on a CPU trains with another kernel of SDPA.
    shallow, deeper = (model(input_ids=ids, num_recurrences=count).logits.detach() for count in (1, 4))
    assert not torch.allclose(shallow, deeper)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = 7
    outputs = model(input_ids=ids, shift_labels=labels, labelled_logits_only=True, num_recurrences=4)
    torch.testing.assert_close(outputs.logits, deeper[:, -1])
    written = model.generate(
        input_ids=ids[:1],
        attention_mask=torch.ones_like(ids[:1]),
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        halting_criterion="state_difference",
        state_difference_threshold=0.5,
    )
    assert written.sequences.shape[1] == ids.shape[1] + 4 and written.num_recurrences.shape == (1, 4)


# ---- Refusals ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "prefix"}, "mode='prefix' must be one of full, lora, tokens, lora+tokens"),
        ({"lora_targets": "head"}, "lora_targets='head' must be one of mlp, attention, all"),
        ({"lora_r": 0}, "lora_r=0 must be at least 1"),
        ({"lora_r": True}, "lora_r=True must be a whole number"),
        ({"lora_alpha": 0}, "lora_alpha=0 must be above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AdapterArguments(**arguments)


def test_documented_defaults():
    assert AdapterArguments() == AdapterArguments("lora+tokens", 16, 16, 0.05, "mlp")
    AdapterArguments(lora_r=1, lora_alpha=1e-3, lora_dropout=0.0)


@pytest.mark.parametrize("mode", ADAPTER_MODES)
def test_a_tokenizer_without_the_tokens(mode):
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    with pytest.raises(ValueError, match="has no scheme of steps"):
        add_adapter(model, tokenizer, AdapterArguments(mode))
    tokenizer.init_kwargs["step_scheme"] = SCHEME.to_dict()
    with pytest.raises(ValueError, match="lacks 14 of the 14 tokens"):
        add_adapter(model, tokenizer, AdapterArguments(mode))


@pytest.mark.parametrize("mode", ADAPTERS)
def test_a_model_that_was_not_extended(mode):
    tokenizer = byte_level()
    model = llama(len(tokenizer) + 40)
    extend_tokenizer(tokenizer, SCHEME)
    with pytest.raises(ValueError, match="has no rows for the tokens of steps"):
        add_adapter(model, tokenizer, AdapterArguments(mode))


def test_a_scheme_without_tokens():
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    extend_tokenizer(tokenizer, StepScheme(0, 0, marks="words"), model)
    for mode in ("tokens", "lora+tokens"):
        with pytest.raises(ValueError, match=r"has no tokens, so no row is new"):
            add_adapter(model, tokenizer, AdapterArguments(mode))
    model = add_adapter(model, tokenizer, AdapterArguments("lora"))
    assert model.token_layers() == []


@pytest.mark.parametrize("mode", ADAPTERS)
def test_heads_that_cannot_have_rows_of_their_own(mode):
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    model.lm_head = torch.nn.Linear(16, len(tokenizer), bias=True)
    extend_tokenizer(tokenizer, SCHEME, model)
    with pytest.raises(ValueError, match="only be stored if it is a linear layer without a bias"):
        add_adapter(model, tokenizer, AdapterArguments(mode))
    tokenizer = byte_level()
    model = recurrent(len(tokenizer), tied=True)
    model.config.tie_word_embeddings = False
    extend_tokenizer(tokenizer, SCHEME, model)
    with pytest.raises(ValueError, match="tie_word_embeddings=False in the config"):
        add_adapter(model, tokenizer, AdapterArguments(mode))


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_read_by_its_weight_is_the_head_that_is_called(tied, tmp_path):
    """TRL computes the loss from weight and bias of the head. The control: the base's own weight lacks the rows."""
    model, _ = adapted(save_base(tmp_path / "base", tied=tied), "lora+tokens")
    as_if_trained(model)
    head = model.get_base_model().get_output_embeddings()
    hidden = torch.randn(3, 16)
    expected = head(hidden)
    assert head.bias is None
    found = torch.nn.functional.linear(hidden, head.weight, head.bias)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(torch.nn.functional.linear(hidden, head.original_module.weight), expected, atol=1e-3)
    rows = [layer.trainable_tokens_delta["default"] for layer in model.token_layers()][-1]
    assert torch.autograd.grad(found.sum(), rows)[0].abs().sum() > 0
