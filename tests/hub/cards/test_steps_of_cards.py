"""What cards say about the steps of a model, for every kind of scheme."""

import pytest
from small_tokenizers import byte_level, llama

from memreason_hf.hub.cards import make_card
from memreason_hf.hub.cards.steps import describe_marks, describe_steps, read_saved_scheme, steps_limit
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


@pytest.mark.parametrize(
    ("scheme", "sentence", "marks", "limit"),
    [
        (StepScheme(2, 4), "a memory step recalls", "2 tokens for a prefix and 4 tokens for its", "a reason step"),
        (StepScheme(1, 1, kinds="search"), "its kind: `search`.", "1 token for a prefix and 1 token", "of its kind"),
        (StepScheme(2, 0), "do not show a kind", "before every step 2 tokens for a prefix", "a step is true"),
        (StepScheme(2, 4, layout="front"), "do not show a kind", "before the first step 2 tokens", "a step is true"),
        (StepScheme(1, 2, random_marks=True), "do not show a kind", "2 tokens of a random group", "a step is true"),
        (StepScheme(marks="words"), "a memory step recalls", None, "a reason step"),
        (StepScheme(marks="none", layout="answer_only"), "without writing steps", None, None),
    ],
    ids=str,
)
def test_by_scheme(scheme, sentence, marks, limit):
    assert read_saved_scheme({**scheme.to_dict(), "token_ids": [3]}) == scheme
    assert sentence in describe_steps(scheme)
    for text, expected in ((describe_marks(scheme), marks), (steps_limit(scheme), limit)):
        assert text is None if expected is None else expected in text


def test_values_that_are_no_scheme_say_nothing():
    assert read_saved_scheme({}) is None
    assert read_saved_scheme({"marks": "of a newer release"}) is None


def test_in_a_card(tmp_path):
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    extend_tokenizer(tokenizer, StepScheme(1, 2, kinds=("search", "compute")), model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = make_card(tmp_path).text
    assert "marked with its kind: `search`, `compute`." in text and "memory step" not in text
    assert "1 token for a prefix and 2 tokens for its kind" in text
