"""Families: their own layers in our loop, against the library's own models and against our blocks."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from family_models import FAMILY_NAMES, OTHER_NAMES, tiny_source
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from recurrent_models import pad, random_ids, relative_error, tiny_config, tiny_model
from transformers import DynamicCache

from memreason_hf.models import convert_decoder, unroll_decoder
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.families_recurrent import strip_block_config


LENGTHS = (9, 4, 12)
ALL = (*FAMILY_NAMES, *OTHER_NAMES)


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp_min(0)


def largest_difference(actual, expected, mask=None):
    difference = (actual - expected).abs()
    return (difference if mask is None else difference[mask.bool()]).max().item()


# ---- Exact ----


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_one_recurrence_is_the_source(name):
    source = tiny_source(name, seed=torch.seed() % 1000)
    model = convert_decoder(source, prelude=2, loop=2, coda=2)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in source.parameters()) + 32
    for side in ("left", "right"):
        ids, mask = pad([random_ids(n) for n in LENGTHS], side)
        expected = source(ids, attention_mask=mask, position_ids=positions(mask)).logits
        assert largest_difference(model(ids, attention_mask=mask).logits, expected, mask) == 0.0
        # The gate starts closed: every recurrence repeats the first. Open, they differ.
        assert relative_error(model(ids, attention_mask=mask, num_recurrences=4).logits, expected) < 1e-6
    repeated = convert_decoder(source, prelude=2, loop=2, coda=2, injection_gate_init=1.0)
    assert largest_difference(repeated(ids, attention_mask=mask, num_recurrences=2).logits, expected, mask) > 1e-3
    swapped = copy.deepcopy(model)
    swapped.model.layers[1], swapped.model.layers[2] = swapped.model.layers[2], swapped.model.layers[1]
    assert largest_difference(swapped(ids, attention_mask=mask).logits, expected, mask) > 1e-4


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_one_recurrence_is_the_source_where_gradients_are_recorded(name):
    """Short rows train with another kernel; in evaluation mode the kernel is that of the source."""
    source = tiny_source(name)
    model, ids = convert_decoder(source), random_ids(2, 9)
    logits = model(ids).logits
    assert logits.requires_grad and torch.equal(logits, source(ids).logits)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_cached_and_generated_texts_are_those_of_the_source(name):
    source = tiny_source(name)
    model = convert_decoder(source, prelude=1, loop=4, coda=1)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    call = {
        "attention_mask": mask,
        "max_new_tokens": 8,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    # A window cache drops old keys, which changes rounding.
    expected = source.generate(ids, past_key_values=DynamicCache(), **call)
    actual = model.generate(ids, **call)
    assert torch.equal(actual.sequences, expected.sequences)
    assert largest_difference(torch.stack(actual.logits), torch.stack(expected.logits)) == 0.0
    windowed = source.generate(ids, **call)
    assert relative_error(torch.stack(actual.logits), torch.stack(windowed.logits)) < 1e-5


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_loops_written_out(name):
    """Several recurrences of a range of layers, the others dropped: the library's own model with repeated layers."""
    source = tiny_source(name)
    model = convert_decoder(source, prelude=[0], loop="2-3", coda=[5], input_injection="none")
    for recurrences in (1, 3):
        plain = unroll_decoder(model, recurrences)
        assert type(plain) is type(source) and plain.config.num_hidden_layers == 2 + 2 * recurrences
        ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
        expected = plain(ids, attention_mask=mask, position_ids=positions(mask)).logits
        actual = model(ids, attention_mask=mask, num_recurrences=recurrences).logits
        assert largest_difference(actual, expected, mask) == 0.0
        assert largest_difference(model(ids, attention_mask=mask, num_recurrences=2).logits, expected, mask) > 1e-4


