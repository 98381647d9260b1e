"""A prompt in every form that `generate` accepts gives the same tokens and the same depths, or a clear error."""

import copy

import pytest
import torch
import transformers
from packaging import version
from recurrent_models import VOCAB, depth_calls, grid_ids, pad, random_ids, relative_error, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_recurrent import RecurrentDepthCache


LENGTHS = (5, 2, 7, 4)
NEW = 5
GRID = [
    ("gpt2", {"position_embedding_type": "learned", "input_injection": "add", "state_norm": "layernorm"}),
    ("gpt2", {"position_embedding_type": "none", "sliding_window": 3, "input_injection": "concat"}),
    ("llama", {"num_key_value_heads": 2, "input_injection": "add", "state_norm": "rmsnorm"}),
    ("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "sliding_window": 3, "input_injection": "add"}),
    ("family:gemma3_text", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "gate"}),
]
IDS = grid_ids(GRID)


def lively_model(style="llama", extra=None, seed=None):
    """Double precision and large weights: counts differ from token to token, rounding decides nothing."""
    extra = GRID[2][1] if extra is None else extra
    return tiny_model(style, seed=seed, initializer_range=0.25, max_recurrences=9, **extra).double()


def generate(model, ids=None, mask=None, **kwargs):
    values = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, **kwargs}
    return model.generate(ids, attention_mask=mask, **values)


def assert_same(expected, actual, message=None):
    """The same new tokens and depths, whatever of the prompt is in the text that is returned."""
    assert torch.equal(expected.sequences[:, -NEW:], actual.sequences[:, -NEW:]), message
    for name in ("num_recurrences", "prompt_recurrences"):
        assert torch.equal(expected[name], actual[name]), (message, name)


def by_token(**kwargs):
    return {"halting_criterion": "state_difference", "state_difference_threshold": 0.5, **kwargs}


def ways_of_decoding(model):
    """Calls of every kind that all prompts can be combined with."""
    calls = depth_calls(model)
    calls["tokens"] = {"num_recurrences": torch.randint(1, 7, (4, max(LENGTHS)))}
    calls["beams"] = {"num_beams": 2, **calls["token-state"]}
    calls["drafts"] = {"num_recurrences": 6, "draft_recurrences": 3, "draft_tokens": 2}
    calls["static"] = {"num_recurrences": 4, "cache_implementation": "static"}
    calls["last"] = {"cache_recurrences": "last", **calls["token-state"]}
    return calls


@pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)
def test_embeddings_are_as_good_as_ids(style, extra):
    model = lively_model(style, extra)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    embeds = model.model.embed_tokens(ids)
    for name, call in ways_of_decoding(model).items():
        expected = generate(model, ids, mask, **call)
        alone = generate(model, None, mask, inputs_embeds=embeds, **call)
        assert alone.sequences.shape[1] == NEW and alone.prompt_recurrences.shape == ids.shape
        assert_same(expected, alone, name)
        both = generate(model, ids, mask, inputs_embeds=embeds, **call)
        assert torch.equal(both.sequences, expected.sequences)
        assert_same(expected, both, name)


def test_embeddings_behind_a_live_cache():
    model = lively_model()
    ids, call = random_ids(2, 6), by_token()
    cache = RecurrentDepthCache(model.config)
    with torch.no_grad():
        model(ids[:, :4], past_key_values=cache, **call)
    embeds = model.model.embed_tokens(ids)
    assert_same(generate(model, ids, **call), generate(model, inputs_embeds=embeds, past_key_values=cache, **call))


@pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)
def test_padding_on_either_side(style, extra):
    model = lively_model(style, extra)
    rows = [random_ids(n) for n in LENGTHS]
    left, left_mask = pad(rows, "left")
    right, right_mask = pad(rows, "right")
    calls = ways_of_decoding(model)
    counts = calls.pop("tokens")["num_recurrences"]
    calls["uncached"] = {**calls["token-state"], "use_cache": False}
    different = set()
    for name, call in calls.items():
        expected, actual = generate(model, left, left_mask, **call), generate(model, right, right_mask, **call)
        assert torch.equal(expected.sequences[:, -NEW:], actual.sequences[:, -NEW:]), name
        assert torch.equal(expected.num_recurrences, actual.num_recurrences), name
        assert torch.equal(
            expected.prompt_recurrences[left_mask.bool()], actual.prompt_recurrences[right_mask.bool()]
        ), name
        assert (actual.prompt_recurrences[~right_mask.bool()] == 0).all()
        different |= set(actual.num_recurrences.flatten().tolist())
    assert len(different) >= 4
    given = torch.zeros_like(right_mask)
    given[right_mask.bool()] = counts[left_mask.bool()]
    expected = generate(model, left, left_mask, num_recurrences=counts)
    actual = generate(model, right, right_mask, num_recurrences=given)
    assert torch.equal(expected.sequences[:, -NEW:], actual.sequences[:, -NEW:])
    assert torch.equal(expected.num_recurrences, actual.num_recurrences)


