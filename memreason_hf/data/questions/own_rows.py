"""Rows of any question data set, read into the columns of the schema; what is wrong with a row is a ValueError."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memreason_hf.checks import shortened
from memreason_hf.data.questions.answer_types import (
    ANSWER_TYPES,
    FIXED_OPTIONS,
    answer_type_of,
    guess_type,
    read_letter,
    same_answer,
)
from memreason_hf.data.questions.options import find_options
from memreason_hf.data.questions.schema import FEATURES, question_row
from memreason_hf.data.questions.solution_texts import read_solution_text, read_steps, split_answer
from memreason_hf.data.questions.text import check_characters, one_line
from memreason_hf.steps import QUESTION_MARKER, Step, StepScheme


# The forms of a row, and the columns by which they are recognised.
FORMS = {"question": ("question",), "messages": ("messages",), "prompt and completion": ("prompt", "completion")}
_ROLES = ("system", "developer", "user", "assistant")
_LISTED = re.compile(r"[(\[]?([A-Z])[)\].:]\s*(.*)", re.DOTALL)
_MOST_OPTIONS = 26
_SEPARATOR = re.compile(r"\S\s+####\s")


@dataclass
class DraftRow:
    """
    A row whose answers are read, but not yet checked against a type, which can depend on the other rows.

    Attributes:
        question, options, answer, accepted, steps: see `question_row`.
        answer_type: None until it is known.
        system: the system text of a conversation, which the schema does not keep.
    """

    question: str
    options: dict[str, str]
    answer: str
    accepted: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    answer_type: str | None = None
    system: str | None = None

    def guess(self) -> str:
        """The type that the row alone suggests: that of all its right answers, or text if they are of several."""
        types = {guess_type(answer) for answer in (self.answer, *self.accepted)}
        return types.pop() if len(types) == 1 else "text"

    def finished(self, answer_type: str) -> dict:
        """
        The row of the data set.

        Raises:
            ValueError: an answer is not of the type, or not one of the options.
        """
        steps = self._steps_alone(answer_type)
        return question_row(
            self.question,
            self.answer,
            options=self.options,
            steps=steps,
            accepted_answers=self.accepted,
            answer_type=answer_type,
        )

    def _steps_alone(self, answer_type):
        """The steps without an answer at their end, which must be the row's."""
        steps, answer = split_answer(self.steps)
        if answer is not None:
            said, right = (
                (read_letter(text) or text) if answer_type == "letters" else text for text in (answer, self.answer)
            )
            if not same_answer("number" if answer_type == "number" else "text", said, right):
                raise ValueError(f"the last step answers {shortened(answer)}, but answer={shortened(self.answer)}.")
        return steps


def form_of(row: Mapping) -> str | None:
    """The form of a row, a key of `FORMS`; None if it has the columns of none."""
    return next((form for form, columns in FORMS.items() if all(name in row for name in columns)), None)


def pick(row: Mapping, columns: Mapping[str, str]) -> dict:
    """
    A row with its columns under the names of the schema.

    Args:
        columns: the column of each column of the schema, where its name differs. A dot leads into a column of objects:
            `answers.text`.

    Raises:
        ValueError: the row lacks the column of the question or of the answer.
    """
    renamed = {path.partition(".")[0] for path in columns.values()}
    picked = {name: value for name, value in row.items() if name not in renamed}
    for name, path in columns.items():
        root = path.partition(".")[0]
        if name in ("question", "answer") and root not in row:
            raise ValueError(f"lacks {root}, which columns names for {name}; it has {', '.join(map(str, row))}.")
        value = row
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        picked[name] = value
    return picked


