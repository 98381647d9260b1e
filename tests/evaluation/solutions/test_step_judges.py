import random
import re
import time
import types

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memreason_hf.evaluation.solutions import judges
from memreason_hf.evaluation.solutions.attribution import Attribution, attribute, attribute_all, count_outcomes
from memreason_hf.evaluation.solutions.judges import (
    JUDGES,
    ExactJudge,
    JudgeFault,
    LanguageModelJudge,
    SolutionToJudge,
    TokenOverlapJudge,
    find_judge,
)
from memreason_hf.steps import KINDS, Step, answer_step


REFERENCES = [
    Step("memory", "The Liberty Bell weighs approximately 2,080 pounds and hangs in Philadelphia."),
    Step("reason", "Since it is heavier than a cow, the cow cannot balance it."),
]


def verdict(text, judge=None, question="", references=REFERENCES):
    return (judge or TokenOverlapJudge())(Step("memory", text), references, question)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REFERENCES[0].text, "agrees"),
        ("the liberty bell: weighs approximately 2080 pounds, and hangs in philadelphia", "agrees"),
        ("The Liberty Bell weighs 2,080 pounds.", "departs"),
        ("", "departs"),
    ],
)
def test_the_exact_judge(text, expected):
    assert verdict(text, ExactJudge()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (REFERENCES[0].text, "agrees"),
        ("In Philadelphia hangs the Liberty Bell, weighing about 2080 pounds.", "agrees"),
        ("A cow can't balance it, as it's heavier.", "agrees"),
        # another number, another name, one negation more, one less, an opposite
        ("The Liberty Bell weighs approximately 20,800 pounds and hangs in Philadelphia.", "departs"),
        ("The Liberty Bell weighs approximately 2,080 pounds and hangs in Boston.", "departs"),
        ("The Liberty Bell does not weigh 2,080 pounds.", "departs"),
        ("Since it is heavier than a cow, the cow can balance it.", "departs"),
        ("Since it is lighter than a cow, the cow cannot balance it.", "departs"),
        # no common words; some common words
        ("Bananas are yellow fruits from Ecuador.", "departs"),
        ("The bell was cast in an English foundry of some fame.", "undecided"),
        ("Therefore it is.", "undecided"),
    ],
)
def test_the_overlap_judge(text, expected):
    assert verdict(text) == expected


def test_a_copy_of_a_reference_agrees():
    """Other references support a step, and a step without content words cannot be judged."""
    texts = ("It is not illegal to drive barefoot in Texas.", "It is illegal to drive barefoot in Texas.", "So it is.")
    references = [Step("memory", text) for text in texts]
    assert [verdict(text, references=references) for text in texts] == ["agrees"] * 3
    assert [verdict(text.upper(), references=references[::-1]) for text in texts] == ["agrees"] * 3
    assert verdict("So it was.", references=references) == "undecided"


def test_what_the_question_says_is_no_departure():
    text = "So the Liberty Bell of 1752 weighs 2,080 pounds."
    assert verdict(text) == "departs"
    assert verdict(text, question="Did the Liberty Bell of 1752 weigh more than a cow?") == "agrees"


@pytest.mark.parametrize("values", [(-0.1, 0.5, 0.6), (0.5, 0.4, 0.6), (0.1, 0.7, 0.6), (0.1, 0.5, 1.1)])
def test_bad_thresholds_are_refused(values):
    with pytest.raises(ValueError, match="must be between 0 and 1, each at least as large"):
        TokenOverlapJudge(*values)


def test_thresholds_decide():
    text = "The bell was cast in an English foundry of some fame."
    assert verdict(text, TokenOverlapJudge(depart_below=0.5, relate_from=0.5)) == "departs"
    assert verdict(text, TokenOverlapJudge(relate_from=0.1, agree_from=0.1)) == "departs"
    assert verdict("the bell, cast in english bronze", TokenOverlapJudge(relate_from=0.1, agree_from=0.1)) == "agrees"


class ScriptedModel(torch.nn.Module):
    """Says yes unless the statement contains `wrong`, and is undecided about `perhaps`."""

    device = torch.device("cpu")

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.asked = []

    def forward(self, input_ids, logits_to_keep):
        assert not self.training and not torch.is_grad_enabled() and logits_to_keep == 1
        words = self.tokenizer.convert_ids_to_tokens(input_ids[0].tolist())
        self.asked.append(words)
        logits = torch.zeros(1, 1, len(self.tokenizer))
        said = words[len(words) - 1 - words[::-1].index("Statement:") :]
        sign = -1 if "wrong" in said else 1
        logits[0, 0, self.tokenizer.convert_tokens_to_ids("yes")] = 0.2 * sign if "perhaps" in said else 3.0 * sign
        return types.SimpleNamespace(logits=logits)


