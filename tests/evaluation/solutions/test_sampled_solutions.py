"""Drawn solutions: the distribution of draws, that a text depends on nothing but its own numbers, stops, and votes."""

import itertools
import json
import random
from collections import Counter

import pytest
import torch
from small_tokenizers import byte_level, llama, recurrent
from transformers import LogitsProcessor

from memreason_hf.data.questions.prompts import Prompter, PromptFormat
from memreason_hf.evaluation.solutions.generation import GeneratedSolution, generate_solutions
from memreason_hf.evaluation.solutions.generation_files import read_generations
from memreason_hf.evaluation.solutions.generation_sampling import Sampling, end_of_answer
from memreason_hf.evaluation.solutions.votes import majority, measure_votes, pass_at
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer


OPTIONS = [{"label": "True", "text": "True"}, {"label": "False", "text": "False"}]
ROWS = [
    {"question": question, "options": OPTIONS, "answer": answer}
    for question, answer in [
        ("Is the memory a step?", "True"),
        ("Words?", "False"),
        ("Is a reason the answer?", "True"),
    ]
]


@pytest.fixture(scope="module", params=[llama, recurrent])
def extended(request):
    tokenizer = byte_level()
    torch.manual_seed(3)
    model = request.param(len(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    extend_tokenizer(tokenizer, StepScheme(1, 1), model)
    return model, tokenizer


def draw(extended, count=3, **arguments):
    values = {"sampling": Sampling(count, seed=arguments.pop("seed", 1)), "max_new_tokens": 8, **arguments}
    return generate_solutions(*extended, arguments.pop("rows", ROWS), **values)


def test_draws_have_the_probabilities_of_the_model():
    logits = torch.randn(1, 9) * 2
    logits[0, 4] = float("-inf")
    for settings, expected in (
        ({}, logits.softmax(-1)),
        ({"temperature": 0.5}, (logits / 0.5).softmax(-1)),
        ({"top_k": 2}, logits.masked_fill(logits < logits.topk(2).values[0, -1], float("-inf")).softmax(-1)),
    ):
        count = 4000
        processors = Sampling(count, **settings).processors([(random.random(), index) for index in range(count)])
        scores = processors(torch.zeros(count, 1, dtype=torch.long), logits.repeat(count, 1))
        assert (scores > float("-inf")).sum(-1).eq(1).all()
        shares = torch.bincount(scores.argmax(-1), minlength=9) / count
        # Five standard deviations of a share.
        limit = 5 * (expected[0] * (1 - expected[0]) / count).sqrt()
        assert ((shares - expected[0]).abs() <= limit).all()
        assert shares[expected[0] == 0].sum() == 0


def test_the_nucleus_is_that_of_the_library():
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
    processors = Sampling(400, top_p=0.7).processors(list(range(400)))
    drawn = processors(torch.zeros(400, 1, dtype=torch.long), logits.repeat(400, 1)).argmax(-1)
    assert set(drawn.tolist()) == {0, 1}


def test_a_sample_depends_on_its_item_and_number_alone(extended):
    whole = draw(extended)
    assert [(one.index, one.sample) for one in whole] == list(itertools.product(range(3), range(3)))
    assert len({one.text for one in whole}) > 6
    for batch_size in (1, 2):
        assert draw(extended, batch_size=batch_size) == whole
    assert draw(extended, 2) == [one for one in whole if one.sample < 2]
    assert draw(extended, seed=2) != whole
    # The state of torch does not matter, and is not changed.
    torch.manual_seed(8)
    state = torch.get_rng_state()
    assert draw(extended) == whole and torch.equal(torch.get_rng_state(), state)
    greedy = generate_solutions(*extended, ROWS, max_new_tokens=8)
    assert [one.sample for one in greedy] == [None] * 3
    is_recurrent = hasattr(extended[0].config, "num_recurrences")
    assert all((one.recurrences is not None) == is_recurrent for one in whole)


def test_a_stopped_run_goes_on_with_the_same_draws(extended, tmp_path):
    path = tmp_path / "texts.jsonl"
    whole = draw(extended, path=str(path), batch_size=2)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 9 and {json.loads(line)["sample"] for line in lines} == {0, 1, 2}
    kept = random.sample(range(9), 4)
    path.write_text("".join(lines[index] for index in kept))
    assert draw(extended, path=str(path), batch_size=3) == whole
    assert path.read_text().splitlines(keepends=True)[:4] == [lines[index] for index in kept]
    first, third = read_generations(path), read_generations(path, sample=2)
    assert {index: line["text"] for index, line in first.items()} == {o.index: o.text for o in whole if o.sample == 0}
    assert third[1]["text"] == next(one.text for one in whole if (one.index, one.sample) == (1, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 must be at least 1"),
        ({"temperature": 0}, "temperature=0 must be above 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 1.5}, "top_p=1.5 must be at most 1"),
    ],
)
def test_impossible_sampling_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


def test_nothing_else_may_choose_tokens(extended):
    for name, value in (("do_sample", True), ("num_beams", 2), ("draft_recurrences", 1)):
        with pytest.raises(ValueError, match=f"{name}={value} cannot be combined with sampling"):
            draw(extended, **{name: value})


class Dictated(LogitsProcessor):
    """Makes every row write a text, token by token, and then another one for ever."""

    def __init__(self, tokenizer, texts, width, then="\nQuestion: again?\nThe answer is: True\n"):
        self.rows = [tokenizer(text + then * 9, add_special_tokens=False)["input_ids"] for text in texts]
        self.width = width

    def __call__(self, input_ids, scores):
        scores = torch.full_like(scores, float("-inf"))
        for row, ids in enumerate(self.rows):
            scores[row, ids[input_ids.shape[1] - self.width]] = 0
        return scores


TEXTS = [
    ("It floats.\nThe answer is: False\n", "It floats.\nThe answer is: False\n", "False", False),
    ("It floats, I think", "It floats, I think\n", None, False),
    ("The answer is:\nThe answer is: True, so\n", "The answer is:\nThe answer is: True, so\n", "True", False),
]


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("stops", [True, False])
def test_a_text_stops_after_its_answer(row, stops):
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    prompter = Prompter(tokenizer, PromptFormat(style="chain_of_thought", instruction=""), lambda _: SHOWN)
    width = len(prompter.prompt_ids(ROWS[row]["question"]))
    written, expected, answer, is_cut = TEXTS[row]
    (solution,) = generate_solutions(
        model,
        tokenizer,
        [ROWS[row]],
        prompter=prompter,
        max_new_tokens=200,
        stop_at_answer=stops,
        logits_processor=[Dictated(tokenizer, [written], width)],
    )
    if not stops:
        # The control: the model goes on with questions and answers of its own.
        assert solution.num_tokens == 200 and solution.is_cut and "Question: again?" in solution.text
        return
    assert solution.text == f"Question: {ROWS[row]['question']}\n{expected}"
    assert (solution.answer, solution.is_cut) == (answer, is_cut) and solution.num_tokens < 60


SHOWN = [("Is it?", [{"kind": "memory", "text": "it is"}, {"kind": "answer", "text": "The answer is: True"}])]


def test_rows_of_a_batch_stop_apart():
    """The texts and counts of a batch are those of its rows alone, although the others go on."""
    tokenizer = byte_level()
    model = llama(len(tokenizer))
    question = ROWS[0]["question"]
    rows = [{**ROWS[0], "question": question} for _ in TEXTS]
    prompter = Prompter(tokenizer, PromptFormat(style="chain_of_thought", instruction=""), lambda _: SHOWN)
    width = len(prompter.prompt_ids(question))
    arguments = {"prompter": prompter, "max_new_tokens": 90, "stop_at_answer": True}
    texts = [text for text, *_ in TEXTS]
    together = generate_solutions(
        model, tokenizer, rows, logits_processor=[Dictated(tokenizer, texts, width)], **arguments
    )
    for row, solution in enumerate(together):
        (alone,) = generate_solutions(
            model, tokenizer, rows[:1], logits_processor=[Dictated(tokenizer, [texts[row]], width)], **arguments
        )
        assert (alone.text, alone.num_tokens, alone.answer) == (solution.text, solution.num_tokens, solution.answer)
    assert len({one.num_tokens for one in together}) > 1


def test_the_answer_alone_is_what_follows_its_beginning():
    tokenizer = byte_level()
    prompter = Prompter(tokenizer, PromptFormat(style="direct"))
    width = len(prompter.prompt_ids(ROWS[1]["question"]))
    (solution,) = generate_solutions(
        llama(len(tokenizer)),
        tokenizer,
        [ROWS[1]],
        prompter=prompter,
        max_new_tokens=60,
        stop_at_answer=True,
        logits_processor=[Dictated(tokenizer, [" False\n"], width)],
    )
    assert solution.text == "Question: Words?\nThe answer is: False\n" and solution.is_correct
    assert solution.num_tokens == len(tokenizer(" False\n", add_special_tokens=False)["input_ids"])


def test_the_end_of_an_answer():
    assert end_of_answer("The answer is: ") is None and end_of_answer("The answer is: A") is None
    assert end_of_answer("the ANSWER is : A\nmore") == len("the ANSWER is : A\n")
    assert end_of_answer("The answer is:\nA\n") is None
    text = "no\n### Next"
    assert end_of_answer(text, ["\n### Next", "\nQ:"]) == 3


def solution(answer, is_correct=False, index=0, sample=0):
    verdict = "correct" if is_correct else "wrong"
    return GeneratedSolution(index, "Q?", "", [], verdict, answer, "r", False, False, 1, sample=sample)


def test_the_majority_decides():
    def winner(*answers):
        return majority([solution(answer, sample=index) for index, answer in enumerate(answers)])

    assert winner("A", "B", "B").answer == "B" and winner("A", "B", "B").sample == 1
    assert winner(None, None, None, "C").answer == "C"
    assert winner("B", "A", "A", "B").answer == "B"
    assert winner("7", "1200", "1200.0").sample == 1
    assert winner("x", "New York", "new  york").sample == 1
    assert winner("nan", "2", "2").answer == "2"
    assert winner(None, None).answer is None
    with pytest.raises(ValueError, match="no solutions to vote"):
        majority([])


def test_pass_at_k_is_the_share_of_choices_with_a_right_one():
    for _ in range(20):
        n = random.randint(1, 7)
        right = [random.random() < 0.4 for _ in range(n)]
        for k in range(1, n + 1):
            choices = list(itertools.combinations(right, k))
            assert pass_at(n, sum(right), k) == pytest.approx(sum(map(any, choices)) / len(choices))
    with pytest.raises(ValueError, match="k=3 must be at most 2"):
        pass_at(2, 1, 3)


def test_votes_over_items():
    drawn = {(i, s): random.choice("ABC") for i in range(5) for s in range(6)}
    solutions = [solution(a, a == "B", i, s) for (i, s), a in random.sample(list(drawn.items()), len(drawn))]
    results = measure_votes(solutions)
    assert results["num_samples"] == 6 and list(results["pass_at"]) == ["1", "2", "4", "6"]
    answers = [[drawn[i, s] for s in range(6)] for i in range(5)]
    assert results["pass_at"]["1"] == pytest.approx(sum(a.count("B") for a in answers) / 30)
    assert results["pass_at"]["6"] == pytest.approx(sum("B" in a for a in answers) / 5)
    firsts = [max(Counter(a).items(), key=lambda entry: (entry[1], -a.index(entry[0])))[0] for a in answers]
    assert results["majority_accuracy"] == pytest.approx(sum(first == "B" for first in firsts) / 5)
