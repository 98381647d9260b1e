"""Texts of prompts: templates with places for a question, instructions, and special strings that must stay plain."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from memreason_hf.checks import check_type
from memreason_hf.files import read_text
from memreason_hf.steps import ANSWER_MARKER, StepScheme
from memreason_hf.steps.tokenization import encode_plain


QUESTION, INSTRUCTION = "question", "instruction"
# What a probe of a chat template says. No template changes these words.
COMPLETION = "The probe answers."
ALPACA = "alpaca"
_ALPACA_INSTRUCTION_ONLY = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
{question}

### Response:
"""
_ALPACA_WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{question}

### Response:
"""
_PLACE = re.compile(r"\{(question|instruction)\}")
# Stand for a special string in a text that is tokenized as a whole. Private characters, which no template changes.
_OPEN, _CLOSE = "\ue000", "\ue001"
_COVERED = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_ANSWERS = {
    "true_false": "True or False",
    "yes_no": "yes or no",
    "letters": "the letter of an option",
    "number": "a number",
    "text": "a few words",
}
_MEANINGS = {"memory": "for knowledge that you recall", "reason": "for a conclusion that you draw"}


def read_template(value: str, instruction: str | None = None) -> str:
    """
    A template by its name or from a file.

    Args:
        value: `"alpaca"` for the template of Alpaca, with its `### Input:` if there is an instruction and otherwise
            with the question as the instruction; or the path of a text file in UTF-8 with `{question}`.
        instruction: the instruction of the prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text.

    Example:

        >>> print(read_template("alpaca").splitlines()[-4])
        ### Instruction:
    """
    check_type("template", value, str, "the name or the path of a template")
    if value == ALPACA:
        return _ALPACA_WITH_INPUT if instruction else _ALPACA_INSTRUCTION_ONLY
    path = Path(value)
    if not path.is_file():
        raise FileNotFoundError(
            f"template={value!r}: no such file. Pass a text file with {{question}}, or {ALPACA!r}."
        )
    try:
        return read_text(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"template={value!r} must be a text in UTF-8 ({error}).") from None


def template_places(template: str) -> list[str]:
    """The names of the places of a template, in order: `question` and `instruction`."""
    return _PLACE.findall(template)


def fill_template(template: str, *, question: str, instruction: str) -> str:
    """The template with its places filled. Places in the question itself are text."""
    values = {QUESTION: question, INSTRUCTION: instruction}
    return _PLACE.sub(lambda match: values[match[1]], template)


def default_instruction(style: str, answer_types: Iterable[str] = ()) -> str:
    """
    The instruction of a style for models that were not trained on steps; empty for `"steps"`.

    Args:
        answer_types: the types of the answers of the data, such as `"true_false"`, which the instruction names.

    Example:

        >>> default_instruction("direct", ["true_false"])
        "Answer the question with True or False. Write nothing but 'The answer is: ' and the answer."
    """
    if style == "steps":
        return ""
    forms = [_ANSWERS[name] for name in dict.fromkeys(answer_types)]
    with_form = f" with {_joined(forms)}" if forms else ""
    if style == "direct":
        return f"Answer the question{with_form}. Write nothing but '{ANSWER_MARKER} ' and the answer."
    return (
        f"Answer the question{with_form}. Think step by step, one short step on each line. End with a line "
        f"'{ANSWER_MARKER} ' and the answer."
    )


def steps_instruction(scheme: StepScheme, answer_types: Iterable[str] = ()) -> str:
    """
    The instruction for a model that was not trained on the marks of a scheme: what the marks mean.

    Example:

        >>> steps_instruction(StepScheme(marks="words")).split(". ")[-1]
        "End with the line 'Answer: The answer is: ' and the answer."
    """
    forms = [_ANSWERS[name] for name in dict.fromkeys(answer_types)]
    with_form = f" with {_joined(forms)}" if forms else ""
    start = f"Answer the question{with_form}. Write one short step on each line."
    if not scheme.has_kinds:
        return f"{start} End with a line '{ANSWER_MARKER} ' and the answer."
    meanings = {kind: _MEANINGS.get(kind, f"for a step of the kind {kind}") for kind in scheme.kinds}
    marks = [f"with '{scheme.mark(kind)}' {meaning}" for kind, meaning in meanings.items()]
    return (
        f"{start} Begin a line {', and '.join(marks)}. End with the line '{scheme.mark('answer')} {ANSWER_MARKER} ' "
        "and the answer."
    )


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


class Shield:
    """
    Keeps special strings of users' texts plain, in a text that is tokenized as a whole.

    `cover` replaces the special strings of a part by characters that stand for them, and `encode` tokenizes the whole
    text with them encoded as plain text. A text without any is tokenized in one piece, as the library does it.

    Args:
        tokenizer: the tokenizer.
        tokens: special tokens besides those that the tokenizer names.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str] = ()):
        self.tokenizer = tokenizer
        special = {*tokenizer.all_special_tokens, *tokens, _OPEN, _CLOSE}
        # The longest first: one special token can begin with another.
        self._special = sorted(filter(None, special), key=len, reverse=True)
        self._covered: list[str] = []

    def cover(self, text: str, keep: Sequence[str] = ()) -> str:
        """`text` with its special strings covered, except those in `keep`, which the tokenizer reads as tokens."""
        special = [token for token in self._special if token not in keep]
        if not any(token in text for token in special):
            return text
        return re.sub("|".join(map(re.escape, special)), self._replace, text)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens around it."""
        ids = []
        for index, piece in enumerate(_COVERED.split(text)):
            if index % 2:
                ids += encode_plain(self.tokenizer, self._covered[int(piece)])
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _replace(self, match):
        self._covered.append(match[0])
        return f"{_OPEN}{len(self._covered) - 1}{_CLOSE}"
