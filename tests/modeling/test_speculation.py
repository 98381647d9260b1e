"""Self-speculation: the texts of plain decoding, token for token, and samples of the same distribution."""

import inspect
import math

import pytest
import torch
from recurrent_models import DECODING_GRID, VOCAB, grid_ids, pad, random_ids, relative_error, tiny_model
from transformers import StoppingCriteria, StoppingCriteriaList

import modeling_recurrent.speculation_recurrent as speculation
from modeling_recurrent import RecurrentDepthCache


LENGTHS = (5, 2, 7, 4)
NEW = 18
FULL = 6
# Small first weights of the looped blocks: states move slowly, so that some drafts agree with the full depth.
GRID = [
    *DECODING_GRID,
    ("llama", {"state_init": "normal", "input_injection": "add", "state_norm": "rmsnorm", "sliding_window": 5}),
]
IDS = grid_ids(GRID)


def lively_model(style="llama", extra=None, seed=0):
    """Double precision and large weights: texts do not repeat one token, rounding decides nothing."""
    values = {"initializer_range": 0.25, "residual_init_scale": 0.2, "tie_word_embeddings": False, **(extra or {})}
    if style.startswith("family:"):
        del values["residual_init_scale"]
        values["injection_gate_init"] = 0.2
    model = tiny_model(style, seed=seed, **{"num_recurrences": FULL, **values}).double()
    if values.get("block_norm") == "sandwich":
        # The norm after a sublayer undoes small weights of that sublayer.
        with torch.no_grad():
            for block in model.model.recurrent_layers:
                block.attention_output_layernorm.weight.mul_(0.2)
                block.mlp_output_layernorm.weight.mul_(0.2)
    return model


def prompts(side="left"):
    return pad([random_ids(n) for n in LENGTHS], side)


def generate(model, ids, mask=None, **kwargs):
    values = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, **kwargs}
    return model.generate(ids, attention_mask=mask, **values)


def assert_equal(plain, drafted):
    for name in ("sequences", "num_recurrences", "prompt_recurrences"):
        assert torch.equal(plain[name], drafted[name]), name


def both(model, ids, mask=None, draft_recurrences=4, draft_tokens=3, **kwargs):
    """Plain and speculative output, after a check that both say the same."""
    plain = generate(model, ids, mask, **kwargs)
    drafts = {"draft_recurrences": draft_recurrences, "draft_tokens": draft_tokens}
    drafted = generate(model, ids, mask, **drafts, **kwargs)
    assert_equal(plain, drafted)
    return plain, drafted


@pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)
def test_greedy_texts_are_those_of_plain_decoding(style, extra, poisoned_memory):
    model = lively_model(style, extra)
    ids, mask = prompts()
    accepted = drafted = 0
    spread = set()
    for recurrences, tokens in ((1, 2), (3, 4), (4, 1), (5, 6)):
        plain, output = both(model, ids, mask, recurrences, tokens)
        accepted, drafted = accepted + output.accepted_drafts, drafted + output.drafted_tokens
        spread.add(tuple(output.accepted_drafts.tolist()))
        assert (output.accepted_drafts <= output.drafted_tokens).all()
    assert 0.1 < accepted.sum() / drafted.sum() < 0.9
    assert len(set((accepted / drafted).tolist())) > 1 and len(spread) > 1
    assert len(plain.sequences[:, ids.shape[1] :].unique()) > 4


@pytest.mark.parametrize(("style", "extra"), GRID, ids=IDS)
@pytest.mark.slow
def test_a_row_alone_and_in_a_batch(style, extra):
    model = lively_model(style, extra)
    ids, mask = prompts()
    batch = generate(model, ids, mask, draft_recurrences=4)
    for i, length in enumerate(LENGTHS):
        _, alone = both(model, ids[i : i + 1, -length:], draft_tokens=4)
        assert torch.equal(alone.sequences[0, length:], batch.sequences[i, ids.shape[1] :])
        for name in ("accepted_drafts", "drafted_tokens"):
            # At the end of the text a row of a batch may draft more than it can use.
            assert abs(int(alone[name][0]) - int(batch[name][i])) <= 4
    both(model, random_ids(3, 6))  # without a mask, until the first hole
    both(model, ids[:1], mask[:1])  # one padded row never has one


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_holes_and_packed_rows(attention, share, monkeypatch, poisoned_memory):
    monkeypatch.setattr(speculation, "MOST_REAL", share)
    packed = []
    keep_tokens = RecurrentDepthCache.keep_tokens
    monkeypatch.setattr(RecurrentDepthCache, "keep_tokens", lambda *args: packed.append(1) or keep_tokens(*args))
    for style, extra in GRID[1], GRID[4], GRID[6]:
        model = lively_model(style, extra)
        model.set_attn_implementation(attention)
        both(model, *prompts(), draft_recurrences=3, draft_tokens=5)
    assert bool(packed) == (share == 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="on a CPU torch cannot compile flex attention with holes")
