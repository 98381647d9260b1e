"""The memory of the batcher: regions never overlap, nothing of a former request is read, everything comes back."""

import random

import psutil
import pytest
import torch
from depth_batches import alone, batched, random_requests, token_depths
from recurrent_models import depth_calls, lively_model, tiny_config, tiny_model

from memreason_hf.serving.batching import DepthBatcher, GenerationRequest, memory
from memreason_hf.serving.batching.memory import CacheMemory, default_cache_tokens, free_memory


MODEL = {"input_injection": "add", "state_norm": "rmsnorm", "num_prelude_layers": 1, "num_coda_layers": 1}


def poison(monkeypatch, value=float("nan")):
    """Fills the memory with NaN before its first use, and every region that is freed."""
    ready, free = CacheMemory.ready, CacheMemory.free

    def poisoned_ready(self, like):
        fresh = self.cells is None
        cells = ready(self, like)
        if fresh:
            cells.fill_(value)
        return cells

    def poisoned_free(self, region):
        if self.cells is not None:
            with torch.inference_mode():
                self.cells[region.start : region.start + region.size] = value
        free(self, region)

    monkeypatch.setattr(CacheMemory, "ready", poisoned_ready)
    monkeypatch.setattr(CacheMemory, "free", poisoned_free)


def test_regions_do_not_overlap_and_gaps_are_joined():
    memory = CacheMemory(tiny_config("llama", num_prelude_layers=1), 5000)
    owner, regions = [None] * memory.total, []
    for turn in range(400):
        if regions and random.random() < 0.45:
            region = regions.pop(random.randrange(len(regions)))
            memory.free(region)
            owner[region.start : region.start + region.size] = [None] * region.size
        else:
            region = memory.allocate(random.randint(1, 9), random.randint(1, 9))
            if region is None:
                continue
            cells = owner[region.start : region.start + region.size]
            assert len(cells) == region.size and set(cells) == {None}
            owner[region.start : region.start + region.size] = [turn] * region.size
            regions.append(region)
        assert memory.used == sum(cell is not None for cell in owner)
    for region in regions:
        memory.free(region)
    assert memory.used == 0
    # One gap again: a region of all cells fits.
    tokens = memory.total // memory.shape.cells(1, 1)
    assert memory.allocate(tokens, 1) is not None


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_freed_memory_is_never_read(style, monkeypatch):
    model = lively_model(style, {**MODEL, "sliding_window": 5})
    calls = [depth_calls(model)["token-state"], {"depth_schedule": token_depths(7)}, {"num_recurrences": 2}]
    requests = random_requests(24, calls)
    poison(monkeypatch)
    batcher = DepthBatcher(model, max_rows=5, max_cache_tokens=40, prefill_tokens=3)
    assert batched(batcher, requests) == [alone(model, request) for request in requests]


@pytest.mark.parametrize("part", ["_open_slot", "_fill_deeper"])
def test_poison_shows_in_a_slot_that_was_not_filled(part, monkeypatch):
    model = lively_model("llama", MODEL)
    requests = random_requests(8, [{"depth_schedule": token_depths(7)}], longest_prompt=1, most_tokens=14)
    poison(monkeypatch)
    monkeypatch.setattr(
        DepthBatcher, part, lambda self, row: setattr(row, "deepest", max(row.deepest, row.recurrence))
    )
    outputs = DepthBatcher(model, max_cache_tokens=200).generate_batch(requests, progress_bar=False).values()
    assert any("NaN" in (output.error or "") for output in outputs)


def test_memory_that_is_freed_by_a_cancellation_is_used_at_once():
    model = tiny_model("llama")
    batcher = DepthBatcher(model, max_rows=4, max_cache_tokens=10)
    first = batcher.submit(GenerationRequest([1, 2], max_new_tokens=9, num_recurrences=12))
    second = batcher.submit(GenerationRequest([3, 4], max_new_tokens=40, num_recurrences=1))
    batcher.step()
    assert batcher.stats().running == 1 and batcher.stats().waiting == 1
    assert batcher.cancel(first) and not batcher.cancel(first)
    assert batcher.stats().slots_used == 0
    outputs = batcher.step()
    assert [output.finish_reason for output in outputs if output.request_id == first] == ["cancelled"]
    assert any(output.request_id == second and output.token_id is not None for output in outputs)
    batcher.cancel(second)
    assert batcher.stats().slots_used == 0 and [o.finish_reason for o in batcher.step()] == ["cancelled"]
    assert not batcher.has_work


