"""A model with known answers, and a tiny real model with chains to answer."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


VOCAB = 11
PAD = 0


def left_padded(rows):
    """A slow collator that is independent of the package."""
    width = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": [], "attention_mask": [], "shift_labels": []}
    for row in rows:
        missing = width - len(row["input_ids"])
        batch["input_ids"].append([PAD] * missing + row["input_ids"])
        batch["attention_mask"].append([0] * missing + [1] * len(row["input_ids"]))
        batch["shift_labels"].append([-100] * (width - 1) + row["label_ids"][-1:])
    return {name: torch.tensor(values) for name, values in batch.items()}


class ScriptedModel(torch.nn.Module):
    """
    Answers a chain of h hops with its first token, at recurrences h to 2h, with a margin of the recurrence; otherwise
    with the token after it, by a margin of 1. Its criterion halts a row at h + 1, or at `max_recurrences`.
    """

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=VOCAB)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.dropout = torch.nn.Dropout(0.5)
        self.batches = []

    def forward(
        self,
        input_ids,
        attention_mask,
        logits_to_keep,
        use_cache,
        num_recurrences=None,
        on_recurrence=None,
        max_recurrences=99,
        per_token=False,
    ):
        assert logits_to_keep == 1
        assert not self.training and not self.dropout.training and not torch.is_grad_enabled()
        self.batches.append(tuple(input_ids.shape))
        hops = attention_mask.sum(-1) - 1
        start = input_ids.gather(1, (input_ids.shape[1] - 1 - hops)[:, None])[:, 0]
        counts = torch.full_like(hops, num_recurrences or 0)
        if num_recurrences is None:
            counts = (hops + 1).clamp(max=max_recurrences)
        for recurrence in range(1, int(counts.max()) + 1):
            if on_recurrence is not None:
                on_recurrence(recurrence, None, self._logits(start, hops, torch.full_like(hops, recurrence)))
        logits = self._logits(start, hops, counts)
        if per_token:
            counts = torch.stack([torch.full_like(counts, 77), counts], dim=1)
        return SimpleNamespace(logits=logits, num_recurrences=counts)

    def _logits(self, start, hops, recurrence):
        logits = torch.zeros(len(start), 1, VOCAB)
        right = (hops <= recurrence) & (recurrence <= 2 * hops)
        logits[:, 0].scatter_(1, start[:, None], torch.where(right, recurrence, -1).float()[:, None])
        return logits + self.weight


@pytest.fixture
def scripted_model():
    return ScriptedModel()


@pytest.fixture
def collator():
    return left_padded


def _rows(lengths, answers):
    rows = []
    for index, hops in enumerate(lengths):
        start = 1 + index % (VOCAB - 1)
        tokens = [start, *(1 + (3 * index + 5 * hop) % (VOCAB - 1) for hop in range(hops))]
        labels = [-100, *(1 + (7 * index + hop) % (VOCAB - 1) for hop in range(hops - 1)), answers(index, start)]
        rows.append({"input_ids": tokens, "label_ids": labels, "hops": hops, "type": f"{hops}hop_test"})
    return Dataset.from_list(rows)


@pytest.fixture
def scripted_rows():
    """19 chains of 2, 3, 5 and 12 hops, mixed, whose answer is their first token."""
    return _rows([12, 2, 5, 3, 2] * 3 + [12, 5, 5, 2], lambda index, start: start)


@pytest.fixture
def real_rows():
    """40 chains of 2 to 6 hops with arbitrary answers."""
    return _rows([2 + (index * 7) % 5 for index in range(40)], lambda index, start: 1 + (index * 3) % (VOCAB - 1))


@pytest.fixture(scope="session")
def real_model():
    """A random recurrent-depth model, in which padding and depth matter."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = RecurrentDepthConfig.gpt2_style(
            vocab_size=VOCAB,
            hidden_size=16,
            num_attention_heads=2,
            num_recurrent_layers=1,
            input_injection="add",
            state_norm="layernorm",
            initializer_range=0.4,
            pad_token_id=PAD,
            num_recurrences=3,
            max_recurrences=12,
        )
        return RecurrentDepthForCausalLM(config).eval()
