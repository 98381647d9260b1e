"""Attention between steps: saving and loading, PEFT, and what is refused."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from step_texts import FAMILIES, deep_recurrent, extended, padded, random_text
from transformers import AutoModelForCausalLM, StaticCache, dynamic_module_utils

from memreason_hf.models.loading import load_model
from memreason_hf.steps import StepScheme
from memreason_hf.steps.attention import (
    STEP_ATTENTION_FILE,
    get_step_attention,
    restore_step_attention,
    save_step_attention,
    set_step_attention,
)


VARIANTS = ("own", "tokens")
TARGETS = {"gpt2": ["c_fc"]}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@torch.no_grad()
def logits_of(model, row):
    return model(input_ids=torch.tensor([row])).logits


@each_variant
@each_family
def test_it_is_restored_from_the_folder_of_a_model(family, variant, tmp_path):
    model, tokenizer = extended(family)
    set_step_attention(model, tokenizer, variant)
    model.save_pretrained(tmp_path)
    row = random_text(tokenizer)
    for load in (lambda: AutoModelForCausalLM.from_pretrained(tmp_path), lambda: copy.deepcopy(model)):
        loaded = load().eval()
        assert restore_step_attention(loaded, tmp_path) == restore_step_attention(loaded) == variant
        assert get_step_attention(loaded) == variant
        torch.testing.assert_close(logits_of(loaded, row), logits_of(model, row), rtol=0, atol=0)
    # Saved without it, the folder no longer records it.
    set_step_attention(model, tokenizer, None)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert restore_step_attention(loaded, tmp_path) is None and get_step_attention(loaded) is None


def test_commands_restore_it(tmp_path):
    model, tokenizer = extended("recurrent")
    set_step_attention(model, tokenizer, "tokens")
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert get_step_attention(loaded) == "tokens"
    row = random_text(tokenizer)
    torch.testing.assert_close(logits_of(loaded, row), logits_of(model, row), rtol=0, atol=0)


@each_family
def test_a_copy_has_an_attention_of_its_own(family):
    model, tokenizer = extended(family)
    row = random_text(tokenizer)
    usual = logits_of(model, row)
    set_step_attention(model, tokenizer, "own")
    sparse = logits_of(model, row)
    other = copy.deepcopy(model)
    set_step_attention(model, tokenizer, None)
    assert get_step_attention(other) == "own"
    torch.testing.assert_close(logits_of(other, row), sparse, rtol=0, atol=0)
    torch.testing.assert_close(logits_of(model, row), usual, rtol=0, atol=0)
    set_step_attention(other, tokenizer, None)
    torch.testing.assert_close(logits_of(other, row), usual, rtol=0, atol=0)


@each_variant
@pytest.mark.parametrize("first", ["attention", "adapter"])
@each_family
def test_it_is_restored_from_the_folder_of_an_adapter(family, first, variant, tmp_path):
    base, tokenizer = extended(family)
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=TARGETS.get(family, ["down_proj"]), init_lora_weights=False)
    if first == "attention":
        set_step_attention(base, tokenizer, variant)
        model = get_peft_model(base, config)
    else:
        model = get_peft_model(base, config)
        set_step_attention(model, tokenizer, variant)
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    save_step_attention(model, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    ids, real = padded([random_text(tokenizer) for _ in range(2)])
    settings = {"attention_mask": real, "do_sample": False, "max_new_tokens": 6, "eos_token_id": None}

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    texts = (random_text(tokenizer) for _ in range(20))  # in some of them nothing is hidden
    row = next(text for text in texts if not torch.equal(logits_of(loaded, text), logits_of(model, text)))
    assert restore_step_attention(loaded, tmp_path / "adapter") == get_step_attention(loaded) == variant
    torch.testing.assert_close(logits_of(loaded, row), logits_of(model, row), rtol=0, atol=0)
    assert loaded.generate(input_ids=ids, **settings).tolist() == model.generate(input_ids=ids, **settings).tolist()
    with pytest.raises(ValueError, match="num_beams=2"):
        loaded.generate(input_ids=ids, num_beams=2, **settings)


def test_the_folder_of_an_adapter_wins_over_its_base(tmp_path):
    base, tokenizer = extended("llama")
    set_step_attention(base, tokenizer, "own")
    base.save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()

    def loaded():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    # Trained without the attention that its base was saved with.
    save_step_attention(loaded(), adapter)
    model = loaded()
    assert restore_step_attention(model, adapter) is None and get_step_attention(model) is None
    model = loaded()
    set_step_attention(model, tokenizer, "tokens")
    save_step_attention(model, adapter)
    model = loaded()
    assert restore_step_attention(model, adapter) == "tokens"
    # Removed again before training.
    set_step_attention(model, tokenizer, None)
    save_step_attention(model, adapter)
    model = loaded()
    assert restore_step_attention(model, adapter) is None and get_step_attention(model) is None
    # A model without it deletes the file.
    save_step_attention(extended("llama")[0], adapter)
    assert not (adapter / STEP_ATTENTION_FILE).exists()
    assert restore_step_attention(loaded(), adapter) == "own"


@pytest.mark.parametrize(
    "content, message", [("{", "is not a JSON file"), ("[]", "lacks"), ('{"variant": "own"}', "lacks")]
)
def test_a_damaged_file(content, message, tmp_path):
    model, _ = extended("llama")
    (tmp_path / STEP_ATTENTION_FILE).write_text(content)
    with pytest.raises(ValueError, match=message):
        restore_step_attention(model, tmp_path)


def test_code_beside_the_weights_keeps_rows_apart(tmp_path, own_modules):
    """A model of this package that is loaded with the code in its folder."""
    model, tokenizer = extended("recurrent")
    model.save_pretrained(tmp_path)
    remote = dynamic_module_utils.get_class_from_dynamic_module(
        "modeling_recurrent.RecurrentDepthForCausalLM", str(tmp_path)
    )
    assert remote is not type(model)
    other = remote.from_pretrained(tmp_path).eval()
    ids, real = padded([random_text(tokenizer) for _ in range(4)])
    call = {"input_ids": ids, "attention_mask": real, "num_recurrences": torch.tensor([3, 1, 5, 2])}
    for variant in VARIANTS:
        for each in (model, other):
            set_step_attention(each, tokenizer, variant)
        with torch.no_grad():
            torch.testing.assert_close(other(**call).logits, model(**call).logits)


@pytest.mark.parametrize("kernel", ["flex_attention", "flash_attention_2"])
def test_other_implementations_are_refused(kernel):
    model, tokenizer = extended("llama")
    model.config._attn_implementation_internal = kernel
    with pytest.raises(ValueError, match=f"attn_implementation='{kernel}'.*eager or sdpa"):
        set_step_attention(model, tokenizer, "own")


@each_family
def test_implementations_that_are_set_later_are_refused(family):
    model, tokenizer = extended(family)
    set_step_attention(model, tokenizer, "own")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attn_implementation='eager' was set after"):
        model(input_ids=torch.tensor([[5, 6]]))
    set_step_attention(model, tokenizer, "own")
    model(input_ids=torch.tensor([[5, 6]]))


@each_family
def test_beams_are_refused(family):
    model, tokenizer = extended(family)
    set_step_attention(model, tokenizer, "own")
    for settings in ({}, {"do_sample": True}, {"use_cache": False}):
        with pytest.raises(ValueError, match="num_beams=3"):
            model.generate(input_ids=torch.tensor([[5, 6]]), num_beams=3, max_new_tokens=2, **settings)


@each_family
def test_static_caches_are_refused(family):
    model, tokenizer = extended(family)
    set_step_attention(model, tokenizer, "own")
    with pytest.raises(ValueError, match="static"):
        model.generate(input_ids=torch.tensor([[5, 6]]), cache_implementation="static", max_new_tokens=3)
    if family == "llama":
        cache = StaticCache(config=model.config, max_cache_len=8)
        with pytest.raises(ValueError, match="static"):
            model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)


def test_inputs_that_tell_no_steps_are_refused():
    model, tokenizer = extended("llama")
    set_step_attention(model, tokenizer, "own")
    ids = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(inputs_embeds=model.get_input_embeddings()(ids))
    with pytest.raises(ValueError, match="within a row"):
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 0, 1]]), use_cache=False)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(input_ids=ids, attention_mask=torch.ones(1, 3))


def test_wrong_requests():
    model, tokenizer = extended("llama")
    with pytest.raises(ValueError, match=r"variant='all'.*own, tokens"):
        set_step_attention(model, tokenizer, "all")
    with pytest.raises(TypeError, match="Linear"):
        set_step_attention(torch.nn.Linear(2, 2), tokenizer, "own")
    for scheme in (StepScheme(marks="words"), StepScheme(marks="none")):
        other, words = extended("llama", scheme)
        with pytest.raises(ValueError, match="no tokens"):
            set_step_attention(other, words, "own")
    small = deep_recurrent(20)
    with pytest.raises(ValueError, match="20 rows"):
        set_step_attention(small, tokenizer, "own")
    with pytest.raises(ValueError, match="twice"):
        set_step_attention(model, {"prefix": [3, 4], "memory": [4]}, "own")
    assert get_step_attention(model) is None
