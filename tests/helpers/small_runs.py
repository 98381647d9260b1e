"""Small data, models and trainers that the tests of training share."""

import functools

import torch
from transformers import set_seed

from memreason_hf.data.chains.multi_hop import MultiHopConfig, build_multi_hop, encode_chains
from memreason_hf.data.chains.tokenizer import build_tokenizer
from memreason_hf.training import (
    ChainCollator,
    CurriculumArguments,
    CurriculumCallback,
    RecurrentTrainer,
    RecurrentTrainingArguments,
)
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


@functools.cache
def small_chains():
    """(tokenizer, encoded training rows of 1 to 4 hops, encoded held-out rows of 2 to 4 hops)."""
    config = MultiHopConfig(
        num_entities=6, num_relations=3, train_hops="2-4", test_hops="2-4", num_train_chains=40, num_test_chains=12
    )
    data = build_multi_hop(config)
    tokenizer = build_tokenizer(data.vocabulary)
    train = encode_chains(data.dataset["train"], tokenizer)
    heldout = encode_chains(data.dataset["test_small"], tokenizer)
    return tokenizer, train, heldout


def small_model(seed=0, **overrides):
    tokenizer = small_chains()[0]
    set_seed(seed)
    fields = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_recurrent_layers": 1,
        "num_recurrences": 3,
        "recurrence_sampling": "uniform",
        "recurrence_min": 2,
        "recurrence_max": 5,
        "position_embedding_type": "none",
        "sliding_window": 3,
        "input_injection": "add",
        "state_norm": "layernorm",
        "residual_dropout": 0.1,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return RecurrentDepthForCausalLM(RecurrentDepthConfig.gpt2_style(**{**fields, **overrides}))


def small_trainer(
    output_dir, model=None, curriculum=None, train_dataset=None, callbacks=(), model_init=None, **arguments
):
    tokenizer, train, heldout = small_chains()
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 12,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1e-2,
        "length_pool": 3,
        "save_steps": 4,
        "logging_steps": 2,
        "save_total_limit": 10,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    args = RecurrentTrainingArguments(**{**defaults, **arguments})
    callbacks = list(callbacks)
    if curriculum is not None:
        callbacks.append(CurriculumCallback(CurriculumArguments(**curriculum)))
    return RecurrentTrainer(
        model=small_model() if model is None else model,
        args=args,
        train_dataset=train if train_dataset is None else train_dataset,
        eval_dataset=heldout,
        data_collator=ChainCollator(tokenizer.pad_token_id, args.supervision),
        processing_class=tokenizer,
        callbacks=callbacks,
        model_init=model_init,
    )


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), f"{name} differs by {(value - right[name]).abs().max()}"
