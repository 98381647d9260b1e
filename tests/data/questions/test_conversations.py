"""Conversations out and in: nothing of a question, its steps or its answer is lost."""

import random
import re

import pytest
from question_rows import random_rows

from memreason_hf.data.questions.conversations import FORMATS, from_messages, to_messages
from memreason_hf.data.questions.own_data import QuestionDataError, load_questions
from memreason_hf.steps import StepScheme


SCHEMES = {
    "no marks": None,
    "one token": StepScheme(1, 1),
    "many tokens": StepScheme(3, 5),
    "no prefix": StepScheme(0, 2),
    "words": StepScheme(marks="words"),
}


def rows_of(rng, count=12):
    """Random rows of one type, whose letters are in their questions."""
    rows = random_rows(rng, count, (rng.choice(["letters", "true_false", "yes_no", "number", "text"]),))
    # Conversations hold one answer.
    return [{**row, "accepted_answers": []} for row in rows]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SCHEMES)
def test_conversations_and_back(name, format):
    rng, scheme = random.Random(), SCHEMES[name]
    for _ in range(3):
        rows = rows_of(rng)
        conversations = to_messages(rows, scheme, format=format)
        back = from_messages(conversations, scheme, answer_type=rows[0]["answer_type"]).to_list()
        if scheme is None:
            rows = [{**r, "steps": [{"kind": "step", "text": s["text"]} for s in r["steps"]]} for r in rows]
        assert back == rows
        # A control: another text of a question or of an answer is noticed.
        rows[3] = {**rows[3], "question": "Other? " + rows[3]["question"]}
        assert back != rows


def test_what_the_columns_hold():
    row = {"question": "Is ice light?", "answer": "True", "steps": [{"kind": "memory", "text": "It floats."}], "id": 7}
    scheme = StepScheme(1, 1)
    solution = "<prefix><memory> It floats.\n<prefix><answer> The answer is: True"
    user, reply = {"role": "user", "content": "Question: Is ice light?"}, {"role": "assistant", "content": solution}
    system = {"role": "system", "content": "Think."}
    assert to_messages([row], scheme)[0] == {"messages": [user, reply]}
    assert to_messages([row], scheme, system="Think.", keep=["id"])[0] == {"messages": [system, user, reply], "id": 7}
    both = to_messages([row], scheme, format="conversational_prompt_completion", system="Think.")[0]
    assert both == {"prompt": [system, user], "completion": [reply]}
    texts = to_messages([row], scheme, format="prompt_completion")[0]
    assert texts == {"prompt": "Question: Is ice light?\n", "completion": solution + "\n"}


def test_a_reply_of_one_line_is_an_answer(tmp_path, caplog):
    path = tmp_path / "chat.jsonl"
    path.write_text(
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Capital?"}, '
        '{"role": "assistant", "content": "Paris"}]}\n'
    )
    row = load_questions(path)["train"][0]
    assert (row["question"], row["answer"], row["steps"], row["answer_type"]) == ("Capital?", "Paris", [], "text")
    assert "the system texts of 1 conversations are not kept" in caplog.text


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "must be a list of messages"),
        ("Hi", "must be a list of messages"),
        ([{"role": "user"}], "messages[0]={'role': 'user'} must have a role and a content"),
        ([{"role": "tool", "content": "a"}], "messages[0].role='tool' must be one of"),
        ([{"role": "user", "content": " "}], "messages[0].content=' ' must be a text"),
        (
            [{"role": "user", "content": "a"}],
            "must be one question (user) and one reply (assistant), but the roles are user",
        ),
        (
            [{"role": role, "content": "a"} for role in ("user", "assistant", "user", "assistant")],
            "but the roles are user, assistant, user, assistant",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "First.\nSecond."}],
            "the solution ends with 'Second.', not with 'The answer is: …'",
        ),
    ],
)
def test_conversations_that_are_not_one_question(messages, message):
    with pytest.raises(QuestionDataError, match=re.escape(message)):
        from_messages([{"messages": messages}])


def test_what_cannot_be_written():
    row = {"question": "Is it?", "answer": "True", "steps": [{"kind": "memory", "text": "a <prefix_0> b"}]}
    with pytest.raises(ValueError, match=r"rows\[0\]: .*holds <prefix_0>, a token of the scheme"):
        to_messages([row], StepScheme())
    with pytest.raises(ValueError, match="rows is empty"):
        to_messages([])
    with pytest.raises(ValueError, match="format='chat' must be one of"):
        to_messages([row], format="chat")
    with pytest.raises(ValueError, match="system='Think' needs a format with roles"):
        to_messages([row], format="prompt_completion", system="Think")
    with pytest.raises(ValueError, match=r"rows\[0\]=.* lacks id"):
        to_messages([row], keep=["id"])