@pytest.mark.slow
def test_two_hundred_requests_at_random_times(monkeypatch):
    """Requests come, run, are cancelled and go; those that stay have the texts of `generate`."""
    model = lively_model("llama", {"input_injection": "add", "num_prelude_layers": 1, "num_recurrent_layers": 1})
    calls = [call for name, call in depth_calls(model).items() if name not in ("rows", "sequence-kl")]
    calls += [{"depth_schedule": token_depths(7)}, {"num_recurrences": 1}]
    requests = random_requests(200, calls, longest_prompt=7, most_tokens=6)
    random.shuffle(requests)
    for request in random.sample(requests, 40):
        request.do_sample, request.seed, request.temperature = True, random.randrange(2**40), 0.7
    poison(monkeypatch)
    batcher = DepthBatcher(model, max_rows=7, max_cache_tokens=30, prefill_tokens=5)
    todo, names, texts, ends = list(requests), {}, {}, {}
    while todo or batcher.has_work:
        for _ in range(min(len(todo), random.choice((0, 0, 1, 4)))):
            request = todo.pop()
            names[batcher.submit(request)] = request
        if random.random() < 0.05 and names:
            batcher.cancel(random.choice(list(names)))
        for output in batcher.step():
            assert output.request_id not in ends
            if output.token_id is not None:
                texts.setdefault(output.request_id, []).append((output.token_id, output.num_recurrences))
            if output.finish_reason is not None:
                ends[output.request_id] = output.finish_reason
    assert len(ends) == 200 and set(ends.values()) == {"length", "cancelled"}
    stats = batcher.stats()
    assert (stats.slots_used, stats.waiting, stats.running, stats.finished) == (0, 0, 0, 200)
    for name, request in names.items():
        tokens, depths = alone(model, request)
        expected = list(zip(tokens, depths))
        text = texts.get(name, [])
        assert text == expected[: len(text)]
        assert ends[name] == "cancelled" or len(text) == len(expected)
    assert stats.tokens == sum(map(len, texts.values()))
    assert stats.recurrences == sum(depth for text in texts.values() for _, depth in text)


def test_the_first_in_the_queue_is_not_passed():
    """A long request waits for room, and short ones behind it that would fit wait with it."""
    batcher = DepthBatcher(tiny_model("llama"), max_rows=8, max_cache_tokens=12)
    order = []
    sizes = {"short": 4, "long": 11, "small": 2, "tiny": 1}
    for name, tokens in sizes.items():
        batcher.submit(GenerationRequest([1], request_id=name, max_new_tokens=tokens, num_recurrences=12))
    while batcher.has_work:
        for output in batcher.step():
            if output.request_id not in order:
                order.append(output.request_id)
    assert order == list(sizes)


def test_a_long_prompt_does_not_hold_up_the_others():
    batcher = DepthBatcher(tiny_model("gpt2"), max_rows=4, max_cache_tokens=200, prefill_tokens=4)
    batcher.submit(GenerationRequest([1], request_id="short", max_new_tokens=30, num_recurrences=1))
    batcher.step()
    batcher.submit(GenerationRequest([2] * 40, request_id="long", max_new_tokens=2, num_recurrences=1))
    before = []
    while "long" not in before:
        before += [output.request_id for output in batcher.step()]
    # The prompt runs in 10 parts, with one token of the other row after each.
    assert before.index("long") == 9


def test_default_size_is_that_of_the_longest_texts_or_of_the_free_memory(monkeypatch):
    config = tiny_config("llama", max_position_embeddings=64)
    assert default_cache_tokens(config, torch.device("cpu"), 4, 3, 12) == 3 * 64
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000)
    bytes_of_token = 2 * 2 * 12 * config.num_key_value_heads * config.head_dim * 4
    assert default_cache_tokens(config, torch.device("cpu"), 4, 3, 12) == 300_000 // bytes_of_token


def test_free_memory_is_what_the_machine_and_the_container_leave(tmp_path, monkeypatch):
    available = free_memory()
    # With the page cache, which the count of free pages leaves out; other processes may take some meanwhile.
    assert 0 < available < 2 * psutil.virtual_memory().available
    (tmp_path / "limit").write_text("5000000\n")
    (tmp_path / "taken").write_text("2000000\n")
    files = (str(tmp_path / "limit"), str(tmp_path / "taken"))
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", (("/nowhere", "/nowhere"), files))
    assert free_memory() == 3_000_000
    (tmp_path / "taken").write_text("6000000\n")
    assert free_memory() == 0
    (tmp_path / "limit").write_text("max\n")
    assert free_memory() > 3_000_000
