"""Small questions, models and trainers that the tests of fine-tuning share."""

import torch
from datasets import Dataset
from small_tokenizers import byte_level
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from memreason_hf.data.questions.encoding import StepCollator, encode_solutions
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer
from memreason_hf.training.solutions.trainer import FinetuneArguments, FinetuneTrainer
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


SCHEME = StepScheme(1, 2)
OPTIONS = [{"label": "True", "text": "True"}, {"label": "False", "text": "False"}]
ITEMS = [
    {"question": question, "options": OPTIONS, "answer": answer, "steps": [{"kind": k, "text": t} for k, t in steps]}
    for question, answer, steps in [
        ("Is the first a step?", "True", [("memory", "the first is a step"), ("reason", "the step")]),
        ("Is the reason a memory?", "False", [("reason", "the reason is a reason")]),
        ("Is the memory of words the answer?", "True", [("memory", "of words"), ("step", "a memory of the words")]),
        ("Is it?", "False", [("memory", "it is a prefix"), ("reason", "the memory is it"), ("reason", "it")]),
        ("A step?", "True", [("memory", "the step"), ("reason", "a step gives the answer to the first")]),
        ("Words?", "False", [("memory", "the prefix of words")]),
    ]
]
_COMMON = {"hidden_size": 32, "num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def _llama(vocab_size):
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab_size, intermediate_size=64, num_hidden_layers=2, initializer_range=0.1, **_COMMON)
    )


def _qwen2(vocab_size):
    sizes = {"intermediate_size": 64, "num_hidden_layers": 1, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, **sizes, **_COMMON))


def _gpt2(vocab_size):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, pad_token_id=2, **sizes))


def _recurrent(vocab_size):
    depth = {"num_recurrences": 3, "recurrence_sampling": "uniform", "recurrence_min": 2, "recurrence_max": 4}
    sizes = {"num_prelude_layers": 1, "num_recurrent_layers": 1, "input_injection": "add", "state_norm": "rmsnorm"}
    config = RecurrentDepthConfig.llama_style(
        vocab_size=vocab_size, intermediate_size=64, residual_dropout=0.1, **sizes, **depth, **_COMMON
    )
    return RecurrentDepthForCausalLM(config)


FAMILIES = {"llama": _llama, "qwen2": _qwen2, "gpt2": _gpt2, "recurrent": _recurrent}


def small_tokenizer():
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, SCHEME)
    return tokenizer


def small_model(family="llama", seed=0):
    """A model for `small_tokenizer`, extended."""
    tokenizer = byte_level()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family](len(tokenizer))
    extend_tokenizer(tokenizer, SCHEME, model)
    return model


def small_finetune(output_dir, family="llama", *, model=None, items=ITEMS, test=ITEMS, callbacks=None, **arguments):
    """A trainer. By default it runs 3 epochs of 3 steps, and evaluates and saves after each."""
    tokenizer = small_tokenizer()
    defaults = {
        "output_dir": str(output_dir),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "max_new_tokens": 12,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "length_pool": 2,
        "save_total_limit": 10,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    return FinetuneTrainer(
        model=small_model(family) if model is None else model,
        args=FinetuneArguments(**{**defaults, **arguments}),
        train_dataset=encode_solutions(tokenizer, items)[0],
        eval_dataset=Dataset.from_list(test),
        data_collator=StepCollator(tokenizer),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
