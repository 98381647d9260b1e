"""Prompts whose tokens have their own depths: a token leaves as soon as it has halted, and nothing else changes."""

import random
from itertools import pairwise

import pytest
import torch
from depth_batches import alone, batched, token_depths
from recurrent_models import DECODING_GRID, depth_calls, grid_ids, lively_model, random_ids, tiny_model

from memreason_hf.serving.batching import DepthBatcher, GenerationRequest
from memreason_hf.serving.batching.prefill import Prefill, TokenPrefill, open_prefill


LENGTH = 48
# Llama's layers with what changes the way of keys and values: shared heads, a window, layers around the loop, noise.
MODEL = {
    "num_key_value_heads": 2,
    "sliding_window": 5,
    "num_prelude_layers": 1,
    "num_coda_layers": 1,
    "input_injection": "add",
    "state_init": "normal",
}


@torch.no_grad()
def varied_criterion(model, ids):
    """A criterion on the state with the threshold, of several, that gives the tokens the most different counts."""
    call = {"halting_criterion": "state_difference"}
    states = model(ids, num_recurrences=8, output_hidden_states=True).hidden_states[1:]
    moves = [((new - old).norm(dim=-1) / new.norm(dim=-1)).flatten() for old, new in pairwise(states)]
    scores = torch.cat(moves).sort().values
    # Between two scores, so that rounding decides nothing.
    middles = ((scores[1:] + scores[:-1]) / 2)[scores.diff() > 1e-3 * scores[1:]]
    calls = [{**call, "state_difference_threshold": value.item()} for value in middles[:: len(middles) // 20]]
    return max(calls, key=lambda call: len(model(ids, **call).num_recurrences.unique()))


def calls_of(model, ids):
    """Depth arguments that let the tokens of a prompt differ."""
    state = varied_criterion(model, ids)
    counts = (torch.arange(LENGTH) * 5 % 7 + 1).tolist()
    mixed = [0 if index % 2 else count for index, count in enumerate(counts)]
    calls = {
        "counts": {"num_recurrences": counts},
        "schedule": {"depth_schedule": token_depths(7)},
        "state": state,
        "counts and state": {**state, "num_recurrences": mixed},
        "schedule and state": {**state, "depth_schedule": token_depths(9)},
        "acceleration": {"halting_criterion": "acceleration", "acceleration_threshold": 0.5, "min_recurrences": 4},
    }
    if model.config.num_coda_layers == 0:
        threshold = depth_calls(model)["sequence-kl"]["kl_threshold"]
        calls["kl"] = {"halting_criterion": "kl", "kl_threshold": threshold}
        calls["argmax"] = {"halting_criterion": "argmax_stability", "argmax_patience": 2}
    if model.config.exit_gate:
        calls["gate"] = {"halting_criterion": "exit_gate", "exit_gate_threshold": 0.9}
    for name, call in calls.items():
        if "halting_criterion" in call:
            calls[name] = {**call, "halting_granularity": "token"}
    return calls


def run_prompt(model, request, most):
    """
    Logits and count after a prompt in parts of `most` tokens, and what the memory holds of it, in the loop and around.
    Memory that nobody has written is NaN.
    """
    return run_prompts(DepthBatcher(model, max_rows=1, max_cache_tokens=2 * LENGTH, prefill_tokens=most), [request])[0]


def run_prompts(batcher, requests):
    """The same for several prompts, submitted at random times to a batcher in which they run together."""
    choose, found = batcher._chooser.choose, {}
    with torch.inference_mode():
        cells = batcher.memory.ready(torch.empty(1, dtype=batcher.model.dtype)).fill_(float("nan"))

    def watch(rows, logits):
        for row, scores in zip(rows, logits):
            if len(row.tokens) == row.prompt_length:
                kept = memory_of(row, cells)
                found[row.request_id] = (scores.clone(), row.recurrence, *(part.clone() for part in kept))
        return choose(rows, logits)

    batcher._chooser.choose = watch
    todo, names = list(requests), []
    while todo or batcher.has_work:
        count = random.choice((0, 1, 3))
        names += [batcher.submit(request) for request in todo[:count]]
        del todo[:count]
        for output in batcher.step():
            assert output.error is None, output.error
    return [found[name] for name in names]


def memory_of(row, cells):
    """What the memory holds of the prompt of a row: the slots of the loop that are filled, and those around it."""
    looped = row.region.recurrences(cells)[: row.deepest, ..., : row.prompt_length, :]
    outer = row.region.planes(cells)[row.region.limit * looped.shape[1] :, :, : row.prompt_length]
    return looped, outer


@torch.inference_mode()
def run_whole(model, request, most):
    """The same as `run_prompt`, from the model's own forward."""
    batcher = DepthBatcher(model, max_rows=1, max_cache_tokens=2 * LENGTH)
    row = batcher._planner.plan(request, "name")
    row.region = batcher.memory.allocate(row.capacity, row.depth.limit)
    cells = batcher.memory.ready(torch.empty(1, dtype=model.dtype)).fill_(float("nan"))
    prefill = Prefill(batcher._core, row)
    while prefill.remaining:
        _, logits, count = prefill.advance(most)
    return logits[0], count, *memory_of(row, cells)


def forward(model, request):
    """The model's own forward over the prompt at once."""
    batcher = DepthBatcher(model, max_cache_tokens=2 * LENGTH)
    prompt = torch.tensor([request.prompt_ids])
    arguments = batcher._planner.plan(request, "name").depth.of_prompt(prompt, 0, prompt.shape[1])
    with torch.no_grad():
        return model(prompt, **arguments)


def check_prompts(model, tolerance=1e-11):
    """All calls, whole and in parts; returns how many different counts there were in a prompt of each call."""

    def assert_same(left, right):
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance)

    varied, ids = {}, random_ids(1, LENGTH)
    for name, call in calls_of(model, ids).items():
        request = GenerationRequest(ids[0].tolist(), max_new_tokens=1, **call)
        expected = forward(model, request)
        counts = expected.num_recurrences.flatten()
        varied[name] = len(set(counts.tolist()))
        for most in (LENGTH, 5):
            logits, count, looped, outer = run_prompt(model, request, most)
            assert_same(logits, expected.logits[0, -1])
            assert (count, len(looped)) == (counts[-1], counts.max()), (name, most)
            # The cache of the model may open more slots than a token has reached, with copies.
            _, same_count, more, same_outer = run_whole(model, request, most)
            assert same_count == count
            assert_same(looped, more[: len(looped)])
            assert_same(outer, same_outer)
    return varied


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=grid_ids(DECODING_GRID))
def test_logits_counts_and_cache_are_those_of_the_model(style, extra):
    torch.manual_seed(0)
    varied = check_prompts(lively_model(style, extra))
    by_criterion = max(varied.get(name, 0) for name in ("state", "acceleration", "kl", "argmax", "gate"))
    assert min(varied["counts"], varied["schedule"], by_criterion) >= 4, varied


