"""A scheme parses what it renders, and the spellings of published texts."""

import dataclasses
import random

import pytest

from memreason_hf.steps import NO_KIND, Solution, Step, StepScheme, answer_step
from memreason_hf.steps.marks import FAMILY_TOKEN


SCHEMES = [
    StepScheme(),
    StepScheme(2, 4),
    StepScheme(3, 6),
    StepScheme(0, 2),
    StepScheme(0, 1),
    StepScheme(1, 1),
    StepScheme(2, 4, ordered=True),
    StepScheme(2, 4, layout="plan_first"),
    StepScheme(0, 1, layout="plan_first", ordered=True),
    StepScheme(2, 4, layout="plan_only"),
    StepScheme(1, 3, layout="plan_only", ordered=True),
    StepScheme(2, 0),
    StepScheme(1, 0),
    StepScheme(3, 0, ordered=True),
    StepScheme(2, 4, random_marks=True),
    StepScheme(0, 1, random_marks=True),
    StepScheme(2, 4, kinds=("search", "compute")),
    StepScheme(1, 1, kinds=("a", "a_b", "look_up"), ordered=True),
    StepScheme(0, 2, kinds=("search", "memory"), layout="plan_first"),
    StepScheme(2, 3, kinds=("search",), layout="plan_only"),
    StepScheme(kinds=("look_up", "compute"), kind_words={"compute": "work it out"}, marks="words"),
    StepScheme(2, 4, layout="answer_only"),
    StepScheme(1, 0, layout="answer_only"),
    StepScheme(marks="none", layout="answer_only"),
    StepScheme(2, 0, layout="front"),
    StepScheme(1, 4, layout="front"),
    StepScheme(marks="words"),
    StepScheme(marks="words", layout="plan_first"),
    StepScheme(marks="words", layout="plan_only", ordered=True),
    StepScheme(marks="none"),
    StepScheme(marks="none", ordered=True),
]
PIECES = [
    *"abc .,:;!?()[]{}'\"-_/\\|#",
    " ",
    "  ",
    "\t",
    "\r",
    "\u2028",
    "é",
    "式",
    "🜁",
    "<",
    ">",
    "<b>",
    "</s>",
    "<pre",
    "<memory",
    "memory_0>",
    "Memory:",
    "Answer: ",
    "Question: ",
    "The answer is: True",
    "un<i>able",
    "12,345.6",
]


def random_text(rng, can_be_blank):
    while True:
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 8)))
        # Joined pieces can form a token, which is refused.
        if (text.strip() or can_be_blank) and not FAMILY_TOKEN.search(text):
            return text


def random_steps(rng, scheme, num_steps):
    can_be_blank = scheme.has_kinds and scheme.layout != "plan_first"
    steps = [Step(rng.choice(scheme.all_kinds), random_text(rng, can_be_blank)) for _ in range(num_steps)]
    return [*steps, answer_step(random_text(rng, can_be_blank))] if rng.random() < 0.7 else steps


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_written_is_read_back(scheme):
    rng = random.Random(f"{scheme}")
    for _ in range(300):
        steps = random_steps(rng, scheme, rng.randint(0, 6))
        text = scheme.render(steps)
        solution = scheme.parse(text)
        assert solution == scheme.arrange(steps), text
        assert not solution.truncated
        if scheme.has_kinds or scheme.layout != "answer_only":  # without its kind an answer is not known as one
            assert scheme.arrange(scheme.arrange(steps)) == scheme.arrange(steps)
        assert text == "" or text.endswith("\n")
        if scheme.layout == "plan_first":
            assert solution.plan == [step.kind for step in scheme.arrange(steps)]
        else:
            assert solution.plan is None


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_text_of_this_scheme_is_read_by_every_scheme_with_tokens(scheme):
    if scheme.marks != "tokens" or scheme.layout != "steps":
        return
    rng = random.Random(f"{scheme} by others")
    same = {"kinds": scheme.kinds, "random_marks": scheme.random_marks}
    counts = ((2, 4), (0, 1), (5, 3)) if scheme.num_step_tokens else ((2, 0), (1, 0), (5, 0))
    for reader in (StepScheme(*count, **same) for count in counts):
        for _ in range(50):
            steps = scheme.arrange(random_steps(rng, scheme, rng.randint(0, 5)))
            assert reader.parse(scheme.render(steps)) == steps
            spaced = "".join(
                scheme.mark(step.kind, step.text).replace("><", "> <") + f" {step.text}\n" for step in steps
            )
            assert reader.parse(spaced) == steps
            assert reader.parse("".join(f" {line}\n\n" for line in spaced.split("\n"))) == steps