@pytest.fixture
def language_model():
    words = ["<unk>", "yes", "no", "right", "wrong", "perhaps", "Statement:", "-", "it", "is"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    return ScriptedModel(tokenizer).train()


def test_the_language_model_judge(language_model):
    judge = LanguageModelJudge(language_model, language_model.tokenizer)
    assert verdict("it is right", judge) == "agrees"
    assert verdict("it is wrong", judge) == "departs"
    assert verdict("it is perhaps", judge) == verdict("it is perhaps wrong", judge) == "undecided"
    sure = LanguageModelJudge(language_model, language_model.tokenizer, margin=0.1)
    assert verdict("it is perhaps wrong", sure) == "departs"
    assert language_model.training
    # The prompt holds all references, one on each line.
    assert language_model.asked[0].count("-") == len(REFERENCES)


def test_bad_questions_to_a_language_model_are_refused(language_model):
    tokenizer = language_model.tokenizer
    with pytest.raises(ValueError, match=r"lacks the field \{step\}"):
        LanguageModelJudge(language_model, tokenizer, template="{question} {references}?")
    with pytest.raises(ValueError, match="must begin with different tokens"):
        LanguageModelJudge(language_model, tokenizer, answers=("yea", "nay"))


def test_a_real_model_can_judge():
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "no": 2}, unk_token="<unk>")),
        unk_token="<unk>",
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    judge = LanguageModelJudge(GPT2LMHeadModel(config), tokenizer, margin=0.0)
    assert verdict("it is", judge) in ("agrees", "departs")


def test_finding_judges():
    assert isinstance(find_judge("overlap"), TokenOverlapJudge) and isinstance(find_judge("exact"), ExactJudge)
    assert set(JUDGES) == {"exact", "overlap"}
    judge = TokenOverlapJudge(agree_from=0.9)
    assert find_judge(judge) is judge
    with pytest.raises(ValueError, match=r"judge='overlaps' must be one of exact, overlap, or a callable"):
        find_judge("overlaps")


def scripted(step, references, question):
    return {"+": "agrees", "-": "departs", "?": "undecided"}[step.text[0]]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("m+ r+ a+", Attribution("none")),
        ("m+ r- m-", Attribution("reason", 1)),
        ("s-", Attribution("step", 0)),
        ("m? r? m- r?", Attribution("memory", 2, 2)),
        ("m+ r? a+", Attribution("undecided", None, 1)),
        ("m+ r? aX", Attribution("answer", 2, 1)),
        ("aX m-", Attribution("answer", 0)),
        # An answer that is missing is an error of its own kind.
        ("", Attribution("no answer")),
        ("m+ r?", Attribution("no answer", None, 1)),
        ("m+ r-", Attribution("reason", 1)),
    ],
)
def test_the_first_departure(steps, expected):
    kinds = {"m": "memory", "r": "reason", "s": "step"}
    solution = [
        answer_step({"+": "true.", "X": "False"}[part[1]]) if part[0] == "a" else Step(kinds[part[0]], part[1])
        for part in steps.split()
    ]
    assert attribute(solution, [*REFERENCES, answer_step("True")], scripted) == expected


def test_order_missing_and_repeated_steps_are_no_departures():
    references = [*REFERENCES, answer_step("True")]
    for solution in (references[::-1], references[1:], [*references, *references], references[1:] + references[:1]):
        assert attribute(solution, references, ExactJudge()).outcome == "none"
    assert attribute(references[:1], references, ExactJudge()).outcome == "no answer"


@pytest.mark.parametrize(
    ("steps", "answer", "expected"),
    [
        # The words of the answer differ from those of the reference, but the rule reads it as right.
        ("m+ aX", "right", Attribution("none")),
        ("m+ a+", "wrong", Attribution("answer", 1)),
        ("m+ a+", "missing", Attribution("no answer")),
        ("m- a+", "missing", Attribution("memory", 0)),
        ("m? a+", "right", Attribution("undecided", None, 1)),
        # Only the last answer counts, and a step that says the answer stands for an answer step.
        ("aX m+ a+", "right", Attribution("none")),
        ("a+ m+ aX", "wrong", Attribution("answer", 2)),
        ("a+ m- aX", "wrong", Attribution("memory", 1)),
        ("m+ R m-", "wrong", Attribution("answer", 1)),
        ("m+ R", "right", Attribution("none")),
        ("m+", "wrong", Attribution("answer")),
        ("m+", "missing", Attribution("no answer")),
    ],
)
def test_the_answer_rule_decides_about_the_answer(steps, answer, expected):
    read = {
        "a+": answer_step("true."),
        "aX": answer_step("False"),
        "R": Step("reason", "+ so the answer is: False"),
        **{
            f"{letter}{sign}": Step(kind, sign)
            for letter, kind in (("m", "memory"), ("r", "reason"))
            for sign in "+-?"
        },
    }
    solution = [read[part] for part in steps.split()]
    assert attribute(solution, [*REFERENCES, answer_step("True")], scripted, answer=answer) == expected