@pytest.mark.parametrize("name", FAMILY_NAMES)
@torch.no_grad()
def test_states_and_maps_are_those_of_the_source(name):
    source = tiny_source(name)
    model = convert_decoder(source, prelude=2, loop=2, coda=2)
    for each in (source, model):
        each.set_attn_implementation("eager")
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    shown = {"output_hidden_states": True, "output_attentions": True, "attention_mask": mask}
    expected = source(ids, position_ids=positions(mask), **shown)
    actual = model(ids, **shown)
    assert len(actual.attentions) == len(expected.attentions) == 6
    queries = mask[:, None, :, None].bool().expand_as(actual.attentions[0])
    for ours, theirs in zip(actual.attentions, expected.attentions):
        assert torch.equal(ours[queries], theirs[queries])
    assert largest_difference(actual.hidden_states[1], expected.hidden_states[4], mask) == 0.0


# ---- Against our blocks ----


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
@torch.no_grad()
def test_our_blocks_and_those_of_the_family_agree(name):
    source = tiny_source(name, use_sliding_window=False) if name == "qwen2" else tiny_source(name)
    family = convert_decoder(source, prelude=2, loop=2, coda=2, injection_gate_init=0.7)
    ours = as_our_blocks(family, name)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    for depth in (3, torch.tensor([2, 5, 1]), torch.randint(1, 6, ids.shape)):
        expected = ours(ids, attention_mask=mask, num_recurrences=depth).logits
        actual = family(ids, attention_mask=mask, num_recurrences=depth).logits
        assert relative_error(actual[mask.bool()], expected[mask.bool()]) < 1e-5
    ours.model.layers[3].mlp.down_proj.weight.mul_(1.1)
    control = ours(ids, attention_mask=mask, num_recurrences=3).logits
    assert relative_error(family(ids, attention_mask=mask, num_recurrences=3).logits, control) > 1e-3


def as_our_blocks(family, name):
    """The same model with our fused blocks."""
    config, block = family.config, family.config.make_block_config()
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    fields = {key: getattr(config, key) for key in (*sizes, "norm_eps", "max_position_embeddings", "pad_token_id")}
    fields |= {f"num_{stack}_layers": 2 for stack in ("prelude", "recurrent", "coda")}
    fields |= {"input_injection": "gate", "tie_word_embeddings": config.tie_word_embeddings}
    if name == "gpt2":
        ours = RecurrentDepthConfig.gpt2_style(**fields)
    else:
        bias = {"attention_bias": name == "qwen2", "attention_output_bias": False}
        ours = RecurrentDepthConfig.llama_style(**fields, **bias, rope_parameters=block.rope_parameters)
    ours = RecurrentDepthForCausalLM(ours).eval()
    state = family.state_dict()
    renamed = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_attn": "self_attn.qkv_proj"}
    renamed |= {"attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
    theirs = {}
    for key, value in state.items():
        for before, after in renamed.items() if name == "gpt2" else ():
            if f".{before}." in key:
                value = value.T if key.endswith("weight") and "ln_" not in before else value
                key = key.replace(f".{before}.", f".{after}.")
        theirs[key] = value
    for key, value in ours.state_dict().items():
        fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        parts = [theirs[key]] if key in theirs else None
        for target, sources in fused.items():
            if target in key and parts is None:
                parts = [theirs[key.replace(target, part)] for part in sources]
        value.copy_(torch.cat(parts))
    return ours


# ---- Training, precision, packing ----


@pytest.mark.parametrize("name", ALL)
def test_dropout_is_that_of_the_source(name):
    fields = [field for field in tiny_source(name).config.to_dict() if "dropout" in field or field.endswith("pdrop")]
    source = tiny_source(name, **dict.fromkeys((field for field in fields if field != "classifier_dropout"), 0.3))
    model, ids = convert_decoder(source, prelude=2, loop=2, coda=2), random_ids(2, 11)

    def logits(of, seed):
        torch.manual_seed(seed)
        return of(ids).logits

    with torch.no_grad():
        evaluated = logits(source, 0)
        source.train()
        model.train()
        # To rounding: in training short rows take another kernel of the attention. Other draws differ by far more.
        torch.testing.assert_close(logits(model, 0), logits(source, 0), rtol=1e-5, atol=1e-5)
        if fields:
            assert not torch.allclose(logits(model, 0), logits(model, 1), rtol=1e-2, atol=1e-2)
        assert torch.equal(logits(model.eval(), 0), evaluated)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_one_step_moves_every_parameter(name):
    model = tiny_model(
        f"family:{name}",
        num_prelude_layers=1,
        num_coda_layers=1,
        input_injection="gate",
        injection_gate_init=0.5,
        state_norm="rmsnorm",
        recurrence_lora_rank=2,
        recurrence_lora_count=2,
    ).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = torch.arange(1, 61)[None]
    model(ids, labels=ids, num_recurrences=4).loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["gemma2", "llama"])
