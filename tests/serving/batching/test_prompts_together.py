"""Tokens of several prompts and of rows share the forwards of the core, and none of them knows of the others."""

import random

import pytest
import torch
from depth_batches import alone, batched, random_requests, token_depths
from recurrent_models import depth_calls, lively_model, random_ids
from test_prompts_by_token import MODEL, forward, run_prompts, run_whole, varied_criterion

from memreason_hf.serving.batching import DepthBatcher, GenerationRequest
from memreason_hf.serving.batching.slots import GatheredSlots, RegionSlots


def requests_of(model, count=14):
    """Prompts of 1 to 16 tokens whose depths are given, scheduled, or decided by two criteria."""
    state = {**varied_criterion(model, random_ids(1, 24)), "halting_granularity": "token"}
    other = {"halting_criterion": "acceleration", "acceleration_threshold": 0.5, "halting_granularity": "token"}
    calls = [state, {"depth_schedule": token_depths(7)}, other, {**state, "depth_schedule": token_depths(9)}]
    requests = random_requests(count, calls, longest_prompt=16, most_tokens=4)
    for request in requests[:: len(calls) + 1]:
        counts = {"num_recurrences": [index * 5 % 7 + 1 for index in range(len(request.prompt_ids))]}
        requests.append(GenerationRequest(request.prompt_ids, max_new_tokens=3, **counts))
    random.shuffle(requests)
    return requests


def same_as_alone(model, requests, **batch):
    """Whether logits, counts and memory of all prompts, run together, are those of the model's own forward."""
    batcher = DepthBatcher(model, max_rows=6, max_cache_tokens=200, **batch)
    results = []
    for request, (logits, count, looped, outer) in zip(requests, run_prompts(batcher, requests), strict=True):
        length = len(request.prompt_ids)
        expected = forward(model, request)
        _, _, same_looped, same_outer = run_whole(model, request, length)
        pairs = [(logits, expected.logits[0, -1]), (looped, same_looped[: len(looped)]), (outer, same_outer)]
        same = all(torch.allclose(left, right, rtol=0, atol=1e-11) for left, right in pairs)
        results.append(same and count == expected.num_recurrences.flatten()[-1])
    return results


@pytest.mark.parametrize(
    ("style", "extra", "slots"),
    [
        ("llama", MODEL, RegionSlots),
        ("llama", MODEL, GatheredSlots),
        ("gpt2", {"position_embedding_type": "learned", "input_injection": "concat"}, RegionSlots),
        ("family:smollm3", {"num_prelude_layers": 1, "recurrence_lora_rank": 2}, RegionSlots),
    ],
)
@pytest.mark.parametrize("most", [256, 5])
def test_logits_counts_and_memory_are_those_of_each_prompt_alone(style, extra, slots, most, monkeypatch):
    torch.manual_seed(0)
    model = lively_model(style, extra)
    monkeypatch.setattr("memreason_hf.serving.batching.core.RegionSlots", slots)
    assert all(same_as_alone(model, requests_of(model), prefill_tokens=most))


def see_all(self, part, views):
    """A token reads those that follow it in its part."""
    _prepare_part(self, part, views)
    self._part_masks[-1] = dict.fromkeys(self._part_masks[-1])


def read_the_first(self, part, views):
    """All parts read the tokens of the first part."""
    _prepare_part(self, part, views)
    self._part_views[-1] = self._part_views[0]
    self._part_masks[-1] = dict.fromkeys(self._part_masks[-1])


_prepare_part = RegionSlots._prepare_part


@pytest.mark.parametrize("control", [see_all, read_the_first])
def test_a_part_that_reads_other_tokens_is_found(control, monkeypatch):
    model = lively_model("llama", {"input_injection": "add"})
    requests = requests_of(model)
    assert all(same_as_alone(model, requests))
    monkeypatch.setattr(RegionSlots, "_prepare_part", control)
    assert not all(same_as_alone(model, requests))


def watched(model, batcher):
    """The numbers of tokens in the forwards of the core, one for each."""
    sizes = []
    model.model.recurrent_layers[0].register_forward_pre_hook(
        lambda module, args: sizes.append(args[0].shape[:-1].numel())
    )
    return sizes