def test_the_default_scheme_changes_nothing():
    steps = [Step("reason", "a"), Step("memory", "b"), Step("step", ""), answer_step("A"), Step("reason", " c ")]
    assert StepScheme().arrange(steps) == steps


def test_ordered_puts_memory_first_and_the_answer_last():
    steps = [answer_step("A"), Step("reason", "1"), Step("memory", "2"), Step("step", "3"), Step("memory", "4")]
    kinds = [(step.kind, step.text[-1]) for step in StepScheme(ordered=True).arrange(steps)]
    assert kinds == [("memory", "2"), ("memory", "4"), ("reason", "1"), ("step", "3"), ("answer", "A")]


def test_rendering_to_the_letter():
    steps = [{"kind": "memory", "text": "Air scatters."}, Step("step", "Look."), answer_step("True")]
    p, m = "<prefix_0><prefix_1>", "<{0}_0><{0}_1><{0}_2>"
    assert StepScheme(2, 3).render(steps) == (
        f"{p}{m.format('memory')} Air scatters.\n{p}{m.format('step')} Look.\n"
        f"{p}{m.format('answer')} The answer is: True\n"
    )
    assert StepScheme(1, 1).render(steps) == (
        "<prefix><memory> Air scatters.\n<prefix><step> Look.\n<prefix><answer> The answer is: True\n"
    )
    assert StepScheme(0, 1, layout="plan_first").render(steps) == (
        "<memory>\n<step>\n<answer>\n<memory> Air scatters.\n<step> Look.\n<answer> The answer is: True\n"
    )
    assert StepScheme(0, 1, layout="plan_only").render(steps) == ("<memory>\n<step>\n<answer> The answer is: True\n")
    assert StepScheme(2, 4, layout="front").render(steps) == f"{p} Air scatters.\nLook.\nThe answer is: True\n"
    assert StepScheme(marks="words").render(steps) == (
        "Memory: Air scatters.\nStep: Look.\nAnswer: The answer is: True\n"
    )
    assert StepScheme(marks="none").render(steps) == "Air scatters.\nLook.\nThe answer is: True\n"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_training_text_begins_with_its_prompt(scheme):
    steps = [Step(scheme.kinds[-1], "a"), answer_step("A")]
    for question in ("Is it?", "Question: Is it?"):
        assert scheme.question_text(question) == "Question: Is it?\n"
        text = scheme.question_text(question) + scheme.render(steps)
        assert text.startswith(scheme.prompt(question))
        assert scheme.prompt(question).endswith(scheme.prefix_tokens[-1] if scheme.prefix_tokens else "?\n")


def test_tokens_and_words():
    scheme = StepScheme(2, 1)
    assert scheme.tokens == ("<prefix_0>", "<prefix_1>", "<memory>", "<reason>", "<answer>", "<step>")
    assert scheme.words["<prefix_1>"] == "prefix" and scheme.words["<reason>"] == "reason"
    assert StepScheme(0, 2).kind_tokens("answer") == ("<answer_0>", "<answer_1>")
    assert StepScheme(3, 4, layout="front").tokens == ("<prefix_0>", "<prefix_1>", "<prefix_2>")
    assert StepScheme(marks="words").tokens == StepScheme(marks="none").tokens == ()