@pytest.mark.parametrize("window", [None, 5])
def test_flex_attention_sees_the_same_holes(window):
    model = lively_model(extra={"hidden_size": 64, "head_dim": 16, "sliding_window": window}).float().to("cuda")
    ids, mask = (values.to("cuda") for values in prompts())
    expected, _ = both(model, ids, mask, draft_recurrences=3, draft_tokens=5)
    model.set_attn_implementation("flex_attention")
    actual = generate(model, ids, mask, draft_recurrences=3, draft_tokens=5)
    assert_equal(expected, actual)


def test_closing_holes():
    model = lively_model(extra={"num_prelude_layers": 1})
    text, garbage, step = random_ids(2, 5), random_ids(2, 1), random_ids(2, 1)
    cache = RecurrentDepthCache(model.config)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 1]])
    holed = torch.stack([torch.cat((row[:h], g, row[h:])) for row, g, h in zip(text, garbage, (2, 4))])
    with torch.no_grad():
        model(holed, attention_mask=mask, past_key_values=cache)
        cache.keep_tokens(mask.argsort(dim=1, stable=True)[:, -5:])
        assert cache.get_seq_length() == 5 and cache.counts.tolist() == [[FULL] * 5] * 2
        after = model(step, past_key_values=cache).logits
        assert relative_error(after, model(torch.cat((text, step), dim=1)).logits[:, -1:]) < 1e-10


def test_no_recurrence_runs_twice():
    """A round over n drafts: n + 1 tokens one by one up to the draft's recurrences, all together from there on."""
    model = lively_model()
    forwards, layers = [], []

    def note(module, args, kwargs):
        resume = kwargs.get("resume") or (0, None)
        forwards.append((kwargs["input_ids"].shape[1], resume[0], kwargs["num_recurrences"]))

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    model.model.recurrent_layers[0].register_forward_pre_hook(lambda _, args: layers.append(args[0].shape[1]))
    output = generate(model, random_ids(1, 4), draft_recurrences=2, draft_tokens=3)
    assert len(layers) == sum(to - start for _, start, to in forwards)
    assert forwards.pop(0) == (4, 0, FULL)
    rounds = 0
    while forwards:
        n = next(i for i, (_, start, _) in enumerate(forwards) if start)
        assert forwards[:n] == [(1, 0, 2)] * n and forwards[n] == (n, 2, FULL)
        forwards, rounds = forwards[n + 1 :], rounds + 1
    assert 1 < rounds < NEW - 1 and rounds + int(output.accepted_drafts) >= NEW - 1