def test_prompts_take_as_many_forwards_as_their_deepest_token():
    model = lively_model("llama", {})
    counts = [[random.randint(1, 9) for _ in range(random.randint(1, 12))] for _ in range(10)]
    requests = [
        GenerationRequest(random_ids(len(values)).tolist(), max_new_tokens=1, num_recurrences=values)
        for values in counts
    ]
    batcher = DepthBatcher(model, max_rows=10, max_cache_tokens=200)
    sizes = watched(model, batcher)
    batcher.generate_batch(requests, progress_bar=False)
    depths = [depth for values in counts for depth in values]
    assert sizes == [sum(depth >= recurrence for depth in depths) for recurrence in range(1, max(depths) + 1)]
    assert batcher.stats().prompt_tokens == len(depths)


def test_rows_go_on_while_a_prompt_runs():
    """A row of depth 1 gives a token in every step, and a prompt of 8 recurrences its first in the eighth."""
    model = lively_model("llama", {})
    batcher = DepthBatcher(model, max_rows=4, max_cache_tokens=200)
    row = batcher.submit(GenerationRequest([1, 2], max_new_tokens=30, num_recurrences=1))
    batcher.step()
    sizes = watched(model, batcher)
    prompt = batcher.submit(GenerationRequest([5, 6, 7, 8], max_new_tokens=2, num_recurrences=[1, 8, 8, 2]))
    for step in range(1, 9):
        names = [output.request_id for output in batcher.step()]
        assert names == ([row, prompt] if step == 8 else [row])
    assert sizes == [1 + 4, 1 + 3] + 6 * [1 + 2]


def test_parts_keep_to_the_tokens_that_may_run_and_to_their_order():
    model = lively_model("llama", {})
    most = 6
    batcher = DepthBatcher(model, max_rows=9, max_cache_tokens=300, prefill_tokens=most)
    sizes = watched(model, batcher)
    lengths = [17, 6, 1, 5, 4, 2]
    for length in lengths:
        batcher.submit(GenerationRequest(random_ids(length).tolist(), max_new_tokens=1, num_recurrences=[5] * length))
    firsts = [output.request_id for output in batcher if output.token_id is not None]
    assert len(firsts) == len(lengths) and max(sizes) == most
    # 17 tokens run in parts of 6, 6 and 5 together with no other of more than one token, then 6, 1 + 5, and 4 + 2.
    assert [sizes[index] for index in range(0, len(sizes), 5)] == [6, 6, 5, 6, 6, 6]


def test_a_prompt_that_is_cancelled_leaves_the_others_as_they_are():
    model = lively_model("llama", {"input_injection": "add", "num_prelude_layers": 1, "num_coda_layers": 1})
    prompts = [random_ids(length).tolist() for length in (9, 7, 8, 7)]
    requests = [
        GenerationRequest(prompt, request_id=str(index), max_new_tokens=6, depth_schedule=lambda ids: 9 - ids % 3)
        for index, prompt in enumerate(prompts)
    ]
    # The fourth takes the place of the second.
    batcher = DepthBatcher(model, max_rows=3, max_cache_tokens=60)
    texts = {request.request_id: [] for request in requests}
    for request in requests:
        batcher.submit(request)
    for _ in range(4):
        assert not batcher.step()
    place = batcher._known["1"].region.start
    assert batcher.cancel("1") and batcher.stats().running == 2
    ends = {}
    while batcher.has_work:
        for output in batcher.step():
            texts[output.request_id] += [] if output.token_id is None else [output.token_id]
            ends[output.request_id] = output.finish_reason
        fourth = batcher._known.get("3")
        assert fourth is None or fourth.region.start == place
    assert ends == {"0": "length", "1": "cancelled", "2": "length", "3": "length"}
    assert texts == {request.request_id: alone(model, request)[0] for request in requests} | {"1": []}
    assert batcher.stats().slots_used == 0


def test_prompts_of_both_kinds_take_turns():
    """Prompts with one depth, which go through the model's own forward, between those that run token by token."""
    model = lively_model("llama", {"input_injection": "add"})
    calls = [depth_calls(model)["sequence-kl"], {"num_recurrences": 4}, {"depth_schedule": token_depths(6)}]
    requests = random_requests(18, calls, longest_prompt=12)
    random.shuffle(requests)
    batcher = DepthBatcher(model, max_rows=5, max_cache_tokens=150, prefill_tokens=7)
    assert batched(batcher, requests) == [alone(model, request) for request in requests]
