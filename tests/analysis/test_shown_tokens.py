"""Words and crops of a text, against white space and sums by hand."""

import itertools
import random

import numpy as np
import pytest
import torch
from small_tokenizers import TOKENIZERS, byte_level, llama

from memreason_hf.analysis.attention_maps import AttentionMap, read_attention
from memreason_hf.analysis.shown_tokens import choose_spans, show_tokens
from memreason_hf.analysis.solution_tokens import encode_solution_tokens
from memreason_hf.analysis.words import find_words
from memreason_hf.steps import Step, StepScheme, answer_step
from memreason_hf.steps.tokenization import extend_tokenizer


SCHEME = StepScheme(1, 2)
QUESTION = "Is the unbelievable reason a step, or not?"
STEPS = [
    Step("memory", "An unable memory: cat's $5 é🜁x."),
    Step("reason", "so  the  first step"),
    Step("memory", "again"),
    answer_step("True"),
]


def encoded(make=byte_level, question=QUESTION, steps=STEPS):
    tokenizer = make()
    extend_tokenizer(tokenizer, SCHEME)
    text = SCHEME.question_text(question) + SCHEME.render(steps)
    return encode_solution_tokens(tokenizer, text, question=question), tokenizer


def words_of(steps, question):
    """Marks token by token, everything else by white space; each line ends with a sign."""
    words = [*f"Question: {question}".split(), "⏎"]
    for step in steps:
        words += [*SCHEME.prefix_tokens, *SCHEME.kind_tokens(step.kind), *step.text.split(), "⏎"]
    return words


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_word_is_cut_into_pieces(name):
    solution, _ = encoded(TOKENIZERS[name])
    expected = words_of(STEPS, QUESTION)
    if name == "word_level":
        # It has no line breaks.
        expected = [word for word in expected if word != "⏎"]
    else:
        # The control: as tokens the words are in pieces.
        assert "unbelievable" not in solution.labels and len(solution) > 1.3 * len(expected)
    assert list(solution.word_labels) == expected
    assert list(show_tokens(solution).solution.labels) == expected


def test_random_words():
    rng = random.Random()
    letters = "abcé🜁ß'-.,$"
    steps = [
        Step(
            rng.choice(["memory", "reason"]),
            " ".join("".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(9)),
        )
        for _ in range(20)
    ]
    solution, _ = encoded(steps=steps, question="".join(rng.choices(letters, k=5)))
    assert list(solution.word_labels) == words_of(steps, solution.spans[0].text)


def test_writings_without_spaces_are_cut_at_characters():
    assert [word for _, word in find_words("漢字 ok", [(0, 1), (1, 2), (2, 5)], "abc", [False] * 3)] == [
        "漢",
        "字",
        "ok",
    ]
    # Two tokens of one character, then one without a place in the text.
    words = find_words("式x", [(0, 1), (0, 1), (1, 2), (2, 2)], "abcd", [False] * 4, first=7)
    assert words == [(7, "式"), (9, "x"), (10, "d")]


def by_hand(weights, groups):
    return [[np.mean([sum(weights[i, j] for j in b) for i in a]) for b in groups] for a in groups]


def test_attention_of_words_and_crops():
    solution, tokenizer = encoded()
    torch.manual_seed(0)
    model = llama(len(tokenizer), max_position_embeddings=256)
    (whole,) = read_attention(model, solution.ids).select()
    shown = show_tokens(solution)
    starts = [*solution.word_starts, len(solution)]
    groups = [range(*pair) for pair in itertools.pairwise(starts)]
    expected = np.array(by_hand(whole.weights, groups))
    reduced = shown.reduce(whole)
    np.testing.assert_allclose(reduced.weights, expected, atol=1e-6)
    np.testing.assert_allclose(reduced.weights.sum(-1), 1, atol=1e-5)
    assert np.triu(reduced.weights, 1).max() == 0 and reduced.recurrence is whole.recurrence

    for unit in ("word", "token"):
        full = show_tokens(solution, unit=unit)
        part = show_tokens(solution, unit=unit, steps="2-3,question")
        kept = [i for i, span in enumerate(spans_of(full)) if span in (0, 2, 3)]
        np.testing.assert_array_equal(part.reduce(whole).weights, full.reduce(whole).weights[np.ix_(kept, kept)])
        assert part.solution.labels == tuple(full.solution.labels[i] for i in kept)
        assert part.solution.is_mark == tuple(full.solution.is_mark[i] for i in kept)
        assert part.solution.kinds(True) == [full.solution.kinds(True)[i] for i in kept]
        assert [(span.kind, span.number) for span in part.solution.spans] == [
            ("question", None),
            ("reason", 2),
            ("memory", 3),
        ]
        assert part.text_length == full.text_length == len(full.solution)
    tokens = show_tokens(solution, unit="token")
    np.testing.assert_array_equal(tokens.reduce(whole).weights, whole.weights)
    assert (tokens.solution.labels, tokens.solution.spans) == (solution.labels, solution.spans)
    # Several maps at once.
    maps = np.stack([whole.weights, whole.weights.T])
    np.testing.assert_allclose(shown.weights(maps)[0], reduced.weights, atol=1e-6)


def spans_of(shown):
    return [index for index, span in enumerate(shown.solution.spans) for _ in range(span.start, span.end)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("1", [1]),
        ("2-3", [2, 3]),
        (" 4 , 1 ", [1, 4]),
        ("memory", [1, 3]),
        ("answer,question", [0, 4]),
        ("1-2,memory,2", [1, 2, 3]),
    ],
)
def test_choices_of_steps(steps, expected):
    assert choose_spans(encoded()[0], steps) == expected


@pytest.mark.parametrize("steps", ["5", "0", "3-5", "3-2", "plan", "begin", "recall", "", "1,,2", "1-", "-1", "٣"])
def test_steps_that_the_text_does_not_have(steps):
    with pytest.raises(ValueError, match="It has the steps 1 to 4 and the kinds question, memory, reason, answer"):
        choose_spans(encoded()[0], steps)


def test_plans_have_the_numbers_of_their_steps_and_are_chosen_by_name():
    scheme = StepScheme(1, 1, layout="plan_first")
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, scheme)
    solution = encode_solution_tokens(tokenizer, scheme.question_text("Is it?") + scheme.render(STEPS[2:]))
    assert [span.kind for span in solution.spans] == ["question", "plan", "plan", "memory", "answer"]
    assert choose_spans(solution, "plan") == [1, 2] and choose_spans(solution, "1,2") == [3, 4]


def test_bad_units():
    solution, _ = encoded()
    with pytest.raises(ValueError, match="unit='letter'"):
        show_tokens(solution, unit="letter")
    without = type(solution)(solution.ids, solution.labels, solution.spans, solution.is_mark)
    with pytest.raises(ValueError, match="the words of this text are not known"):
        show_tokens(without)
    assert len(show_tokens(without, unit="token").solution) == len(solution)
    assert show_tokens(solution).reduce(AttentionMap(2, np.eye(len(solution)))).recurrence == 2
