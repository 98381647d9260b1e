"""
Continuous batching at fixed depth: the texts of `generate` and of recomputation without a cache.

The library keeps keys and values by the `layer_idx` of the module that attends. Every test has a control in which all
recurrences of a layer share one slot: its texts must differ, or the test would prove nothing.
"""

import pytest
import torch
from engines import (
    NEW_TOKENS,
    batched_texts,
    batching_config,
    frozen_heap,
    greedy_config,
    greedy_texts,
    shared_slots,
    varied_model,
)
from family_models import FAMILY_NAMES, OTHER_NAMES
from recurrent_models import DECODING_GRID, grid_ids, lively_model, random_ids, tiny_config
from transformers.generation.continuous_batching import PagedAttentionCache

from modeling_recurrent.attention_recurrent import batches_bounded_scores
from modeling_recurrent.batching_recurrent import check_continuous_batching


LENGTHS = (29, 7, 18, 3, 33)
NOISE = ("llama", {"state_init": "normal", "input_injection": "concat", "state_seed": 5})
GRID = [*DECODING_GRID, NOISE]
# By default each type of positions and injection, windows, each start of the state, and two families.
FAST = [GRID[index] for index in (0, 1, 2, 5, 6, 8, 9)] + [NOISE]
OTHERS = [
    (f"family:{name}", {"num_prelude_layers": 1, "input_injection": "add"}) for name in (*FAMILY_NAMES, *OTHER_NAMES)
]


def random_rows(count=None):
    return [random_ids(length) for length in LENGTHS[:count]]


def check(model, rows, **settings):
    expected = greedy_texts(model, rows)
    assert batched_texts(model, rows, **settings) == expected
    with shared_slots(model):
        assert batched_texts(model, rows, **settings) != expected
    return expected


@pytest.mark.parametrize(
    ("style", "extra"),
    [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in GRID],
    ids=grid_ids(GRID),
)
def test_the_texts_are_those_of_generate(style, extra):
    rows = random_rows()
    model = varied_model(style, extra, rows)
    expected = check(model, rows)
    assert greedy_texts(model, rows, use_cache=False) == expected


@pytest.mark.parametrize("style", ["llama", "family:gemma3_text"])
def test_eager_attention(style):
    rows = random_rows(4)
    extra = {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add"}
    model = varied_model(style, {**extra, **({"sliding_window": 4} if style == "llama" else {})}, rows)
    model.set_attn_implementation("eager")
    check(model, rows)
    assert model.config._attn_implementation == "eager"


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("style", "extra"), OTHERS, ids=[style for style, _ in OTHERS])
def test_every_family(style, extra, attention):
    rows = random_rows()
    model = varied_model(style, extra, rows)
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip(f"{style} bounds the scores of attention")
    model.set_attn_implementation(attention)
    check(model, rows)


def test_shared_prefixes(monkeypatch):
    matched = []
    search = PagedAttentionCache.search_prefix_match

    def watch(self, *args):
        matched.append(search(self, *args))
        return matched[-1]

    monkeypatch.setattr(PagedAttentionCache, "search_prefix_match", watch)
    prefix = random_ids(26)
    rows = [torch.cat((prefix, row)) for row in random_rows()]
    model = varied_model("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add"}, rows)
    check(model, rows, num_blocks=12)
    assert any(matched)
    matched.clear()
    check(model, rows, num_blocks=12, allow_block_sharing=False)
    assert not any(matched)


def test_all_at_once():
    """The control of the sizes: without chunks and waiting requests, the texts are the same."""
    rows = random_rows()
    model = varied_model("gpt2", {"input_injection": "add", "num_prelude_layers": 1}, rows)
    check(model, rows, num_blocks=64, max_batch_tokens=256)


