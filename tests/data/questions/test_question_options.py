import random
import re
import time

import pytest

from memreason_hf.data.questions.options import find_options, options_by_label, options_column


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Is it? A. Yes. B. No.", {"A": "Yes.", "B": "No."}),
        ("What? Options: A.bank B.new york C.mall ", {"A": "bank", "B": "new york", "C": "mall"}),
        ("Off the U.S. coast? Options: A.bed B.pool", {"A": "bed", "B": "pool"}),
        ("In the U.S., is it? A. Yes, in the U.S. B. No.", {"A": "Yes, in the U.S.", "B": "No."}),
        (
            'Is it? A. Yes, A. A. Milne wrote it. B. No. C. Yes, "x"',
            {"A": "Yes, A. A. Milne wrote it.", "B": "No.", "C": 'Yes, "x"'},
        ),
        ("Who? A. George W. Bush. B. Franklin D. Roosevelt.", {"A": "George W. Bush.", "B": "Franklin D. Roosevelt."}),
        ("Who wrote A. Milne's life? A. He. B. She.", {"A": "He.", "B": "She."}),
        (
            "Who? A. Lincoln. B. He. C. Franklin D. Roosevelt.",
            {"A": "Lincoln.", "B": "He.", "C": "Franklin D. Roosevelt."},
        ),
        ("Who? A. Donald B. Trump. B. E.T. is.", {"A": "Donald B. Trump.", "B": "E.T. is."}),
        # no full stops between the options
        ("Who A. he B. she C. nobody", {"A": "he", "B": "she", "C": "nobody"}),
        # labels out of order, a single one, none
        ("Who? B. he C. she", {}),
        ("Who is A. Milne?", {}),
        ("Is it?", {}),
        ("", {}),
    ],
)
def test_reading(question, options):
    assert find_options(question) == options


def test_generated_questions():
    rng = random.Random(1)
    words = ["the", "U.S.", "J. K. Rowling", "A. A. Milne", "vitamin C", "Franklin D. R", "7", "George W. Bush"]
    for _ in range(300):
        # No J, because after "the U.S." the option J looks like J. K. Rowling.
        texts = [" ".join(["It is", *rng.choices(words, k=3), "end."]) for _ in range(rng.randint(2, 8))]
        labels = [chr(ord("A") + i) for i in range(len(texts))]
        stem = " ".join(["What is", *rng.choices(words[:2], k=2)]) + "?"
        listed = " ".join(f"{label}. {text}" for label, text in zip(labels, texts))
        assert find_options(f"{stem} {listed}") == dict(zip(labels, texts))


def test_columns():
    options = {"A": "bank", "B": "mall"}
    assert options_column(options) == [{"label": "A", "text": "bank"}, {"label": "B", "text": "mall"}]
    assert options_by_label(options_column(options)) == options


# The rule for what ends a sentence, as an expression over all the text before a label.
SENTENCE_END = re.compile("(?<!\\s[A-Z])[.?!:;\u2026\"'\u201d\u2019)\\]]\\s*\\Z")


def by_expression(question):
    """`find_options` for questions without `Options:`, in quadratic time."""
    found = list(re.finditer(r"(?<!\S)([A-Z])\.\s*", question))

    def consecutive(matches):
        labels = []
        for match in matches:
            if match[1] == chr(ord("A") + len(labels)):
                labels.append(match)
        return labels

    labels = consecutive([match for match in found if SENTENCE_END.search(question[: match.start()])])
    labels = labels if len(labels) >= 2 else consecutive(found)
    ends = [*(match.start() for match in labels[1:]), len(question)]
    pairs = {match[1]: question[match.end() : end].strip() for match, end in zip(labels, ends)}
    return pairs if len(labels) >= 2 else {}


def test_random_texts_are_read_by_the_rule():
    rng = random.Random(4)
    pieces = ["A.", "B.", " ", "  ", "\n", "J.", ".", "?", "\u201d", ")", "x", " D. ", "U.S.", "\u3000", "]"]
    pieces += 3 * [" A. ", " B. x.", " C. "]
    lengths = set()
    for _ in range(4000):
        question = "".join(rng.choices(pieces, k=rng.randint(0, 14)))
        options = find_options(question)
        assert options == by_expression(question), question
        lengths.add(len(options))
    assert lengths >= {0, 2, 3}


@pytest.mark.parametrize("text", ["A. ", "x. A. ", "A.      ", "Options: A. "])
def test_many_labels_take_no_longer_than_their_text(text):
    started = time.process_time()
    find_options(text * 16_000)
    assert time.process_time() - started < 1.0