def read_row(row: Mapping, scheme: StepScheme | None = None) -> DraftRow:
    """
    Reads a row of any of the forms.

    Args:
        row: with the columns of `FORMS`, and optionally the others of the schema.
        scheme: how the texts of solutions mark their steps. Default: by the tokens of any scheme, or not at all.

    Raises:
        ValueError: the row is of no form, or a column is missing or malformed.
    """
    form = form_of(row)
    if form is None:
        raise ValueError(f"lacks question; it has {', '.join(map(str, row)) or 'no columns'}.")
    system = None
    if form != "question":
        question, reply, system = _conversation(row) if form == "messages" else _prompt_and_completion(row)
        steps, answer = read_solution_text(reply, scheme)
        given = {"question": question, "steps": steps, "answer": answer}
        row = {**{name: row.get(name) for name in FEATURES}, **given}
    question = _question(row["question"])
    options, renamed = _options(row.get("options"))
    chosen = row.get("answer_type")
    if chosen is not None and chosen not in ANSWER_TYPES:
        raise ValueError(f"answer_type={shortened(chosen)} must be one of {', '.join(ANSWER_TYPES)}.")
    answers = [renamed.get(answer, answer) for answer in _answers(row.get("answer"), options)]
    accepted = [renamed.get(text, text) for text in _texts("accepted_answers", row.get("accepted_answers"))]
    if not options and chosen in (None, "letters"):
        options = _listed_options(question, answers[0], chosen)
    if options and chosen not in FIXED_OPTIONS:
        answers = [_as_label(answer, options) for answer in answers]
        accepted = [_as_label(answer, options) for answer in accepted]
        question = _with_options(question, options)
    steps = read_steps(row.get("steps"), scheme)
    for text in (question, *options.values(), *answers, *accepted, *(step.text for step in steps)):
        check_characters(text)
    draft = DraftRow(question, options, answers[0], [*answers[1:], *accepted], steps, chosen, system)
    if options and chosen is None:
        draft.answer_type = answer_type_of(options)
    return draft


def _question(value):
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"question={shortened(value)} must be a text.")
    question = one_line(f"{value.strip()} ".removeprefix(QUESTION_MARKER))
    if not question:
        raise ValueError(f"question={shortened(value)} has no words after '{QUESTION_MARKER.strip()}'.")
    return question


def _answers(value, options):
    """The right answers as texts, the first one first."""
    several = list(value) if isinstance(value, list | tuple) else [value]
    answers = [_answer(answer, options) for answer in several]
    if not answers:
        raise ValueError("answer is an empty list. Give at least one right answer.")
    return answers


def _answer(value, options):
    if value is None or value == "":
        raise ValueError("answer is missing.")
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int) and options:
        labels = list(options)
        if not 0 <= value < len(labels):
            raise ValueError(f"answer={value} must be the index of an option, from 0 to {len(labels) - 1}.")
        return labels[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"answer={value} must be a finite number.")
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if not isinstance(value, str):
        raise ValueError(f"answer={shortened(value)} must be a text or a number, got {type(value).__name__}.")
    if not value.strip():
        raise ValueError(f"answer={value!r} is blank.")
    if _SEPARATOR.search(value):
        raise ValueError(
            f"answer={shortened(value)} holds a solution and, after ####, its answer, as in GSM8K. Give the answer "
            "alone, and the solution as steps; GSM8K itself is read with --name gsm8k (finetune: --data_name)."
        )
    return one_line(value)


def _texts(name, value):
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError(f"{name}={shortened(value)} must be a list of texts.")
    return [one_line(text) for text in value]


def _options(value) -> tuple[dict[str, str], dict[str, str]]:
    """
    Options of any form as labels to texts: `A`, `B`, …, or the labels of `FIXED_OPTIONS`; and the new labels of those
    that had numbers.
    """
    if value is None or value == [] or value == {}:
        return {}, {}
    if isinstance(value, Mapping):
        has_lists = set(value) == {"label", "text"} and all(isinstance(part, list | tuple) for part in value.values())
        pairs = list(zip(value["label"], value["text"])) if has_lists else list(value.items())
        if has_lists and len(value["label"]) != len(value["text"]):
            raise ValueError(f"options has {len(value['label'])} labels and {len(value['text'])} texts.")
    elif isinstance(value, list | tuple) and all(isinstance(option, Mapping) for option in value):
        if not all({"label", "text"} <= set(option) for option in value):
            raise ValueError(f"options={shortened(value)} must have a label and a text each.")
        pairs = [(option["label"], option["text"]) for option in value]
    elif isinstance(value, list | tuple) and all(isinstance(option, str | int | float) for option in value):
        pairs = _labelled(list(map(str, value)))
    else:
        raise ValueError(f"options={shortened(value)} must be a list of texts, or labels and texts.")
    return _checked_options(pairs)


def _labelled(texts):
    """Labels for a list of texts: those that the texts begin with (`A) bank`), or A, B, …"""
    letters = [chr(ord("A") + index) for index in range(len(texts))]
    matches = [_LISTED.match(text.strip()) for text in texts]
    if all(match and match[1] == letter for match, letter in zip(matches, letters)):
        texts = [match[2] for match in matches]
    return list(zip(letters, texts))