def test_a_conversation_of_right_padded_turns():
    model = lively_model(extra=GRID[3][1])
    rows, turn = [random_ids(n) for n in LENGTHS], random_ids(4, 2)
    ids, mask = pad(rows, "right")
    cache = RecurrentDepthCache(model.config)
    first = generate(model, ids, mask, past_key_values=cache, **by_token())
    text = torch.cat((first.sequences, turn), dim=1)
    mask = torch.cat((mask, mask.new_ones(4, NEW + 2)), dim=1)
    mask[2, -1] = 0  # row 2 says less
    second = generate(model, text, mask, past_key_values=cache, **by_token())
    for i, row in enumerate(rows):
        said = turn[i, :1] if i == 2 else turn[i]
        whole = torch.cat((row, first.sequences[i, -NEW:], said))[None]
        # With a mask: without one, a generated token that happens to be the one for padding would be taken for it.
        alone = generate(model, whole, torch.ones_like(whole), **by_token())
        assert torch.equal(alone.sequences[0, -NEW:], second.sequences[i, -NEW:])
        assert torch.equal(alone.num_recurrences[0], second.num_recurrences[i])
    mask = torch.cat((mask, mask.new_ones(4, NEW), mask.new_tensor([[1], [0], [1], [1]])), dim=1)
    mask[1, cache.get_seq_length() :] = 0
    with pytest.raises(ValueError, match="no real token for row 1"):
        generate(model, torch.cat((second.sequences, random_ids(4, 1)), dim=1), mask, past_key_values=cache)


@pytest.mark.parametrize("call", [{"num_recurrences": 4}, by_token()], ids=["fixed", "token"])
def test_what_padded_the_end_of_a_turn_is_hidden_in_the_next(call):
    model = lively_model(seed=0)
    rows, turn = [random_ids(n) for n in LENGTHS], random_ids(4, 2)
    ids, mask = pad(rows, "left")
    free = generate(model, ids, mask, **call).sequences
    cache = RecurrentDepthCache(model.config)
    first = generate(model, ids, mask, past_key_values=cache, eos_token_id=int(free[0, -4]), **call)
    real = first.num_recurrences > 0
    assert not real.all()
    text, seen = torch.cat((first.sequences, turn), dim=1), torch.cat((mask, real, torch.ones_like(turn)), dim=1)
    second = generate(model, text, seen, past_key_values=cache, **call)
    assert (second.prompt_recurrences[seen == 0] == 0).all()
    for i in range(4):
        whole = text[i][seen[i].bool()][None]
        alone = generate(model, whole, torch.ones_like(whole), **call)
        assert torch.equal(alone.sequences[0, -NEW:], second.sequences[i, -NEW:])
        assert torch.equal(alone.num_recurrences[0], second.num_recurrences[i])
        assert torch.equal(alone.prompt_recurrences[0], second.prompt_recurrences[i][seen[i].bool()])


