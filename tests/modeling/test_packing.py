"""Packed documents: texts in one row whose positions restart do not attend to each other."""

import pytest
import torch
from recurrent_models import depth_calls, lively_model, pad, random_ids, relative_error
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_recurrent import RecurrentDepthCache, RecurrentDepthStaticCache


ATTENTIONS = ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)]
STACKS = [
    {},
    {"sliding_window": 3, "num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add"},
    {"sliding_window": 2, "input_injection": "concat", "state_norm": "rmsnorm", "num_key_value_heads": 2},
    {"position_embedding_type": "learned", "state_init": "normal", "input_injection": "add"},
]
LENGTHS = (9, 1, 6, 4)


def packed(documents):
    """(input_ids, position_ids) of one row."""
    positions = torch.cat([torch.arange(len(document)) for document in documents])
    return torch.cat(documents)[None], positions[None]


def apart(model, documents, **call):
    """The logits of the documents, each in a run of its own, one after the other."""
    return torch.cat([model(document[None], **call).logits[0] for document in documents])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("extra", STACKS, ids=str)
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(attention, extra):
    model = lively_model("llama", extra)
    documents = [random_ids(length) for length in LENGTHS]
    expected = apart(model, documents)
    model.set_attn_implementation(attention)
    if attention == "flex_attention":
        model.float()
    ids, positions = packed(documents)
    tolerance = 1e-4 if attention == "flex_attention" else 1e-10
    assert relative_error(model(ids, position_ids=positions).logits[0], expected) < tolerance
    # The control: without the positions they attend to each other.
    assert relative_error(model(ids).logits[0], expected) > 0.1


def test_it_is_what_llama_does():
    documents = [random_ids(length) for length in LENGTHS]
    ids, positions = packed(documents)
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ).eval()
    for model in (llama, lively_model("llama", {}).float()):
        together = model(ids, position_ids=positions, use_cache=False).logits[0]
        assert relative_error(together, apart(model, documents, use_cache=False)) < 1e-5


@pytest.mark.parametrize("name", ["token-state", "token-kl"])
@torch.no_grad()
def test_tokens_of_packed_documents_halt_by_themselves(name):
    model = lively_model("llama", {"sliding_window": 4, "input_injection": "add", "state_norm": "rmsnorm"})
    call = depth_calls(model)[name]
    documents = [random_ids(length) for length in (14, 1, 9, 17)]
    ids, positions = packed(documents)
    output = model(ids, position_ids=positions, **call)
    alone = [model(document[None], **call) for document in documents]
    counts = torch.cat([single.num_recurrences[0] for single in alone])
    assert len(counts.unique()) >= 4
    assert torch.equal(output.num_recurrences[0], counts)
    assert relative_error(output.logits[0], torch.cat([single.logits[0] for single in alone])) < 1e-10
    # The control: a text that attends to others halts elsewhere.
    assert not torch.equal(model(ids, **call).num_recurrences[0], counts)


@torch.no_grad()
def test_counts_of_rows_and_tokens():
    """Several rows of several documents; rows leave the batch at their counts."""
    model = lively_model("llama", {"sliding_window": 3, "num_prelude_layers": 1, "input_injection": "add"})
    rows = [[random_ids(n) for n in lengths] for lengths in ((5, 4), (2, 7), (9,), (3, 3, 3))]
    batch = [packed(row) for row in rows]
    ids, positions = torch.cat([b[0] for b in batch]), torch.cat([b[1] for b in batch])
    by_row = torch.tensor([4, 1, 6, 2])
    output = model(ids, position_ids=positions, num_recurrences=by_row)
    for index, row in enumerate(rows):
        expected = apart(model, row, num_recurrences=int(by_row[index]))
        assert relative_error(output.logits[index], expected) < 1e-10
    by_token = torch.randint(1, 6, ids.shape)
    output = model(ids, position_ids=positions, num_recurrences=by_token)
    for index, row in enumerate(rows):
        pieces = by_token[index].split([len(document) for document in row])
        expected = [model(d[None], num_recurrences=p[None]).logits[0] for d, p in zip(row, pieces)]
        assert relative_error(output.logits[index], torch.cat(expected)) < 1e-10


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_beside_packed_documents(side):
    model = lively_model("llama", {"sliding_window": 3, "num_prelude_layers": 1, "input_injection": "add"})
    rows = [[random_ids(n) for n in lengths] for lengths in ((5, 4), (2, 3), (6,))]
    ids, mask = pad([torch.cat(row) for row in rows], side)
    positions = pad([packed(row)[1][0] for row in rows], side)[0]
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    for index, row in enumerate(rows):
        assert relative_error(logits[index, mask[index].bool()], apart(model, row)) < 1e-10


