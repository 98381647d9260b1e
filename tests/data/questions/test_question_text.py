import random
import re
import time

import pytest

from memreason_hf.data.questions.text import check_characters, last_visible, one_line


def test_a_text_on_one_line():
    assert one_line("  It is  heavy. \n\n  So it sinks.\t") == "It is  heavy. So it sinks."
    assert one_line("\n \n") == one_line("") == ""
    assert one_line("a\u3000\n\u2003b\rc") == "a b\rc"


def test_random_texts_on_one_line_agree_with_a_substitution():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices("ab \n\t\r\x0b\x1c\u3000", k=rng.randint(0, 12)))
        assert one_line(text) == re.sub(r"\s*\n\s*", " ", text.strip())


@pytest.mark.parametrize("text", ["a" + " " * 40_000 + "b", "a" + " \n" * 40_000 + "b", ("a" + " " * 999) * 100])
def test_blanks_take_no_longer_than_their_text(text):
    started = time.process_time()
    one_line(text)
    assert time.process_time() - started < 0.5


def test_the_last_visible_character():
    text = " a b \u3000 c"
    expected = [max((i for i in range(end) if not text[i].isspace()), default=-1) for end in range(len(text) + 1)]
    assert [last_visible(text, end) for end in range(len(text) + 1)] == expected


def test_half_of_a_character_is_refused():
    check_characters("日本 \U0001f600")
    check_characters(3)
    with pytest.raises(ValueError, match=r"half of a character"):
        check_characters("a \ud83d b")
