"""Depth that follows the kind of the step being generated, and the recurrences of each kind."""

import random
from itertools import pairwise

import pytest
import torch
from step_texts import as_mask, extended, padded, random_text, sees

from memreason_hf.steps import StepScheme
from memreason_hf.steps.attention import set_step_attention
from memreason_hf.steps.depth import (
    DepthByKind,
    StepKinds,
    mean_recurrences_by_kind,
    read_depths,
    recurrences_by_kind,
)
from memreason_hf.steps.tokenization import step_token_ids


DEPTHS = {"memory": 2, "reason": 7, "answer": 3}
OTHERWISE = 5
NEW = 14


def kinds_of(ids, tokenizer):
    """Token by token, from the names of the tokens."""
    kind, found = "none", []
    for name in tokenizer.convert_ids_to_tokens(ids):
        family = name.strip("<>").split("_")[0]
        if name in tokenizer.all_special_tokens and family in ("prefix", "memory", "reason", "answer", "step"):
            kind = "none" if family == "prefix" else family
        found.append(kind)
    return found


def depths_of(ids, tokenizer):
    return [DEPTHS.get(kind, OTHERWISE) for kind in kinds_of(ids, tokenizer)]


def talkative(scheme=None, **kwargs):
    """A model that often generates step tokens, so that rows change their kind at different places."""
    model, tokenizer = extended("recurrent", scheme, tie_word_embeddings=False, **kwargs)
    groups = step_token_ids(tokenizer)
    with torch.no_grad():
        for name, ids in groups.items():
            model.lm_head.weight[ids] *= 1.0 if name == "step" else 3.0
    return model.double(), tokenizer


def generate(model, tokenizer, ids, real, **kwargs):
    return model.generate(
        input_ids=ids,
        attention_mask=real,
        do_sample=False,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        depth_schedule=DepthByKind(tokenizer, DEPTHS, OTHERWISE),
        **{"eos_token_id": None, **kwargs},
    )


