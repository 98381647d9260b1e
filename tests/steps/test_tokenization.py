"""Step tokens in tokenizers: ids, names, saving, plain text, decoding."""

import copy
import json
import random

import pytest
from small_tokenizers import TOKENIZERS, byte_level, sentence_piece, word_level
from transformers import AutoTokenizer

from memreason_hf.steps import KINDS, Step, StepScheme, answer_step
from memreason_hf.steps.tokenization import (
    check_tokens,
    decode_solution,
    encode_plain,
    encode_prompt,
    encode_solution,
    extend_tokenizer,
    read_scheme,
    step_token_ids,
)


SCHEMES = [StepScheme(2, 4), StepScheme(0, 1), StepScheme(3, 2, layout="plan_first"), StepScheme(2, 4, layout="front")]
WORDS = ["the", "memory", "reason", "answer", "step", "words", "first", "gives"]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def random_solution(rng):
    steps = [
        Step(rng.choice(KINDS), " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))) for _ in range(rng.randint(0, 5))
    ]
    return [*steps, answer_step(rng.choice(["True", "False"]))]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_each_token_is_one_new_id_in_the_order_of_the_scheme(tokenizer, scheme):
    before = len(tokenizer)
    ids = extend_tokenizer(tokenizer, scheme)
    assert ids == list(range(before, before + len(scheme.tokens))) == list(range(before, len(tokenizer)))
    assert tokenizer.convert_ids_to_tokens(ids) == list(scheme.tokens)
    for token, token_id in zip(scheme.tokens, ids):
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [token_id]
        assert token in tokenizer.all_special_tokens


def test_calling_twice_changes_nothing(tokenizer):
    ids = extend_tokenizer(tokenizer, StepScheme(2, 4))
    state = tokenizer._tokenizer.to_str(), len(tokenizer), tokenizer.all_special_tokens, dict(tokenizer.init_kwargs)
    assert extend_tokenizer(tokenizer, StepScheme(2, 4)) == ids
    again = tokenizer._tokenizer.to_str(), len(tokenizer), tokenizer.all_special_tokens, dict(tokenizer.init_kwargs)
    assert again == state
    assert len(set(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)) == len(tokenizer.SPECIAL_TOKENS_ATTRIBUTES)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_names_and_scheme_survive_two_round_trips(tokenizer, scheme, tmp_path):
    tokenizer.add_special_tokens({"extra_special_tokens": ["<other>"]})
    extend_tokenizer(tokenizer, scheme)
    for trip in ("first", "second"):
        tokenizer.save_pretrained(tmp_path / trip)
        loaded = AutoTokenizer.from_pretrained(tmp_path / trip)
        assert len(loaded) == len(tokenizer)
        assert read_scheme(loaded) == scheme
        assert loaded.get_vocab() == tokenizer.get_vocab()
        for kind in ("prefix", *KINDS):
            group = scheme.prefix_tokens if kind == "prefix" else scheme.kind_tokens(kind)
            if group:
                assert getattr(loaded, f"{kind}_token") == group[0]
                assert getattr(loaded, f"{kind}_token_id") == loaded.convert_tokens_to_ids(group[0])
        assert "<other>" in loaded.all_special_tokens
        state = loaded._tokenizer.to_str()
        extend_tokenizer(loaded, scheme)
        assert loaded._tokenizer.to_str() == state
        tokenizer = loaded


def test_names_of_the_plain_scheme(tokenizer):
    extend_tokenizer(tokenizer, StepScheme(0, 1))
    assert (tokenizer.memory_token, tokenizer.reason_token) == ("<memory>", "<reason>")
    assert tokenizer.memory_token_id == tokenizer.get_vocab()["<memory>"]
    copied = copy.deepcopy(tokenizer)
    assert copied.answer_token == "<answer>" and read_scheme(copied) == StepScheme(0, 1)


def test_a_scheme_without_tokens_adds_none(tokenizer):
    before = len(tokenizer)
    assert extend_tokenizer(tokenizer, StepScheme(marks="words")) == []
    assert len(tokenizer) == before and read_scheme(tokenizer) == StepScheme(marks="words")


def test_ids_by_group(tokenizer):
    ids = extend_tokenizer(tokenizer, StepScheme(2, 3))
    groups = step_token_ids(tokenizer)
    assert list(groups) == ["prefix", "memory", "reason", "answer", "step"]
    assert [id_ for group in groups.values() for id_ in group] == ids
    assert list(map(len, groups.values())) == [2, 3, 3, 3, 3]


def test_a_damaged_scheme_names_its_file():
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, StepScheme(2, 4))
    tokenizer.init_kwargs["step_scheme"] = {".um_step_tokens": 2}
    with pytest.raises(ValueError, match=r"tokenizer_config\.json of the tokenizer .*has no field \.um_step_tokens"):
        read_scheme(tokenizer)


def test_a_tokenizer_without_the_tokens_is_refused(tmp_path):
    tokenizer = byte_level()
    with pytest.raises(ValueError, match="has no scheme of steps"):
        read_scheme(tokenizer)
    extend_tokenizer(tokenizer, StepScheme(2, 4))
    with pytest.raises(ValueError, match=r"lacks 4 of the 14 tokens.*<memory_2>, <reason_2>"):
        check_tokens(byte_level_of(StepScheme(2, 2)), StepScheme(2, 3))
    # A config with the tokenizer.json of another tokenizer.
    tokenizer.save_pretrained(tmp_path)
    byte_level().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for key in [key for key in config if key.endswith("_token") and key.split("_")[0] in ("prefix", *KINDS)]:
        del config[key]
    config.pop("extra_special_tokens")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks 18 of the 18 tokens"):
        read_scheme(AutoTokenizer.from_pretrained(tmp_path))


