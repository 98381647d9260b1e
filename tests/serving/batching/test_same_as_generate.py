"""Batching by depth gives the texts and depths of `generate`, row by row."""

import itertools
import random
from collections import Counter

import pytest
import torch
from depth_batches import alone, batched, random_requests, token_depths
from recurrent_models import DECODING_GRID, depth_calls, grid_ids, lively_model, random_ids, tiny_model

from memreason_hf.serving.batching import DepthBatcher, GenerationRequest
from memreason_hf.serving.batching.slots import GatheredSlots, Place


def calls_of(model):
    """Depth arguments for requests: those of the grid, counts of prompt tokens, and a schedule."""
    calls = {name: call for name, call in depth_calls(model).items() if name != "rows"}
    return {**calls, "schedule": {"depth_schedule": token_depths(7)}}


@pytest.mark.parametrize(("style", "extra"), DECODING_GRID, ids=grid_ids(DECODING_GRID))
def test_texts_and_depths_are_those_of_generate(style, extra):
    model = lively_model(style, extra)
    calls = list(calls_of(model).values())
    requests = random_requests(3 * len(calls), calls)
    random.shuffle(requests)
    batcher = DepthBatcher(model, max_rows=5, max_cache_tokens=90, prefill_tokens=4)
    outputs = batched(batcher, requests)
    expected = [alone(model, request) for request in requests]
    assert outputs == expected
    assert batcher.stats().slots_used == 0 and not batcher.has_work
    depths = Counter(count for _, counts in outputs for count in counts)
    assert len(depths) >= 4, depths


@pytest.mark.parametrize(
    ("style", "extra"),
    [
        ("llama", {"num_key_value_heads": 2, "sliding_window": 4, "num_prelude_layers": 1, "num_coda_layers": 1}),
        ("gpt2", {"input_injection": "add"}),
        ("family:gemma3_text", {}),
        ("llama", {"num_key_value_heads": 2, "attn_implementation": "eager"}),
    ],
)
def test_gathered_keys_give_the_same(style, extra, monkeypatch):
    """What a GPU does. Memory that nobody has written holds NaN."""
    extra = dict(extra)
    attention = extra.pop("attn_implementation", "sdpa")
    model = lively_model(style, extra)
    model.set_attn_implementation(attention)
    requests = random_requests(10, [{"depth_schedule": token_depths(7)}], most_tokens=12)
    batcher = DepthBatcher(model, max_rows=5, max_cache_tokens=100)
    batcher.memory.ready(torch.zeros(1, dtype=torch.float64)).fill_(float("nan"))
    batcher._core.slots = GatheredSlots
    calls = []
    attend = GatheredSlots.attend
    monkeypatch.setattr(
        GatheredSlots, "attend", lambda self, *args: calls.append(len(self.places)) or attend(self, *args)
    )
    assert batched(batcher, requests) == [alone(model, request) for request in requests]
    assert max(calls) == 5


@pytest.mark.parametrize(
    ("rope", "most"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, None),
        ({"rope_type": "dynamic", "factor": 4.0}, 64),
        (
            {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 24}
            | {"short_factor": [1.0, 1.5], "long_factor": [3.0, 9.0]},
            24,
        ),
    ],
    ids=["yarn", "dynamic", "longrope"],
)
def test_rotations_that_depend_on_the_length(rope, most):
    model = lively_model("llama", {"rope_parameters": {"rope_theta": 10000.0, **rope}, "head_dim": 4})
    requests = random_requests(8, [{"depth_schedule": token_depths(5)}], most_tokens=10)
    assert all(len(request.prompt_ids) + request.max_new_tokens <= 24 for request in requests)
    batcher = DepthBatcher(model, max_cache_tokens=400)
    assert batched(batcher, requests) == [alone(model, request) for request in requests]
    if most is not None:
        with pytest.raises(ValueError, match=f"beyond {most} positions"):
            batcher.submit(GenerationRequest([1] * 5, max_new_tokens=most))
        batcher.submit(GenerationRequest([1] * 5, max_new_tokens=most - 4))


def share_one_slot(monkeypatch):
    """All recurrences of a token write and read one slot, as in an engine that does not know of loops."""
    first = "memreason_hf.serving.batching.core.Place"
    monkeypatch.setattr(first, lambda region, position, recurrence: Place(region, position, 1))


def keep_no_copies(monkeypatch):
    """A halted token leaves its deeper slots as they were: zero."""
    monkeypatch.setattr(DepthBatcher, "_fill_deeper", lambda self, row: None)


def copy_the_first(monkeypatch):
    """The deeper slots of a halted token hold its first recurrence, not its last."""

    def fill(self, row):
        slots = row.region.recurrences(self.memory.cells)
        slots[row.recurrence : row.deepest, :, :, row.position] = slots[0, :, :, row.position]

    monkeypatch.setattr(DepthBatcher, "_fill_deeper", fill)


