"""The prompts of annotation: files with fields, of the package or of the user."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memreason_hf.checks import check_choice, check_path, check_type
from memreason_hf.data.questions.options import options_by_label
from memreason_hf.files import read_text, whole_file


ORDERS = ("natural", "memory_first")
_FOLDER = Path(__file__).with_name("prompts")
# The file of the plan by the order of the steps, and that of the knowledge.
PLAN_FILES = {"natural": "plan.txt", "memory_first": "plan_memory_first.txt"}
KNOWLEDGE_FILE = "knowledge.txt"
FILES = (*PLAN_FILES.values(), KNOWLEDGE_FILE)
_PLAN_FIELDS = ("question", "answer", "options")
_KNOWLEDGE_FIELDS = ("questions", "question")
# A field, or one in double braces, which stands for itself.
_FIELD = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


@dataclass(frozen=True)
class PromptTexts:
    """
    The texts of the two calls.

    Args:
        plan: asks for the plan of a solution. Fields: `{question}`, and optionally `{answer}`, the right answer, and
            `{options}`, one on a line.
        knowledge: asks for the knowledge of a plan. Fields: `{questions}`, numbered from 1, one on a line, and
            optionally `{question}`.

    A field in double braces, such as `{{answer}}`, is written as `{answer}`.

    Raises:
        ValueError: a text lacks the field that it must have, or has one that does not exist.

    Example:

        >>> prompts = PromptTexts("Plan: {question}", "Answer:\\n{questions}")
        >>> prompts.knowledge_prompt("Why?", ["What is ice?", "What is snow?"])
        'Answer:\\n1. What is ice?\\n2. What is snow?'
    """

    plan: str
    knowledge: str

    def __post_init__(self):
        _check("plan", self.plan, "question", _PLAN_FIELDS)
        _check("knowledge", self.knowledge, "questions", _KNOWLEDGE_FIELDS)

    @classmethod
    def load(cls, order: str = "natural", folder: str | Path | None = None) -> "PromptTexts":
        """
        Reads the texts from files.

        Args:
            order: `"natural"`, or `"memory_first"` for plans whose memory steps come first.
            folder: with some of the files of the package (`plan.txt`, `plan_memory_first.txt`, `knowledge.txt`), which
                replace them. `write_prompts` writes them as they are.

        Raises:
            ValueError: the folder has none of the files, or a text is malformed.
            OSError: a file cannot be read.
        """
        check_choice("order", order, ORDERS)
        texts = {}
        if folder is not None:
            check_path("prompts", folder)
            folder = Path(folder)
            if not folder.is_dir():
                raise NotADirectoryError(f"prompts={str(folder)!r} must be a folder.")
            texts = {name: read_text(folder / name) for name in FILES if (folder / name).exists()}
            if not texts:
                raise ValueError(f"prompts={str(folder)!r} has none of the files {', '.join(FILES)}.")
        names = {"plan": PLAN_FILES[order], "knowledge": KNOWLEDGE_FILE}
        found = {field: texts.get(name) or read_text(_FOLDER / name) for field, name in names.items()}
        try:
            return cls(**{field: text.strip() for field, text in found.items()})
        except ValueError as error:
            raise ValueError(f"prompts={str(folder)!r}: {error}" if texts else str(error)) from None

    def plan_prompt(self, row: Mapping) -> str:
        """The text of the first call for a row of a data set."""
        options = options_by_label(row["options"])
        answer = row["answer"]
        text = options.get(answer, answer)
        fields = {
            "question": row["question"],
            "answer": answer if text == answer else f"{answer}. {text}",
            "options": "\n".join(f"{label}. {text}" for label, text in options.items()),
        }
        return _fill(self.plan, fields)

    def knowledge_prompt(self, question: str, questions: Sequence[str]) -> str:
        """The text of the second call: the questions of a plan, with numbers."""
        listed = "\n".join(f"{number}. {text}" for number, text in enumerate(questions, start=1))
        return _fill(self.knowledge, {"questions": listed, "question": question})


def write_prompts(folder: str | Path) -> list[Path]:
    """
    Writes the package's prompts into a folder, to be changed there.

    Raises:
        FileExistsError: the folder has one of them already.
    """
    paths = [Path(folder, name) for name in FILES]
    for path in paths:
        with whole_file(path) as temporary:
            temporary.write_text(read_text(_FOLDER / path.name), encoding="utf-8")
    return paths


def _check(name, text, required, known):
    check_type(name, text, str, "a text")
    fields = [match[2] for match in _FIELD.finditer(text) if match[2]]
    if required not in fields:
        raise ValueError(f"{name}: the text lacks the field {{{required}}}, so the model would not see it.")
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise ValueError(
            f"{name}: there is no field {{{unknown[0]}}}. The fields are "
            f"{', '.join(f'{{{field}}}' for field in known)}; write {{{{{unknown[0]}}}}} for the text itself."
        )


def _fill(text, values):
    # In one pass: a question may hold what looks like a field.
    return _FIELD.sub(lambda match: f"{{{match[1]}}}" if match[1] else values[match[2]], text)