@pytest.mark.parametrize(
    ("style", "attention", "extra"),
    [
        ("llama", "sdpa", MODEL),
        ("llama", "eager", MODEL),
        ("gpt2", "eager", {"sliding_window": 3, "position_embedding_type": "learned"}),
        ("family:qwen3", "eager", {}),
        ("family:gemma2", "eager", {}),
    ],
)
def test_kinds_of_attention(style, attention, extra):
    torch.manual_seed(0)
    model = lively_model(style, extra)
    model.set_attn_implementation(attention)
    # The families compute the softmax in float32.
    varied = check_prompts(model, 1e-11 if model.config.block_model_type is None else 1e-4)
    assert varied["state"] >= 4, varied


def test_a_prompt_takes_the_sum_of_its_counts():
    """The work, in recurrences of a token, against that of the model's own forward and of a prompt with one count."""
    model = lively_model("llama", {"input_injection": "add"})
    prompt, counts = random_ids(LENGTH).tolist(), [16 if index == 9 else index % 4 + 1 for index in range(LENGTH)]
    taken = []
    hook = model.model.recurrent_layers[0].register_forward_pre_hook(
        lambda module, args: taken.append(args[0].shape[:-1].numel())
    )

    def work(run):
        taken.clear()
        run()
        return sum(taken)

    def by_depth(**fields):
        request = GenerationRequest(prompt, max_new_tokens=1, **fields)
        return work(lambda: batched(DepthBatcher(model, max_cache_tokens=200, prefill_tokens=7), [request]))

    with torch.no_grad():
        former = work(lambda: model(torch.tensor([prompt]), num_recurrences=torch.tensor([counts])))
    assert by_depth(num_recurrences=counts) == sum(counts) < former / 4
    assert former == 16 * LENGTH
    assert by_depth(num_recurrences=3) == 3 * LENGTH
    hook.remove()


