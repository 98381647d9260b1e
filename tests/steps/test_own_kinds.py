"""Kinds of steps that a user names: names, words, tokens, rows, texts, depths and what is refused."""

import json
import random

import numpy as np
import pytest
import torch
from small_tokenizers import TOKENIZERS, byte_level, llama, with_random_rows
from step_texts import extended, padded
from transformers import AutoConfig, AutoTokenizer

from memreason_hf.steps import KINDS, Step, StepScheme, answer_step, check_kind, is_kind, kind_order
from memreason_hf.steps.depth import DepthByKind, StepKinds, mean_recurrences_by_kind, recurrences_by_kind
from memreason_hf.steps.tokenization import decode_solution, encode_solution, extend_tokenizer, read_scheme


SCHEME = StepScheme(1, 2, kinds=("search", "work_out"), kind_words={"search": "the memory", "prefix": "question"})
STEPS = [Step("search", "the words"), Step("work_out", "a step"), Step("search", "of it"), answer_step("True")]


def test_rendering_and_parsing():
    assert SCHEME.kinds == ("search", "work_out") and SCHEME.all_kinds == ("search", "work_out", "answer", "step")
    text = SCHEME.render(STEPS)
    assert text == (
        "<prefix><search_0><search_1> the words\n"
        "<prefix><work_out_0><work_out_1> a step\n"
        "<prefix><search_0><search_1> of it\n"
        "<prefix><answer_0><answer_1> The answer is: True\n"
    )
    assert SCHEME.parse(text) == STEPS
    # Another scheme does not know these kinds, and guesses none.
    assert [step.kind for step in StepScheme().parse(text)] == ["step", "step", "step", "answer"]


def test_words_as_marks():
    scheme = StepScheme(marks="words", kinds="work_out,search", kind_words="search=look it up")
    text = scheme.render(STEPS)
    assert text.splitlines()[:2] == ["Look it up: the words", "Work out: a step"]
    assert scheme.parse(text) == STEPS
    with pytest.raises(ValueError, match="a word of its own for each kind, but the words are look up, look up"):
        StepScheme(marks="words", kinds=("search", "look_up"), kind_words={"search": "Look up"})


def test_the_first_kind_comes_first_where_steps_are_ordered():
    scheme = StepScheme(0, 1, kinds=("work_out", "search"), ordered=True)
    kinds = [step.kind for step in scheme.arrange([answer_step("A"), *STEPS])]
    assert kinds == ["work_out", "search", "search", "answer", "answer"]


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ("search,work_out", None),
        (" search , work_out ", {"search": "search", "work_out": "work out"}),
        (["search", "work_out"], "search=search"),
        (("search", "work_out"), {}),
    ],
)
def test_the_same_scheme_in_several_spellings(kinds, words):
    scheme = StepScheme(kinds=kinds, kind_words=words)
    assert scheme == StepScheme(kinds=("search", "work_out")) and hash(scheme) == hash(StepScheme(kinds=kinds))
    assert scheme != StepScheme(kinds=("work_out", "search"))
    assert scheme != StepScheme(kinds=kinds, kind_words={"search": "find"})


