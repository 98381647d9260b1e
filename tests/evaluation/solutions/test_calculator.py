"""The calculator against Python's own arithmetic on random sums, and in `generate` on a model that miscalculates."""

import random
from fractions import Fraction

import pytest
import torch
from miscalculating import QUESTION, miscalculating_model
from small_tokenizers import byte_level, sentence_piece, word_level
from transformers import LogitsProcessorList

from memreason_hf.evaluation.solutions.calculator import Calculator, compute, find_sums, format_result
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.steps.tokenization import encode_prompt


def random_expression(rng, depth=0):
    """(text, the same as Python writes it with fractions)"""
    if depth == 4 or rng.random() < 0.3:
        number = rng.choice([str(rng.randint(0, 999)), f"{rng.randint(0, 99)}.{rng.randint(0, 99):02d}"])
        return number, f"Fraction('{number}')"
    if rng.random() < 0.15:
        text, code = random_expression(rng, depth + 1)
        return f"-({text})", f"-({code})"
    sign = rng.choice("+-*/")
    (first, first_code), (second, second_code) = random_expression(rng, depth + 1), random_expression(rng, depth + 1)
    if rng.random() < 0.5:
        return f"({first} {sign} {second})", f"({first_code} {sign} {second_code})"
    # Without brackets, so that precedence decides.
    return f"{first}{sign}{second}", f"{first_code}{sign}{second_code}"


def test_random_expressions_have_the_value_that_python_gives():
    rng = random.Random()
    checked = 0
    for _ in range(600):
        text, code = random_expression(rng)
        if len(text) > 200:
            continue
        try:
            expected = eval(code, {"Fraction": Fraction})
        except ZeroDivisionError:
            with pytest.raises(ValueError, match="divides by zero"):
                compute(text)
            continue
        try:
            assert compute(text) == expected
        except ValueError as error:
            assert "bits" in str(error)
            continue
        checked += 1
    assert checked > 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,200 * 2", 2400),
        ("$1,200.50+€.5", 1201),
        ("20% * 50", 10),
        ("100-5%", Fraction(9995, 100)),
        ("2**3**2", 512),
        ("-2^2", -4),
        ("2**-1", Fraction(1, 2)),
        ("6 \u00d7 7 \u00f7 2 \u2212 1", 20),
        ("--3 - +2", 1),
        ("((((1))))", 1),
        ("10-2-3", 5),
        ("100/10/5", 2),
    ],
)
def test_spellings(text, value):
    assert compute(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("3 apples * 4", "'apples * 4'"),
        ("__import__('os')", "is no number"),
        ("3*", "a number is missing before the end"),
        ("3 4", "4 follows a complete expression"),
        ("(3", "a bracket is not closed"),
        ("3)", "follows a complete expression"),
        ("1,20", "is no number"),
        ("1/0", "divides by zero"),
        ("0**-1", "divides by zero"),
        ("9**9**9", "the power not too large"),
        ("2**0.5", "must be a whole number"),
        ("(" * 60 + "1" + ")" * 60, "brackets or powers"),
        ("2" + "**1" * 60, "brackets or powers"),
        ("9" * 190, "more than 512 bits"),
        ("1+" * 120 + "1", "characters"),
        ("5 20% 3", "follows a complete expression"),
        ("0x10", "is no number"),
        ("1e5", "is no number"),
        ("٣+٤", "is no number"),
    ],
)
def test_what_is_no_arithmetic_is_refused(text, reason):
    with pytest.raises(ValueError) as refused:
        compute(text)
    assert reason in str(refused.value)


def test_results_are_rounded_as_decimals():
    rng = random.Random()
    for _ in range(200):
        value = Fraction(rng.randint(-(10**6), 10**6), rng.randint(1, 10**4))
        text = format_result(value, 3)
        assert abs(Fraction(text) - value) <= Fraction(1, 2000)
        assert not ("." in text and text.endswith("0")) and not text.endswith(".") and text not in ("-0", "")
    assert format_result(Fraction(5, 1000), 2) == "0.01" and format_result(Fraction(-1, 10**6)) == "0"
    assert format_result(Fraction(7, 2), 0) == "4" and format_result(Fraction(1000)) == "1000"


def test_sums_of_a_text():
    text = "a <<3*4=12>>12 b <<10/3=3.3>>, <<10/3=3.4>> <<10/3=3>> <<x=3>> <<1+1=two>> <<no sum>> <<1=1=1>> <<2+2="
    found = find_sums(text)
    assert [(each.expression, each.written, each.is_correct) for each in found] == [
        ("3*4", "12", True),
        ("10/3", "3.3", True),
        ("10/3", "3.4", False),
        ("10/3", "3", False),
        ("x", "3", False),
        ("1+1", "two", False),
    ]
    assert all(text[each.start : each.end] == f"<<{each.expression}={each.written}>>" for each in found)


MAKERS = {"byte_level": byte_level, "sentence_piece": sentence_piece}