@pytest.mark.parametrize("extra", STACKS[:2], ids=str)
@torch.no_grad()
def test_padding_between_packed_documents(extra):
    """As where each document is padded to a multiple; positions on padding say nothing."""
    model = lively_model("llama", extra)
    documents = [random_ids(length) for length in (3, 4, 1, 5)]
    pieces, places = [], []
    for document in documents:
        holes = int(torch.randint(1, 4, ()))
        pieces += [document, document.new_zeros(holes)]
        places += [torch.arange(len(document)), torch.randint(0, 9, (holes,))]
    ids, positions = torch.cat(pieces)[None], torch.cat(places)[None]
    mask = (ids != 0).long()
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert relative_error(logits[mask.bool()], apart(model, documents)) < 1e-10
    # The control: one document with holes, whose positions continue, stays one.
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    whole = model(torch.cat(documents)[None]).logits[0]
    assert relative_error(model(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()], whole) < 1e-10


def test_gradients_are_those_of_separate_rows():
    model = lively_model("llama", {"sliding_window": 3, "input_injection": "add"}).train()
    documents = [random_ids(length) for length in (9, 6, 4)]
    ids, positions = packed(documents)
    labels = ids.masked_fill(positions == 0, -100)
    count = sum(len(document) - 1 for document in documents)
    model(ids, position_ids=positions, labels=labels, num_items_in_batch=count).loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for document in documents:
        model(document[None], labels=document[None], num_items_in_batch=count).loss.backward()
    for name, parameter in model.named_parameters():
        assert relative_error(together[name], parameter.grad) < 1e-10, name


@pytest.mark.slow
def test_a_compiled_forward_keeps_documents_apart():
    model = lively_model("llama", {"sliding_window": 3, "num_prelude_layers": 1}).float().train()
    documents = [random_ids(length) for length in (5, 4)]
    ids, positions = packed(documents)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert relative_error(compiled(ids, position_ids=positions).logits[0], apart(model, documents)) < 1e-4
    # A cache would let later tokens attend to all documents, so it is only returned where it was asked for.
    with torch.no_grad():
        assert compiled(ids, position_ids=positions).past_key_values is None
        cache = RecurrentDepthCache(model.config)
        plain = torch.compile(model, backend="eager")
        whole = torch.arange(9)[None]
        assert plain(ids, position_ids=whole, past_key_values=cache).past_key_values is cache
        assert plain(ids, position_ids=whole, use_cache=True).past_key_values is not None


@torch.no_grad()
def test_one_document_a_row_changes_nothing():
    model = lively_model("llama", {"sliding_window": 3})
    ids = random_ids(2, 7)
    plain = model(ids, use_cache=True)
    for positions in (torch.arange(7)[None], torch.arange(7).expand(2, -1)):
        output = model(ids, position_ids=positions, use_cache=True)
        assert torch.equal(output.logits, plain.logits) and output.past_key_values.get_seq_length() == 7


@torch.no_grad()
def test_what_would_let_documents_meet_is_refused():
    model = lively_model("llama", {})
    ids, positions = packed([random_ids(3), random_ids(4)])
    cache = RecurrentDepthCache(model.config)
    static = RecurrentDepthStaticCache(model.config, 1, 16, num_recurrences=4)
    filled = model(random_ids(1, 2), use_cache=True).past_key_values
    for call in ({"use_cache": True}, {"past_key_values": cache}, {"past_key_values": static}):
        with pytest.raises(ValueError, match="position_ids restart within a row"):
            model(ids, position_ids=positions, **call)
    with pytest.raises(ValueError, match="position_ids restart within a row"):
        model(ids, position_ids=positions + 2, past_key_values=filled)
    # Documents of one token.
    single = torch.tensor([[0, 0, 0, 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="position_ids restart within a row"):
        model(ids, position_ids=single, past_key_values=static)
    assert model(ids, position_ids=positions).past_key_values is None
    with pytest.raises(ValueError, match="rows hold several documents"):
        model(ids, position_ids=positions, halting_criterion="kl", halting_granularity="sequence")


def test_flash_attention_is_given_the_positions(monkeypatch):
    """Flash attention separates documents itself, in one row without padding."""
    model = lively_model("llama", {"sliding_window": 3, "num_prelude_layers": 1})
    ids, positions = packed([random_ids(3), random_ids(4)])
    seen = []

    def attend(module, query, key, value, mask, **kwargs):
        seen.append((mask, kwargs.get("position_ids")))
        return query.transpose(1, 2), None

    monkeypatch.setattr("modeling_recurrent.modeling_recurrent.attention_interface", lambda *_: attend)
    model.config._attn_implementation = "flash_attention_2"
    model(ids, position_ids=positions)
    assert seen and all(mask is None and torch.equal(given, positions) for mask, given in seen)
    seen.clear()
    model(ids)
    assert seen and all(given is None for _, given in seen)
    for call in (
        {"input_ids": ids.expand(2, -1), "position_ids": positions.expand(2, -1)},
        {
            "input_ids": ids,
            "position_ids": positions,
            "attention_mask": torch.ones_like(ids).index_fill(1, torch.tensor([0]), 0),
        },
    ):
        with pytest.raises(ValueError, match="as one row without padding"):
            model(**call)