class TestEnds:
    def texts(self, model, ids, mask):
        return generate(model, ids, mask).sequences[:, ids.shape[1] :]

    @pytest.mark.parametrize(("style", "extra"), GRID[:5], ids=IDS[:5])
    def test_each_row_ends_at_its_own_token(self, style, extra):
        model = lively_model(style, extra)
        ids, mask = prompts()
        texts = self.texts(model, ids, mask)
        widths = set()
        # Tokens that end some rows early, some in the middle of a round, and some not at all.
        for ends in ([texts[0, 0]], [texts[1, 5], texts[2, 9]], [texts[i, 6 + 2 * i] for i in range(4)]):
            for tokens in (2, 7):
                plain, _ = both(model, ids, mask, 4, tokens, eos_token_id=[int(token) for token in ends])
            ended = (plain.sequences[:, ids.shape[1] :] != 0).sum(-1)
            widths |= set(ended.tolist())
        assert len(widths) > 3

    def test_rows_that_have_ended_are_not_computed(self):
        model = lively_model()
        ids, mask = prompts()
        sizes = []
        model.model.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        ends = [int(row[i + 2]) for i, row in enumerate(self.texts(model, ids, mask)[:3])]
        sizes.clear()
        generate(model, ids, mask, eos_token_id=ends, draft_recurrences=2)
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 1

    @pytest.mark.parametrize("ends", [None, [11]])
    def test_criteria_are_asked_about_every_token(self, ends):
        class LargeTokens(StoppingCriteria):
            """A row ends with its third token of the upper half."""

            def __init__(self, start):
                self.start = start

            def __call__(self, input_ids, scores, **kwargs):
                return (input_ids[:, self.start :] > VOCAB // 2).sum(-1) >= 3

        model = lively_model()
        ids, mask = prompts()
        criteria = StoppingCriteriaList([LargeTokens(ids.shape[1])])
        plain, _ = both(model, ids, mask, 4, 4, stopping_criteria=criteria, eos_token_id=ends)
        assert plain.sequences.shape[1] < ids.shape[1] + NEW
        both(model, ids[:1], mask[:1], stopping_criteria=criteria, eos_token_id=ends)

    def test_lengths(self):
        model = lively_model()
        ids, mask = prompts()
        for new in (1, 2, 3):
            _, output = both(model, ids, mask, max_new_tokens=new, draft_tokens=5)
            assert output.sequences.shape[1] == ids.shape[1] + new
        both(model, ids, mask, max_new_tokens=None, max_length=ids.shape[1] + 6)
        assert both(model, ids, mask, max_new_tokens=1)[1].drafted_tokens.tolist() == [0] * 4

    def test_learned_positions_are_not_overrun(self):
        model = lively_model("gpt2", {"max_position_embeddings": max(LENGTHS) + NEW - 1})
        both(model, *prompts(), draft_recurrences=3, draft_tokens=9)


@pytest.mark.parametrize(
    "call",
    [
        {"repetition_penalty": 1.8},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 9, "eos_token_id": list(range(1, 12))},
        {"encoder_repetition_penalty": 1.5},
        {"prefix_allowed_tokens_fn": lambda row, text: [t for t in range(1, VOCAB) if (t + len(text)) % 4 != row]},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_k": 1, "repetition_penalty": 1.8, "temperature": 0.5},
    ],
    ids=lambda call: "-".join(call),
)
def test_processors_see_what_plain_decoding_shows_them(call):
    model = lively_model()
    ids, mask = prompts()
    plain, output = both(model, ids, mask, **call)
    assert 0 < output.accepted_drafts.sum() < output.drafted_tokens.sum()
    both(model, ids[2:3], None, **call)
    if not call.get("do_sample"):
        assert not torch.equal(plain.sequences, generate(model, ids, mask).sequences)


