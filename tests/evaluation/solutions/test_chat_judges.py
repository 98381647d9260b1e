"""A chat model as judge, through the real client against a server on the loopback interface."""

import json
import random
import re
from functools import partial

import pytest
from chat_servers import FAULTS, HTML, Fault, chat_server

from memreason_hf.chat import ChatError, EndpointChat
from memreason_hf.evaluation.solutions.attribution import Attribution, attribute, attribute_all
from memreason_hf.evaluation.solutions.chat_judges import ChatJudge, JudgeError, check_prompt, read_verdicts
from memreason_hf.evaluation.solutions.judges import VERDICTS, SolutionToJudge
from memreason_hf.evaluation.solutions.reply_files import ReplyFile
from memreason_hf.steps import Step, answer_step


STEP = re.compile(r"^(\d+)\. \[(\w+)\] (.*)$", re.MULTILINE)


def judge_at(server, **settings):
    chat = EndpointChat("scripted", server.url, concurrency=8, first_wait=0.01)
    return ChatJudge(chat, name="scripted", **settings)


def random_solutions(rng, count):
    """Solutions with distinct texts, some without steps, some with steps that say nothing."""
    solutions = []
    for index in range(count):
        steps = [
            Step(
                rng.choice(("memory", "reason", "step")),
                rng.choice(("", f"statement {index}.{place}", f"{{x}} {place}")),
            )
            for place in range(rng.randint(0, 6))
        ]
        steps.insert(rng.randint(0, len(steps)), answer_step("True"))
        answer = rng.choice(("right", "wrong", "missing"))
        solutions.append(SolutionToJudge(steps, (), f"Question {index} with {{steps}}?", "True", answer))
    return solutions


class Recorder:
    """An endpoint that answers at random, and keeps what it said about each step."""

    def __init__(self, seed):
        self.rng, self.said = random.Random(seed), {}

    def __call__(self, call):
        question = re.search(r"^Question: (.*)$", call.prompt, re.MULTILINE)[1]
        verdicts = {number: self.rng.choice(VERDICTS) for number, _, _ in STEP.findall(call.prompt)}
        self.said[question] = [verdicts[number] for number, _, _ in STEP.findall(call.prompt)]
        return json.dumps(verdicts)


def test_every_verdict_arrives_at_its_step():
    rng = random.Random(1)
    solutions = random_solutions(rng, 60)
    recorder = Recorder(1)
    with chat_server(recorder) as server:
        judged = attribute_all(judge_at(server), solutions)
    for solution, entry in zip(solutions, judged):
        asked = [v for step, v in zip(solution.steps, entry.verdicts) if step.kind != "answer" and step.text]
        assert asked == recorder.said.get(solution.question, [])
        others = {
            step.kind: v for step, v in zip(solution.steps, entry.verdicts) if not step.text or step.kind == "answer"
        }
        assert others.pop("answer") is None and set(others.values()) <= {"undecided"}
        # The first departure follows from these verdicts as from those of any judge of steps.
        verdicts = iter(v for v in entry.verdicts if v is not None)
        by_step = {id(step): next(verdicts) for step in solution.steps if step.kind != "answer"}
        look_up = partial(lambda found, step, *_: found[id(step)], by_step)
        expected = attribute(solution.steps, [Step("memory", "x")], look_up, answer=solution.answer)
        assert entry.attribution == expected
    with_text = [s for s in solutions if any(step.text and step.kind != "answer" for step in s.steps)]
    assert len(server.calls) == len(with_text) < len(solutions)


