"""Marks that `skip_special_tokens=True` keeps: in tokenizers, on disk, and in a user's text."""

import copy

import pytest
from small_tokenizers import TOKENIZERS, byte_level, sentence_piece
from test_tokenization import QUESTIONS
from transformers import AutoTokenizer, ByT5Tokenizer

from memreason_hf.steps import Step, StepScheme, answer_step
from memreason_hf.steps.tokenization import (
    decode_solution,
    encode_plain,
    encode_prompt,
    encode_solution,
    extend_tokenizer,
    has_visible_marks,
    read_scheme,
)


SCHEME = StepScheme(2, 4)
STEPS = [Step("memory", "the memory"), Step("reason", "a reason"), answer_step("True")]


@pytest.fixture(params=[*TOKENIZERS, "byt5"])
def make(request):
    """A function that makes a tokenizer; the last one has no backend."""
    if request.param == "byt5":
        return lambda: ByT5Tokenizer(additional_special_tokens=[], extra_ids=0)
    return TOKENIZERS[request.param]


def extended(make, **kwargs):
    tokenizer = make()
    return tokenizer, extend_tokenizer(tokenizer, SCHEME, **kwargs)


def shown(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


def test_the_switch(make):
    """With the control: by default the same ids lose their marks."""
    hidden, ids = extended(make)
    visible, same = extended(make, visible_marks=True)
    assert same == ids and read_scheme(visible) == SCHEME and visible.get_vocab() == hidden.get_vocab()
    assert has_visible_marks(visible) and not has_visible_marks(hidden)
    written = [*encode_solution(visible, STEPS), visible.eos_token_id, visible.pad_token_id]
    assert written[:-2] == encode_solution(hidden, STEPS)
    text = shown(visible, written)
    assert "\n" in text or make is not byte_level
    if "\n" in text:  # some of these tokenizers have no line break, or one that is special
        assert [step.kind for step in SCHEME.parse(text)] == ["memory", "reason", "answer"]
    assert all(text.count(token) == SCHEME.render(STEPS).count(token) for token in SCHEME.tokens)
    assert not any(token in shown(hidden, written) for token in SCHEME.tokens)
    for tokenizer in (visible, hidden):
        assert decode_solution(tokenizer, written) == decode_solution(hidden, written)
        assert visible.eos_token not in shown(tokenizer, written)


def test_it_is_saved(make, tmp_path):
    tokenizer, ids = extended(make, visible_marks=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<other>"]}, replace_extra_special_tokens=False)
    for trip in ("first", "second"):
        tokenizer.save_pretrained(tmp_path / trip)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / trip)
        assert has_visible_marks(tokenizer) and read_scheme(tokenizer) == SCHEME
        assert shown(tokenizer, ids).replace(" ", "") == "".join(SCHEME.tokens)
        assert "<other>" in tokenizer.all_special_tokens and not set(SCHEME.tokens) & set(tokenizer.all_special_tokens)
        # Extending it again, as training does, keeps the switch.
        assert extend_tokenizer(tokenizer, SCHEME) == ids and has_visible_marks(tokenizer)


def test_an_extended_tokenizer_is_switched(make, tmp_path):
    """To and fro, before and after it was saved; in the end everything is as it was."""
    tokenizer, ids = extended(make)
    names = {name: getattr(tokenizer, f"{name}_token") for name in ("prefix", "memory", "reason", "answer", "step")}
    for place in ("memory", "disk"):
        if place == "disk":
            tokenizer.save_pretrained(tmp_path)
            tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert extend_tokenizer(tokenizer, SCHEME, visible_marks=True) == ids
        assert shown(tokenizer, ids).replace(" ", "") == "".join(SCHEME.tokens)
        assert not hasattr(tokenizer, "memory_token")
        tokenizer.save_pretrained(tmp_path / "visible")
        for again in (copy.deepcopy(tokenizer), AutoTokenizer.from_pretrained(tmp_path / "visible")):
            assert shown(again, ids) == shown(tokenizer, ids)
        assert extend_tokenizer(tokenizer, SCHEME, visible_marks=False) == ids
        assert not shown(tokenizer, ids).strip() and not has_visible_marks(tokenizer)
        assert {name: getattr(tokenizer, f"{name}_token") for name in names} == names


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_user_cannot_write_marks(make, question):
    """Visible tokens are not split by `split_special_tokens`, so this could fail; the ids are those of hidden ones."""
    hidden, ids = extended(make)
    visible, _ = extended(make, visible_marks=True)
    special = {*ids, *visible.all_special_ids} - {visible.unk_token_id}
    assert special & set(visible(question)["input_ids"])
    for _ in range(2):
        assert encode_plain(visible, question) == encode_plain(hidden, question)
        assert encode_prompt(visible, question) == encode_prompt(hidden, question)
    assert not special & set(encode_plain(visible, question))
    assert visible("<memory_0>", add_special_tokens=False)["input_ids"] == visible.convert_tokens_to_ids(
        ["<memory_0>"]
    )


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_plain_text_is_read_back(make):
    tokenizer, _ = extended(make, visible_marks=True)
    for question in QUESTIONS:
        assert tokenizer.decode(encode_plain(tokenizer, question)) == question


def test_another_scheme_is_not_hidden_in_the_copy():
    """The copy that reads plain text follows the tokenizer when it gets other tokens."""
    tokenizer, _ = extended(byte_level, visible_marks=True)
    question = "the <memory_0> and <memory_4> end"
    first = encode_plain(tokenizer, question)
    new = extend_tokenizer(tokenizer, StepScheme(2, 5), visible_marks=True)
    assert tokenizer.convert_tokens_to_ids("<memory_4>") in new
    assert encode_plain(tokenizer, question) == first


def test_marks_of_kinds_of_ones_own():
    scheme = StepScheme(1, 2, kinds=("search", "compute"))
    tokenizer = byte_level()
    ids = extend_tokenizer(tokenizer, scheme, visible_marks=True)
    assert shown(tokenizer, ids) == "".join(scheme.tokens) and has_visible_marks(tokenizer)
    question = "the <search_0><search_1> step"
    assert not set(ids) & set(encode_plain(tokenizer, question))


def test_malformed_switch():
    with pytest.raises(TypeError, match="visible_marks"):
        extend_tokenizer(byte_level(), SCHEME, visible_marks="yes")
