"""A small model that reads chains, whose answers differ from depth to depth, and chains for it."""

import numpy as np
import torch
from datasets import Dataset

from memreason_hf.data.chains.collator import ChainCollator
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


VOCAB, PAD = 17, 0


def chain_model(seed=5, **fields):
    """A random model with a gate, whose rows halt at many different recurrences."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        values = {
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_recurrent_layers": 1,
            "input_injection": "add",
            "state_norm": "layernorm",
            "initializer_range": 0.4,
            "pad_token_id": PAD,
            "num_recurrences": 3,
            "max_recurrences": 12,
            "exit_gate": True,
            **fields,
        }
        return RecurrentDepthForCausalLM(RecurrentDepthConfig.gpt2_style(**values)).eval()


def chain_rows(count, generator=None):
    """Chains of 2 to 6 tokens with arbitrary answers; groups by length."""
    generator = np.random.default_rng() if generator is None else generator
    rows = []
    for _ in range(count):
        length = int(generator.integers(2, 7))
        ids = generator.integers(1, VOCAB, length + 1).tolist()
        rows.append({"input_ids": ids[:-1], "label_ids": [-100] * (length - 1) + ids[-1:], "hops": length})
    return Dataset.from_list(rows)


def collator():
    return ChainCollator(PAD)
