"""The document of attention over one solution, against shares computed by hand."""

import numpy as np
import pytest
import torch
from result_schemas import assert_schema_describes_itself, assert_written_and_read

from memreason_hf.analysis.attention_document import attention_document, map_shares, shares_table
from memreason_hf.analysis.attention_maps import LayerAttention, TextAttention
from memreason_hf.analysis.solution_tokens import SolutionTokens, TokenSpan
from memreason_hf.evaluation import describe_environment


SPANS = (
    TokenSpan("question", 0, 2, None, "Is it?"),
    TokenSpan("memory", 2, 4, 1, "It is."),
    TokenSpan("answer", 4, 5, 2, "The answer is: True"),
)
SOLUTION = SolutionTokens(
    ids=(7, 8, 20, 9, 21),
    labels=("Is", "it?", "<memory>", "It", "<answer>"),
    spans=SPANS,
    is_mark=(False, False, True, False, True),
)
OWNERS = np.array([0, 0, 1, 1, 2])
MODEL = {"name_or_path": "runs/m", "model_type": "recurrent_depth", "num_parameters": 3, "dtype": "float32"}
SETTINGS = {"layer": None, "head": 2, "recurrence": None, "num_recurrences": 2}


@pytest.fixture
def attention():
    """A prelude layer, then one layer in the loop, twice; 2 heads."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(2, 5, 5, generator=generator).tril() for _ in range(3)]
    weights = [entry / entry.sum(-1, keepdim=True) for entry in weights]
    layers = zip((1, 2, 2), (None, 1, 2), weights)
    return TextAttention(tuple(LayerAttention(*layer) for layer in layers), num_recurrences=2)


def by_hand(weights, owners):
    size = max(owners) + 1
    return [[np.mean(weights[owners == a][:, owners == b].sum(-1)) for b in range(size)] for a in range(size)]


def make_document(attention, marks_apart=False, model=MODEL):
    shares = map_shares(attention.select(head=2), SOLUTION.kinds(marks_apart))
    environment = describe_environment("cpu")
    return attention_document(
        SOLUTION,
        attention,
        shares,
        marks_apart=marks_apart,
        model=model,
        settings=SETTINGS,
        environment=environment,
    )


def test_the_document_holds_what_it_says(attention, tmp_path):
    document = make_document(attention)
    assert_schema_describes_itself("attention")
    assert_written_and_read(document, tmp_path / "attention.json")
    assert document["settings"] == {**SETTINGS, "marks_apart": False}
    assert document["kinds"] == ["question", "memory", "answer"] and document["counts"] == [2, 2, 1]
    assert document["tokens"][2] == {"id": 20, "label": "<memory>", "kind": "memory", "span": 1, "is_mark": True}
    assert [token["span"] for token in document["tokens"]] == OWNERS.tolist()
    assert document["spans"][1] == {"kind": "memory", "number": 1, "text": "It is.", "start": 2, "end": 4}
    assert document["truncated"] is False
    for recurrence, entry in zip((1, 2), document["maps"], strict=True):
        assert entry["recurrence"] == recurrence
        weights = attention.layers[recurrence].weights[1].numpy()
        np.testing.assert_allclose(entry["shares"], by_hand(weights, OWNERS), atol=1e-6)
    assert [(entry["layer"], entry["recurrence"]) for entry in document["layers"]] == [(1, None), (2, 1), (2, 2)]
    for layer, entry in zip(attention.layers, document["layers"]):
        for head in (0, 1):
            expected = by_hand(layer.weights[head].numpy(), OWNERS)
            np.testing.assert_allclose(entry["shares"][head], expected, atol=1e-6)
    even = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None]
    np.testing.assert_allclose(document["even"], by_hand(even, OWNERS), atol=1e-6)


def test_marks_apart_are_a_kind_of_their_own(attention):
    document = make_document(attention, marks_apart=True)
    assert document["settings"]["marks_apart"] is True
    assert document["kinds"] == ["question", "memory", "marks"] and document["counts"] == [2, 1, 2]
    assert [token["kind"] for token in document["tokens"]] == ["question", "question", "marks", "memory", "marks"]


def test_a_description_that_is_not_of_a_text_is_refused(attention):
    with pytest.raises(ValueError, match=r"^model: missing keys \[\], unknown keys \['trained_hops'\]"):
        make_document(attention, model={**MODEL, "trained_hops": None})


def test_the_table_shows_some_recurrences_of_many():
    weights = torch.eye(5).expand(1, 5, 5)
    layers = tuple(LayerAttention(1, recurrence, weights) for recurrence in range(1, 12))
    shares = map_shares(TextAttention(layers, num_recurrences=11).select(), SOLUTION.kinds())
    lines = [line.split() for line in shares_table(shares).splitlines()[2:]]
    assert [line[2] for line in lines] == 3 * ["1", "2", "4", "8", "11", "even"]
    assert lines[0] == ["question", "2", "1", "100.0", "0.0", "0.0"]
    few = map_shares(TextAttention(layers[:3], num_recurrences=3).select(), SOLUTION.kinds())
    assert [line.split()[2] for line in shares_table(few).splitlines()[2:6]] == ["1", "2", "3", "even"]
    (one,) = TextAttention((LayerAttention(1, None, weights),)).select()
    assert shares_table(map_shares([one], SOLUTION.kinds())).split()[:3] == ["from", "tokens", "attention"]