@pytest.mark.parametrize("whole", [True, False], ids=["the whole text", "new ids alone"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_counts_of_tokens_behind_a_live_cache(whole, chunk):
    if chunk is not None and version.parse(transformers.__version__) < version.parse("5.23"):
        pytest.skip("this transformers reads chunks from the start of a text, whatever a cache holds")
    model = lively_model()
    text = random_ids(2, 9)
    counts = torch.randint(1, 7, (2, 9))
    expected = generate(model, text, num_recurrences=counts)
    for given in (counts, counts[:, 4:]):
        cache = RecurrentDepthCache(model.config)
        with torch.no_grad():
            model(text[:, :4], past_key_values=cache, num_recurrences=counts[:, :4])
        output = generate(
            model,
            text if whole else text[:, 4:],
            torch.ones_like(text),
            past_key_values=cache,
            num_recurrences=given,
            prefill_chunk_size=chunk,
        )
        assert_same(expected, output)
    for width in (3, 11):
        with pytest.raises(ValueError, match=rf"shape \(2, {width}\), but the prompt has 9 tokens"):
            generate(model, text, num_recurrences=torch.ones(2, width, dtype=torch.long), prefill_chunk_size=chunk)


@pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)
def test_counts_of_tokens_in_every_way_of_decoding(style, extra):
    model = lively_model(style, extra)
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    counts = torch.randint(0, 6, ids.shape).masked_fill(mask == 0, 0)
    counts[::2, -1] = 0
    for call in (by_token(), {}):
        call = {"num_recurrences": counts if call else counts.clamp_min(1), **call}
        expected = generate(model, ids, mask, **call)
        assert_same(expected, generate(model, ids, mask, use_cache=False, **call))
        assert_same(expected, generate(model, ids, mask, prefill_chunk_size=3, **call))
        beams = generate(model, ids, mask, num_beams=3, **call)
        assert_same(beams, generate(model, ids, mask, num_beams=3, use_cache=False, **call))
        own = {**call, "num_recurrences": call["num_recurrences"][2:3]}
        repeated = torch.cat((ids[2:3, :4], ids[2:3, :3]), dim=1)  # so that a look-up finds candidates at once
        alone = generate(model, repeated, **own)
        assert_same(alone, generate(model, repeated, prompt_lookup_num_tokens=3, **own))


def test_counts_of_rows_are_the_same_with_and_without_a_cache():
    """Whatever the config says of a criterion; a row with a 0 is decided at once for a call."""
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    for granularity in ("sequence", "token"):
        model = lively_model(extra={**GRID[2][1], "halting_granularity": granularity, **by_token()})
        for counts in ([3, 5, 2, 7], [0, 5, 0, 3]):
            call = {"num_recurrences": torch.tensor(counts)}
            expected = generate(model, ids, mask, **call)
            assert_same(expected, generate(model, ids, mask, use_cache=False, **call))
            assert (expected.num_recurrences[1] == 5).all()
            if 0 not in counts:
                assert_same(expected, generate(model, ids, mask, prefill_chunk_size=3, **call))
                continue
            with pytest.raises(ValueError, match=r"a row with 0 in num_recurrences.*prefill_chunk_size=3"):
                generate(model, ids, mask, prefill_chunk_size=3, **call)


def test_only_new_ids_behind_a_live_cache():
    model = lively_model()
    ids, turn = random_ids(2, 6), random_ids(2, 3)
    cache = RecurrentDepthCache(model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache, **by_token())
    expected = generate(model, torch.cat((ids, turn), dim=1), **by_token())
    output = generate(model, turn, torch.ones(2, 9), past_key_values=cache, **by_token())
    assert torch.equal(output.sequences[:, :3], turn)
    assert_same(expected, output)
    with pytest.raises(ValueError, match="input has 3 tokens and past_key_values holds 13"):
        generate(model, turn, past_key_values=cache)
    # The text has 14 tokens, the cache 13 of them: the turn alone leaves one out.
    with pytest.raises(
        ValueError, match="attention_mask has 17 columns, but past_key_values holds 13 tokens and the input 3"
    ):
        generate(model, turn, torch.ones(2, 17), past_key_values=cache)


def test_a_prefix_serves_many_texts():
    model = lively_model()
    prefix, call = random_ids(1, 5), by_token()
    cache = RecurrentDepthCache(model.config)
    with torch.no_grad():
        model(prefix, past_key_values=cache, **call)
    for _ in range(2):
        text = torch.cat((prefix, random_ids(1, 3)), dim=1)
        assert_same(generate(model, text, **call), generate(model, text, past_key_values=copy.deepcopy(cache), **call))
    cache.batch_repeat_interleave(3)
    texts = torch.cat((prefix.expand(3, -1), random_ids(3, 2)), dim=1)
    assert_same(generate(model, texts, **call), generate(model, texts, past_key_values=cache, **call))


class TestAssistants:
    def assistants(self):
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
        )
        return {
            "another architecture": {"assistant_model": LlamaForCausalLM(config).eval().double()},
            "shallower": {"assistant_model": lively_model(seed=5)},
            "prompt look-up": {"prompt_lookup_num_tokens": 3},
        }

    def test_the_same_tokens_and_depths(self):
        model = lively_model()
        row = random_ids(1, 4).repeat(1, 2)
        for call in (by_token(), {"num_recurrences": torch.tensor([5])}):
            expected = generate(model, row, **call)
            for name, help_ in self.assistants().items():
                assert_same(expected, generate(model, row, **help_, **call), name)

    def test_a_conversation_goes_on(self):
        model = lively_model()
        for name, help_ in self.assistants().items():
            text, cache = random_ids(1, 6), RecurrentDepthCache(model.config)
            for _ in range(2):
                # With a mask: a generated token may be the one for padding.
                mask = torch.ones_like(text)
                output = generate(model, text, mask, past_key_values=cache, **help_, **by_token())
                assert_same(generate(model, text, mask, **by_token()), output, name)
                text = torch.cat((output.sequences, random_ids(1, 2)), dim=1)

    def test_what_is_written_is_no_padding(self):
        model, row = lively_model(seed=2), torch.arange(1, 7)[None]
        mask, call = torch.ones_like(row), {"max_new_tokens": 12, **by_token()}
        # The library drops a mask of ones, and reads one from the ids where there is none.
        for token in generate(model, row, mask, **call).sequences[0, 6:].unique().tolist():
            model.generation_config.pad_token_id = token
            expected = generate(model, row, mask, **call)
            assert token in expected.sequences[0, 6:]
            for name, help_ in self.assistants().items():
                assert_same(expected, generate(model, row, mask, **help_, **call), name)

    def test_an_assistant_has_its_own_depth(self):
        model, assistant, seen = lively_model(), lively_model(extra={**GRID[2][1], "num_recurrences": 2}), []
        assistant.model.recurrent_layers[0].register_forward_pre_hook(lambda *_: seen.append("layer"))
        assistant.register_forward_pre_hook(lambda *_: seen.append("call"))
        generate(model, random_ids(1, 5), num_recurrences=7, assistant_model=assistant)
        assert seen.count("layer") == 2 * seen.count("call") > 0

    def test_help_for_a_model_of_the_library(self):
        llama = self.assistants()["another architecture"]["assistant_model"]
        row = random_ids(1, 6)
        plain = llama.generate(row, max_new_tokens=8, do_sample=False)
        helped = llama.generate(row, max_new_tokens=8, do_sample=False, assistant_model=lively_model())
        assert torch.equal(plain, helped)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"use_cache": False, "past_key_values": "live"}, "use_cache=False with past_key_values"),
        ({"attention_mask": torch.tensor([[0, 0, 0, 0]])}, "no real token for row 0 after the 0"),
        ({"assistant_early_exit": 1}, "assistant_early_exit=1 is not supported for looped layers"),
        (
            {"inputs_embeds": torch.zeros(1, 4, 32).double(), "prefill_chunk_size": 2},
            "inputs_embeds cannot be combined with",
        ),
        ({"inputs_embeds": torch.zeros(1, 4, 32).double(), "prompt_lookup_num_tokens": 2}, "inputs_embeds cannot be"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]]), "prefill_chunk_size": 2}, "padding on the right"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]]), "prompt_lookup_num_tokens": 2}, "padding on the right"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]]), "guidance_scale": 2.0}, "padding on the right"),
        (
            {"depth_schedule": torch.ones_like, "guidance_scale": 2.0},
            "guidance_scale=2.0 cannot be combined with depth_sch",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_right_is_refused(call, message):
    model = lively_model()
    if call.get("past_key_values") == "live":
        call = {**call, "past_key_values": RecurrentDepthCache(model.config)}
    with pytest.raises(ValueError, match=message):
        model.generate(random_ids(1, 4), max_new_tokens=2, **call)


def test_autocast_decodes_with_every_cache():
    model = lively_model().float()
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [
            generate(model, ids, mask, num_recurrences=3, output_logits=True, max_new_tokens=1, **call)
            for call in ({"use_cache": False}, {}, {"cache_implementation": "static"})
        ]
        generate(model, ids, mask, num_recurrences=3, cache_implementation="static")
    expected = outputs[0].logits[0].float()
    assert all(relative_error(output.logits[0].float(), expected) < 0.05 for output in outputs)
