"""Rewards of solutions, against faults that are put into them one by one."""

import pickle
import random

import pytest
import torch
from small_tokenizers import byte_level, sentence_piece, word_level
from tokenizers import processors

from memreason_hf.data.questions.prompts import Prompter, PromptFormat, record_prompt_format
from memreason_hf.steps import Step, StepScheme, answer_step
from memreason_hf.steps.tokenization import decode_solution, encode_prompt, encode_solution, extend_tokenizer
from memreason_hf.training.solutions.rewards import FAULTS, AnswerReward, StepReward, prompt_rows, step_faults


SCHEME = StepScheme(2, 3)
GOOD = [Step("memory", "the memory"), Step("reason", "a reason"), answer_step("True")]
TRUE_FALSE = [{"label": "True", "text": "True"}, {"label": "False", "text": "False"}]
LETTERS = [{"label": label, "text": f"the {label}"} for label in "ABC"]


def extended(scheme=SCHEME, make=byte_level, **switch):
    tokenizer = make()
    extend_tokenizer(tokenizer, scheme, **switch)
    return tokenizer


def marked(kind, text):
    return f"{SCHEME.mark(kind)} {text}\n"


# Each text has one fault; the name says which.
FAULTY = {
    "cut off": SCHEME.render(GOOD) + "<prefix_0><prefix_1><reason_0>",
    "unmarked step": "a line without a mark\n" + SCHEME.render(GOOD),
    "empty step": marked("memory", "") + SCHEME.render(GOOD),
    "missing kind": SCHEME.render([GOOD[1], GOOD[2]]),
    "no single answer at the end": SCHEME.render(GOOD[:2]),
}


def test_well_formed_steps_have_no_fault():
    assert step_faults(SCHEME.parse(SCHEME.render(GOOD))) == []
    rng = random.Random()
    for _ in range(50):
        steps = [Step(rng.choice(["memory", "reason"]), "the step") for _ in range(rng.randint(0, 6))]
        kinds = {step.kind for step in steps}
        expected = [] if len(kinds) == 2 else ["missing kind"]
        assert step_faults(SCHEME.parse(SCHEME.render([*steps, GOOD[-1]]))) == expected


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_alone(fault):
    assert step_faults(SCHEME.parse(FAULTY[fault])) == [fault]


def test_other_answers_that_are_no_end():
    for steps in (
        [*GOOD, GOOD[-1]],
        [GOOD[-1], *GOOD[:2]],
        [*GOOD[:2], Step("answer", "True")],
        [*GOOD, Step("reason", "one more")],
    ):
        assert step_faults(SCHEME.parse(SCHEME.render(steps))) == ["no single answer at the end"]
    assert len(step_faults(SCHEME.parse(""))) == 2


def test_rewards_of_steps():
    tokenizer = extended()
    texts = [SCHEME.render(GOOD), *FAULTY.values()]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    graded = StepReward(tokenizer)(completions=[""] * 6, completion_ids=ids)
    assert graded == pytest.approx([1.0, *[0.8] * 5])
    assert StepReward(tokenizer, graded=False)(completion_ids=ids) == [1.0, *[0.0] * 5]
    # The kind that is missing is not required.
    assert StepReward(tokenizer, required=("reason",))(completion_ids=ids)[4] == 1.0


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_completions_as_trl_passes_them(make):
    """Without the prefix tokens of the prompt, with the end of the text and what follows it, and without marks."""
    tokenizer = extended(make=make)
    written = encode_solution(tokenizer, GOOD)[SCHEME.num_prefix_tokens :]
    ids = [[*written, tokenizer.eos_token_id, written[3]], written]
    text = tokenizer.decode(written, skip_special_tokens=True)
    assert "<memory_0>" not in text and "<memory_0>" in decode_solution(tokenizer, written)
    arguments = {
        "completions": [text] * 2,
        "completion_ids": ids,
        "prompts": [SCHEME.prompt("Is it?")] * 2,
        "trainer_state": None,
    }
    assert StepReward(tokenizer)(**arguments) == [1.0, 1.0]
    columns = {"answer": ["True", "False"], "options": [TRUE_FALSE] * 2, "question": ["Is it?"] * 2}
    assert AnswerReward(tokenizer)(**arguments, **columns) == [1.0, 0.0]


def test_texts_instead_of_ids():
    """Only where the tokenizer keeps the marks; a conversation counts by its last message."""
    visible, hidden = extended(visible_marks=True), extended()
    text = SCHEME.render(GOOD)
    assert StepReward(visible)(completions=[text]) == [1.0]
    assert StepReward(visible)(completions=[[{"role": "assistant", "content": text}]]) == [1.0]
    with pytest.raises(ValueError, match="completion_ids is not given, and this tokenizer removes step tokens"):
        StepReward(hidden)(completions=[text])
    words = extended(StepScheme(marks="words"))
    assert StepReward(words)(completions=[StepScheme(marks="words").render(GOOD)]) == [1.0]