def keep_no_copies(prefill, recurrence, start, end):
    """A token that has halted leaves its deeper slots as they were: zero."""
    prefill.row.deepest = max(prefill.row.deepest, recurrence)


def copy_the_first(prefill, recurrence, start, end):
    """A deeper slot holds the first recurrence of the tokens that have halted."""
    keep_no_copies(prefill, recurrence, start, end)
    slots = prefill.row.region.recurrences(prefill.core.memory.cells)
    slots[recurrence - 1, :, :, :end] = slots[0, :, :, :end]


def forget_earlier_parts(prefill, recurrence, start, end):
    """A slot that a part opens is filled for its own tokens only."""
    keep_no_copies(prefill, recurrence, start, end)
    slots = prefill.row.region.recurrences(prefill.core.memory.cells)
    slots[recurrence - 1, :, :, start:end] = slots[recurrence - 2, :, :, start:end]


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("_open_slot", keep_no_copies),
        ("_open_slot", copy_the_first),
        ("_open_slot", forget_earlier_parts),
        ("_fill_deeper", keep_no_copies),
    ],
)
def test_a_wrong_slot_rule_changes_the_texts(part, wrong, monkeypatch):
    model = lively_model("llama", {"input_injection": "add", "state_norm": "rmsnorm"})
    requests = [
        GenerationRequest(random_ids(24).tolist(), max_new_tokens=8, depth_schedule=token_depths(7)) for _ in range(12)
    ]
    expected = [alone(model, request) for request in requests]

    def texts():
        batcher = DepthBatcher(model, max_rows=4, max_cache_tokens=200, prefill_tokens=2)
        batcher.memory.ready(torch.zeros(1, dtype=torch.float64)).zero_()
        return batched(batcher, requests)

    assert texts() == expected
    monkeypatch.setattr(TokenPrefill, part, wrong)
    assert texts() != expected


def test_the_prompt_keeps_to_the_memory_of_its_row():
    model = tiny_model("llama")
    deep = GenerationRequest(
        [1, 2, 3], max_new_tokens=2, depth_schedule=lambda ids: torch.full_like(ids, 13) - (ids == 1).long()
    )
    good = GenerationRequest([1, 2, 3], max_new_tokens=2, num_recurrences=[1, 12, 2])
    batcher = DepthBatcher(model, max_cache_tokens=100)
    outputs = list(batcher.generate_batch([deep, good], progress_bar=False).values())
    assert "returned 13 recurrences" in outputs[0].error and not outputs[0].generated_tokens
    assert (outputs[1].generated_tokens, outputs[1].num_recurrences) == alone(model, good)
    assert batcher.stats().slots_used == 0


def test_a_prompt_with_one_count_runs_in_the_forward_of_the_model():
    model = lively_model("llama", {})
    calls = depth_calls(model)
    batcher = DepthBatcher(model, max_cache_tokens=100)
    kinds = {
        name: type(open_prefill(batcher._core, batcher._planner.plan(GenerationRequest([1, 2], **calls[name]), name)))
        for name in ("fixed", "sequence-kl", "token-state")
    }
    assert kinds == {"fixed": Prefill, "sequence-kl": Prefill, "token-state": TokenPrefill}