def test_the_depth_of_the_config():
    """Also of a config that was changed after the model was made."""
    rows = random_rows()
    model = varied_model("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "add"}, rows)
    texts = {}
    for depth in (6, 2):
        model.config.num_recurrences = depth
        texts[depth] = check(model, rows)
        assert len(model.model.key_value_slots) == 2 + 2 * depth
    assert texts[6] != texts[2]


def test_a_manager_that_was_kept_has_the_depth_of_the_config():
    """Blocks of a common prefix that were computed at another depth would change the texts."""
    rows = [torch.cat((random_ids(17), row)) for row in random_rows(3)]
    model = varied_model("llama", {"num_coda_layers": 1, "input_injection": "add"}, rows)
    for depth in (4, 4, 2, 5):
        model.config.num_recurrences = depth
        with frozen_heap():
            outputs = model.generate_batch(
                [row.tolist() for row in rows],
                generation_config=greedy_config(),
                continuous_batching_config=batching_config(),
                persistent_manager=True,
            )
        assert [output.generated_tokens for output in outputs.values()] == greedy_texts(model, rows)
    model.destroy_cached_continuous_batching_manager()


def test_training_mode_does_not_matter():
    extra = {"recurrence_sampling": "uniform", "recurrence_min": 5, "recurrence_max": 6}
    rows = random_rows(3)
    model = varied_model("llama", {"input_injection": "add", **extra}, rows)
    expected = greedy_texts(model, rows)
    assert batched_texts(model.train(), rows) == expected


@pytest.mark.parametrize(
    ("fields", "generation", "message"),
    [
        ({"halting_criterion": "kl"}, {}, "the model's config has halting_criterion='kl'. Set it to None"),
        ({"cache_recurrences": "last"}, {}, "the model's config has cache_recurrences='last'. Set it to 'all'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            {},
            "with rope_type='dynamic' positions depend on the longest text",
        ),
        ({}, {"num_recurrences": 7}, "it ignores num_recurrences=7 of the call or its generation_config"),
        ({}, {"halting_criterion": "kl"}, "it ignores halting_criterion='kl' of the call or its generation_config"),
        (
            {},
            {"cache_recurrences": "last"},
            "it ignores cache_recurrences='last' of the call",
        ),
        ({"state_init": "normal", "input_injection": "add"}, {"state_seed": 3}, "it ignores state_seed=3"),
    ],
    ids=str,
)
@pytest.mark.parametrize("of_the_model", [False, True])
def test_what_would_change_the_texts_is_refused(fields, generation, message, of_the_model):
    model = lively_model("llama", fields)
    given = greedy_config(**generation)
    if of_the_model:
        # `generate` merges it into the generation config of a call.
        model.generation_config, given = given, greedy_config()
    with pytest.raises(ValueError, match=f"Continuous batching would change the texts.*{message}"):
        batched_texts(model, [random_ids(5)], given)


def test_rotations_of_a_family_that_depend_on_the_length_are_refused():
    config = tiny_config("family:gemma3_text", num_prelude_layers=1)
    check_continuous_batching(config)
    config.block_config["rope_parameters"]["full_attention"] = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
    }
    with pytest.raises(ValueError, match="with rope_type='longrope' positions depend on the longest text"):
        check_continuous_batching(config)


