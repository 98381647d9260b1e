"""A depth for each token that follows the text: the same in every way of decoding, and as recomputed from scratch."""

import pytest
import torch
from recurrent_models import (
    depth_calls,
    grid_ids,
    lively_model,
    pad,
    random_ids,
    reference_logits,
    relative_error,
    same_decoding,
)


NEW = 5
GRID = [
    ("gpt2", {"position_embedding_type": "learned", "input_injection": "add", "state_norm": "layernorm"}),
    ("gpt2", {"position_embedding_type": "none", "sliding_window": 3, "input_injection": "concat"}),
    ("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add", "state_norm": "rmsnorm"}),
]
IDS = grid_ids(GRID)
each_model = pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)


def depth_of(row):
    """Token by token: every third id changes the depth of what follows; each token may go as deep as the last says."""
    depths, depth = [], 4
    for token_id in row:
        if token_id and token_id % 3 == 0:
            depth = 1 + token_id % 7
        depths.append(depth)
    return depths


def schedule(input_ids):
    return torch.tensor([depth_of(row) for row in input_ids.tolist()], device=input_ids.device)


def prompts():
    """Left-padded rows that end at different depths."""
    rows = [random_ids(n) for n in (5, 2, 7, 4)]
    for row, last in zip(rows, (3, 9, 12, 15)):
        row[-1] = last
    return rows, *pad(rows, "left")


def generate(model, ids, mask, **kwargs):
    return model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        depth_schedule=schedule,
        **{"max_new_tokens": NEW, **kwargs},
    )


def texts(rows, ids, output):
    """(text without its last token, count of each of its tokens, prompt length) of every row."""
    for i, row in enumerate(rows):
        new = output.sequences[i, ids.shape[1] :]
        prompt = output.prompt_recurrences[i, ids.shape[1] - len(row) :]
        yield torch.cat((row, new))[:-1], torch.cat((prompt, output.num_recurrences[i, 1:])), len(row)


@each_model
def test_counts_are_those_of_the_schedule(style, extra, poisoned_memory):
    model = lively_model(style, extra)
    rows, ids, mask = prompts()
    output = generate(model, ids, mask)
    logits = torch.stack(output.logits, dim=1)
    seen = set()
    for i, (text, counts, start) in enumerate(texts(rows, ids, output)):
        assert counts.tolist() == depth_of(text.tolist())
        expected = reference_logits(model, text, counts.tolist())[start - 1 :]
        assert relative_error(logits[i], expected) < 1e-6
        assert torch.equal(expected.argmax(-1), output.sequences[i, ids.shape[1] :])
        seen |= set(counts.tolist())
    assert len(seen) >= 4


@each_model
def test_every_way_of_decoding_agrees(style, extra):
    model = lively_model(style, extra)
    rows, ids, mask = prompts()
    calls = {**depth_calls(model), "schedule": {}}
    for name in ("schedule", "token-state", "token-kl", "sequence-kl"):
        call = {key: value for key, value in calls.get(name, {}).items() if key != "min_recurrences"}
        if name not in calls:
            continue
        plain = generate(model, ids, mask, **call)
        if name != "sequence-kl" or not model.config.num_coda_layers:
            assert same_decoding(plain, generate(model, ids, mask, use_cache=False, **call)), name
        for i, row in enumerate(rows):
            alone = generate(model, row[None], torch.ones(1, len(row), dtype=torch.long), **call)
            assert torch.equal(alone.sequences[0, len(row) :], plain.sequences[i, ids.shape[1] :])
            assert torch.equal(alone.num_recurrences[0], plain.num_recurrences[i])
            if name != "sequence-kl":
                assert same_decoding(alone, generate(model, row[None], None, prompt_lookup_num_tokens=3, **call)), name
        if name == "sequence-kl":
            continue
        beams = generate(model, ids, mask, num_beams=3, num_return_sequences=2, **call)
        again = generate(model, ids, mask, num_beams=3, num_return_sequences=2, use_cache=False, **call)
        assert same_decoding(beams, again), name


