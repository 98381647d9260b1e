"""Perplexity after every recurrence in one pass, against separate forward passes at each depth."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import load_result, run_ranks, save_result
from recurrent_models import random_ids, tiny_model
from result_schemas import assert_schema_describes_itself, assert_written_and_read
from torch import distributed
from transformers import LlamaConfig, LlamaForCausalLM

from memreason_hf.evaluation import describe_environment
from memreason_hf.evaluation.results import validate_results
from memreason_hf.evaluation.text import perplexity
from memreason_hf.evaluation.text.perplexity import RecurrencePerplexity, perplexity_by_recurrence
from memreason_hf.evaluation.text.results import describe_text_model, perplexity_results, perplexity_table


R = 5
LENGTHS = (2, 30, 7, 7, 12, 3, 21)


def documents():
    torch.manual_seed(1)
    return [random_ids(length).tolist() for length in LENGTHS]


def model_of(style="llama", **fields):
    fields = {"input_injection": "add", "num_prelude_layers": 1, "num_coda_layers": 1, **fields}
    return tiny_model(style, seed=0, initializer_range=0.25, **fields)


@torch.no_grad()
def separate(model, rows, max_length):
    """Mean losses after each recurrence: one forward pass for each document, piece and depth."""
    sums, count = [0.0] * R, 0
    for row in rows:
        ids = torch.tensor(row)
        for start in range(0, len(ids) - 1, max_length):
            piece = ids[start : start + max_length + 1]
            count += len(piece) - 1
            for depth in range(1, R + 1):
                logits = model(piece[None, :-1], num_recurrences=depth).logits[0]
                sums[depth - 1] += F.cross_entropy(logits.double(), piece[1:], reduction="sum").item()
    return np.array(sums) / count, count


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("max_length", [5, 64])
def test_equals_separate_forward_passes(packed, batch_size, max_length):
    model = model_of()
    expected, count = separate(model, documents(), max_length)
    found = perplexity_by_recurrence(
        model, documents(), max_recurrences=R, max_length=max_length, batch_size=batch_size, packed=packed
    )
    assert found.losses.dtype == np.float64
    np.testing.assert_allclose(found.losses, expected, rtol=2e-6)
    np.testing.assert_allclose(found.perplexities, np.exp(expected), rtol=1e-5)
    assert (found.num_tokens, found.num_documents) == (count, len(LENGTHS)) == (sum(LENGTHS) - len(LENGTHS), 7)
    # The controls: the depths differ, and so does a mean of the documents' means.
    assert np.ptp(expected) > 1e-2
    by_document = [separate(model, [document], max_length)[0] for document in documents()]
    assert np.abs(np.mean(by_document, axis=0) - expected).max() > 1e-3


@pytest.mark.parametrize("fields", [{"state_init": "normal"}, {"halting_criterion": "kl"}], ids=str)
def test_other_configs(fields):
    """Noise as the model draws it, and a halting criterion, which a fixed depth switches off."""
    model = model_of(**fields)
    found = perplexity_by_recurrence(model, documents(), max_recurrences=R, batch_size=3)
    model.config.halting_criterion = None
    np.testing.assert_allclose(found.losses, separate(model, documents(), 1024)[0], rtol=2e-6)


def test_rows_are_packed_tightly_and_every_piece_once():
    pieces, _ = perplexity._cut(documents(), 8, model_of().config)
    rows = perplexity._pack(pieces, 8)
    assert max(sum(len(piece) - 1 for piece in row) for row in rows) <= 8
    key = sorted(tuple(piece) for piece in pieces)
    assert sorted(tuple(piece) for row in rows for piece in row) == key
    total = sum(len(piece) - 1 for piece in pieces)
    assert len(rows) <= -(-total // 8) + 1 < len(pieces)


def test_a_large_vocabulary_is_read_in_parts(monkeypatch):
    whole = perplexity_by_recurrence(model_of(), documents(), max_recurrences=R)
    monkeypatch.setattr(perplexity, "_AT_ONCE", 100)
    parts = perplexity_by_recurrence(model_of(), documents(), max_recurrences=R)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-12)


def test_modes_and_training_are_left_as_they_were():
    model = model_of(residual_dropout=0.5).train()
    first = perplexity_by_recurrence(model, documents(), max_recurrences=R)
    assert model.training and all(module.training for module in model.modules())
    np.testing.assert_array_equal(perplexity_by_recurrence(model, documents(), max_recurrences=R).losses, first.losses)


def test_a_model_without_recurrences_is_read_once():
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=model_of().config.vocab_size, **sizes)).eval()
    found = perplexity_by_recurrence(model, documents(), batch_size=3)
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(torch.tensor([row[:-1]])).logits[0], torch.tensor(row[1:]), reduction="sum")
            for row in documents()
        ]
    assert found.max_recurrences == 1
    assert found.losses[0] == pytest.approx(sum(losses).item() / found.num_tokens, rel=1e-6)
    with pytest.raises(ValueError, match="max_recurrences=4 is for recurrent-depth models"):
        perplexity_by_recurrence(model, documents(), max_recurrences=4)


def test_learned_positions_bound_a_row():
    """Longer documents are cut in place of failing."""
    model = model_of("gpt2", max_position_embeddings=9, position_embedding_type="learned")
    found = perplexity_by_recurrence(model, documents(), max_recurrences=R, max_length=64)
    np.testing.assert_allclose(found.losses, separate(model, documents(), 9)[0], rtol=2e-6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_recurrences": 0}, "max_recurrences=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"documents": [[1], []]}, "None of the documents has a token to predict"),
        ({"documents": [[1, 10**6]]}, "token id 1000000"),
    ],
    ids=str,
)
def test_what_cannot_be_evaluated(arguments, message):
    arguments = {"documents": documents(), **arguments}
    with pytest.raises(ValueError, match=message):
        perplexity_by_recurrence(model_of(), **arguments)


# ---- Results ----


def results(losses=(2.0, 1.5, 1.75), num_bytes=400):
    result = RecurrencePerplexity(np.array(losses), num_tokens=100, num_documents=7, num_bytes=num_bytes, seconds=2.0)
    return perplexity_results(
        result,
        model=describe_text_model(model_of(), "runs/text"),
        environment=describe_environment("cpu"),
        files=["heldout.txt"],
        max_length=64,
        batch_size=8,
        packed=False,
    )


def test_bits_per_byte():
    # 100 tokens of 2 nats are 200 / ln 2 bits, over 400 bytes.
    assert results()["bits_per_byte"][0] == pytest.approx(200 / math.log(2) / 400)
    assert results(num_bytes=None)["bits_per_byte"] is None
    assert results()["perplexity"] == pytest.approx([math.exp(loss) for loss in (2.0, 1.5, 1.75)])
    assert results((1000.0, 1.0))["perplexity"] == [None, pytest.approx(math.e)]
    assert results()["best_recurrence"] == 2


def test_documents_are_written_and_read(tmp_path):
    assert_written_and_read(results(), tmp_path / "perplexity.json")
    assert_written_and_read(results((1000.0, 1.0), None), tmp_path / "large.json")
    assert_schema_describes_itself("perplexity")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss": [1.0]}, "loss has 1 entries, but settings.max_recurrences is 3"),
        ({"best_recurrence": 4}, "best_recurrence=4 must be from 1 to 3"),
        ({"loss": ["a"]}, "must be a number"),
        ({"files": []}, "unknown keys"),
    ],
    ids=str,
)
def test_documents_that_break_the_schema(change, message):
    with pytest.raises(ValueError, match=message):
        validate_results(results() | change)


def test_the_table_marks_the_best_recurrence():
    lines = perplexity_table(results()).splitlines()
    assert lines[0].split() == ["recurrences", "loss", "perplexity", "bits", "per", "byte"]
    assert lines[3].split() == ["2", "1.5000", "4.482", "0.5410", "best"]
    deep = perplexity_table(results([3.0 - 0.01 * (19 - abs(19 - i)) for i in range(40)], None)).splitlines()
    assert [line.split()[0] for line in deep[2:]] == ["1", "2", "4", "8", "16", "20", "32", "40"]
    assert "bits" not in deep[0] and deep[7].endswith("best")


def evaluate(result):
    distributed.init_process_group("gloo")
    found = perplexity_by_recurrence(model_of(), documents(), max_recurrences=R, batch_size=2, distributed=True)
    save_result(f"{result}-{distributed.get_rank()}", (found.losses.tolist(), found.num_tokens))
    distributed.barrier()
    distributed.destroy_process_group()


def test_processes_share_the_batches(tmp_path):
    run_ranks(evaluate, tmp_path / "result")
    expected, count = separate(model_of(), documents(), 1024)
    for rank in range(2):
        losses, num_tokens = load_result(tmp_path / f"result-{rank}")
        np.testing.assert_allclose(losses, expected, rtol=2e-6)
        assert num_tokens == count