def _checked_options(pairs):
    if not all(isinstance(label, str) and isinstance(text, str) and label.strip() for label, text in pairs):
        raise ValueError(f"options={shortened(dict(pairs))} must have texts as labels and as options.")
    if len(pairs) > _MOST_OPTIONS:
        raise ValueError(f"options has {len(pairs)} entries, but there are {_MOST_OPTIONS} letters for them.")
    for fixed in FIXED_OPTIONS.values():
        spelled = {name.casefold(): name for name in fixed}
        labels = [spelled.get(label.strip().casefold()) for label, _ in pairs]
        names = [spelled.get(text.strip().rstrip(".").casefold()) for _, text in pairs]
        for found in (labels, names):
            if len(pairs) == len(fixed) and set(found) == set(fixed):
                # In the order of the row, because an answer can be an index.
                return dict(zip(found, found)), {}
    labels = [label.strip().rstrip(".):").upper() for label, _ in pairs]
    if len(set(labels)) < len(labels):
        raise ValueError(f"options has a label twice: {', '.join(labels)}.")
    letters = [chr(ord("A") + index) for index in range(len(labels))]
    numbers = [str(index + 1) for index in range(len(labels))]
    if labels not in (letters, numbers):
        raise ValueError(f"options has the labels {', '.join(labels)}, but they must be {', '.join(letters)}.")
    texts = [one_line(text) for _, text in pairs]
    if not all(texts) or len(texts) < 2:
        raise ValueError(f"options={shortened(dict(pairs))} must be at least two texts, none of them blank.")
    return dict(zip(letters, texts)), dict(zip(numbers, letters)) if labels == numbers else {}


def _listed_options(question, answer, chosen):
    """The options that the question itself lists, if the answer is one of them."""
    letter = read_letter(answer)
    listed = find_options(question) if letter or chosen == "letters" or ". " in question else {}
    if letter in listed or answer in listed.values():
        return listed
    if listed and (letter or chosen == "letters"):
        raise ValueError(f"answer={shortened(answer)} must be one of the options {', '.join(listed)}.")
    return {}


def _as_label(answer, options):
    """The label of an answer that is the text of an option; any other answer as it is, to be checked later."""
    if (read_letter(answer) or answer) in options:
        return answer
    labels = [label for label, text in options.items() if text.casefold() == answer.casefold()]
    return labels[0] if len(labels) == 1 else answer


def _with_options(question, options):
    """The question with its options listed after it, unless it lists them already."""
    if set(options) in map(set, FIXED_OPTIONS.values()) or _lists(question, options):
        return question
    listed = " ".join(f"{label}. {text}" for label, text in options.items())
    return f"{question} Options: {listed}"


def _lists(question, options):
    position = 0
    for label, text in options.items():
        listed = re.compile(rf"(?<!\w){label}[.):\]]\s*{re.escape(text)}").search(question, position)
        if listed is None:
            return False
        position = listed.end()
    return True


def _conversation(row):
    """The question, the reply and the system text of `messages`."""
    return _question_and_reply("messages", _messages("messages", row["messages"]))


def _prompt_and_completion(row):
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion, None
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError("prompt and completion must both be texts, or both lists of messages.")
    messages = [*_messages("prompt", prompt), *_messages("completion", completion)]
    return _question_and_reply("prompt and completion", messages)


def _messages(name, value):
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{name}={shortened(value)} must be a list of messages with role and content.")
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"{name}[{index}]={shortened(message)} must have a role and a content.")
        if message["role"] not in _ROLES:
            raise ValueError(f"{name}[{index}].role={shortened(message['role'])} must be one of {', '.join(_ROLES)}.")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"{name}[{index}].content={shortened(message['content'])} must be a text.")
    return value


def _question_and_reply(name, messages):
    system = [message["content"] for message in messages if message["role"] in ("system", "developer")]
    turns = [message for message in messages if message["role"] in ("user", "assistant")]
    if [message["role"] for message in turns] != ["user", "assistant"]:
        roles = ", ".join(message["role"] for message in turns) or "none"
        raise ValueError(f"{name} must be one question (user) and one reply (assistant), but the roles are {roles}.")
    return turns[0]["content"], turns[1]["content"], "\n".join(system) or None
