"""One solution to analyse: from flags, or from a file of generated solutions."""

from dataclasses import dataclass, field
from pathlib import Path

from memreason_hf.data.questions.prompts import PromptFormat
from memreason_hf.evaluation.solutions.answers import read_published
from memreason_hf.evaluation.solutions.generation_files import SETTINGS_SUFFIX, read_generations
from memreason_hf.files import read_json


@dataclass
class SolutionTextArguments:
    """Where the solution is."""

    generations: str | None = field(
        default=None,
        metadata={"help": "File of solutions: JSON lines of memreason evaluate-steps, or a JSON list of the study."},
    )
    index: int | None = field(default=None, metadata={"help": "Index of the solution in that file, from 0."})
    text: str | None = field(
        default=None,
        metadata={"help": "A question and its solution. Every step begins with its mark, for example <memory>."},
    )
    text_file: str | None = field(default=None, metadata={"help": "File with such a text, in UTF-8."})


@dataclass(frozen=True)
class SolutionText:
    """
    A solution as text.

    Attributes:
        text: the question and the solution.
        question: the question, if it is known.
        source: what figures and tables call the text.
        field: the flag that it came from and its value, for messages.
        num_demonstrations: solved questions that stood before the question when the text was generated. They are not
            part of `text`.
        prompt_format: the prompt of the question, if a file records it.
    """

    text: str
    question: str | None
    source: str
    field: str
    num_demonstrations: int = 0
    prompt_format: PromptFormat | None = None


def read_solution_text(arguments: SolutionTextArguments) -> SolutionText:
    """
    The solution that the flags name.

    Raises:
        ValueError, OSError: no text or several are given, the index is missing or not in the file, or the file is
            damaged.
    """
    given = [name for name in ("generations", "text", "text_file") if getattr(arguments, name) is not None]
    if len(given) != 1:
        what = "none is given" if not given else f"{' and '.join(given)} are given"
        raise ValueError(f"Pass one text, by --generations FILE --index N, --text or --text_file; {what}.")
    if given != ["generations"] and arguments.index is not None:
        raise ValueError(f"index={arguments.index} names a solution of --generations, which is not given.")
    if arguments.text is not None:
        return SolutionText(arguments.text, None, "the text", "text")
    (name,) = given
    path = Path(getattr(arguments, name))
    if not path.is_file():
        raise FileNotFoundError(f"{name}={getattr(arguments, name)!r}: no such file. Pass a file of solutions.")
    try:
        if arguments.text_file is not None:
            return SolutionText(path.read_text(encoding="utf-8"), None, path.name, f"text_file={str(path)!r}")
        return _read_solution(path, arguments.index)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a text in UTF-8 ({error}).") from None
    except RecursionError:
        raise ValueError(f"{path}: its JSON is nested too deeply to be read.") from None


def _read_solution(path, index):
    if path.read_bytes().lstrip()[:1] == b"[":
        texts, _ = read_published(path)
        solutions = {i: (text, None) for i, text in enumerate(texts)}
    else:
        solutions = {i: (line["text"], line["question"]) for i, line in read_generations(path).items()}
    if not solutions:
        raise ValueError(f"{path} holds no solution.")
    indices = f"{len(solutions)} solutions, of index {min(solutions)} to {max(solutions)}"
    if index is None:
        raise ValueError(f"index is not given: {path} holds {indices}. Choose one with --index.")
    if index not in solutions:
        raise ValueError(f"index={index} is not in {path}, which holds {indices}. Choose one of them.")
    text, question = solutions[index]
    if not isinstance(text, str) or not isinstance(question, str | None):
        raise ValueError(f"{path}: text and question of solution {index} must be texts.")
    field = f"generations={str(path)!r}, index={index}"
    return SolutionText(text, question, f"solution {index} of {path.name}", field, *_prompt(path))


def _prompt(path):
    """
    The number of demonstrations, and the prompt, in the settings next to a file of generated solutions; 0 and None
    without readable settings.
    """
    try:
        settings = read_json(path.with_name(path.name + SETTINGS_SUFFIX))
        number = int(settings["num_demonstrations"])
        # The prompt of the study has no entry.
        return number, PromptFormat.from_dict({**settings.get("prompt", {}), "num_demonstrations": number})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0, None