@pytest.mark.parametrize("control", [share_one_slot, keep_no_copies, copy_the_first])
def test_a_wrong_slot_rule_changes_the_texts(control, monkeypatch):
    model = lively_model("llama", {"input_injection": "add", "state_norm": "rmsnorm"})
    requests = random_requests(8, [{"depth_schedule": token_depths(7)}], most_tokens=16)
    expected = [alone(model, request) for request in requests]
    assert batched(DepthBatcher(model, max_rows=4, max_cache_tokens=100), requests) == expected
    control(monkeypatch)
    batcher = DepthBatcher(model, max_rows=4, max_cache_tokens=100)
    batcher.memory.ready(torch.zeros(1, dtype=torch.float64)).zero_()
    assert batched(batcher, requests) != expected


@pytest.mark.parametrize(
    ("style", "attention"),
    [*itertools.product(("gpt2", "llama", "family:llama"), ("sdpa", "eager")), ("family:gemma2", "eager")],
)
def test_float32_and_both_kinds_of_attention(style, attention):
    model = tiny_model(style, num_key_value_heads=2) if style == "llama" else tiny_model(style)
    model.set_attn_implementation(attention)
    requests = random_requests(8, [{"depth_schedule": token_depths(7)}, {"num_recurrences": 3}])
    batcher = DepthBatcher(model, max_rows=4, max_cache_tokens=100)
    assert batched(batcher, requests) == [alone(model, request) for request in requests]


@pytest.mark.parametrize("style", ["gpt2", "llama", "family:qwen3"])
def test_bfloat16_chooses_the_most_probable_tokens(style, monkeypatch):
    model = tiny_model(style, initializer_range=0.2, max_recurrences=9).to(torch.bfloat16)
    exact = tiny_model(style, initializer_range=0.2, max_recurrences=9)
    exact.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    requests = random_requests(24, [{"depth_schedule": token_depths(7)}], most_tokens=12)

    def regret():
        """How far the chosen tokens are from the most probable ones of the float32 model, given text and depths."""
        batcher = DepthBatcher(model, max_rows=4, max_cache_tokens=100)
        batcher.memory.ready(torch.zeros(1, dtype=torch.bfloat16)).zero_()
        losses = []
        for request, (tokens, _) in zip(requests, batched(batcher, requests)):
            ids = torch.tensor([[*request.prompt_ids, *tokens]])
            with torch.no_grad():
                logits = exact(ids, num_recurrences=token_depths(7)(ids)).logits[0]
            log_probs = logits.log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
            losses.append(log_probs.amax(-1) - log_probs.gather(1, torch.tensor(tokens)[:, None])[:, 0])
        return torch.cat(losses).mean()

    right = regret()
    share_one_slot(monkeypatch)
    # Of 36 random models, rounding cost at most 0.0012, and a shared slot at least 0.13.
    assert right < 0.02 and regret() > 4 * right + 0.02


def test_counts_of_the_prompt_and_a_criterion_of_the_config():
    model = lively_model("llama", {"input_injection": "add"})
    call = depth_calls(model)["token-state"]
    for name, value in call.items():
        setattr(model.config, name, value)
    prompts = [random_ids(length).tolist() for length in (1, 5, 8)]
    requests = [
        GenerationRequest(prompt, max_new_tokens=6, num_recurrences=[index % 4 + 1 for index in range(len(prompt))])
        for prompt in prompts
    ]
    requests += [GenerationRequest(prompt, max_new_tokens=6) for prompt in prompts]
    batcher = DepthBatcher(model, max_rows=6, max_cache_tokens=100)
    assert batched(batcher, requests) == [alone(model, request) for request in requests]


def test_noise_of_the_initial_state_follows_its_seed():
    model = lively_model("llama", {"state_init": "normal", "input_injection": "add"})
    requests = random_requests(6, [{"state_seed": 3}, {"state_seed": 4}, {}], longest_prompt=5)
    outputs = batched(DepthBatcher(model, max_rows=6, max_cache_tokens=100), requests)
    assert outputs == [alone(model, request) for request in requests]


def test_rows_share_a_forward_whatever_their_depths():
    """The number of forwards of the core is that of the longest row, not a sum, and no row waits for another."""
    model = tiny_model("llama")
    batcher = DepthBatcher(model, max_rows=3, max_cache_tokens=100)
    depths = (1, 3, 6)
    names = [batcher.submit(GenerationRequest([5, 6], max_new_tokens=7, num_recurrences=depth)) for depth in depths]
    ends = {}
    for step in range(1, 60):
        for output in batcher.step():
            if output.finish_reason:
                ends[output.request_id] = step
        if not batcher.has_work:
            break
    # The prompt gives the first token, so that 6 tokens are left; they start in the same step.
    assert [ends[name] for name in names] == [6 * depth for depth in depths]
