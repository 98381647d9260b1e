"""
8-bit and 4-bit base weights by bitsandbytes, on a CPU.

With 4 bits on a CPU, the number of inputs of a layer must be a multiple of the block size (64).
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from memreason_hf.models import convert_decoder


bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

CONFIGS = {
    8: BitsAndBytesConfig(load_in_8bit=True),
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
}
CALLS = [{"num_recurrences": 1}, {"num_recurrences": 6}, {"halting_criterion": "kl", "kl_threshold": 0.1}]


@pytest.fixture(scope="module", params=CONFIGS)
def quantised(saved, request):
    """The bits, the model, and one in floating point whose weights are rounded as its weights are."""
    model = AutoModelForCausalLM.from_pretrained(
        saved.folder, quantization_config=CONFIGS[request.param], device_map="cpu"
    )
    rounded = AutoModelForCausalLM.from_pretrained(saved.folder)
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        # Before the first forward pass, which packs the weights again.
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            values = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            values = weight.CB * weight.SCB[:, None] / 127
        else:
            continue
        rounded.get_submodule(name).weight.data.copy_(values)
    return request.param, model, rounded


@torch.no_grad()
def test_logits_are_those_of_rounded_weights(saved, quantised):
    bits, model, rounded = quantised
    projection = model.model.recurrent_layers[0].self_attn.qkv_proj
    assert isinstance(projection, bitsandbytes.nn.Linear8bitLt if bits == 8 else bitsandbytes.nn.Linear4bit)
    assert model.get_memory_footprint() < saved.model.get_memory_footprint()
    ids = saved.tokenizer("what did the dog see? the dog saw the cat", return_tensors="pt")["input_ids"]
    exact = saved.model(ids, num_recurrences=3).logits
    expected = rounded(ids, num_recurrences=3).logits
    logits = model(ids, num_recurrences=3).logits.float()

    def error(logits, expected):
        return ((logits - expected).norm() / expected.norm()).item()

    # In 8 bits activations are rounded, too; in 4 bits a CPU computes in bfloat16.
    assert error(logits, expected) < 0.1
    assert 0 < error(logits, exact) < error(saved.model(ids, num_recurrences=1).logits, exact)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_generates(saved, quantised, call):
    _, model, _ = quantised
    inputs = saved.tokenizer("the cat sat", return_tensors="pt")
    output = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        **call,
    )
    width = inputs["input_ids"].shape[1]
    assert output.sequences.shape[1] > width
    assert output.num_recurrences.shape == (1, output.sequences.shape[1] - width)
    # The cache changes nothing.
    plain = model.generate(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=6,
        do_sample=False,
        use_cache=False,
        **call,
    )
    assert torch.equal(plain, output.sequences)


@torch.no_grad()
@pytest.mark.parametrize("bits", CONFIGS)
def test_a_converted_model_with_updates_for_each_recurrence(bits, tmp_path):
    """Low-rank updates stay exact and act on the quantised layers, which replace the linear layers at load."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    source = LlamaForCausalLM(LlamaConfig(vocab_size=97, **sizes))
    model = convert_decoder(source, input_injection="none", recurrence_lora_rank=4)
    for parameter in model.model.recurrence_lora.parameters():
        parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path)
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=CONFIGS[bits], device_map="cpu", dtype=torch.float32
    )
    kind = bitsandbytes.nn.Linear8bitLt if bits == 8 else bitsandbytes.nn.Linear4bit
    assert isinstance(quantised.model.layers[0].self_attn.q_proj, kind)
    ids = torch.randint(3, 97, (2, 9))
    expected = model(ids, num_recurrences=4).logits

    def error():
        logits = quantised(ids, num_recurrences=4).logits.float()
        return ((logits - expected).norm() / expected.norm()).item()

    with_updates = error()
    assert quantised.generate(ids, max_new_tokens=3, num_recurrences=3).shape == (2, 12)
    for parameter in quantised.model.recurrence_lora.parameters():
        parameter.zero_()
    assert 0 < with_updates < 0.7 * error()
