"""Prompts and messages as ids."""

import pytest
from api_servers import TEMPLATE
from small_finetunes import SCHEME
from small_tokenizers import byte_level, sentence_piece, word_level
from text_models import text_tokenizer
from tokenizers import AddedToken, normalizers, pre_tokenizers

from memreason_hf.data.questions.prompts import Prompter, PromptFormat, record_prompt_format
from memreason_hf.serving.api.prompts import PromptReader
from memreason_hf.serving.api.refusals import ApiError
from memreason_hf.steps.tokenization import encode_prompt, extend_tokenizer


def reader(tokenizer=None, template=TEMPLATE, context=50):
    tokenizer = text_tokenizer() if tokenizer is None else tokenizer
    tokenizer.chat_template = template
    return PromptReader(tokenizer, context)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "prompt is not given"),
        ("", "has no tokens"),
        ([], "must be a text"),
        ([[]], "has no tokens"),
        (["the", 5], "is not a token id"),
        ([5, "the"], "is not a token id"),
        ([True], "prompt=True is not a token id"),
        ([-1], "prompt=-1 is not a token id"),
        ([10**6], "is not a token id"),
        ([5.0], "is not a token id"),
        ([[5], ["the"]], "is not a token id"),
        ([[[5]]], "is not a token id"),
        ({"a": 1}, "must be a text"),
        (5, "must be a text"),
        ("the " * 60, r"has \d+ tokens, but at most 50"),
        ([5] * 51, "has 51 tokens"),
        ("the " * 2000, "has 8,000 characters, which are more than 50 tokens"),
        ("half \ud800", "half of a character"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_prompts_that_are_refused(given, said):
    with pytest.raises(ApiError, match=said) as refused:
        reader().read_prompts(given)
    assert refused.value.status == 400 and refused.value.param == "prompt"


def test_prompts_are_read_as_the_tokenizer_reads_them():
    made = reader()
    text = "the cat\x00 <memory> </s> é 日本"
    (prompt,) = made.read_prompts(text)
    assert list(prompt.ids) == text_tokenizer()(text)["input_ids"] and prompt.text == text
    assert [list(one.ids) for one in made.read_prompts([[5, 6], [7]])] == [[5, 6], [7]]
    assert len(made.read_prompts([5] * 50)[0].ids) == 50


def test_a_word_that_the_vocabulary_lacks_is_refused():
    with pytest.raises(ApiError, match="cannot read it"):
        reader(word_level(unknown=False)).read_prompts("xylophone")


def test_messages_go_through_the_template():
    made = reader()
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": " cat"}]
    messages = [{"role": "system", "content": "the dog"}, {"role": "user", "content": parts, "name": None}]
    expected = "system: the dog\nuser: the cat\nassistant:"
    tokenizer = text_tokenizer()
    assert list(made.read_messages(messages).ids) == tokenizer(expected)["input_ids"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "must be a list"),
        ([], "at least one message"),
        ("hello", "must be a list"),
        ([5], r"messages\[0\]=5 must be an object"),
        ([{"content": "x"}], r"messages\[0\].role is not given"),
        ([{"role": 5, "content": "x"}], r"messages\[0\].role=5 must be a text"),
        ([{"role": "user"}], r"messages\[0\].content=None must be a text"),
        ([{"role": "user", "content": 5}], "content=5 must be a text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "must be a part of type text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "must be a part of type text"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "tool_calls: this server reads role, content, name"),
        ([{"role": "user", "content": "\udfff"}], "half of a character"),
        ([{"role": "user", "content": "the " * 60}], "at most 50"),
        ([{"role": "user", "content": "the " * 2000}], "has 8,017 characters"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
def test_messages_that_are_refused(given, said):
    with pytest.raises(ApiError, match=said) as refused:
        reader().read_messages(given)
    assert refused.value.status == 400 and refused.value.param == "messages"


def test_without_a_template_messages_are_refused_with_the_reason():
    made = reader(template=None)
    assert not made.has_chat_template
    with pytest.raises(ApiError, match=r"has no chat template\. Use POST /v1/completions") as refused:
        made.read_messages([{"role": "user", "content": "the cat"}])
    assert refused.value.code == "no_chat_template"


def test_what_a_template_refuses_is_refused_with_its_reason():
    made = reader(template="{{ raise_exception('Roles must take turns') }}")
    with pytest.raises(ApiError, match="Roles must take turns"):
        made.read_messages([{"role": "user", "content": "the cat"}])


def test_a_model_of_steps_reads_a_message_as_its_question():
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, SCHEME)
    made = PromptReader(tokenizer, 200)
    question = "Is it </s> a step?"
    assert made.has_chat_template
    assert list(made.read_messages([{"role": "user", "content": question}]).ids) == encode_prompt(tokenizer, question)
    with pytest.raises(ApiError, match="one question at a time"):
        made.read_messages([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


@pytest.mark.parametrize("chat", [True, False])
def test_a_model_reads_a_message_in_the_prompt_that_it_was_trained_with(chat):
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, SCHEME)
    tokenizer.chat_template = TEMPLATE
    format = PromptFormat(chat_template=True) if chat else PromptFormat(template="Q: {question}\n")
    record_prompt_format(tokenizer, format)
    made = reader(tokenizer, context=200)
    turn = {"role": "user", "content": "Is the memory a step?"}
    expected = Prompter(tokenizer, format).prompt_ids(turn["content"])
    assert list(made.read_messages([turn]).ids) == expected
    several = [turn, {"role": "assistant", "content": "It is."}, turn]
    if not chat:
        with pytest.raises(ApiError, match="one question at a time"):
            made.read_messages(several)
        return
    rendered = tokenizer.apply_chat_template(several, add_generation_prompt=True, return_dict=False)
    assert list(made.read_messages(several).ids) == rendered + tokenizer.convert_tokens_to_ids(["<prefix>"])


def test_the_tokenizer_of_the_model_is_not_touched():
    """The decode loop uses it in another thread."""
    tokenizer = text_tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert PromptReader(tokenizer, 9).tokenizer is not tokenizer
    assert PromptReader(tokenizer, 9).tokenizer.backend_tokenizer is not tokenizer.backend_tokenizer


def test_no_prompt_that_fits_is_refused_for_its_characters():
    made = reader(context=4)
    tokenizer = made.tokenizer
    longest = max(tokenizer.get_vocab(), key=len)
    text = tokenizer.convert_tokens_to_string([longest] * 4)
    (prompt,) = made.read_prompts(text)
    assert len(prompt.ids) <= 4


@pytest.mark.parametrize("make", [text_tokenizer, byte_level, sentence_piece])
def test_texts_beyond_all_doubt_are_refused_without_being_read(make):
    made = reader(make())
    made._encode = None
    with pytest.raises(ApiError, match="characters, which are more than 50 tokens"):
        made.read_prompts("the " * 5000)


def with_part(name, part):
    tokenizer = byte_level()
    old = getattr(tokenizer.backend_tokenizer, name)
    kind = normalizers if name == "normalizer" else pre_tokenizers
    setattr(tokenizer.backend_tokenizer, name, part if old is None else kind.Sequence([part, old]))
    return tokenizer


def with_stripping_token():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (word_level(), "the" + " " * 1000 + "step"),
        (word_level(), "x" * 1000),
        (with_part("normalizer", normalizers.Strip()), " " * 1000 + "the"),
        (with_part("pre_tokenizer", pre_tokenizers.WhitespaceSplit()), "the" + " " * 1000 + "step"),
        (with_part("pre_tokenizer", pre_tokenizers.Split(" ", "removed")), "the" + " " * 1000 + "step"),
        (with_stripping_token(), " " * 1000 + "<mask>"),
    ],
    ids=["dropped spaces", "an unknown word", "a normalizer", "a pre-tokenizer", "a split", "a token that strips"],
)
def test_long_texts_of_few_tokens_are_read(tokenizer, text):
    (prompt,) = reader(tokenizer, context=8).read_prompts(text)
    assert list(prompt.ids) == tokenizer(text)["input_ids"]


def test_messages_that_a_template_shortens_are_read():
    template = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}"
    (made, message) = reader(template=template), {"role": "user", "content": "the" + " " * 5000}
    assert list(made.read_messages([message]).ids) == text_tokenizer()("the")["input_ids"]