def test_rewards_of_answers():
    tokenizer = extended()
    cases = [
        ("True", "True", TRUE_FALSE, 2.0),
        ("false", "True", TRUE_FALSE, -1.0),
        ("maybe", "True", TRUE_FALSE, -0.5),
        ("B) the B", "B", LETTERS, 2.0),
        ("C", "B", LETTERS, -1.0),
        ("1,200.0", "1200", [], 2.0),
        ("12", "1200", [], -1.0),
    ]
    texts = [SCHEME.render([*GOOD[:2], answer_step(written)]) for written, *_ in cases]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    reward = AnswerReward(tokenizer, correct=2, wrong=-1, invalid=-0.5)
    _, answers, options, expected = zip(*cases)
    assert reward(completion_ids=ids, answer=list(answers), options=list(options)) == list(expected)
    # As a mapping, and left out where all answers are numbers.
    assert reward(completion_ids=ids[3:4], answer=["B"], options=[{"A": "", "B": ""}]) == [2.0]
    assert reward(completion_ids=ids[5:], answer=["1200"] * 2) == [2.0, -1.0]
    text = AnswerReward(tokenizer, match_option_text=True)
    named = [tokenizer("The answer is: the C", add_special_tokens=False)["input_ids"]]
    assert text(completion_ids=named, answer=["C"], options=[LETTERS]) == [1.0]


def test_kinds_of_ones_own():
    scheme = StepScheme(1, 2, kinds=("search", "compute"))
    tokenizer = extended(scheme)
    steps = [Step("search", "the step"), Step("compute", "a reason"), answer_step("True")]
    ids = [encode_solution(tokenizer, each) for each in (steps, steps[1:])]
    assert StepReward(tokenizer)(completion_ids=ids) == pytest.approx([1.0, 0.8])
    with pytest.raises(ValueError, match="memory"):
        StepReward(tokenizer, required=("memory",))


def test_bad_rewards_are_refused():
    tokenizer = extended()
    with pytest.raises(ValueError, match=r"correct=0\.0 must be above wrong=0\.0 and invalid=0\.0"):
        AnswerReward(tokenizer, correct=0.0)
    with pytest.raises(ValueError, match="The column 'answer' is missing"):
        AnswerReward(tokenizer)(completion_ids=[[5]])
    with pytest.raises(ValueError, match="reference='D' must be one of the options"):
        AnswerReward(tokenizer)(completion_ids=[[5]], answer=["D"], options=[LETTERS])
    with pytest.raises(ValueError, match="has no scheme of steps"):
        StepReward(byte_level())
    with pytest.raises(ValueError, match="recall"):
        StepReward(tokenizer, required=("recall",))
    for scheme in (StepScheme(2, 4, layout="front"), StepScheme(marks="none"), StepScheme(layout="plan_only")):
        with pytest.raises(ValueError, match="Use AnswerReward alone"):
            StepReward(extended(scheme))


def test_rewards_can_be_sent_to_other_processes():
    reward = pickle.loads(pickle.dumps(AnswerReward(extended())))
    ids = [torch.tensor(encode_solution(reward.tokenizer, GOOD))]
    assert reward(completion_ids=ids, answer=["True"], options=[TRUE_FALSE]) == [1.0]


def test_prompts_are_encoded_as_in_evaluation():
    tokenizer = extended()
    rows = [{"question": "Is it the step?", "options": [], "answer": "3", "extra": 1}]
    (row,) = prompt_rows(rows, tokenizer)
    assert row == {**rows[0], "prompt": "Question: Is it the step?\n<prefix_0><prefix_1>"}
    assert tokenizer(row["prompt"])["input_ids"] == encode_prompt(tokenizer, rows[0]["question"])


CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_prompts_stand_in_the_recorded_template(make):
    tokenizer = extended(make=make)
    tokenizer.chat_template = CHAT
    record_prompt_format(tokenizer, PromptFormat(chat_template=True, system="Be brief."))
    (row,) = prompt_rows([{"question": "Is it the step?"}], tokenizer)
    assert "Be brief." in row["prompt"] and row["prompt"].endswith("<prefix_0><prefix_1>")
    assert tokenizer(row["prompt"])["input_ids"] == Prompter(tokenizer).prompt_ids("Is it the step?")
    record_prompt_format(tokenizer, PromptFormat(num_demonstrations=2))
    with pytest.raises(ValueError, match="num_demonstrations=2"):
        prompt_rows([{"question": "Is it?"}], tokenizer)


def test_a_solution_ends_with_the_turn_of_a_chat():
    tokenizer = extended()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end_of_turn>{% endfor %}"
    ids = [*encode_solution(tokenizer, GOOD), tokenizer.convert_tokens_to_ids("<end_of_turn>"), 5, 6]
    columns = {"completion_ids": [ids], "answer": ["True"], "options": [TRUE_FALSE]}
    assert AnswerReward(tokenizer)._solutions(None, [ids]) != [SCHEME.render(GOOD)]
    record_prompt_format(tokenizer, PromptFormat(chat_template=True))
    reward = AnswerReward(tokenizer)
    assert reward(**columns) == [1.0] and reward._solutions(None, [ids]) == [SCHEME.render(GOOD)]


def test_prompts_that_would_be_another_text_are_refused():
    tokenizer = extended()
    rows = [{"question": question} for question in ("Is it?", "Is </s> it?", "<memory_0>")]
    with pytest.raises(ValueError, match=r"2 of 3 questions .* row 1 \('Is </s> it\?'\), row 2"):
        prompt_rows(rows, tokenizer)
    with pytest.raises(ValueError, match="There are no rows"):
        prompt_rows([], tokenizer)
    with pytest.raises(ValueError, match=r"rows\[0\].* lacks question"):
        prompt_rows([{"prompt": "?"}], tokenizer)
    ending = word_level()
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    extend_tokenizer(ending, SCHEME)
    with pytest.raises(ValueError, match="1 of 1 questions"):
        prompt_rows([{"question": "the step"}], ending)
