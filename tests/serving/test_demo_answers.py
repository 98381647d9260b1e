"""What a visitor of the demo page is answered: the text of `generate`, token by token, at the chosen depth."""

import random
import threading
import time
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from demo_models import demo_model, save
from small_adapters import adapted, save_base

from memreason_hf.adapters.modes import save_adapter
from memreason_hf.models.conversion.decoder import convert_decoder
from memreason_hf.serving.demo.answers import AnswerError, DemoModel, Limits, Sampling
from memreason_hf.serving.demo.comparison import differing
from memreason_hf.serving.demo.depth_choice import FIXED, DepthOptions, ParameterRange
from memreason_hf.serving.demo.prompts import PromptError, example_prompts, unknown_words, usual_length
from memreason_hf.serving.demo.sessions import Sessions
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


PROMPT = "what did the dog see?"


def answers(demo, text=PROMPT, criterion=FIXED, recurrences=5, positions=None, stop=None, **sampling):
    choice = demo.options.choose(criterion, recurrences, positions or {})
    return list(demo.answer(text, choice, Sampling(**{"max_new_tokens": 12, **sampling}), stop))


def generated(demo, ids, **arguments):
    ids = torch.tensor([ids])
    return demo.model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **arguments)


class TestAnswers:
    @pytest.mark.parametrize("criterion", [FIXED, "kl", "kl_entropy", "confidence", "state_difference"])
    def test_they_are_what_generate_writes_with_its_depths(self, criterion):
        demo = demo_model(max_recurrences=9)
        positions = {"kl_threshold": -1.0, "entropy_threshold": 1.0, "confidence_threshold": 0.3}
        positions["state_difference_threshold"] = -0.5
        shown = answers(demo, criterion=criterion, recurrences=6, positions=positions)
        values = {"kl_threshold": 0.1, "entropy_threshold": 10.0, "confidence_threshold": 0.3}
        values["state_difference_threshold"] = 10**-0.5
        arguments = {"num_recurrences": 6}
        if criterion != FIXED:
            own = {field.name: values[field.name] for field in fields(HALTING_CRITERIA[criterion])}
            arguments = {"halting_criterion": criterion, "max_recurrences": 6, **own}
        expected = generated(
            demo, demo.tokenizer(PROMPT)["input_ids"], max_new_tokens=12, do_sample=False, **arguments
        )
        last = shown[-1]
        assert list(last.ids) == expected.sequences[0].tolist()
        assert last.depths == expected.num_recurrences[0].tolist()
        prompt_depths = [token.num_recurrences for piece in last.prompt_pieces for token in piece.tokens]
        assert prompt_depths == expected.prompt_recurrences[0].tolist()
        assert last.ending in ("eos", "length")
        assert last.mean_recurrences == pytest.approx(expected.num_recurrences.float().mean().item())
        assert last.share_of_deepest == pytest.approx(last.mean_recurrences / 9)

    def test_they_grow_and_only_the_last_has_an_ending(self, monkeypatch):
        monkeypatch.setattr("memreason_hf.serving.demo.answers._INTERVAL", 0.0)
        demo = demo_model(seed=1, eos_token_id=None)
        demo.tokenizer.eos_token = None
        demo.model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
        shown = answers(demo, max_new_tokens=8)
        assert len(shown) > 3
        assert shown[0].pieces == ()
        for before, after in pairwise(shown):
            assert after.pieces[: len(before.pieces)] == before.pieces
        assert [answer.ending is None for answer in shown] == [True] * (len(shown) - 1) + [False]
        assert 0 < shown[-1].first_seconds <= shown[-1].seconds

    def test_halting_at_another_threshold_changes_the_cost(self):
        demo = demo_model(seed=3)
        strict, loose = (
            answers(demo, criterion="state_difference", recurrences=12, positions={"state_difference_threshold": at})[
                -1
            ]
            for at in (-6.0, 1.0)
        )
        assert strict.mean_recurrences == 12
        assert loose.mean_recurrences < 3

    def test_draws_repeat_with_their_seed(self):
        demo = demo_model()
        first, again, other = (
            answers(demo, do_sample=True, temperature=2.0, seed=seed, max_new_tokens=20)[-1].ids for seed in (5, 5, 6)
        )
        assert first == again
        assert first != other

    def test_a_stop_ends_the_answer_with_what_it_has(self):
        demo = demo_model(limits=Limits(max_new_tokens=5000), position_embedding_type="rope", eos_token_id=None)
        demo.tokenizer.eos_token = None
        stop = threading.Event()
        choice = demo.options.choose(FIXED, 1, {})
        last = None
        for last in demo.answer(PROMPT, choice, Sampling(max_new_tokens=5000), stop):
            if len(last.depths) >= 3:
                stop.set()
        assert last.ending == "stopped"
        assert 3 <= len(last.depths) < 5000

    def test_a_visitor_who_leaves_frees_the_model(self):
        demo = demo_model(limits=Limits(max_new_tokens=5000), eos_token_id=None)
        demo.tokenizer.eos_token = None
        before = threading.active_count()
        running = demo.answer(PROMPT, demo.options.choose(FIXED, 1, {}), Sampling(max_new_tokens=5000))
        next(running), next(running)
        running.close()
        assert threading.active_count() == before
        assert answers(demo, max_new_tokens=2)[-1].ending == "length"

    def test_two_visitors_at_once_get_their_own_answers(self):
        demo = demo_model()
        prompts = ["the cat", "the dog ran", "what"]
        alone = [answers(demo, prompt, do_sample=True, seed=i)[-1].ids for i, prompt in enumerate(prompts)]
        results = [None] * 3

        def visit(i):
            results[i] = answers(demo, prompts[i], do_sample=True, seed=i)[-1].ids

        threads = [threading.Thread(target=visit, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == alone

    def test_a_failing_model_is_a_message(self, monkeypatch):
        demo = demo_model()
        monkeypatch.setattr(demo.model, "generate", lambda *a, **k: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(AnswerError, match="MemoryError: no room"):
            answers(demo)

    def test_longer_answers_than_allowed_are_refused(self):
        with pytest.raises(ValueError, match="max_new_tokens=65 must be at most 64"):
            answers(demo_model(), max_new_tokens=65)


class TestKindsOfModels:
    def test_a_chain(self):
        demo = demo_model("chain")
        last = answers(demo, "<e_3><r_1> <r_0>", max_new_tokens=2)[-1]
        assert [token.token for piece in last.prompt_pieces for token in piece.tokens] == ["<e_3>", "<r_1>", "<r_0>"]
        assert usual_length(demo.tokenizer) == 1

    def test_questions_of_a_model_that_writes_steps_are_plain_text(self):
        demo = demo_model("steps")
        prompt = demo.encode("Is </s> <memory_0> a step?", 4)
        assert demo.tokenizer.eos_token_id not in prompt.ids
        assert prompt.lead == len(demo.scheme.prefix_tokens)
        assert demo.tokenizer.convert_ids_to_tokens(list(prompt.ids[-prompt.lead :])) == list(
            demo.scheme.prefix_tokens
        )
        assert answers(demo, "Is it?", max_new_tokens=3)[-1].ending is not None

    def test_a_decoder_without_recurrences(self):
        demo = demo_model("plain")
        assert not demo.options.has_depth
        last = answers(demo, "Is it a step", "whatever", 99)[-1]
        expected = generated(demo, demo.tokenizer("Is it a step")["input_ids"], max_new_tokens=12, do_sample=False)
        assert list(last.ids) == expected.sequences[0].tolist()
        with pytest.raises(PromptError, match=r"need .* positions, but the model has 512"):
            demo.limits = Limits(max_new_tokens=600)
            answers(demo, "Is it a step", max_new_tokens=520)

    def test_folders_adapters_and_converted_decoders_load(self, tmp_path):
        folder = save(demo_model(seed=0), tmp_path / "model")
        loaded = DemoModel.load(folder, depth={"halting_criterion": "kl", "kl_threshold": 0.25}, deepest=20)
        assert (loaded.options.default, loaded.options.deepest) == ("kl", 20)
        assert loaded.options.ranges["kl_threshold"].default == 0.25
        assert answers(loaded, max_new_tokens=2)[-1].ending is not None

        base = save_base(tmp_path / "base", "llama")
        model, tokenizer = adapted(base, "lora")
        save_adapter(model, tokenizer, tmp_path / "adapter")
        adapter = DemoModel.load(str(tmp_path / "adapter"))
        assert adapter.scheme is not None and not adapter.options.has_depth
        assert answers(adapter, "Is it?", max_new_tokens=2)[-1].ending is not None

        converted = convert_decoder(adapter.model, prelude=0, loop=1, coda=0)
        converted.save_pretrained(tmp_path / "converted")
        tokenizer.save_pretrained(tmp_path / "converted")
        assert answers(DemoModel.load(str(tmp_path / "converted")), "Is it?", max_new_tokens=2)[-1].depths


class TestPrompts:
    @pytest.mark.parametrize(
        ("kind", "text", "said"),
        [
            ("text", "", "empty"),
            ("text", " \n ", "empty"),
            ("text", None, "empty"),
            ("text", "a" * 20_001, "20,001 characters"),
            ("text", "the cat " * 200, r"tokens; at most 200"),
            ("text", "half \ud83d", "lone surrogate"),
            ("chain", "<e_3><r_9>", r"<r_9>.*one of <e_0> to <e_11>.*<r_0> to <r_2>"),
            ("chain", "hello <e_1>", "hello"),
        ],
    )
    def test_what_cannot_be_read_is_said(self, kind, text, said):
        with pytest.raises(PromptError, match=said):
            demo_model(kind).encode(text, 1)

    def test_unknown_words_are_named_where_they_are_replaced(self):
        demo = demo_model("words")
        assert demo.encode("the zebra reason", 1).note.endswith("zebra.")
        assert demo.encode("the reason", 1).note == ""
        assert unknown_words(demo_model().tokenizer, "zebra") == []

    def test_learned_positions_limit_prompt_and_answer(self):
        demo = demo_model(position_embedding_type="learned", max_position_embeddings=16)
        with pytest.raises(PromptError, match="max_position_embeddings=16"):
            demo.encode("the cat sat on the mat", 16)

    @pytest.mark.parametrize("kind", ["text", "chain", "steps", "plain", "words"])
    def test_examples_can_be_read(self, kind):
        demo = demo_model(kind)
        examples = example_prompts(demo.tokenizer)
        assert examples or kind == "words"
        for example in examples:
            assert demo.encode(example, 1).note == ""
        if kind == "chain":
            assert [example.count("<r_") for example in examples] == [1, 2, 4, 8, 16, 32]


class TestDepthOptions:
    def test_sliders_start_at_the_values_of_the_config(self):
        values = {"kl_threshold": 0.00037, "confidence_threshold": 0.98765, "argmax_patience": 3, "exit_gate": True}
        options = DepthOptions.of(RecurrentDepthConfig(halting_criterion="kl", max_recurrences=20, **values))
        for name in ("kl_threshold", "confidence_threshold", "argmax_patience"):
            given = options.ranges[name]
            assert given.value(given.position) == values[name]
        assert options.arguments(options.choose("kl", 20, {}))["kl_threshold"] == 0.00037
        assert options.criteria == (FIXED, *HALTING_CRITERIA)

    def test_sliders_move_in_powers_of_ten(self):
        given = ParameterRange.of("kl_threshold", 0.01)
        step = random.randint(1, 30)
        assert given.value(-2 + step / 10) == pytest.approx(0.01 * 10 ** (step / 10))

    def test_only_criteria_that_the_model_can_follow_are_offered(self):
        options = DepthOptions.of(RecurrentDepthConfig(num_coda_layers=1, num_prelude_layers=1))
        assert "exit_gate" not in options.criteria
        assert (options.granularities["kl"], options.granularities["state_difference"]) == ("sequence", "token")
        demo = demo_model(num_coda_layers=1)
        for criterion in demo.options.criteria:
            assert answers(demo, criterion=criterion, max_new_tokens=2)[-1].ending is not None

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            (("magic", 4, {}), "halting_criterion='magic' must be one of fixed"),
            (("exit_gate", 4, {}), "must be one of"),
            ((FIXED, 0, {}), "recurrences=0 must be from 1 to 12"),
            ((FIXED, 13, {}), "must be from 1 to 12"),
            ((FIXED, 2.5, {}), "must be a whole number"),
            ((FIXED, None, {}), "must be a whole number"),
            (("kl", 4, {"kl_threshold": 99.0}), "kl_threshold: the slider goes from -6 to 1"),
            (("kl", 4, {"kl_threshold": float("nan")}), "must be at a number"),
        ],
    )
    def test_a_call_without_the_page_is_checked(self, values, said):
        with pytest.raises(ValueError, match=said):
            demo_model().options.choose(*values)

    def test_a_depth_below_the_configs_is_refused(self):
        with pytest.raises(ValueError, match="deepest=3 is below the 4"):
            demo_model(deepest=3)


def test_differing_tokens():
    for _ in range(50):
        first, second = ([random.randrange(4) for _ in range(random.randrange(9))] for _ in range(2))
        marks = differing(first, second)
        kept = [
            [token for token, mark in zip(ids, own, strict=True) if not mark]
            for ids, own in zip((first, second), marks)
        ]
        assert kept[0] == kept[1]
    assert differing([1, 2], [1, 2]) == ([False] * 2, [False] * 2)


def test_a_stop_reaches_the_answer_that_runs_or_waits():
    sessions = Sessions()
    running, others = sessions.begin("a"), sessions.begin("b")
    assert sessions.stop("a") and running.is_set() and not others.is_set()
    sessions.end("a", running)
    assert not sessions.stop("a")
    assert sessions.begin("a").is_set()
    assert not sessions.begin("c").is_set()
    sessions.stop("d")
    sessions.press("d")
    assert not sessions.begin("d").is_set()
    sessions.leave("b")
    assert others.is_set()
