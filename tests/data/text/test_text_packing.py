"""Packing keeps documents whole, apart and complete; a packed row computes what its documents compute one by one."""

import numpy as np
import pytest
import torch
from recurrent_models import lively_model, relative_error
from transformers import LlamaConfig, LlamaForCausalLM

from memreason_hf.data.text.collator import TextCollator
from memreason_hf.data.text.packing import DocumentTooLongError, pack_documents


def random_documents(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 61, length).tolist() for length in lengths]


def pieces_of(row):
    """(inputs, the token after them) of every piece of a row."""
    ends = np.cumsum(row["seq_lengths"])
    return [
        (row["input_ids"][end - length : end].tolist(), int(following))
        for end, length, following in zip(ends, row["seq_lengths"], row["next_ids"])
    ]


@pytest.mark.parametrize("sequence_length", [1, 7, 16, 64])
def test_every_document_is_there_once_and_whole(sequence_length):
    documents = random_documents(np.random.default_rng(1).integers(2, 40, 200))
    rows, counts = pack_documents(documents, sequence_length)
    assert all(1 <= len(row["input_ids"]) <= sequence_length for row in rows)
    assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) for row in rows)
    expected = []
    for document in documents:
        for start in range(0, len(document) - 1, sequence_length):
            part = document[start : start + sequence_length + 1]
            expected.append((part[:-1], part[-1]))
    found = [piece for row in rows for piece in pieces_of(row)]
    assert sorted(found) == sorted(expected)
    assert counts.tokens == sum(len(document) - 1 for document in documents) == sum(len(r["input_ids"]) for r in rows)
    assert (counts.documents, counts.rows) == (200, len(rows))
    assert counts.too_long == sum(len(document) > sequence_length + 1 for document in documents)


def test_rows_are_nearly_full():
    documents = random_documents(np.random.default_rng(2).integers(2, 200, 1000))
    rows, counts = pack_documents(documents, 256)
    assert counts.tokens / (len(rows) * 256) > 0.98
    # The control: one document after the other, in order, wastes more.
    place, in_order = 256, 0
    for document in documents:
        if place + len(document) - 1 > 256:
            in_order, place = in_order + 1, 0
        place += len(document) - 1
    assert counts.tokens / (in_order * 256) < 0.95


def test_documents_that_are_too_long():
    documents = random_documents([12, 11, 30, 1, 0])
    rows, counts = pack_documents(documents, 10, "truncate")
    assert sorted(len(row["input_ids"]) for row in rows) == [10, 10, 10]
    assert sorted(pieces_of(row)[0][1] for row in rows) == sorted(document[10] for document in documents[:3])
    assert (counts.too_long, counts.cut_tokens, counts.skipped) == (2, 20, 2)
    assert "2 documents are longer than a row and lost 20 tokens" in counts.describe(10, "truncate")
    assert "2 documents have fewer than two tokens and were skipped" in counts.describe(10, "truncate")
    _, counts = pack_documents(documents, 10, "split")
    assert "2 documents are longer than a row and were split" in counts.describe(10, "split")
    with pytest.raises(DocumentTooLongError, match="has 12 tokens, but"):
        pack_documents(documents, 10, "error")
    assert pack_documents(documents[1:2], 10, "error")[1].documents == 1


def loss_and_gradients(model, calls):
    model.zero_grad()
    losses = []
    for call in calls:
        # Llama computes a loss only where it is given `labels`, too.
        output = model(**call, labels=call["shift_labels"], num_items_in_batch=1)
        output.loss.backward()
        losses.append(
            torch.nn.functional.cross_entropy(
                output.logits.flatten(0, 1).float(), call["shift_labels"].flatten(), reduction="none"
            )[call["shift_labels"].flatten() != -100]
        )
    return torch.cat(losses), {name: p.grad.clone() for name, p in model.named_parameters()}


STACKS = [
    {},
    {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add", "sliding_window": 5},
    {"position_embedding_type": "learned", "state_norm": "rmsnorm", "max_position_embeddings": 64},
]


@pytest.mark.parametrize("extra", STACKS, ids=str)
@pytest.mark.parametrize("flatten", [False, True])
def test_packed_is_unpacked(extra, flatten):
    """Loss of every token and all gradients, in float64: with padding, split documents, one-token ones."""
    model = lively_model("llama", extra).train()
    documents = random_documents([2, 9, 14, 6, 3, 45, 17, 2])
    rows, _ = pack_documents(documents, 20)
    assert any(len(row["input_ids"]) < 20 for row in rows) and max(len(row["seq_lengths"]) for row in rows) > 2
    batch = TextCollator(0, flatten)(rows)
    assert batch["input_ids"].shape[0] == (1 if flatten else len(rows))
    pieces = [piece for row in rows for piece in pieces_of(row)]
    apart = [
        {"input_ids": torch.tensor([ids]), "shift_labels": torch.tensor([[*ids[1:], following]])}
        for ids, following in pieces
    ]
    expected, gradients = loss_and_gradients(model, apart)
    found, packed = loss_and_gradients(model, [batch])
    assert relative_error(found, expected) < 1e-10
    for name, value in gradients.items():
        assert relative_error(packed[name], value) < 1e-10, name
    # The control: positions that go on over the border of a document.
    going_on = batch | {"position_ids": torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])}
    if "learned" in str(extra) and flatten:
        return
    assert relative_error(loss_and_gradients(model, [going_on])[0], expected) > 1e-3


def test_stock_models_read_the_same_positions():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    # With a cache, transformers does not look for packed documents.
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, use_cache=False, **sizes)).double()
    rows, _ = pack_documents(random_documents([2, 9, 14, 6, 3, 45, 17, 2]), 20)
    batch = TextCollator(0)(rows)
    apart = [
        {"input_ids": torch.tensor([ids]), "shift_labels": torch.tensor([[*ids[1:], following]])}
        for row in rows
        for ids, following in pieces_of(row)
    ]
    found, expected = (loss_and_gradients(model, calls)[0] for calls in ([batch], apart))
    assert relative_error(found, expected) < 1e-6


def test_labels_never_cross_a_document():
    rows, _ = pack_documents([[1, 2, 3], [11, 12, 13, 14]], 8)
    batch = TextCollator(0)(rows)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 1, 2]]
    assert batch["shift_labels"].tolist() == [[12, 13, 14, 2, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]


def test_a_row_of_one_document_keeps_increasing_positions():
    """Also over its padding, so that the batch needs no mask."""
    rows, _ = pack_documents([list(range(1, 8)), list(range(1, 6))], 7)
    batch = TextCollator(9)(rows)
    assert batch["position_ids"].tolist() == [list(range(6))] * 2
    assert batch["input_ids"][1].tolist() == [1, 2, 3, 4, 9, 9]
    assert batch["shift_labels"][1].tolist() == [2, 3, 4, 5, -100, -100]