class TestSampling:
    VOCAB = 6
    NEW = 4
    CALLS = [
        {},
        {"temperature": 0.7, "top_k": 4},
        {"temperature": 1.5, "top_p": 0.8, "repetition_penalty": 1.3},
    ]

    def excess(self, model, prompt, call, rows=6000):
        """Standard deviations by which chi-square over all continuations exceeds its mean, and the output."""
        from transformers import GenerationConfig

        output = generate(
            model,
            prompt[None],
            max_new_tokens=self.NEW,
            do_sample=True,
            num_return_sequences=rows,
            draft_recurrences=1,
            draft_tokens=2,
            **{"top_k": 0, **call},
        )
        texts = torch.cartesian_prod(*[torch.arange(self.VOCAB)] * self.NEW)
        whole = torch.cat((prompt.expand(len(texts), -1), texts), dim=1)
        with torch.no_grad():
            logits = model(whole).logits.float()
        config = GenerationConfig(do_sample=True, **{"top_k": 0, **call})
        processors = model._get_logits_processor(config, input_ids_seq_length=len(prompt))
        chances = torch.ones(len(texts), dtype=torch.double)
        for i in range(self.NEW):
            place = len(prompt) + i
            scores = processors(whole[:, :place], logits[:, place - 1].clone())
            chances *= scores.double().softmax(-1).gather(1, whole[:, place : place + 1]).squeeze(1)
        powers = self.VOCAB ** torch.arange(self.NEW - 1, -1, -1)
        seen = torch.bincount((output.sequences[:, len(prompt) :] * powers).sum(-1), minlength=len(texts)).double()
        assert math.isclose(chances.sum(), 1, rel_tol=1e-6) and not seen[chances == 0].any()
        common = chances * rows >= 5
        # What is rare makes one cell together.
        expected = torch.cat((chances[common], chances[~common].sum()[None])) * rows
        seen = torch.cat((seen[common], seen[~common].sum()[None]))
        seen, expected = seen[expected > 0], expected[expected > 0]
        freedom = len(seen) - 1
        assert freedom > 30
        return ((seen - expected) ** 2 / expected).sum().sub(freedom).div(math.sqrt(2 * freedom)).item(), output

    def model(self):
        extra = {"vocab_size": self.VOCAB, "pad_token_id": None, "input_injection": "add", "residual_init_scale": 1.0}
        return lively_model("llama", {**extra, "num_recurrences": 4}, seed=3)

    @pytest.mark.parametrize("call", CALLS, ids=lambda call: "-".join(call) or "plain")
    def test_texts_have_the_chances_of_plain_decoding(self, call):
        torch.manual_seed(1)
        excess, output = self.excess(self.model(), torch.tensor([1, 4, 2]), call)
        assert 0.2 < output.accepted_drafts.sum() / output.drafted_tokens.sum() < 0.9
        assert abs(excess) < 4.5

    def test_the_bound_notices_drafts_that_are_not_verified(self, monkeypatch):
        def credulous(drafts, proposed, wanted, samples):
            return torch.full((len(drafts),), drafts.shape[1]), torch.multinomial(wanted[:, -1], 1).squeeze(1)

        monkeypatch.setattr(speculation, "accept", credulous)
        assert self.excess(self.model(), torch.tensor([1, 4, 2]), {})[0] > 15

    def test_the_rule_alone(self):
        torch.manual_seed(2)
        rows = 40_000
        for sharp in (0.5, 3.0):
            p, q = torch.softmax(sharp * torch.randn(2, 3, 5), dim=-1)
            drafts = torch.multinomial(q[:2], rows, replacement=True).T
            kept, final = speculation.accept(drafts, q[:2].expand(rows, -1, -1), p.expand(rows, -1, -1), True)
            for place in range(3):
                reached = kept >= place
                token = torch.where(kept > place, drafts[:, min(place, 1)], final)[reached]
                share = torch.bincount(token, minlength=5) / reached.sum()
                assert (share - p[place]).abs().max() < 4 * 0.5 / math.sqrt(int(reached.sum()))

    def test_equal_distributions_are_always_kept(self):
        q = torch.softmax(torch.randn(50, 4, 9), dim=-1)
        drafts = torch.multinomial(q[:, :3].flatten(0, 1), 1).view(50, 3)
        assert (speculation.accept(drafts, q[:, :3], q, True)[0] == 3).all()


class Streamer:
    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard.append(("tokens", value.tolist()))

    def put_recurrences(self, value):
        self.heard.append(("depths", value.tolist()))

    def end(self):
        self.heard.append("end")


@pytest.mark.parametrize("rows", [1, 4])
def test_a_streamer_hears_what_plain_decoding_says(rows):
    model = lively_model()
    ids, mask = prompts()
    ids, mask = ids[:rows], mask[:rows]
    ends = int(generate(model, ids, mask).sequences[0, ids.shape[1] + 4])
    for eos in (None, ends):
        plain, drafted = Streamer(), Streamer()
        generate(model, ids, mask, streamer=plain, eos_token_id=eos)
        generate(model, ids, mask, streamer=drafted, eos_token_id=eos, draft_recurrences=3)
        assert plain.heard == drafted.heard and plain.heard[-1] == "end"


class TestCache:
    @pytest.mark.parametrize("ends", [False, True])
    def test_a_conversation_goes_on(self, ends):
        model = lively_model(extra=GRID[4][1])
        text = random_ids(1, 6)
        eos = int(generate(model, text).sequences[0, 6 + 7]) if ends else None
        caches = RecurrentDepthCache(model.config), RecurrentDepthCache(model.config)
        drafts = {"draft_recurrences": 4, "draft_tokens": 5}
        for _ in range(2):
            plain = generate(model, text, past_key_values=caches[0], eos_token_id=eos)
            drafted = generate(model, text, past_key_values=caches[1], eos_token_id=eos, **drafts)
            assert_equal(plain, drafted)
            assert caches[0].get_seq_length() == caches[1].get_seq_length()
            assert torch.equal(caches[0].counts, caches[1].counts)
            text = torch.cat((plain.sequences, random_ids(1, 3)), dim=1)
        assert drafted.past_key_values is caches[1]
        with torch.no_grad():
            step = random_ids(1, 2)
            left, right = (model(step, past_key_values=cache).logits for cache in caches)
        assert relative_error(left, right) < 1e-10

    def test_several_rows_return_none(self):
        assert generate(lively_model(), *prompts(), draft_recurrences=2).past_key_values is None

    def test_prompts_in_chunks_and_given_positions(self):
        model = lively_model("gpt2", GRID[0][1])
        ids, mask = prompts()
        both(model, ids, mask, prefill_chunk_size=3)
        both(model, ids[2:3], None, position_ids=torch.arange(7)[None] + 4)