def test_a_scheme_of_the_study_is_saved_as_it_always_was():
    old = {"num_prefix_tokens": 2, "num_step_tokens": 4, "marks": "tokens", "layout": "steps", "ordered": False}
    assert StepScheme().to_dict() == old and StepScheme.from_dict(old) == StepScheme()
    values = json.loads(json.dumps(SCHEME.to_dict()))
    assert values == {
        **{**old, "num_prefix_tokens": 1, "num_step_tokens": 2},
        "kinds": ["search", "work_out"],
        "kind_words": {"prefix": "question", "search": "the memory"},
    }
    assert StepScheme.from_dict(values) == SCHEME


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_rows_and_round_trips(name, tmp_path):
    tokenizer = TOKENIZERS[name]()
    size = len(tokenizer)
    model = with_random_rows(llama(size))
    before = model.get_input_embeddings().weight.detach().double().numpy().copy()
    ids = extend_tokenizer(tokenizer, SCHEME, model)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("<prefix>", "<search_0>", "<search_1>", "<work_out_0>", "<work_out_1>"),
        *("<answer_0>", "<answer_1>", "<step_0>", "<step_1>"),
    ]
    assert (tokenizer.search_token, tokenizer.work_out_token) == ("<search_0>", "<work_out_0>")
    after = model.get_input_embeddings().weight.detach().numpy()
    pieces = tokenizer(" the memory", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in pieces
    for index in (1, 2):
        np.testing.assert_allclose(after[ids[index]], before[pieces].mean(0), rtol=1e-5, atol=1e-6)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert read_scheme(loaded) == SCHEME and loaded.search_token_id == ids[1]
    assert AutoConfig.from_pretrained(tmp_path).step_scheme["kinds"] == ["search", "work_out"]
    assert extend_tokenizer(loaded, SCHEME) == ids
    if name != "word_level":  # which loses line breaks
        assert SCHEME.parse(decode_solution(loaded, encode_solution(loaded, STEPS))) == STEPS


def test_depth_by_kind():
    rng = random.Random(3)
    model, tokenizer = extended("recurrent", SCHEME, seed=1)
    depths = {"search": 2, "work_out": 7, "answer": 4}
    schedule = DepthByKind(tokenizer, depths, 5)
    assert schedule.kinds.names == ["none", "search", "work_out", "answer", "step"]
    names = {f"<{kind}_{index}>": kind for kind in SCHEME.all_kinds for index in (0, 1)} | {"<prefix>": "none"}
    rows = [[rng.randrange(3, len(tokenizer)) for _ in range(rng.randint(9, 15))] for _ in range(4)]
    ids, real = padded(rows)
    for row, counts in zip(ids.tolist(), schedule(ids).tolist()):
        kind, expected = "none", []
        for token in tokenizer.convert_ids_to_tokens(row):
            kind = names.get(token, kind)
            expected.append(depths.get(kind, 5))
        assert counts == expected
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(["<search_0>", "<work_out_0>"])] *= 4
    made = model.generate(
        input_ids=ids,
        attention_mask=real,
        do_sample=False,
        max_new_tokens=8,
        eos_token_id=None,
        return_dict_in_generate=True,
        depth_schedule=schedule,
    )
    counted = recurrences_by_kind(StepKinds(tokenizer), made.sequences, made.num_recurrences)
    for kind, mean in mean_recurrences_by_kind(counted).items():
        assert mean == depths.get(kind, 5)
    with pytest.raises(ValueError, match="memory=2: the scheme has no tokens of kind 'memory', only of search, work"):
        DepthByKind(tokenizer, {"memory": 2}, 5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": ()}, "must name at least one kind"),
        ({"kinds": " , "}, "must name at least one kind"),
        ({"kinds": ("search", "search")}, "names a kind twice"),
        ({"kinds": ("Search",)}, "kinds='Search' must be a lower-case word"),
        ({"kinds": ("two words",)}, "must be a lower-case word"),
        ({"kinds": ("<b>",)}, "must be a lower-case word"),
        ({"kinds": ("a__b",)}, "must be a lower-case word"),
        ({"kinds": ("search", "answer")}, "names 'answer', which every scheme has"),
        ({"kinds": ("prefix",)}, "kinds='prefix' already means the tokens before every step"),
        ({"kinds": ("plan",)}, "already means the marks before the steps"),
        ({"kinds": ("rag",)}, "an alias of memory.*memory, reason, answer, step"),
        ({"kinds": ("mask",)}, "take the place of the tokenizer's mask_token"),
        ({"kinds": ("look_2",)}, "looks like one of several tokens"),
        ({"kinds": ("random3",)}, "looks like one of several tokens"),
        ({"kinds": tuple(f"kind{index}" for index in range(101))}, "at most 100 names, got 101"),
        ({"kind_words": {"search": "find"}}, "names 'search', but the kinds of the scheme are prefix, memory, reason"),
        ({"kind_words": {"memory": " "}}, r"kind_words\['memory'\]=' ' must be a word"),
        ({"kind_words": {"memory": "a\nb"}}, "must be a word"),
        ({"kind_words": "memory"}, "must read search=look up,compute=calculate, got 'memory'"),
    ],
)
def test_bad_kinds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        StepScheme(**values)


@pytest.mark.parametrize("values", [{"kinds": 3}, {"kind_words": 3}, {"kind_words": {"memory": 3}}])
def test_values_of_another_type_are_refused(values):
    with pytest.raises(TypeError, match="must be"):
        StepScheme(**values)


def test_a_token_that_the_tokenizer_uses_is_refused():
    tokenizer = byte_level()
    before = tokenizer.backend_tokenizer.to_str()
    with pytest.raises(ValueError, match="<s> is the bos_token of the tokenizer already"):
        extend_tokenizer(tokenizer, StepScheme(0, 1, kinds=("s",)))
    tokenizer.image_token = "<img>"
    with pytest.raises(ValueError, match="image_token of the tokenizer is '<img>' already"):
        extend_tokenizer(tokenizer, StepScheme(0, 2, kinds=("image",)))
    assert tokenizer.backend_tokenizer.to_str() == before
    # With numbers the token is another one.
    assert len(extend_tokenizer(tokenizer, StepScheme(0, 2, kinds=("s",)))) == 6


def test_names_of_kinds():
    assert all(map(is_kind, (*KINDS, "search", "look_up", "h2o", "tool_call")))
    assert not any(map(is_kind, ("", "A", "a-b", "none", "prefix", "rag", "x_1", None, 3)))
    with pytest.raises(ValueError, match=r"rows\[3\]\.kind='RAG' must be a lower-case word"):
        check_kind("rows[3].kind", "RAG")
    kinds = ["step", "search", "reason", "answer", "compute", "memory", "search"]
    assert kind_order(kinds) == ["memory", "reason", "search", "compute", "answer", "step"]
    assert kind_order(reversed(KINDS)) == list(KINDS)
