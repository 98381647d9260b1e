"""Arguments of a call that are refused before they could be ignored, and logits that are no numbers."""

import math
from dataclasses import fields

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from recurrent_models import VOCAB, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from modeling_recurrent import (
    RecurrentDepthConfig,
    RecurrentDepthForCausalLM,
    RecurrentDepthModel,
    arguments_recurrent,
)
from modeling_recurrent.fields_recurrent import MOST_RECURRENCES
from modeling_recurrent.positions_recurrent import position_noise


NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RecurrentDepthForCausalLM(tiny_config("llama")).eval()


@pytest.fixture(scope="module")
def learned():
    config = tiny_config("gpt2", position_embedding_type="learned", max_position_embeddings=8)
    return RecurrentDepthForCausalLM(config).eval()


IDS = torch.arange(10).view(2, 5) % VOCAB
BAD_CALLS = [
    ({"num_recurences": 9}, "Did you mean 'num_recurrences'"),
    ({"kl_treshold": 1.0}, "Did you mean 'kl_threshold'"),
    ({"halting": True}, "forward has no such argument"),
    ({"criterion": "kl"}, "forward has no such argument"),
    ({"attention_masks": IDS}, "Did you mean 'attention_mask'"),
    ({"use_cach": True}, "Did you mean 'use_cache'"),
    ({"logits_to_kep": 1}, "Did you mean 'logits_to_keep'"),
    ({"kl_threshold": 0.1}, "kl_threshold=0.1 is for a halting criterion, but none is set"),
    ({"halting_criterion": "kl", "kl_threshold": NAN}, "kl_threshold=nan must be positive"),
    ({"halting_criterion": "kl", "kl_threshold": INF}, "kl_threshold=inf is out of range"),
    ({"halting_criterion": "kl", "kl_threshold": "x"}, "kl_threshold must be a number, got 'x'"),
    ({"halting_criterion": "kl", "kl_threshold": True}, "kl_threshold must be a number, got True"),
    ({"halting_criterion": "kl", "kl_threshold": torch.tensor([0.1, 0.2])}, "kl_threshold must be a number"),
    ({"halting_criterion": "confidence", "confidence_threshold": 2}, "confidence_threshold=2 must be at most 1"),
    ({"halting_criterion": "argmax_stability", "argmax_patience": 2.5}, "argmax_patience must be an int, got 2.5"),
    (
        {"halting_criterion": "argmax_stability", "argmax_patience": 10**9},
        "argmax_patience=1000000000 must be at most",
    ),
    ({"halting_criterion": ["kl"]}, "halting_criterion must be the name of a criterion"),
    ({"halting_criterion": "kl", "max_recurrences": 10**9}, "max_recurrences=1000000000 must be at most 10,000"),
    ({"num_recurrences": 10**9}, "num_recurrences=1000000000 must be at most 10,000: recurrences run one after"),
    ({"num_recurrences": 10**5000}, "num_recurrences=2.*or more must be at most 10,000"),
    ({"num_recurrences": torch.tensor([10**9, 1])}, "num_recurrences=1000000000 must be at most 10,000"),
    ({"num_recurrences": torch.tensor([1, -2])}, "num_recurrences holds -2"),
    ({"num_recurrences": torch.tensor([1, 2, 3])}, r"num_recurrences has shape \(3,\)"),
    ({"num_recurrences": torch.tensor([1.0, 2.0])}, "num_recurrences must hold integers"),
    ({"labels": IDS, "recurrence_loss_weights": torch.ones(5)}, "recurrence_loss_weights holds 5 weights"),
    ({"labels": IDS, "recurrence_loss_weights": [1.0] * 5}, "recurrence_loss_weights holds 5 weights"),
    ({"labels": IDS, "recurrence_loss_weights": torch.tensor([1.0, NAN, 1.0])}, "must be finite"),
    ({"labels": IDS, "recurrence_loss_weights": torch.ones(3, 1)}, "one float for each recurrence"),
    ({"labels": IDS, "recurrence_loss": "unifrm"}, "recurrence_loss='unifrm' must be one of"),
    ({"labels": IDS, "recurrence_loss": 3}, "recurrence_loss=3 must be one of"),
    ({"labels": IDS[:, :3]}, r"labels has shape \(2, 3\), but must have \(2, 5\)"),
    ({"shift_labels": IDS[:, :3]}, r"shift_labels has shape \(2, 3\)"),
    ({"labels": IDS + VOCAB}, f"labels holds {VOCAB}, but vocab_size={VOCAB}"),
    ({"labels": -IDS}, "labels holds -1, but"),
    ({"labels": IDS.float()}, "labels must hold integers"),
    ({"labels": "x"}, "labels must be a torch.LongTensor, got a str"),
    ({"logits_to_keep": -3}, "logits_to_keep=-3 must be at least 0"),
    ({"logits_to_keep": "x"}, "logits_to_keep must be an int or a tensor"),
    ({"attention_mask": torch.ones(2, 4)}, r"attention_mask has shape \(2, 4\)"),
    ({"attention_mask": torch.ones(5)}, r"attention_mask has shape \(5,\)"),
    ({"attention_mask": torch.ones(2, 5, 1)}, r"attention_mask has shape \(2, 5, 1\)"),
    ({"attention_mask": [[1] * 5] * 2}, "attention_mask must be a tensor, got a list"),
    ({"attention_mask": torch.full((2, 5), NAN)}, "must hold 1 for real tokens and 0 for padding"),
    ({"attention_mask": torch.zeros(2, 5).masked_fill(IDS == 1, -INF)}, "A mask that is added to the scores"),
    ({"position_ids": torch.arange(4)[None]}, r"position_ids has shape \(1, 4\)"),
    ({"position_ids": torch.arange(5)}, r"position_ids has shape \(5,\)"),
    ({"position_ids": torch.arange(5.0)[None]}, "position_ids must hold integers"),
    ({"use_cache": "yes"}, "use_cache must be True, False or None"),
    ({"state_seed": "x"}, "state_seed must be an int"),
    ({"initial_state": "x"}, "initial_state must be a torch.FloatTensor"),
    ({"on_recurrence": 3}, "on_recurrence must be a function"),
    ({"on_recurrence": print, "recurrences_to_show": 3}, "recurrences_to_show must be a collection"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[message[:50] for _, message in BAD_CALLS])
def test_arguments_that_cannot_be_used_are_refused(model, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model(IDS, **arguments)


def test_control_the_same_call_without_them_runs(model):
    assert model(IDS, attention_mask=torch.ones(2, 5), labels=IDS, logits_to_keep=0).logits.isfinite().all()
    # Rows without a real token are padding of a batch.
    assert model(IDS, attention_mask=torch.zeros(2, 5)).logits.isfinite().all()
    weights = torch.tensor([0.5, 0.25, 0.25, 1.0])[: model.config.num_recurrences]
    listed = model(IDS, labels=IDS, recurrence_loss_weights=weights.tolist()).loss
    assert torch.equal(listed, model(IDS, labels=IDS, recurrence_loss_weights=weights).loss)
    assert listed != model(IDS, labels=IDS).loss


BAD_IDS = [
    (IDS + VOCAB, f"input_ids holds {VOCAB + 9}, but vocab_size={VOCAB}"),
    (IDS - 5, "input_ids holds -5, but"),
    (IDS.float(), "input_ids must hold integers"),
    (IDS > 3, "input_ids must hold integers"),
    (IDS[0], r"input_ids has shape \(5,\).*pass input_ids\[None\]"),
    (IDS[None], "must have two axes"),
    (IDS[:0], "at least one row and one token"),
    (IDS[:, :0], "at least one row and one token"),
    ([[1, 2]], "input_ids must be a torch.LongTensor, got a list"),
    ("text", "input_ids must be a torch.LongTensor, got a str"),
]


@pytest.mark.parametrize(("ids", "message"), BAD_IDS, ids=[message[:40] for _, message in BAD_IDS])
def test_ids_that_are_none(model, ids, message):
    for call in (model, model.model, lambda ids: model.generate(ids, max_new_tokens=2)):
        with pytest.raises((TypeError, ValueError), match=message):
            call(ids)


def test_embeddings_and_learned_positions(model, learned):
    for embeds in (torch.zeros(2, 5, 17), torch.zeros(2, 32), torch.zeros(0, 5, 32)):
        with pytest.raises(ValueError, match="inputs_embeds has shape"):
            model(inputs_embeds=embeds)
    for positions in (torch.arange(5)[None] + 7, torch.arange(5)[None] - 1):
        with pytest.raises(ValueError, match=r"position_ids holds .*max_position_embeddings=8"):
            learned(IDS, position_ids=positions)


def test_an_unknown_argument_that_resembles_none_causes_a_warning(model, monkeypatch):
    warnings = []
    monkeypatch.setattr(arguments_recurrent.logger, "warning_once", warnings.append)
    model(IDS, favourite_colour="blue", cu_seq_lens_q=None)
    (warning,) = warnings
    assert warning.startswith("forward has no argument 'favourite_colour'.")


BAD_GENERATIONS = [
    ({"num_recurences": 9}, "generate has no such argument. Did you mean 'num_recurrences'"),
    ({"depth_shedule": print}, "Did you mean 'depth_schedule'"),
    ({"draft_recurence": 1}, "Did you mean 'draft_recurrences'"),
    ({"favourite_colour": "blue"}, "favourite_colour"),
    ({"num_recurrences": 10**9}, "must be at most 10,000"),
    ({"depth_schedule": lambda ids: ids * 0 + 10**9}, "must be at most 10,000"),
    ({"attention_mask": torch.ones(2, 4).long()}, r"attention_mask has shape \(2, 4\), but must have \(2, 5\)"),
    ({"attention_mask": torch.zeros(2, 5).long()}, "no real token for row 0"),
    ({"generation_config": GenerationConfig(num_recurences=3)}, "Did you mean 'num_recurrences'"),
    ({"generation_config": GenerationConfig(halting_criterion="kl", kl_threshold=NAN)}, "kl_threshold=nan"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_GENERATIONS, ids=[m[:40] for _, m in BAD_GENERATIONS])
def test_generate_refuses_them_too(model, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.generate(IDS, max_new_tokens=2, pad_token_id=0, **arguments)


def test_more_drafts_than_tokens_are_left_change_nothing(model):
    plain = model.generate(IDS, max_new_tokens=6, pad_token_id=0)
    drafted = model.generate(IDS, max_new_tokens=6, pad_token_id=0, draft_recurrences=1, draft_tokens=10**12)
    assert torch.equal(plain, drafted)


def broken_model(**overrides):
    """A model whose second row breaks: the embedding of token 9, which only that row holds, is NaN."""
    torch.manual_seed(0)
    model = RecurrentDepthForCausalLM(tiny_config("llama", tie_word_embeddings=False, **overrides)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = NAN
    return model


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"do_sample": True},
        {"num_beams": 2},
        {"use_cache": False},
        {"draft_recurrences": 1},
        {"halting_criterion": "kl"},
        {"cache_implementation": "static"},
        {"temperature": 0.5, "do_sample": True, "draft_recurrences": 1},
    ],
    ids=str,
)
def test_generate_raises_where_logits_are_no_numbers(arguments):
    with pytest.raises(ValueError, match=r"The logits.* are NaN or infinite"):
        broken_model().generate(IDS, max_new_tokens=3, pad_token_id=0, **arguments)


def test_the_message_names_the_row_and_the_recurrence():
    with pytest.raises(ValueError, match="of row 1 are NaN or infinite, as is the initial state"):
        broken_model().generate(IDS, max_new_tokens=3, pad_token_id=0)
    model = RecurrentDepthForCausalLM(tiny_config("llama", input_injection="concat", num_recurrences=4)).eval()
    model.generate(IDS, max_new_tokens=3, pad_token_id=0)
    # The injection runs before every recurrence after the first.
    with torch.no_grad():
        next(model.model.injection.parameters()).fill_(NAN)
    with pytest.raises(ValueError, match="of row 0 are NaN or infinite, the state from recurrence 2 on"):
        model.generate(IDS, max_new_tokens=3, pad_token_id=0)
    # A single recurrence never injects.
    model.generate(IDS, max_new_tokens=3, pad_token_id=0, num_recurrences=1)
    with torch.no_grad():
        model.lm_head.weight[5] = INF
    with pytest.raises(ValueError, match="of row 0 are NaN or infinite, though all states are finite"):
        model.generate(IDS, max_new_tokens=3, pad_token_id=0, num_recurrences=1)


def test_tokens_that_a_processor_forbids_are_no_error(model):
    allowed = [3, 7]
    text = model.generate(
        IDS, max_new_tokens=3, pad_token_id=0, prefix_allowed_tokens_fn=lambda row, ids: allowed, do_sample=True
    )
    assert set(text[:, 5:].flatten().tolist()) <= set(allowed)


NUMBERS = [field.name for field in fields(RecurrentDepthConfig) if field.metadata.get("validator")]


def test_the_fields_with_a_range_are_all_numbers():
    hints = RecurrentDepthConfig.__annotations__
    numbers = {
        name
        for name, hint in hints.items()
        if any(kind in str(hint).replace("list[int]", "") for kind in ("int", "float")) and "token_id" not in name
    }
    assert numbers - {"registered_keys", "halting_criterion"} <= {*NUMBERS}


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_of_a_config_is_finite_and_bounded(name):
    for value in (NAN, INF, -INF, 10**400, -(10**400), "4", [4], True):
        with pytest.raises((StrictDataclassError, ValueError)):
            tiny_config("llama", **{name: value})
    config = tiny_config("llama")
    with pytest.raises((StrictDataclassError, ValueError)):
        setattr(config, name, NAN)


def test_bounds_have_a_reason_and_the_bound_itself_is_accepted():
    config = tiny_config("llama", max_recurrences=MOST_RECURRENCES)
    assert config.max_recurrences == MOST_RECURRENCES
    with pytest.raises(StrictDataclassError, match="at most 10,000, got 10001: recurrences run one after the other"):
        tiny_config("llama", max_recurrences=MOST_RECURRENCES + 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "nonsense"}, "dtype='nonsense' must be the name of a torch dtype"),
        ({"torch_dtype": 3}, "torch_dtype=3 must be"),
        ({"hidden_act": "silv"}, "got 'silv'. Did you mean 'silu'"),
        ({"num_labels": 10**12}, "num_labels: Value must be at most"),
        ({"id2label": 3}, "id2label=3 must be a dictionary"),
        ({"quantization_config": 3}, "quantization_config=3 must be a dictionary"),
    ],
)
def test_fields_of_the_library_that_it_does_not_check(fields, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        tiny_config("llama", **fields)


def test_a_padding_token_outside_of_the_vocabulary():
    message = f"pad_token_id=999 must be None or at least 0 and below vocab_size={VOCAB}"
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config("llama", pad_token_id=999)
    changed = tiny_config("llama")
    changed.pad_token_id = 999
    for model_class in (RecurrentDepthModel, RecurrentDepthForCausalLM):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            model_class(changed)
    # Configs on the Hub say -1 for "none". The last row of the embedding then learns like any other.
    model = RecurrentDepthForCausalLM(tiny_config("llama", pad_token_id=-1))
    assert model.model.embed_tokens.padding_idx is None


def test_from_pretrained_refuses_misspelt_fields(model, tmp_path):
    model.save_pretrained(tmp_path)
    for load in (AutoConfig, AutoModelForCausalLM, RecurrentDepthConfig, RecurrentDepthForCausalLM):
        with pytest.raises(TypeError, match=r"num_recurences=9.*Did you mean 'num_recurrences'"):
            load.from_pretrained(tmp_path, num_recurences=9)
    assert AutoConfig.from_pretrained(tmp_path, num_recurrences=9).num_recurrences == 9


def test_noise_takes_seeds_of_64_bits_and_stays_as_it_was_for_small_ones():
    positions = torch.arange(6)[None]
    wide = position_noise(positions, 8, 2**63 - 1)
    assert wide.isfinite().all() and not torch.equal(wide, position_noise(positions, 8, 0))
    for seed in (0, 1, 7, 2**31 - 1):
        channels = torch.arange(16)
        bits = (positions[..., None] * 16 + channels + seed * 0x9E3779B1) & 0xFFFFFFFF
        for _ in range(2):
            bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
            bits = ((bits ^ (bits >> 15)) * 0x735A2D97) & 0xFFFFFFFF
        radius, angle = (((bits ^ (bits >> 15)) + 0.5) / 2**32).float().chunk(2, dim=-1)
        expected = torch.sqrt(-2 * torch.log(radius)) * torch.cos(2 * math.pi * angle)
        assert torch.equal(position_noise(positions, 8, seed), expected)