@pytest.mark.parametrize("scheme", [StepScheme(2, 3), StepScheme(0, 1), StepScheme(1, 1)])
def test_kinds_of_tokens(scheme):
    _, tokenizer = extended("llama", scheme)
    kinds = StepKinds(tokenizer)
    rows = [random_text(tokenizer) for _ in range(8)]
    ids, real = padded(rows)
    read = kinds.read(ids)
    assert read.shape == ids.shape
    for index, row in enumerate(rows):
        assert [kinds.names[number] for number in read[index][real[index].bool()]] == kinds_of(row, tokenizer)
        # The kind of a token depends only on the tokens before it.
        for end in (3, len(row) // 2):
            assert kinds.read(torch.tensor([row[:end]]))[0].tolist() == read[index][real[index].bool()][:end].tolist()
    assert len(read.unique()) > 3


@torch.no_grad()
def test_each_row_changes_on_its_own():
    for _ in range(10):
        model, tokenizer = talkative()
        rows = [random_text(tokenizer) for _ in range(4)]
        ids, real = padded(rows)
        made = generate(model, tokenizer, ids, real)
        new = made.sequences[:, ids.shape[1] :].tolist()
        taken = [set(counts) for counts in made.num_recurrences.tolist()]
        if sum(len(counts) > 1 for counts in taken) >= 2 and len(set.union(*taken)) >= 3:
            break
    assert sum(len(counts) > 1 for counts in taken) >= 2 and len(set.union(*taken)) >= 3
    uncached = generate(model, tokenizer, ids, real, use_cache=False)
    assert torch.equal(uncached.sequences, made.sequences)
    assert torch.equal(uncached.num_recurrences, made.num_recurrences)
    for index, row in enumerate(rows):
        text = (row + new[index])[:-1]
        expected = depths_of(text, tokenizer)
        prompt = made.prompt_recurrences[index][real[index].bool()].tolist()
        assert prompt + made.num_recurrences[index, 1:].tolist() == expected
        # Without a cache, with the counts of the tokens.
        logits = model(input_ids=torch.tensor([text]), num_recurrences=torch.tensor([expected])).logits[0]
        assert logits[-NEW:].argmax(-1).tolist() == new[index]
        alone = generate(model, tokenizer, torch.tensor([row]), None)
        assert alone.sequences[0, len(row) :].tolist() == new[index]
        assert torch.equal(alone.num_recurrences[0], made.num_recurrences[index])


@torch.no_grad()
def test_a_criterion_stops_earlier_where_it_may():
    model, tokenizer = talkative(state_norm="rmsnorm")
    rows = [random_text(tokenizer) for _ in range(4)]
    ids, real = padded(rows)
    call = {"halting_criterion": "state_difference"}
    states = model(ids, attention_mask=real, num_recurrences=5, output_hidden_states=True).hidden_states[1:]
    change = torch.stack([(b - a).norm(dim=-1) / b.norm(dim=-1) for a, b in pairwise(states)])
    call["state_difference_threshold"] = change[:, real.bool()].quantile(0.4).item()
    made = generate(model, tokenizer, ids, real, **call)
    for index, row in enumerate(rows):
        text = (row + made.sequences[index, ids.shape[1] :].tolist())[:-1]
        counts = made.prompt_recurrences[index][real[index].bool()].tolist() + made.num_recurrences[index, 1:].tolist()
        most = depths_of(text, tokenizer)
        assert all(count <= bound for count, bound in zip(counts, most))
        scratch = model(input_ids=torch.tensor([text]), max_recurrences=torch.tensor([most]), **call)
        assert scratch.num_recurrences[0].tolist() == counts
        given = model(input_ids=torch.tensor([text]), num_recurrences=torch.tensor([counts])).logits[0]
        assert given[-NEW:].argmax(-1).tolist() == made.sequences[index, ids.shape[1] :].tolist()


@pytest.mark.parametrize("variant", ["own", "tokens"])
@torch.no_grad()
def test_with_attention_between_steps(variant):
    model, tokenizer = talkative()
    row = random_text(tokenizer)
    set_step_attention(model, tokenizer, variant)
    made = generate(model, tokenizer, *padded([row, random_text(tokenizer)]))
    set_step_attention(model, tokenizer, None)
    new = made.sequences[0, -NEW:].tolist()
    text = (row + new)[:-1]
    logits = model(
        input_ids=torch.tensor([text]),
        attention_mask=as_mask(sees(text, step_token_ids(tokenizer), variant), torch.float64),
        num_recurrences=torch.tensor([depths_of(text, tokenizer)]),
    ).logits[0]
    assert logits[-NEW:].argmax(-1).tolist() == new


def test_recurrences_by_kind():
    model, tokenizer = talkative()
    rows = [random_text(tokenizer) for _ in range(3)]
    ids, real = padded(rows)
    made = generate(model, tokenizer, ids, real)
    lengths = [NEW, 5, 1]
    counted = recurrences_by_kind(StepKinds(tokenizer), made.sequences, made.num_recurrences, lengths)
    for index, row in enumerate(rows):
        text = row + made.sequences[index, ids.shape[1] :].tolist()
        expected = {}
        for place in range(lengths[index]):
            before = text[: len(row) + place]
            tokens, total = expected.get(kinds_of(before, tokenizer)[-1], (0, 0))
            expected[kinds_of(before, tokenizer)[-1]] = (tokens + 1, total + depths_of(before, tokenizer)[-1])
        assert {kind: tuple(values) for kind, values in counted[index].items()} == expected
    means = mean_recurrences_by_kind(counted)
    assert all(mean == DEPTHS.get(kind, OTHERWISE) for kind, mean in means.items())
    mixed = mean_recurrences_by_kind([{"reason": [1, 4], "none": [2, 2]}, {"reason": [3, 4]}])
    assert mixed == {"none": 1.0, "reason": 2.0} and list(mixed) == ["none", "reason"]


def test_padding_behind_the_end_of_a_text_is_of_no_kind():
    rng = random.Random(0)
    model, tokenizer = talkative(seed=0)
    ids, real = padded([random_text(tokenizer, rng) for _ in range(3)])
    free = generate(model, tokenizer, ids, real).sequences[:, ids.shape[1] :]
    ends = [int(free[0, 1]), int(free[1, 4])]
    made = generate(model, tokenizer, ids, real, eos_token_id=ends)
    lengths = [1 + next(i for i, token in enumerate(row) if token in ends or i == NEW - 1) for row in free.tolist()]
    assert min(lengths) < made.num_recurrences.shape[1]
    kinds = StepKinds(tokenizer)
    assert recurrences_by_kind(kinds, made.sequences, made.num_recurrences) == recurrences_by_kind(
        kinds, made.sequences, made.num_recurrences, lengths
    )


def test_depths_as_text():
    assert read_depths("memory=2, reason=16") == {"memory": 2, "reason": 16}
    for text in (
        "",
        "memory",
        "memory=",
        "memory=x",
        "memory=-1",
        "memory=2,memory=3",
        "Thought=2",
        "prefix=2",
        "memory=2;reason=3",
    ):
        with pytest.raises(ValueError, match="is not the depth of a kind"):
            read_depths(text)


def test_wrong_requests():
    _, tokenizer = extended("llama")
    with pytest.raises(ValueError, match="no tokens of kind 'thought', only of memory, reason, answer, step"):
        DepthByKind(tokenizer, {"thought": 2}, 3)
    with pytest.raises(ValueError, match="memory=0"):
        DepthByKind(tokenizer, {"memory": 0}, 3)
    with pytest.raises(TypeError, match=r"otherwise=2\.5"):
        DepthByKind(tokenizer, {"memory": 1}, 2.5)
    _, front = extended("llama", StepScheme(2, 0, layout="front"))
    with pytest.raises(ValueError, match="no tokens for kinds"):
        StepKinds(front)