P, M, R, A = (
    "".join(f"<{name}_{i}>" for i in range(count))
    for name, count in (("prefix", 2), ("memory", 4), ("reason", 4), ("answer", 4))
)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (f"{P}{M} a\n{P}{R} b\n", [("memory", "a"), ("reason", "b")]),
        (f"{M} a\n{P}{R} b\n", [("memory", "a"), ("reason", "b")]),
        (f" {P}{M} a\n\n  \n\t{P}{R}b", [("memory", "a"), ("reason", "b")]),
        (f"{P}{M.replace('memory', 'rag')} a\n", [("memory", "a")]),
        ("<rag> a\n<reason> b\n", [("memory", "a"), ("reason", "b")]),
        ("<prefix_0> <prefix_1> <prefix_2> <rag_0> <rag_1> a\n", [("memory", "a")]),
        ("<reason_0><reason_1><reason_2> a\n<answer_0><answer_1><answer_2> b", [("reason", "a"), ("answer", "b")]),
        # inside a word or a line: text
        (f"{M} un<reason_0>able, {R} b\n", [("memory", f"un<reason_0>able, {R} b")]),
        (f"{M} a\nso {R} b\n", [("memory", "a"), ("step", f"so {R} b")]),
        # cut short or out of order: text without a kind
        (f"{M} a\n{P}<reason_0><reason_1> b\n", [("memory", "a"), ("step", f"{P}<reason_0><reason_1> b")]),
        (f"{M} a\n<prefix_0>{R} b\n{P}{R} c\n", [("memory", "a"), ("step", f"<prefix_0>{R} b"), ("reason", "c")]),
        (f"{M} a\n<memory_2> b\n", [("memory", "a"), ("step", "<memory_2> b")]),
        ("<reason_0><reason_2><reason_2><reason_3> a\n", [("step", "<reason_0><reason_2><reason_2><reason_3> a")]),
        ("<memory_1><memory_0> a\n", [("step", "<memory_1><memory_0> a")]),
        (f"{P} a\n", [("step", f"{P} a")]),
        # a kind is never guessed
        ("  I recall: a\n\nThe answer is: A\n", [("step", "  I recall: a"), ("step", "The answer is: A")]),
        (f"Question: q\n{P}{M} a\n", [("step", "Question: q"), ("memory", "a")]),
        # the same tokens again are text
        (f"{M}{M} a\n", [("memory", f"{M} a")]),
        (f"{M}\n{R} b\n", [("memory", ""), ("reason", "b")]),
        ("", []),
        (" \n\n", []),
    ],
)
def test_reading(text, steps):
    solution = StepScheme(2, 4).parse(text)
    assert [(step.kind, step.text) for step in solution] == steps
    assert not solution.truncated


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (
            f"Is it? {P}{M} a b. {P}{R} c un<reason_0>able <reason_0> d",
            ["step:Is it?", "memory:a b.", "reason:c un<reason_0>able <reason_0> d"],
        ),
        ("<memory> a <reason> b <answer> The answer is: A", ["memory:a", "reason:b", "answer:The answer is: A"]),
        ("no tokens at all", ["step:no tokens at all"]),
        (f"x{M} a", [f"step:x{M} a"]),
    ],
)
def test_reading_a_text_without_newlines(text, steps):
    assert [f"{step.kind}:{step.text}" for step in StepScheme(2, 4).parse(text)] == steps


@pytest.mark.parametrize(
    "end",
    ["<prefix_0>", P, f"{P}<memory_0>", f"{P}<answer_0><answer_1><answer_2>", f" {P}<answer_0><ans", f"{P}{M[:-2]}"],
)
@pytest.mark.parametrize("before", [f"{P}{M} a\n", f"{P}{M} a\n\n", ""])
def test_a_group_that_the_end_cuts_off_is_reported(before, end):
    solution = StepScheme(2, 4).parse(before + end)
    assert solution == ([Step("memory", "a")] if before else [])
    assert solution.truncated


def test_a_cut_group_is_seen_by_the_counts_of_the_text():
    five = "".join(f"<reason_{i}>" for i in range(5))
    text = f"{five} a\n<answer_0><answer_1><answer_2><answer_3>"
    assert StepScheme(2, 4).parse(text).truncated
    assert not StepScheme(2, 4).parse(f"{five} a\n{R}{'<reason_4>'}").truncated
    assert not StepScheme(2, 4).parse("a <reason_0").truncated
    assert StepScheme(2, 4).parse(f"{M} a. {P}<reason_0>").truncated


def test_a_plan_that_was_cut_has_no_steps():
    scheme = StepScheme(2, 4, layout="plan_first")
    solution = scheme.parse(f"{P}{M}\n{P}{R}\n{P}<answer_0>")
    assert (solution, solution.plan, solution.truncated) == ([], ["memory", "reason"], True)
    solution = scheme.parse(f"{P}{M}\n{P}{R} other than planned\n")
    assert (solution, solution.plan) == ([Step("reason", "other than planned")], ["memory"])
    # For another scheme these are steps without a text.
    assert StepScheme(2, 4).parse(f"{P}{M}\n{P}{R} b\n") == [Step("memory", ""), Step("reason", "b")]


@pytest.mark.parametrize(
    ("scheme", "step", "message"),
    [
        (StepScheme(), Step("memory", "a\nb"), "holds a newline"),
        (StepScheme(marks="none"), Step("memory", "a\nb"), "holds a newline"),
        (StepScheme(marks="words"), Step("memory", "a\nb"), "holds a newline"),
        (StepScheme(2, 4), Step("memory", "un<reason_0>able"), "holds <reason_0>, a token of the scheme"),
        (StepScheme(2, 1), Step("step", "a <answer> b"), "holds <answer>"),
        (StepScheme(2, 0, layout="front"), Step("reason", "<prefix_1>"), "holds <prefix_1>"),
        (StepScheme(2, 4), Step("memory", " <memory_4> a"), "begins with a step token of another scheme"),
        (StepScheme(0, 1), Step("memory", "<rag_0> a"), "begins with a step token"),
        (StepScheme(2, 4, layout="plan_first"), Step("memory", " "), "is blank"),
        (StepScheme(2, 4, layout="front"), Step("memory", ""), "is blank"),
        (StepScheme(marks="none"), Step("memory", "\t"), "is blank"),
    ],
)
def test_texts_that_cannot_be_read_back_are_refused(scheme, step, message):
    with pytest.raises(ValueError, match=message):
        scheme.render([Step("reason", "fine"), step])


