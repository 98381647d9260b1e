"""Small models of every kind that the demo page shows, without training."""

import torch
from small_finetunes import SCHEME
from small_tokenizers import byte_level, gpt2, word_level
from step_texts import extended
from text_models import text_tokenizer

from memreason_hf.data.chains.tokenizer import build_tokenizer, build_vocabulary
from memreason_hf.serving.demo.answers import DemoModel, Limits
from memreason_hf.serving.demo.depth_choice import DepthOptions
from memreason_hf.steps.tokenization import encode_prompt, encode_solution, extend_tokenizer
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


def looped(tokenizer, seed=None, **config):
    """A random model whose depths differ."""
    if seed is not None:
        torch.manual_seed(seed)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_recurrent_layers": 1,
        "num_recurrences": 4,
        "max_recurrences": 12,
        "input_injection": "add",
        "state_norm": "rmsnorm",
        "initializer_range": 0.25,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **config,
    }
    return RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**values)).eval()


def chain_tokenizer():
    return build_tokenizer(build_vocabulary(num_entities=12, num_relations=3))


def demo_model(kind="text", *, seed=None, limits=None, deepest=None, name="tiny", **config):
    """A `DemoModel` of a kind: `text`, `chain`, `steps`, `plain` (no recurrences) or `words` (with `<unk>`)."""
    if kind == "steps":
        model, tokenizer = extended("recurrent", SCHEME, seed=seed, num_prelude_layers=0, num_coda_layers=0, **config)
    elif kind == "plain":
        tokenizer = byte_level()
        model = gpt2(len(tokenizer)).eval()
    else:
        tokenizer = {"text": text_tokenizer, "chain": chain_tokenizer, "words": word_level}[kind]()
        model = looped(tokenizer, seed, **config)
    options = DepthOptions.of(model.config, deepest)
    return DemoModel(model, tokenizer, name, options, limits or Limits(max_new_tokens=64, prompt_tokens=200))


def scripted_model(question, steps, scheme=SCHEME):
    """
    A `DemoModel` that answers one question with given steps: the state of a position is the position's own vector,
    and the row of the head of a token holds the vectors of the positions before it.
    """
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, scheme)
    ids = [*encode_prompt(tokenizer, question), *encode_solution(tokenizer, steps)[len(scheme.prefix_tokens) :]]
    ids.append(tokenizer.eos_token_id)
    config = RecurrentDepthConfig.gpt2_style(
        vocab_size=len(tokenizer),
        hidden_size=512,
        num_attention_heads=4,
        num_recurrences=3,
        max_recurrences=8,
        residual_init_scale=0.0,
        max_position_embeddings=400,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = RecurrentDepthForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        places = torch.nn.init.orthogonal_(model.model.embed_positions.weight)
        for place, token_id in enumerate(ids[1:]):
            model.lm_head.weight[token_id] += places[place]
    return DemoModel(model, tokenizer, "user/steps", DepthOptions.of(config), Limits(max_new_tokens=200))


def save(demo, folder):
    """Saves the model and its tokenizer; returns the folder."""
    demo.model.save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)
    return str(folder)
