"""Invariant 1: r recurrences over L layers are an r*L-layer GPT-2 or Llama whose layers share the weights."""

import pytest
import torch
from recurrent_models import VOCAB, random_ids, relative_error, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from unfused import llama_weights


def gpt2_twin(model, recurrences):
    config = model.config
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=config.max_position_embeddings,
            n_embd=config.hidden_size,
            n_layer=recurrences * config.num_recurrent_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        twin.transformer.wte.weight.copy_(model.model.embed_tokens.weight)
        twin.transformer.wpe.weight.copy_(model.model.embed_positions.weight)
        twin.transformer.ln_f.load_state_dict(model.model.norm.state_dict())
        for index, block in enumerate(twin.transformer.h):
            ours = model.model.recurrent_layers[index % config.num_recurrent_layers]
            block.ln_1.load_state_dict(ours.input_layernorm.state_dict())
            block.ln_2.load_state_dict(ours.post_attention_layernorm.state_dict())
            attention = ours.self_attn
            for theirs, mine in (
                (block.attn.c_attn, attention.qkv_proj),
                (block.attn.c_proj, attention.o_proj),
                (block.mlp.c_fc, ours.mlp.up_proj),
                (block.mlp.c_proj, ours.mlp.down_proj),
            ):
                theirs.weight.copy_(mine.weight.T)
                theirs.bias.copy_(mine.bias)
    return twin


def llama_twin(model, recurrences):
    config = model.config
    twin = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=recurrences * config.num_recurrent_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.norm_eps,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    theirs = {
        "model.embed_tokens.weight": model.model.embed_tokens.weight,
        "model.norm.weight": model.model.norm.weight,
        "lm_head.weight": model.lm_head.weight,
    }
    for index in range(twin.config.num_hidden_layers):
        block = model.model.recurrent_layers[index % config.num_recurrent_layers]
        theirs |= {f"model.layers.{index}.{name}": value for name, value in llama_weights(block).items()}
    twin.load_state_dict(theirs, strict=True)
    return twin


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("recurrences", [1, 3, 6])
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_loop_equals_unrolled_library_model(style, recurrences, attention):
    extra = {} if style == "gpt2" else {"num_key_value_heads": 2}
    model = tiny_model(style, num_recurrences=recurrences, **extra)
    model.set_attn_implementation(attention)
    twin = (gpt2_twin if style == "gpt2" else llama_twin)(model, recurrences)
    twin.set_attn_implementation(attention)
    ids = random_ids(3, 11)
    labels = torch.where(torch.rand(3, 11) < 0.3, -100, ids)

    ours, theirs = model(ids, labels=labels), twin(ids, labels=labels)
    assert relative_error(ours.logits, theirs.logits) < 1e-5
    assert relative_error(ours.loss, theirs.loss) < 1e-5

    ours.loss.backward()
    theirs.loss.backward()
    name = "down_proj" if style == "llama" else "c_proj"
    layers = twin.model.layers if style == "llama" else twin.transformer.h
    expected = sum(
        getattr(layers[i].mlp, name).weight.grad for i in range(0, len(layers), model.config.num_recurrent_layers)
    )
    actual = model.model.recurrent_layers[0].mlp.down_proj.weight.grad
    assert relative_error(actual, expected if style == "llama" else expected.T) < 1e-4


def test_padding_of_library_twin_is_matched():
    model = tiny_model("llama", num_recurrences=4)
    twin = llama_twin(model, 4)
    ids = random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    expected = twin(ids, attention_mask=mask, position_ids=positions).logits
    actual = model(ids, attention_mask=mask).logits
    assert relative_error(actual[mask.bool()], expected[mask.bool()]) < 1e-5