def test_faults_of_the_network_change_nothing():
    rng = random.Random(2)
    solutions = random_solutions(rng, 30)
    names = sorted(FAULTS)

    def answer(call):
        return json.dumps({n: VERDICTS[len(text) % 3] for n, _, text in STEP.findall(call.prompt)})

    with chat_server(answer) as server:
        quiet = attribute_all(judge_at(server), solutions)
    with chat_server(answer, fault=lambda call, n: FAULTS[names[n // 2 % len(names)]] if n % 2 else None) as server:
        assert attribute_all(judge_at(server), solutions) == quiet
        assert len(server.calls) > len(server.answered)


def test_the_prompt_holds_what_is_known_and_nothing_else():
    steps = [Step("memory", "Iron is heavy."), answer_step("True")]
    references = [Step("memory", "Iron sinks."), answer_step("False")]
    with chat_server(lambda call: '{"1": "agrees"}') as server:
        judge = judge_at(server, background="Facts about iron.")
        attribute_all(judge, [SolutionToJudge(steps, references, "Does it {steps} float?", "The answer is: False")])
        attribute_all(judge_at(server), [SolutionToJudge(steps, (), "Does it float?")])
    full, bare = (call.prompt for call in server.calls)
    assert "Facts about iron.\n\nQuestion: Does it {steps} float?\nThe right answer: False\n" in full
    assert "- [memory] Iron sinks.\n" in full and "1. [memory] Iron is heavy.\n" in full
    assert "The answer is" not in full and "2. [" not in full
    for words in ("right answer", "A correct solution", "Facts"):
        assert words not in bare
    assert judge.usage["requests"] == 1 and judge.usage["tokens"] == len(full.split()) + 2


def test_nonsense_is_asked_about_again_and_told_why():
    steps = [Step("memory", "a"), Step("reason", "b")]
    replies = iter(["I like it.", '{"1": "agrees"}', '{"1": "agrees", "2": "Departs "}'])
    with chat_server(lambda call: next(replies)) as server:
        (judged,) = attribute_all(judge_at(server), [SolutionToJudge(steps, (), "Is it?")])
    assert judged.verdicts == ("agrees", "departs")
    first, second, third = (call.prompt for call in server.calls)
    assert (
        second
        == f"{first}\n\nAn earlier reply could not be used: The reply holds no JSON object with verdicts. "
        + ("Reply with the JSON object alone.")
    )
    assert "The reply has no verdict on step 2." in third
    assert [call.body["seed"] for call in server.calls] == [0, 1, 2]


def test_a_solution_that_cannot_be_judged_is_said_to_be_so():
    solutions = [SolutionToJudge([Step("memory", f"{i}")], (), f"Question {i}?", answer="right") for i in range(12)]

    def answer(call):
        return "Hm." if "Question 7?" in call.prompt else '{"1": "agrees"}'

    with chat_server(
        answer, fault=lambda call, n: Fault(400, body="no") if "Question 3?" in call.prompt else None
    ) as server:
        judged = attribute_all(judge_at(server), solutions)
    outcomes = [entry.attribution.outcome for entry in judged]
    assert outcomes == ["none"] * 3 + ["not judged"] + ["none"] * 3 + ["not judged"] + ["none"] * 4
    assert "status 400" in judged[3].fault and judged[7].fault.endswith("The reply is 'Hm.'.")
    assert judged[7].verdicts == (None,)


@pytest.mark.parametrize("count", [2, 40])
def test_a_judge_that_answers_nonsense_is_given_up_early(count):
    solutions = [SolutionToJudge([Step("memory", f"{i}")], (), f"Question {i}?") for i in range(count)]
    with chat_server(lambda call: "Yes, no and\x1b[2J perhaps.") as server, pytest.raises(JudgeError) as caught:
        attribute_all(judge_at(server), solutions)
    assert str(caught.value) == (
        f"judge 'scripted': none of its replies about {min(count, 8)} solutions can be read. The reply holds no JSON "
        "object with verdicts. The reply is 'Yes, no and␛[2J perhaps.'. Choose another model, or another prompt."
    )
    # With 8 requests at once, those under way are the most that are asked in vain.
    assert len(server.calls) <= 3 * 16


def test_an_endpoint_that_answers_with_a_page_is_refused():
    with chat_server(lambda call: Fault(200, {"Content-Type": "text/html"}, HTML)) as server:
        with pytest.raises(ChatError, match="answers with a web page with the title 'Please log in', not JSON"):
            attribute_all(judge_at(server), [SolutionToJudge([Step("memory", "a")])] * 3)
        assert len(server.calls) == 1


def test_one_step_is_judged_by_a_call():
    with chat_server(lambda call: '{"1": "departs"}') as server:
        judge = judge_at(server)
        assert judge(Step("memory", "a"), [Step("memory", "b")], "Is it?") == "departs"
        assert attribute([Step("reason", "a")], [], judge) == Attribution("reason", 0)
    with chat_server(lambda call: "x") as server, pytest.raises(JudgeError):
        judge_at(server)(Step("memory", "a"), [], "Is it?")


def test_replies_that_are_kept_are_not_asked_for_again(tmp_path):
    rng = random.Random(4)
    solutions = random_solutions(rng, 20)
    # Equal solutions are asked about once.
    solutions += solutions[:5]
    file = tmp_path / "replies.jsonl"
    recorder = Recorder(4)
    with chat_server(recorder) as server:
        judged = attribute_all(judge_at(server, replies=ReplyFile(file)), solutions)
        asked = len(server.calls)
        assert asked == len(recorder.said) == len(file.read_bytes().splitlines())
        # A kill leaves an unfinished line; then only its solution is asked about.
        content = file.read_bytes()
        file.write_bytes(content[:-7])
        recorder.rng = random.Random(99)
        again = attribute_all(judge_at(server, replies=ReplyFile(file)), solutions)
        assert len(server.calls) == asked + 1
        assert sum(a != b for a, b in zip(judged, again)) <= 2
        assert len(file.read_bytes().splitlines()) == asked
        # Another prompt or background is another question.
        attribute_all(judge_at(server, replies=ReplyFile(file), background="More."), solutions)
        assert len(server.calls) == 2 * asked + 1


def test_another_endpoint_with_the_same_model_name_is_asked_anew(tmp_path):
    solutions = [SolutionToJudge([Step("memory", f"a{number}")]) for number in range(5)]
    file = tmp_path / "replies.jsonl"
    with chat_server(lambda call: '{"1": "agrees"}') as one, chat_server(lambda call: '{"1": "departs"}') as other:
        said = {}
        for _ in range(2):
            for server in (one, other):
                judged = attribute_all(judge_at(server, replies=ReplyFile(file)), solutions)
                said.setdefault(server.url, []).append([entry.verdicts for entry in judged])
        assert said == {one.url: [[("agrees",)] * 5] * 2, other.url: [[("departs",)] * 5] * 2}
        # Each was asked once, and the file shows neither address.
        assert len(one.calls) == len(other.calls) == 5 and len(file.read_text().splitlines()) == 10
        assert "127.0.0.1" not in file.read_text()


def test_nonsense_is_not_kept(tmp_path):
    replies = iter(["x", "y", "z", '{"1": "agrees"}'])
    solutions = [SolutionToJudge([Step("memory", "a")])]
    with chat_server(lambda call: next(replies)) as server:
        with pytest.raises(JudgeError):
            attribute_all(judge_at(server, replies=ReplyFile(tmp_path / "r.jsonl")), solutions)
        assert not (tmp_path / "r.jsonl").exists()
        assert attribute_all(judge_at(server, replies=ReplyFile(tmp_path / "r.jsonl")), solutions)[0].fault is None
        assert len(server.calls) == 4


@pytest.mark.parametrize("content", ['{"index": 3}\n', "[]\n", '{"key": 1, "reply": "a"}\n', "no json\n", "other"])
def test_files_of_others_are_refused(tmp_path, content):
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(ValueError, match="must hold"):
        ReplyFile(tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ('{"1": "agrees", "2": "departs"}', ["agrees", "departs"]),
        ('{"2": "departs", "1": "AGREES"}', ["agrees", "departs"]),
        ('{"step 1": "undecided", "Step 2": "departs"}', ["undecided", "departs"]),
        ('First {"1": "departs", "2": "departs"}, no: {"1": "agrees", "2": "departs"}.', ["agrees", "departs"]),
        ('<think>{1}</think>\n```json\n{"1":"agrees",\n"2":"departs"}\n```', ["agrees", "departs"]),
    ],
)
def test_readable_replies(text, verdicts):
    assert read_verdicts(text, 2) == verdicts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no JSON object"),
        ("{" * 100_000, "holds no JSON object"),
        ('["agrees", "departs"]', "holds no JSON object"),
        ('{"1": "agrees"', "holds no JSON object"),
        ("{}", "no verdict on step 1"),
        ('{"1": "agrees"}', "no verdict on step 2"),
        ('{"1": "agrees", "2": "departs", "3": "agrees"}', "a verdict on '3', but the steps are 1 to 2"),
        ('{"1": "agrees", "1": "departs", "2": "agrees"}', "two verdicts on step 1"),
        ('{"1": "right", "2": "departs"}', "The verdict on step 1 is 'right'; it must be one of agrees, departs"),
        ('{"1": true, "2": "departs"}', "The verdict on step 1 is True"),
        ('{"one": "agrees", "2": "departs"}', "a verdict on 'one'"),
        ('{"1": "agrees", "2": "departs"} or {"1": "no"}', "The verdict on step 1 is 'no'"),
    ],
)
def test_replies_that_are_not_guessed_at(text, message):
    with pytest.raises(ValueError, match=message):
        read_verdicts(text, 2)


def test_prompts_that_hide_the_solution_are_refused():
    for prompt, name in (("Judge {steps}", "question"), ("Judge {question}", "steps")):
        with pytest.raises(ValueError, match=rf"the field \{{{name}\}} is missing"):
            check_prompt(prompt)
    with pytest.raises(TypeError, match="prompt=5 must be a text"):
        check_prompt(5)
    check_prompt("{question} {steps}")