@pytest.mark.parametrize("name", MAKERS)
def test_the_tokens_of_a_result_are_the_only_ones(name):
    """Token by token, in rows at different places of their sums; other rows keep their scores."""
    tokenizer = MAKERS[name]()
    calculator = Calculator(tokenizer)
    rng = random.Random()
    for _ in range(20):
        first, second = rng.randint(-999, 999), rng.randint(1, 99)
        expression = f"{first}{rng.choice('+-*/')}{second}"
        expected = f"{format_result(compute(expression))}>>"
        text = f"the <<1+1=2>>2 answer <<{expression}="
        rows = [tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, "the answer <<1+1=2>>2")]
        for _ in range(20):
            width = max(map(len, rows))
            ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
            scores = torch.randn(2, len(tokenizer))
            new = calculator(ids, scores.clone())
            assert torch.equal(new[1], scores[1])
            if tokenizer.decode(rows[0]).endswith(">>") and tokenizer.decode(rows[0]).count(">>") == 2:
                assert torch.equal(new, scores)
                break
            (allowed,) = new[0].isfinite().nonzero().flatten().tolist()
            rows[0].append(allowed)
        assert tokenizer.decode(rows[0]) == text + expected


def test_results_begun_by_the_model_are_finished_or_left_alone():
    tokenizer = byte_level()
    calculator = Calculator(tokenizer)

    def allowed(text):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        finite = calculator(ids, torch.zeros(1, len(tokenizer)))[0].isfinite().nonzero().flatten().tolist()
        return tokenizer.decode(finite) if len(finite) == 1 else None

    assert allowed("<<3*4=1") == "2" and allowed("<<3*4=12>") == ">" and allowed("<<3*4= 1") == "2"
    for text in ("<<3*4=5", "<<3*4=12>>", "<<3 apples=", "3*4=", "<<3*\n4=", "<<1/0=", "<<3*4=12>> <<", "", "<<x="):
        assert allowed(text) is None, text


def test_tokens_that_would_decide_the_result_are_not_written():
    tokenizer = byte_level()
    tokenizer.add_tokens(["=1", "=", "=="])
    calculator = Calculator(tokenizer)
    banned = tokenizer.convert_tokens_to_ids("=1")
    for text, expected in (("<<3*4", True), ("x = 3*4", False)):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        new = calculator(ids, torch.zeros(1, len(tokenizer)))
        assert (new[0] == -torch.inf).nonzero().flatten().tolist() == [banned] * expected


def test_a_vocabulary_of_words_is_refused():
    with pytest.raises(ValueError, match="a calculator cannot continue its sums"):
        Calculator(word_level())


@pytest.fixture(scope="module", params=["recurrent", "llama"])
def miscalculating(request):
    return miscalculating_model(request.param)


def test_generate_writes_the_right_results(miscalculating):
    """With the control: without the calculator the model writes what it has learned."""
    model, tokenizer = miscalculating
    calculator = LogitsProcessorList([Calculator(tokenizer)])
    rows = [
        {"question": QUESTION, "options": [], "answer": "5"},
        {"question": f"{QUESTION} a", "options": [], "answer": "5"},
    ]
    (plain, _), (worked, _) = (
        generate_solutions(model, tokenizer, rows, max_new_tokens=40, **arguments)
        for arguments in ({}, {"logits_processor": calculator})
    )
    assert [found.is_correct for found in find_sums(plain.text)] == [False]
    assert worked.steps[0].text == "<<12*3=36>>"
    assert [found.is_correct for found in find_sums(worked.text)] == [True]


@pytest.mark.parametrize("arguments", [{"num_beams": 3}, {"do_sample": True, "top_k": 5}], ids=str)
def test_beams_and_samples(miscalculating, arguments):
    model, tokenizer = miscalculating
    ids = torch.tensor([encode_prompt(tokenizer, QUESTION)])
    calculator = LogitsProcessorList([Calculator(tokenizer)])
    output = model.generate(ids, max_new_tokens=30, logits_processor=calculator, num_return_sequences=3, **arguments)
    sums = [found for row in output for found in find_sums(tokenizer.decode(row)) if found.value is not None]
    assert sums and all(found.is_correct for found in sums)


@pytest.mark.parametrize("miscalculating", ["recurrent"], indirect=True)
def test_drafts_of_self_speculation_are_worked_out_too(miscalculating):
    model, tokenizer = miscalculating
    ids = torch.tensor([encode_prompt(tokenizer, QUESTION)])
    arguments = {"max_new_tokens": 30, "do_sample": False, "num_recurrences": 3}
    calculator = LogitsProcessorList([Calculator(tokenizer)])
    expected = model.generate(ids, logits_processor=calculator, **arguments)
    assert any(found.is_correct for found in find_sums(tokenizer.decode(expected[0])))
    assert torch.equal(model.generate(ids, logits_processor=calculator, draft_recurrences=1, **arguments), expected)