def test_several_texts_of_one_prompt():
    model = lively_model()
    ids, mask = prompts()
    output = generate(model, ids, mask, do_sample=True, num_return_sequences=3, draft_recurrences=2)
    assert output.sequences.shape == (12, ids.shape[1] + NEW) and output.accepted_drafts.shape == (12,)


def test_bfloat16_and_tensors_without_a_dictionary():
    model = lively_model().to(torch.bfloat16)
    ids, mask = prompts()
    texts = generate(model, ids, mask, draft_recurrences=2, return_dict_in_generate=False)
    assert texts.shape == (4, ids.shape[1] + NEW)


BAD = [
    ({"draft_recurrences": 0}, ValueError, "draft_recurrences=0 must be at least 1"),
    ({"draft_recurrences": 1.5}, TypeError, "draft_recurrences must be an int, got 1.5"),
    ({"draft_tokens": 0}, ValueError, "draft_tokens=0 must be at least 1"),
    ({"draft_recurrences": None, "draft_tokens": 3}, ValueError, "draft_tokens=3 needs draft_recurrences"),
    ({"draft_recurrences": FULL}, ValueError, f"num_recurrences={FULL}: a draft must take fewer"),
    ({"num_recurrences": 2}, ValueError, "num_recurrences=2: a draft must take fewer"),
    ({"num_recurrences": torch.tensor([3, 6])}, ValueError, "give an int num_recurrences"),
    ({"halting_criterion": "kl"}, ValueError, "give an int num_recurrences"),
    ({"num_beams": 2}, ValueError, "beam search"),
    ({"prompt_lookup_num_tokens": 2}, ValueError, "assisted generation"),
    ({"use_cache": False}, ValueError, "use_cache=False"),
    ({"cache_recurrences": "last"}, ValueError, "cache_recurrences='last'"),
    ({"cache_implementation": "static"}, ValueError, "cache_implementation='static'"),
    ({"output_scores": True}, ValueError, "output_scores=True"),
    ({"output_logits": True}, ValueError, "output_logits=True"),
    ({"guidance_scale": 1.5}, ValueError, "UnbatchedClassifierFreeGuidance"),
    ({"on_recurrence": print}, ValueError, "on_recurrence"),
    ({"synced_gpus": True}, ValueError, "synced_gpus=True"),
    ({"custom_generate": "somewhere"}, ValueError, "custom_generate='somewhere'"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_what_drafts_cannot_serve_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        lively_model().generate(random_ids(2, 4), max_new_tokens=3, **{"draft_recurrences": 2, **call})


def test_caches_that_cannot_hold_drafts_are_refused():
    model = lively_model()
    for rows, kept, message in ((2, "all", "past_key_values and 2 rows"), (1, "last", "cache_recurrences='last'")):
        cache = RecurrentDepthCache(model.config, cache_recurrences=kept)
        with pytest.raises(ValueError, match=message):
            generate(model, random_ids(rows, 4), past_key_values=cache, draft_recurrences=2)


def test_a_resumed_forward_needs_recurrences_to_run():
    model = lively_model()
    state = torch.zeros(1, 2, model.config.hidden_size).double()
    criterion = {"halting_criterion": "kl", "max_recurrences": 5}
    for call in ({"num_recurrences": 2}, {"use_cache": True, "num_recurrences": 2}, criterion):
        with pytest.raises(ValueError, match="above its 2 recurrences"):
            model(random_ids(1, 2), resume=(2, state), **call)


def test_arguments_have_names():
    assert {"draft_recurrences", "draft_tokens"} <= set(inspect.signature(lively_model().generate).parameters)
