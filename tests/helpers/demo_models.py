"""Small models of every kind that the demo page shows, without training."""

import torch
from small_finetunes import SCHEME
from small_tokenizers import byte_level, gpt2, word_level
from step_texts import extended
from text_models import text_tokenizer

from memreason_hf.data.chains.tokenizer import build_tokenizer, build_vocabulary
from memreason_hf.serving.demo.answers import DemoModel, Limits
from memreason_hf.serving.demo.depth_choice import DepthOptions
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


def save(demo, folder):
    """Saves the model and its tokenizer; returns the folder."""
    demo.model.save_pretrained(folder)
    demo.tokenizer.save_pretrained(folder)
    return str(folder)