def test_an_unknown_word_of_the_answer_rule_is_refused():
    with pytest.raises(ValueError, match="answer='correct' must be one of right, wrong, missing, or None"):
        attribute([], REFERENCES, scripted, answer="correct")


class Scripted:
    """A judge of whole solutions that needs no references; it answers in an order of its own."""

    needs_references = False

    def __init__(self, said):
        self.said = said

    def judge_solutions(self, solutions):
        for index in random.Random(len(solutions)).sample(range(len(solutions)), len(solutions)):
            yield index, self.said[index]


def test_judges_of_whole_solutions():
    steps = [Step("memory", "+"), Step("reason", "-"), answer_step("True")]
    said = [
        ["agrees", "agrees", None],
        ["agrees", "departs", None],
        ["departs", "departs", None],
        ["undecided", "agrees", None],
        JudgeFault("no reply"),
    ]
    answers = ["right", "wrong", "wrong", "missing", "right"]
    judged = attribute_all(Scripted(said), [SolutionToJudge(steps, answer=answer) for answer in answers])
    assert [entry.attribution for entry in judged] == [
        Attribution("none"),
        Attribution("reason", 1),
        Attribution("memory", 0),
        Attribution("no answer", None, 1),
        Attribution("not judged"),
    ]
    assert [list(entry.verdicts) for entry in judged[:4]] == said[:4]
    assert [entry.fault for entry in judged] == [None] * 4 + ["no reply"]
    counts = count_outcomes(judged, answers, KINDS)
    assert {name: {key: n for key, n in part.items() if n} for name, part in counts.items()} == {
        "right": {"none": 1, "not judged": 1},
        "wrong": {"memory": 1, "reason": 1, "no answer": 1},
    }
    assert sum(map(sum, (part.values() for part in counts.values()))) == len(judged)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["agrees", "agrees"], "returned 2 verdicts for 3 steps"),
        (["agrees", "yes", None], "returned 'yes'; it must return one of"),
        (["agrees", None, None], "returned None; it must return one of"),
    ],
)
def test_what_a_judge_of_whole_solutions_must_return(said, message):
    with pytest.raises(ValueError, match=message):
        attribute_all(Scripted([said]), [SolutionToJudge([*REFERENCES, answer_step("True")])])


def test_step_judges_through_attribute_all_say_what_attribute_says():
    rng = random.Random(5)
    kinds = ("memory", "reason", "step")
    solutions = [
        SolutionToJudge(
            [
                *(Step(rng.choice(kinds), rng.choice("++++-?")) for _ in range(rng.randint(0, 5))),
                *([answer_step(rng.choice(("True", "False")))] * rng.randint(0, 1)),
            ],
            [*REFERENCES, answer_step("True")],
            "Is it?",
        )
        for _ in range(200)
    ]
    judged = attribute_all(scripted, solutions)
    assert [entry.attribution for entry in judged] == [
        attribute(solution.steps, solution.references, scripted, question="Is it?") for solution in solutions
    ]
    assert {entry.attribution.outcome for entry in judged} == {*kinds, "answer", "no answer", "none", "undecided"}
    for entry in judged:
        # The judge is asked up to the first departure, and about no answer.
        asked = [index for index, verdict in enumerate(entry.verdicts) if verdict is not None]
        assert "departs" not in [entry.verdicts[index] for index in asked[:-1]]


def test_without_reference_steps_nothing_is_attributed():
    assert attribute([Step("memory", "-")], [answer_step("True")], scripted).outcome == "no reference"
    # Without a reference answer, the answer cannot be compared.
    assert attribute([answer_step("True")], REFERENCES, scripted) == Attribution("undecided", None, 1)


def test_a_judge_must_return_a_verdict():
    with pytest.raises(ValueError, match="The judge returned True; it must return one of agrees, departs, undecided"):
        attribute([Step("memory", "a")], REFERENCES, lambda step, references, question: True)


def test_where_a_sentence_begins_agrees_with_an_expression_over_the_text_before():
    rng = random.Random(3)
    seen = set()
    for _ in range(4000):
        text = "".join(rng.choices('aB.?!:;"\u201c( \n\u3000', k=rng.randint(0, 8)))
        expected = bool(re.search(r"(?:\A|[.?!:;]\s+|[\"\u201c(]\s*)\Z", text))
        assert judges._begins_sentence(text + "Oslo", len(text)) == expected, text
        seen.add((bool(text), expected))
    assert seen == {(False, True), (True, True), (True, False)}


@pytest.mark.parametrize("text", ["Oslo Rome ", "Oslo" + 50 * " " + "Rome ", "a. Oslo's "])
def test_many_names_take_no_longer_than_their_text(text):
    started = time.process_time()
    verdict(text * 10_000)
    assert time.process_time() - started < 2.0
