"""The baselines of the study as schemes: prefix tokens alone, and random tokens in place of meaningful ones."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from small_tokenizers import byte_level, llama, recurrent, with_random_rows

from memreason_hf.steps import Step, StepScheme, answer_step
from memreason_hf.steps.attention import set_step_attention
from memreason_hf.steps.depth import StepKinds
from memreason_hf.steps.tokenization import (
    decode_solution,
    encode_prompt,
    encode_solution,
    extend_tokenizer,
    read_scheme,
    step_token_ids,
)


STEPS = [Step("memory", "Air scatters."), Step("reason", "So it is blue."), answer_step("True")]
PREFIX_ONLY, RANDOM = StepScheme(2, 0), StepScheme(1, 2, random_marks=True)


def test_prefix_tokens_alone_to_the_letter():
    p = "<prefix_0><prefix_1>"
    assert PREFIX_ONLY.tokens == ("<prefix_0>", "<prefix_1>") and not PREFIX_ONLY.has_kinds
    text = PREFIX_ONLY.render(STEPS)
    assert text == f"{p} Air scatters.\n{p} So it is blue.\n{p} The answer is: True\n"
    solution = PREFIX_ONLY.parse(text)
    assert solution == [Step("step", step.text) for step in STEPS] and not solution.truncated
    spans, _ = PREFIX_ONLY.locate(text)
    assert all(text[span.start : span.mark_end] == p for span in spans)
    # The scheme of the study, for which such a group is incomplete, keeps it as text.
    assert StepScheme(2, 4).parse(text)[0] == Step("step", f"{p} Air scatters.")


@pytest.mark.parametrize(
    ("text", "steps", "truncated"),
    [
        ("<prefix_0><prefix_1> a\n<prefix_0>", ["a"], True),
        ("<prefix_0><prefix_1> a\n<prefix_0><pre", ["a"], True),
        ("<prefix_0>", [], True),
        ("<prefix_0><prefix_1>", [""], False),
        ("<prefix_0><prefix_1> a\n<prefix_0> b\n", ["a", "<prefix_0> b"], False),
        ("<prefix_0> <prefix_1> <prefix_2> a\n", ["a"], False),
        ("<prefix> a <prefix> b", ["a", "b"], False),
        ("a\n<prefix_0><prefix_1>b\n", ["a", "b"], False),
    ],
)
def test_reading_prefix_tokens_alone(text, steps, truncated):
    solution = PREFIX_ONLY.parse(text)
    assert ([step.text for step in solution], solution.truncated) == (steps, truncated)
    assert {step.kind for step in solution} <= {"step"}


def test_ids_of_prefix_tokens_alone():
    tokenizer = byte_level()
    model = recurrent(len(tokenizer))
    extend_tokenizer(tokenizer, PREFIX_ONLY, model)
    assert {name for name, ids in step_token_ids(tokenizer).items() if ids} == {"prefix"}
    ids = encode_prompt(tokenizer, "Is it?") + encode_solution(tokenizer, STEPS)[2:]
    assert read_scheme(tokenizer).parse(decode_solution(tokenizer, ids).split("\n", 1)[1])[1].text == "So it is blue."
    with pytest.raises(ValueError, match="has no tokens for kinds"):
        StepKinds(tokenizer)
    # A step begins at its prefix tokens, also for the attention between steps.
    set_step_attention(model, tokenizer, "own")
    model(torch.tensor([ids]))


def test_random_marks_say_nothing_about_kinds():
    rng = random.Random(0)
    texts = ["".join(rng.choices("abc xyz", k=12)) for _ in range(800)]
    marks = {kind: Counter(RANDOM.mark(kind, text) for text in texts) for kind in RANDOM.all_kinds}
    assert len({tuple(sorted(counts.items())) for counts in marks.values()}) == 1
    assert set(marks["memory"]) == {f"<prefix><random{i}_0><random{i}_1>" for i in (1, 2, 3, 4)}
    # Each about a quarter of the 800; five standard deviations are 61.
    assert all(abs(count - 200) < 61 for count in marks["memory"].values())


def test_random_marks_are_the_same_in_every_process_and_read_back():
    text = RANDOM.render(STEPS)
    assert text == RANDOM.render([Step("memory", step.text) for step in STEPS])
    assert [line.split(" ")[0] for line in text.splitlines()] == [
        f"<prefix><random{i}_0><random{i}_1>" for i in expected_groups(STEPS)
    ]
    assert RANDOM.parse(text) == [Step("step", step.text) for step in STEPS]
    for reader in (StepScheme(), StepScheme(0, 1)):
        assert {step.kind for step in reader.parse(text)} == {"step"}


def expected_groups(steps):
    """CRC-32 bit by bit, without zlib."""
    groups = []
    for step in steps:
        register = 0xFFFFFFFF
        for byte in step.text.encode():
            register ^= byte
            for _ in range(8):
                register = (register >> 1) ^ (0xEDB88320 if register & 1 else 0)
        groups.append((register ^ 0xFFFFFFFF) % 4 + 1)
    return groups


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_random_marks_are_random(tied):
    def rows():
        tokenizer = byte_level()
        model = with_random_rows(llama(len(tokenizer), tied=tied, hidden_size=256, intermediate_size=8))
        before = model.get_input_embeddings().weight.detach().clone()
        ids = extend_tokenizer(tokenizer, RANDOM, model)
        assert tokenizer.random1_token == "<random1_0>" and len(ids) == 9
        return before, model.get_input_embeddings().weight.detach()[ids], model.get_output_embeddings().weight[ids]

    before, new, head = rows()
    torch.testing.assert_close(rows()[1], new, rtol=0, atol=0)
    assert torch.equal(new, head) == tied
    # All differ, also the prefix from the row of its word, and have the spread of the old rows.
    assert len({tuple(row) for row in new.round(decimals=4).tolist()}) == 9
    deviations = (new - before.mean(0)) / before.std(0)
    assert 0.8 < float(deviations.std()) < 1.2 and np.abs(np.corrcoef(deviations.numpy()) - np.eye(9)).max() < 0.35
    tokenizer = byte_level()
    word = tokenizer(" prefix", add_special_tokens=False)["input_ids"]
    assert not torch.allclose(new[0], before[word].mean(0), atol=0.5)


def test_random_marks_have_no_depth_by_kind():
    tokenizer = byte_level()
    extend_tokenizer(tokenizer, RANDOM)
    with pytest.raises(ValueError, match="has no tokens for kinds"):
        StepKinds(tokenizer)
    assert not RANDOM.has_kind_tokens and RANDOM.kind_tokens("memory") == ()