def byte_level_of(scheme):
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, scheme)
    return tokenizer


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_solution_survives_encoding_and_decoding(tokenizer, scheme):
    extend_tokenizer(tokenizer, scheme)
    rng = random.Random(f"{scheme}")
    is_word_level = tokenizer.decode(encode_plain(tokenizer, "the\nreason")) == "the reason"
    for _ in range(40):
        steps = random_solution(rng)
        ids = encode_solution(tokenizer, steps)
        text = decode_solution(
            tokenizer, [tokenizer.pad_token_id, tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        )
        if scheme.layout == "front" and is_word_level:
            continue  # without newlines and marks the steps cannot be separated
        solution = scheme.parse(text)
        if is_word_level:
            # Its vocabulary does not join tokens: "is:" is split or unknown.
            assert [step.kind for step in solution] == [step.kind for step in scheme.arrange(steps)]
            continue
        assert solution == scheme.arrange(steps)
        assert not solution.truncated


def test_decoding_keeps_every_token_but_begin_end_and_padding(tokenizer):
    tokenizer.add_special_tokens({"extra_special_tokens": ["<other>"]})
    ids = extend_tokenizer(tokenizer, StepScheme(2, 4))
    other = tokenizer.convert_tokens_to_ids("<other>")
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    text = decode_solution(tokenizer, [pad, pad, begin, *ids, other, end, pad])
    assert text.replace(" ", "") == "".join(StepScheme(2, 4).tokens) + "<other>"


@pytest.mark.parametrize("scheme", [StepScheme(2, 4), StepScheme(0, 1), StepScheme(marks="words")], ids=str)
def test_a_prompt_ends_with_the_prefix_tokens_and_begins_as_the_training_text(tokenizer, scheme):
    extend_tokenizer(tokenizer, scheme)
    question, steps = "the first reason", [Step("reason", "the answer"), answer_step("True")]
    prompt = encode_prompt(tokenizer, question)
    assert prompt[len(prompt) - scheme.num_prefix_tokens * (scheme.marks == "tokens") :] == (
        tokenizer.convert_tokens_to_ids(list(scheme.prefix_tokens))
    )
    if scheme.marks == "tokens":
        training = encode_plain(tokenizer, scheme.question_text(question)) + encode_solution(tokenizer, steps)
        assert training[: len(prompt)] == prompt
        # The same ids as those of the whole text.
        whole = scheme.question_text(question) + scheme.render(steps)
        assert training == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_a_prompt_begins_where_the_tokenizer_begins():
    from tokenizers import processors

    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    extend_tokenizer(tokenizer, StepScheme(1, 1))
    prompt = encode_prompt(tokenizer, "the reason")
    assert prompt[0] == tokenizer.bos_token_id and prompt.count(0) == 1 and tokenizer.eos_token_id not in prompt


def test_demonstrations_come_before_the_question():
    tokenizer = byte_level()
    scheme = StepScheme(1, 2)
    extend_tokenizer(tokenizer, scheme)
    steps = [{"kind": "memory", "text": "the step"}, {"kind": "answer", "text": "The answer is: True"}]
    prompt = encode_prompt(tokenizer, "the reason?", demonstrations=[("the first?", steps), ("</s>?", steps)])
    text = tokenizer.decode(prompt)
    shown = scheme.render(steps) + "\n"
    assert text == f"Question: the first?\n{shown}Question: </s>?\n{shown}Question: the reason?\n<prefix>"
    assert tokenizer.eos_token_id not in prompt


QUESTIONS = ["</s>", "is <memory_0><memory_1> the reason?", "<pad> the <s>", "<prefix_0>", "the <answer_1> </s><pad>"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_special_strings_of_a_user_are_plain_text(tokenizer, question):
    ids = extend_tokenizer(tokenizer, StepScheme(2, 4))
    special = {*ids, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert special & set(tokenizer(question)["input_ids"])
    encoded = encode_plain(tokenizer, question)
    assert encoded and not special & set(encoded)
    prompt = encode_prompt(tokenizer, question)
    assert [id_ for id_ in prompt if id_ in special] == ids[:2]
    # Later texts are encoded as usual.
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_plain_text_is_read_back_to_the_letter(make):
    tokenizer = make()
    extend_tokenizer(tokenizer, StepScheme(2, 4))
    for question in QUESTIONS:
        assert tokenizer.decode(encode_plain(tokenizer, question)) == question


def test_special_strings_in_a_step_are_plain_text():
    for make in (byte_level, sentence_piece):
        tokenizer = make()
        extend_tokenizer(tokenizer, StepScheme(2, 4))
        ids = encode_solution(tokenizer, [Step("memory", "an </s> the end"), answer_step("A")])
        assert tokenizer.eos_token_id not in ids
        assert "".join(decode_solution(tokenizer, ids).split()).count("</s>theend") == 1


def test_a_word_level_tokenizer_without_unknown_token_says_what_it_cannot_read():
    tokenizer = word_level(unknown=False)
    extend_tokenizer(tokenizer, StepScheme(2, 4))
    with pytest.raises(ValueError, match="holds </s>, which this tokenizer can only read as a special token"):
        encode_plain(tokenizer, "the </s> reason")
    assert tokenizer.unk_token_id is None