@torch.no_grad()
def test_eager_attention_over_padding_in_every_precision(name, dtype):
    model = tiny_model(f"family:{name}", num_prelude_layers=1).to(dtype)
    model.set_attn_implementation("eager")
    rows = [random_ids(n) for n in LENGTHS]
    for side in ("left", "right"):
        ids, mask = pad(rows, side)
        together = model(ids, attention_mask=mask, num_recurrences=3).logits
        assert together.isfinite().all()
        for index, row in enumerate(rows):
            alone = model(row[None], num_recurrences=3).logits[0]
            assert relative_error(together[index][mask[index].bool()].float(), alone.float()) < 0.05


@pytest.mark.parametrize("name", ["gemma3_text", "smollm3", "gpt2"])
@torch.no_grad()
def test_packed_documents_are_those_alone(name):
    model = tiny_model(f"family:{name}", num_prelude_layers=1, num_coda_layers=1, input_injection="add")
    documents = [random_ids(n) for n in (7, 3, 9)]
    places = torch.cat([torch.arange(len(document)) for document in documents])[None]
    packed = model(torch.cat(documents)[None], position_ids=places, num_recurrences=3, use_cache=False).logits[0]
    alone = torch.cat([model(document[None], num_recurrences=3).logits[0] for document in documents])
    assert relative_error(packed, alone) < 1e-5
    joined = model(torch.cat(documents)[None], num_recurrences=3, use_cache=False).logits[0]
    assert relative_error(joined, alone) > 1e-2


@torch.no_grad()
def test_a_boolean_mask_prepared_for_sdpa():
    model = tiny_model("family:llama")
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    length = ids.shape[1]
    prepared = torch.ones(length, length, dtype=torch.bool).tril()[None, None] & mask[:, None, None].bool()
    expected = model(ids, attention_mask=mask, num_recurrences=2).logits
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        actual = model(ids, attention_mask=prepared, position_ids=positions(mask), num_recurrences=2).logits
        assert relative_error(actual[mask.bool()], expected[mask.bool()]) < 1e-5


def test_new_weights_start_as_the_family_starts_them(poisoned_memory):
    model = RecurrentDepthForCausalLM(tiny_config("family:gemma2", state_norm="rmsnorm", input_injection="gate"))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    # Gemma's norms multiply by 1 + weight, ours by the weight.
    assert not model.model.norm.weight.any() and (model.model.state_norm.weight == 1).all()
    assert not model.model.injection.weight.any()
    assert model.model.embed_tokens.embed_scale == 32**0.5


@pytest.mark.parametrize("name", FAMILY_NAMES)
@torch.no_grad()
def test_hooks_on_devices(name):
    """As with `device_map`: hooks move the arguments of layers and copy the lists among them."""
    model, ids = tiny_model(f"family:{name}", recurrence_lora_rank=2), random_ids(2, 7)
    shown = {"num_recurrences": 3}
    expected = model(ids, **shown).logits
    dispatched = dispatch_model(copy.deepcopy(model), {"": "cpu"}, force_hooks=True)
    assert torch.equal(dispatched(ids, **shown).logits, expected)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device="cpu")
    assert torch.equal(offloaded(ids, **shown).logits, expected)


