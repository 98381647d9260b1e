"""
Annotated questions as conversations, which other trainers take, and back.

    rows = to_messages(dataset["train"], StepScheme())
    SFTTrainer(model, train_dataset=rows)
    questions = from_messages(rows)
"""

from collections.abc import Iterable, Mapping, Sequence

from datasets import Dataset

from memreason_hf.checks import check_choice, check_row, check_sequence, check_type
from memreason_hf.data.questions.memory_reason import reference_solution
from memreason_hf.data.questions.own_data import read_questions
from memreason_hf.steps import StepScheme


# `messages`: a column of that name. `prompt_completion`: two texts. `conversational_prompt_completion`: two lists of
# messages, of which TRL trains on the second.
FORMATS = ("messages", "prompt_completion", "conversational_prompt_completion")


def to_messages(
    rows: Iterable[Mapping],
    scheme: StepScheme | None = None,
    *,
    format: str = "messages",
    system: str | None = None,
    keep: Sequence[str] = (),
) -> Dataset:
    """
    Questions and their solutions as conversations, in the formats of TRL's trainers.

    Args:
        rows: with `question`, `answer` and `steps`, as from `load_questions`.
        scheme: how the steps are marked. The tokenizer of the model must know its tokens (`extend_tokenizer`).
            Default: no marks, a step on each line.
        format: `"messages"`, for a column of that name; `"prompt_completion"`, for two texts; or
            `"conversational_prompt_completion"`, for two lists of messages.
        system: a system text before every question. Texts without roles have none.
        keep: columns that stay, for example those that a reward reads: `("answer", "options", "answer_type")`.

    Raises:
        ValueError: there are no rows, a column is missing, or a step cannot be written in the scheme; names the row.

    Example:

        >>> steps = [{"kind": "memory", "text": "It floats."}]
        >>> rows = [{"question": "Is ice light?", "answer": "True", "steps": steps}]
        >>> print(to_messages(rows, format="prompt_completion")[0]["completion"], end="")
        It floats.
        The answer is: True
    """
    check_sequence("rows", rows, "a list of rows")
    check_choice("format", format, FORMATS)
    scheme = StepScheme(marks="none") if scheme is None else scheme
    check_type("scheme", scheme, StepScheme, "a StepScheme")
    if system is not None:
        check_type("system", system, str, "a text")
        if format == "prompt_completion":
            raise ValueError(
                f"system={system[:60]!r} needs a format with roles, got format={format!r}. Leave it out, or write it "
                "into the questions."
            )
    check_sequence("keep", keep, "a list of names of columns")
    conversations = []
    for index, row in enumerate(rows):
        check_row(f"rows[{index}]", row, ("question", "steps", "answer", *keep))
        try:
            question, solution = scheme.question_text(row["question"]), scheme.render(reference_solution(row))
        except (TypeError, ValueError) as error:
            raise ValueError(f"rows[{index}]: {error}") from error
        kept = {name: row[name] for name in keep}
        conversations.append({**_conversation(question, solution, format, system), **kept})
    if not conversations:
        raise ValueError("rows is empty: there is nothing to write. Check the split.")
    return Dataset.from_list(conversations)


def from_messages(
    rows: Iterable[Mapping], scheme: StepScheme | None = None, *, answer_type: str | None = None
) -> Dataset:
    """
    The inverse of `to_messages`: questions with their steps and answers, in the schema of `load_questions`.

    A row is one question and one reply. The steps of the reply are its lines, or what the tokens of a scheme mark; the
    answer follows `The answer is:` in the last one. A reply of a single line is an answer alone. Options are those
    that the question lists (`A. … B. …`). System texts are not kept.

    Args:
        rows: with `messages`, or with `prompt` and `completion`.
        scheme: how the steps are marked. Default: by the tokens of any scheme, or not at all.
        answer_type: as for `load_questions`.

    Raises:
        QuestionDataError: rows cannot be used. All of them are listed.

    Example:

        >>> reply = {"role": "assistant", "content": "It floats. \\n The answer is: True"}
        >>> rows = from_messages([{"messages": [{"role": "user", "content": "Is ice light?"}, reply]}])
        >>> rows[0]["steps"], rows[0]["answer"]
        ([{'kind': 'step', 'text': 'It floats.'}], 'True')
    """
    return read_questions(rows, answer_type=answer_type, scheme=scheme)


def _conversation(question, solution, format, system):
    if format == "prompt_completion":
        return {"prompt": question, "completion": solution}
    before = [] if system is None else [{"role": "system", "content": system}]
    prompt = [*before, {"role": "user", "content": question.rstrip("\n")}]
    reply = [{"role": "assistant", "content": solution.rstrip("\n")}]
    if format == "messages":
        return {"messages": prompt + reply}
    return {"prompt": prompt, "completion": reply}