def test_tokens_of_other_schemes_inside_a_text_are_kept():
    steps = [Step("memory", "un<reason>able and <rag_0>"), Step("reason", "a<prefix>")]
    assert StepScheme(2, 4).parse(StepScheme(2, 4).render(steps)) == steps


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_prefix_tokens": -1}, ValueError, "num_prefix_tokens=-1 must not be negative"),
        ({"num_prefix_tokens": 100_000}, ValueError, "num_prefix_tokens=100000 must be at most 1,000: each has a row"),
        ({"num_step_tokens": 10**9}, ValueError, "num_step_tokens=1000000000 must be at most 1,000"),
        ({"num_prefix_tokens": 0, "num_step_tokens": 0}, ValueError, "num_step_tokens=0 leave no token that marks"),
        ({"num_step_tokens": 0, "layout": "plan_first"}, ValueError, "leaves no token for the kinds"),
        ({"num_step_tokens": 0, "random_marks": True}, ValueError, "random_marks=True.*num_step_tokens=0"),
        ({"random_marks": True, "layout": "plan_only"}, ValueError, "random_marks=True.*layout='plan_only'"),
        ({"random_marks": True, "marks": "words"}, ValueError, "random_marks=True.*marks='words'"),
        ({"random_marks": "yes"}, TypeError, "random_marks='yes' must be True or False"),
        ({"num_step_tokens": "4"}, TypeError, "num_step_tokens='4' must be a whole number"),
        ({"num_step_tokens": True}, TypeError, "whole number"),
        ({"marks": "token"}, ValueError, "marks='token' must be one of tokens, words, none"),
        ({"layout": "first"}, ValueError, "layout='first' must be one of"),
        ({"ordered": 1}, TypeError, "ordered=1"),
        ({"layout": "front", "num_prefix_tokens": 0}, ValueError, "layout='front'"),
        ({"layout": "front", "marks": "words"}, ValueError, "layout='front'"),
        ({"layout": "plan_first", "marks": "none"}, ValueError, "needs marks"),
    ],
)
def test_bad_schemes_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        StepScheme(**arguments)


def test_the_answer_alone():
    steps = [Step("memory", "a\nb"), answer_step("True")]
    for scheme, mark in (
        (StepScheme(marks="none", layout="answer_only"), ""),
        (StepScheme(1, 1), "<prefix><answer> "),
    ):
        scheme = dataclasses.replace(scheme, layout="answer_only")
        assert scheme.render(steps) == f"{mark}The answer is: True\n"
        assert scheme.render(steps[:1]) == ""


def test_a_kind_of_another_scheme_is_refused():
    steps = [Step("memory", "a"), Step("search", "b")]
    with pytest.raises(ValueError, match=r"kind='search' of the step 'b' must be one of memory, reason, answer, step"):
        StepScheme().render(steps)
    with pytest.raises(ValueError, match=r"kind='memory' of the step 'a' must be one of search, answer, step"):
        StepScheme(kinds=["search"], marks="words").arrange(steps)
    with pytest.raises(ValueError, match="kind='search'"):
        StepScheme(marks="none", ordered=True).arrange(steps)
    # Where no kinds show, the kinds do not matter.
    for scheme in (StepScheme(marks="none"), StepScheme(2, 0), StepScheme(2, 4, random_marks=True)):
        assert [step.kind for step in scheme.parse(scheme.render(steps))] == ["step", "step"]


def test_bad_steps_are_refused():
    with pytest.raises(ValueError, match=r"kind='rag'.*memory, reason, answer, step"):
        Step("rag", "a")
    with pytest.raises(TypeError, match="text=3"):
        Step("memory", 3)
    with pytest.raises(ValueError, match="kind='prefix' must be one of"):
        StepScheme().kind_tokens("prefix")


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_scheme_goes_through_json_values(scheme):
    assert StepScheme.from_dict(scheme.to_dict()) == scheme


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match=r"no field num_tokens\. Its fields are num_prefix_tokens"):
        StepScheme.from_dict({"num_tokens": 4})


def test_a_solution_is_a_list_of_steps():
    solution = Solution([Step("memory", "a")], truncated=True)
    assert solution == [Step("memory", "a")] and solution.truncated and solution.plan is None
    assert Step(NO_KIND, "a") != Step("memory", "a")