@pytest.mark.parametrize("style", ["family:gemma2", "llama"])
@torch.no_grad()
def test_layers_of_another_class(style):
    """FSDP2 gives layers a class of its own, PEFT and quantisation replace linear layers."""
    model, ids = tiny_model(style, input_injection="concat", num_recurrences=3), random_ids(2, 7)
    expected = model(ids).logits
    for layer in model.model.layers:
        layer.__class__ = type("Sharded", (type(layer),), {"__module__": "torch.distributed.fsdp"})
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2))
    assert any("injection.lora_A" in name for name, _ in adapted.named_parameters())
    # The adapter starts without effect.
    assert torch.equal(adapted(ids).logits, expected)
    adapted.base_model.model.model.injection.lora_B.default.weight.fill_(0.1)
    assert relative_error(adapted(ids).logits, expected) > 1e-3


# ---- Configs ----


def test_the_fields_that_follow_from_the_family():
    config = tiny_config("family:gemma3_text", num_prelude_layers=1, num_coda_layers=2)
    assert config.head_dim == 16 and config.sliding_window == 5 and config.num_physical_layers == 5
    assert config.physical_layer_types == ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    saved = config.to_dict()
    assert "gated_mlp" not in saved and "vocab_size" not in saved["block_config"]
    assert RecurrentDepthConfig(**saved).to_dict() == saved
    plan = RecurrentDepthConfig.from_dict(saved).base_model_tp_plan
    assert plan["layers.*.self_attn.q_proj"] == "colwise"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_model_type": "mamba"}, "'mamba' is not a family"),
        ({"hidden_size": 48}, "hidden_size=48 contradicts block_config"),
        ({"gated_mlp": False}, "gated_mlp=False is for our own blocks"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is for our own blocks"),
        ({"rope_theta": 5e5}, "rope_theta=500000.0 is for our own blocks"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling=.* is for our own blocks"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is for our own blocks"),
        ({"block_config": {"vocab_size": 97}}, "block_config holds vocab_size, which RecurrentDepthConfig has"),
        ({"block_model_type": None}, "block_config needs block_model_type"),
        ({"recurrence_lora_rank": 33}, "recurrence_lora_rank=33 is above hidden_size=32"),
    ],
)
def test_contradictory_configs(fields, message):
    block = tiny_source("llama").config
    values = {"vocab_size": 97, "num_recurrent_layers": 6, "block_model_type": "llama"}
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        RecurrentDepthConfig(**{**values, "block_config": strip_block_config(block), **fields})


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "gpt2 with scale_attn_by_inverse_layer_idx=True"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "gpt2 with reorder_and_upcast_attn=True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 6}, "layers of type 'chunked_attention'"),
    ],
)
def test_features_that_cannot_be_looped(name, fields, message):
    source = tiny_source(name)
    for field, value in fields.items():
        setattr(source.config, field, value)
    with pytest.raises(ValueError, match=message):
        convert_decoder(source)


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere", "llama"])
@torch.no_grad()
def test_trainers_that_compute_logits_find_the_fields_of_the_family(name, tmp_path):
    """TRL's SFTTrainer reads them from the config of the model, as here."""
    model, ids = tiny_model(f"family:{name}"), random_ids(2, 7)
    model.save_pretrained(tmp_path)
    for config in (model.config, RecurrentDepthConfig.from_pretrained(tmp_path), copy.deepcopy(model.config)):
        scale = getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0)
        bound = getattr(config, "final_logit_softcapping", None)
        assert (scale, bound) == {
            "gemma2": (1.0, 3.0),
            "granite": (0.5, None),
            "cohere": (0.0625, None),
            "llama": (1.0, None),
        }[name]
        logits = scale * model.lm_head(model.model(ids, num_recurrences=3).last_hidden_state)
        logits = logits if bound is None else bound * torch.tanh(logits / bound)
        assert relative_error(model(ids, num_recurrences=3).logits, logits) < 1e-6
        assert hasattr(config, "final_logit_softcapping") == (name == "gemma2")


def test_another_depth_contradicts_nothing(tmp_path):
    model = tiny_model("family:llama")
    model.save_pretrained(tmp_path)
    loaded = RecurrentDepthForCausalLM.from_pretrained(tmp_path, num_recurrences=7)
    assert loaded.config.num_hidden_layers == 14
    with pytest.raises(StrictDataclassError, match="head_dim=4 contradicts"):
        RecurrentDepthForCausalLM.from_pretrained(tmp_path, head_dim=4)