@each_model
@pytest.mark.parametrize("name", ["token-state", "token-kl", "sequence-kl"])
def test_a_criterion_stops_at_the_schedule_at_the_latest(style, extra, name):
    for _ in range(20):
        model = lively_model(style, extra)
        call = depth_calls(model).get(name)
        if call is None:
            pytest.skip("a criterion on logits by token needs a model without a coda")
        call.pop("min_recurrences", None)
        rows, ids, mask = prompts()
        output = generate(model, ids, mask, **call)
        by_row = name == "sequence-kl"
        all_counts, capped = set(), 0
        for i, (text, counts, start) in enumerate(texts(rows, ids, output)):
            most = torch.tensor(depth_of(text.tolist()))
            if by_row:
                # The prompt is one call, whose last token says how deep it may go.
                most[:start] = most[start - 1]
            assert (counts <= most).all()
            all_counts |= set(counts.tolist())
            capped += int((counts == most).sum())
            if i < 2:
                expected = reference_logits(model, text, counts.tolist())[start - 1 :]
                assert torch.equal(expected.argmax(-1), output.sequences[i, ids.shape[1] :])
            if not by_row:
                # Without the schedule a token halts at the same recurrence, or later.
                scratch = model(text[None], max_recurrences=most[None], **call).num_recurrences[0]
                assert torch.equal(scratch, counts)
        if len(all_counts) >= 4 and capped:
            return
    pytest.fail("in 20 draws no model halted at different depths")


@torch.no_grad()
def test_most_recurrences_by_row_and_token():
    model = lively_model("llama", {"input_injection": "add", "state_norm": "rmsnorm"})
    ids, mask = pad([random_ids(n) for n in (6, 3, 5)], "left")
    call = {**depth_calls(model)["token-state"], "state_difference_threshold": 1e-9}
    rows = torch.tensor([2, 7, 4])
    counts = model(ids, attention_mask=mask, max_recurrences=rows, **call).num_recurrences
    assert torch.equal(counts, rows[:, None] * mask)
    tokens = torch.randint(1, 9, ids.shape)
    output = model(ids, attention_mask=mask, max_recurrences=tokens, **call)
    assert torch.equal(output.num_recurrences, tokens * mask)
    given = model(ids, attention_mask=mask, num_recurrences=tokens)
    assert relative_error(output.logits[:, -1], given.logits[:, -1]) < 1e-9
    # A row that decides as a whole goes by its last real token.
    right, real = pad([random_ids(n) for n in (6, 3, 5)], "right")
    counts = model(
        right, attention_mask=real, max_recurrences=tokens, halting_granularity="sequence", **call
    ).num_recurrences
    assert torch.equal(counts, tokens[torch.arange(3), real.sum(1) - 1])
    # What is given is not bounded by it.
    mixed = torch.tensor([8, 0, 0])
    counts = model(ids, attention_mask=mask, num_recurrences=mixed, max_recurrences=rows, **call).num_recurrences
    assert counts.tolist() == [8, 7, 4]
    with pytest.raises(ValueError, match="min_recurrences=3 is above max_recurrences=2"):
        model(ids, attention_mask=mask, max_recurrences=rows, min_recurrences=3, **call)
    with pytest.raises(ValueError, match="max_recurrences has shape"):
        model(ids, attention_mask=mask, max_recurrences=rows[:2], **call)


def test_several_are_returned_for_each_prompt():
    model = lively_model("llama", {"input_injection": "add"})
    rows, ids, mask = prompts()
    output = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        num_return_sequences=2,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        depth_schedule=schedule,
    )
    for i, sequence in enumerate(output.sequences.tolist()):
        start = ids.shape[1] - len(rows[i // 2])
        assert output.num_recurrences[i].tolist() == depth_of(sequence[start:])[-NEW - 1 : -1]


def test_what_is_refused():
    model = lively_model("llama", {})
    ids = random_ids(2, 4)

    def refused(message, **kwargs):
        with pytest.raises((ValueError, TypeError), match=message):
            model.generate(ids, **{"max_new_tokens": 2, "depth_schedule": schedule, **kwargs})

    refused("num_recurrences=3", num_recurrences=3)
    refused("max_recurrences=3", max_recurrences=3)
    refused("draft_recurrences=1", draft_recurrences=1)
    refused("prefill_chunk_size=2", prefill_chunk_size=2)
    refused("cache_implementation='static'", cache_implementation="static")
    refused("must be a function of input_ids, got 4", depth_schedule=4)
    refused("a count for each token, got", depth_schedule=lambda ids: torch.ones(len(ids), dtype=torch.long))
    refused("a count for each token, got", depth_schedule=lambda ids: torch.ones(ids.shape))
    refused("at least 1", depth_schedule=lambda ids: torch.zeros_like(ids))
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=2, depth_schedule=schedule)
