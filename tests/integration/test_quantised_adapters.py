"""Adapters on a base in 8 and 4 bits by bitsandbytes, on a CPU."""

import pytest
import torch
from small_adapters import SCHEME, as_if_trained, save_base, some_ids
from small_tokenizers import byte_level
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from memreason_hf.adapters.modes import AdapterArguments, add_adapter, load_adapter, save_adapter
from memreason_hf.steps.tokenization import extend_tokenizer
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

CONFIGS = {
    8: BitsAndBytesConfig(load_in_8bit=True),
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
}
LAYERS = {8: bitsandbytes.nn.Linear8bitLt, 4: bitsandbytes.nn.Linear4bit}
WIDE = {"hidden_size": 64, "intermediate_size": 64}


def wide_recurrent(vocab_size, tied=True, **sizes):
    config = {"num_attention_heads": 2, "num_recurrent_layers": 1, "num_recurrences": 2, "pad_token_id": 2}
    return RecurrentDepthForCausalLM(
        RecurrentDepthConfig.llama_style(vocab_size=vocab_size, tie_word_embeddings=tied, **config, **sizes)
    )


def load(base, bits):
    tokenizer = byte_level()
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=CONFIGS[bits], device_map="cpu")
    extend_tokenizer(tokenizer, SCHEME, model)
    return model, tokenizer


@pytest.mark.parametrize("make", ["llama", wide_recurrent])
@pytest.mark.parametrize("bits", CONFIGS)
@pytest.mark.parametrize("mode", ["lora", "tokens", "lora+tokens"])
def test_trained_saved_and_loaded(mode, bits, make, tmp_path):
    base = save_base(tmp_path / "base", make, tied=make is wide_recurrent, **WIDE)
    model, tokenizer = load(base, bits)
    model = add_adapter(model, tokenizer, AdapterArguments(mode, lora_targets="all", lora_dropout=0.0))
    assert any(isinstance(module, LAYERS[bits]) for module in model.modules())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    model.train()
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        ids = some_ids(tokenizer)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.is_floating_point() and not torch.equal(p, before[name]) for name, p in trained.items())
    as_if_trained(model)
    save_adapter(model, tokenizer, tmp_path / "adapter")
    ids = some_ids(tokenizer)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        loaded, _ = load_adapter(tmp_path / "adapter", quantization_config=CONFIGS[bits], device_map="cpu")
        assert any(isinstance(module, LAYERS[bits]) for module in loaded.modules())
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        # The same base in floating point is the same base, and near.
        whole, _ = load_adapter(tmp_path / "adapter")
        error = (whole(input_ids=ids).logits - expected).norm() / expected.norm()
    assert error < 0.3
    other = save_base(tmp_path / "other", make, tied=make is wide_recurrent, **WIDE)
    with pytest.raises(ValueError, match="its weight files differ"):
        load_adapter(tmp_path / "adapter", base=other, quantization_config=CONFIGS[bits], device_map="cpu")


@pytest.mark.parametrize("evaluated", ["before", "after"])
@pytest.mark.parametrize("bits", CONFIGS)
def test_an_evaluation_changes_no_gradient(bits, evaluated, tmp_path):
    """On some CPUs it packs 4-bit weights into a form with rounded scales and without gradients."""
    model, tokenizer = load(save_base(tmp_path / "base", wide_recurrent, tied=True, **WIDE), bits)
    ids = some_ids(tokenizer)
    if evaluated == "before":
        with torch.no_grad():
            model.eval()(input_ids=ids)
    model = as_if_trained(add_adapter(model, tokenizer, AdapterArguments(lora_targets="all", lora_dropout=0.0)))

    def gradients():
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    before = gradients()
    # The recurrence carries gradients back through every layer.
    assert all(gradient.any() for gradient in before.values())
    with torch.no_grad():
        model.eval()(input_ids=ids)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, before[name], msg=name)
