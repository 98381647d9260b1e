"""Types of answers: numbers against exact fractions, free texts, and what is not an answer of a type."""

import random
from decimal import Decimal
from fractions import Fraction

import pytest

from memreason_hf.data.questions.answer_types import (
    answer_key,
    answer_type_of,
    canonical_answer,
    guess_type,
    normalized_text,
    same_answer,
)
from memreason_hf.data.questions.numbers import is_number, number_key, read_number, same_number


def written(rng):
    """A number in a random spelling, and its value."""
    whole, sign = rng.randint(0, 10**9), rng.choice(["", "-", "+", "\u2212"])
    form = rng.randrange(5)
    if form == 0:
        text, value = f"{whole:,}", Fraction(whole)
    elif form == 1:
        digits = "".join(rng.choices("0123456789", k=rng.randint(1, 6)))
        text, value = f"{whole}.{digits}", Fraction(Decimal(f"{whole}.{digits}"))
    elif form == 2:
        below = rng.randint(1, 999)
        text, value = f"{whole}{rng.choice(['/', ' / '])}{below}", Fraction(whole, below)
    elif form == 3:
        above, below = rng.randint(0, 99), rng.randint(1, 99)
        text, value = f"{whole} {above}/{below}", whole + Fraction(above, below)
    else:
        power = rng.randint(-9, 9)
        text, value = f"{whole}e{power}", Fraction(whole) * Fraction(10) ** power
    value = -value if sign in ("-", "\u2212") else value
    return sign + rng.choice(["", "$", "€ "]) + text, value


def test_numbers_have_the_value_that_is_written():
    rng = random.Random()
    seen = []
    for _ in range(400):
        text, value = written(rng)
        number = read_number(text + rng.choice(["", ".", " km", "%", ", in all"]))
        assert number is not None, text
        assert same_number(number, str(value)), (text, number, value)
        assert not same_number(number, str(value + Fraction(1, 7))), text
        seen.append((number, value))
    for (one, first), (other, second) in zip(seen, rng.sample(seen, len(seen))):
        assert same_number(one, other) == (first == second) == (number_key(one) == number_key(other))


def test_equal_numbers_share_a_key_and_very_long_ones_are_not_rounded():
    for one, other in (("0.75", "3/4"), ("1200", "1200.0"), ("-0", "0"), ("1 1/2", "1.5"), ("5e3", "5000")):
        assert same_number(one, other) and number_key(one) == number_key(other)
    long = "1" * 3000
    pairs = ((long, f"{long}.0", True), (long, f"{long[:-1]}2", False), (f"{long}e2", f"{long}00", True))
    for one, other, same in pairs:
        assert same_number(one, other) == same == (number_key(one) == number_key(other))


@pytest.mark.parametrize("text", ["", "about 5", "3,14", "1,2,3", "5:30", "2^10", "1/2/2024", "3/0", "1.2.3", "1 1/0"])
def test_what_is_no_number(text):
    assert read_number(text) is None and not is_number(text)


def test_a_unit_may_follow_but_is_not_a_number_alone():
    assert read_number("12 apples") == "12" and not is_number("12 apples")
    assert is_number("50%") and is_number("$1,200.50") and is_number(" 3/4 ")


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("the Nile.", "Nile", True),
        ("The U.S. Navy", "US navy", True),
        ("“twenty-one”", "Twenty One", True),
        ("\uff30aris", "paris", True),
        ("  New \t York ", "new york", True),
        ("**Paris**", "Paris", True),
        ("1,984", "1984.0", True),
        ("1/2", "0.5", True),
        ("C++", "C", False),
        ("C#", "C", False),
        ("-5", "5", False),
        ("3.5", "35", False),
        ("50%", "50 cents", False),
        ("Nile river", "Nile", False),
        ("A", "The", False),
        ("?", "!", False),
        ("a", "A", True),
    ],
)
def test_free_texts(one, other, same):
    assert same_answer("text", one, other) == same == same_answer("text", other, one)
    assert (answer_key("text", one) == answer_key("text", other)) == same


def test_normalized_texts_stay_normalized():
    rng = random.Random()
    alphabet = "aA the.,-'“”*C+#%5 \t\u00df"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 12)))
        once = normalized_text(text)
        assert same_answer("text", text, text)
        assert "  " not in once and once == once.strip(), text


@pytest.mark.parametrize(
    "answer, guessed",
    [
        ("yes", "yes_no"),
        ("No", "yes_no"),
        ("TRUE", "true_false"),
        ("1,200", "number"),
        ("3/4", "number"),
        ("12 km", "text"),
        ("Paris", "text"),
        ("B", "text"),
        ("yes sir", "text"),
    ],
)
def test_guessing_a_type(answer, guessed):
    assert guess_type(answer) == guessed


def test_types_follow_from_options():
    assert answer_type_of({}) == "number"
    assert answer_type_of({"No": "", "Yes": ""}) == "yes_no"
    assert answer_type_of({"False": "", "True": ""}) == "true_false"
    assert answer_type_of({"A": "x", "B": "y"}) == "letters"
    with pytest.raises(ValueError, match="must have the labels True and False, Yes and No, or capital letters"):
        answer_type_of({"a": "x"})


@pytest.mark.parametrize(
    "answer_type, said, canonical",
    [
        ("letters", "(b)", "B"),
        ("letters", " B. ", "B"),
        ("true_false", "true", "True"),
        ("yes_no", "NO.", "No"),
        ("number", " 1,200 km ", "1,200 km"),
        ("text", "New\n York", "New York"),
    ],
)
def test_answers_in_their_own_spelling(answer_type, said, canonical):
    options = {"A": "x", "B": "y"} if answer_type == "letters" else {}
    assert canonical_answer(answer_type, said, options) == canonical


@pytest.mark.parametrize(
    "answer_type, said, message",
    [
        ("letters", "C", "answer='C' must be one of the options A, B"),
        ("true_false", "yes", "must be one of the options True, False"),
        ("yes_no", "maybe", "must be one of the options Yes, No"),
        ("number", "many", "answer='many' must be a number"),
        ("text", " \n", "answer is blank"),
        ("word", "x", "answer_type='word' must be one of letters"),
    ],
)
def test_answers_that_are_not_of_their_type(answer_type, said, message):
    options = {"A": "x", "B": "y"} if answer_type == "letters" else {}
    with pytest.raises(ValueError, match=message):
        canonical_answer(answer_type, said, options)