def test_arguments_that_the_library_would_drop_are_refused():
    model = lively_model("llama", {})
    ids = random_ids(2, 9)
    rows = ids.tolist()
    with pytest.raises(ValueError, match="it ignores num_recurrences=7 of the call"):
        model.generate_batch(rows, generation_config=greedy_config(), num_recurrences=7)
    with pytest.raises(ValueError, match="it ignores halting_criterion='kl' of the call"):
        model.generate_batch(rows, generation_config=greedy_config(), halting_criterion="kl")
    paged = {"cache_implementation": "paged", "generation_config": greedy_config()}
    with pytest.raises(ValueError, match="it ignores num_recurrences=7 of the call"):
        model.generate(ids, num_recurrences=7, **paged)
    with pytest.raises(ValueError, match="depth_schedule cannot be combined with cache_implementation='paged'"):
        model.generate(ids, depth_schedule=torch.ones_like, **paged)
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="attention_mask has padding"):
        model.generate(ids, attention_mask=mask, **paged)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"num_recurrences": torch.tensor([3, 2])}, ValueError, r"it ignores num_recurrences=tensor\(\[3, 2\]\)"),
        ({"max_recurrences": 2}, ValueError, "it ignores max_recurrences=2 .* Leave it out"),
        ({"kl_threshold": 0.1}, ValueError, "it ignores kl_threshold=0.1 .* Leave it out"),
        ({"depth_schedule": torch.ones_like}, ValueError, "it ignores depth_schedule=.* Leave it out"),
        ({"on_recurrence": print}, ValueError, "it ignores on_recurrence=.* Leave it out"),
        ({"num_recurences": 7}, TypeError, "num_recurences=7: .* Did you mean 'num_recurrences'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_generate_follows_or_refuses_is_refused(given, error, message):
    model = lively_model("llama", {})
    rows = random_ids(2, 9).tolist()
    with pytest.raises(error, match=message):
        model.generate_batch(rows, generation_config=greedy_config(), **given)
    with pytest.raises(error, match=message):
        model.generate_batch(rows, generation_config=greedy_config(**given))
    with pytest.raises(error, match=message):
        model.init_continuous_batching(greedy_config(**given))
    model.generation_config = greedy_config(**given)
    with pytest.raises(error, match=message):
        model.generate_batch(rows, generation_config=greedy_config())


def test_the_depth_of_a_generation_config_is_refused_by_generate():
    """The library passes a generation config on from which the model has taken the depth."""
    model = lively_model("llama", {})
    with pytest.raises(ValueError, match="it ignores num_recurrences=7 of the call or its generation_config"):
        model.generate(
            random_ids(2, 9), generation_config=greedy_config(num_recurrences=7), cache_implementation="paged"
        )


def test_texts_with_too_many_learned_positions_are_refused():
    """One of them would fail all others."""
    room = 16
    model = lively_model("gpt2", {"max_position_embeddings": room})
    longest = room - NEW_TOKENS + 1
    rows = [random_ids(length) for length in (4, longest, 5)]
    assert batched_texts(model, rows) == greedy_texts(model, rows)
    rows[1] = random_ids(longest + 1)
    with pytest.raises(ValueError, match=r"inputs\[1\] has 12 tokens, and with max_new_tokens=6 the text needs 17"):
        batched_texts(model, rows)
    prompts = [row.tolist() for row in rows]
    with pytest.raises(ValueError, match=r"inputs\[0\] has 4 tokens, and with max_new_tokens=14"):
        model.generate_batch(prompts, generation_config=greedy_config(), max_new_tokens=14)


def test_a_manager_refuses_texts_with_too_many_learned_positions():
    """As in `transformers serve`, where requests of others run in the same batch."""
    model = lively_model("gpt2", {"max_position_embeddings": 16})
    row = random_ids(5)
    with frozen_heap():
        manager = model.init_continuous_batching(greedy_config(), batching_config())
        manager.start()
        try:
            with pytest.raises(ValueError, match="The request 'long' has 12 tokens"):
                manager.add_request(random_ids(12).tolist(), "long")
            with pytest.raises(ValueError, match="with max_new_tokens=13 the text needs 17 positions"):
                manager.add_request(row.tolist(), max_new_tokens=13)
            request = manager.add_request(row.tolist())
            output = manager.get_result(request, timeout=60)
        finally:
            manager.stop(block=True)
    assert [output.generated_tokens] == greedy_texts(model, [row])


def test_what_changes_no_text_is_accepted():
    model = lively_model("llama", {"halting_criterion": None})
    rows = [random_ids(9)]
    given = greedy_config(num_recurrences=3, halting_criterion="none", kl_threshold=0.1, draft_recurrences=1)
    assert batched_texts(model, rows, given) == greedy_texts(model, rows)


def test_bounded_scores():
    """The library's paged attention in plain operations does not bound them. With the control: the bound matters."""
    rows = random_rows(4)
    model = varied_model("family:gemma2", {"num_prelude_layers": 1, "input_injection": "add"}, rows)
    assert model.config.attn_logit_softcapping == 5.0
    model.set_attn_implementation("eager")
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.2
    if not batches_bounded_scores("eager"):
        with pytest.raises(ValueError, match=r"does not bound the scores of attention.*attn_logit_softcapping=5.0"):
            batched_texts(model, rows)
        return
    bounded = check(model, rows)
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert greedy_texts(model, rows) != bounded
