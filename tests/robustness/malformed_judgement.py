"""What an input ended in: a clear message, a right acceptance, or one of the ways to fail."""

import json
import math
import re

import torch
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from malformed_cases import NO_VALUE, Case, RefusedByCommand

from memreason_hf.training.runs.errors import TrainingError


CLEAR, ACCEPTED = "clear", "accepted"
VAGUE, TRACEBACK, SILENT, HANG, CRASH = "vague", "traceback", "silent", "hang", "crash"
GOOD = (CLEAR, ACCEPTED)
NEVER = (SILENT, HANG, CRASH)
CLASSES = (CLEAR, ACCEPTED, VAGUE, TRACEBACK, SILENT, HANG, CRASH)

# What a message says that tells its reader what to do, or what a right value is.
_INSTRUCTION = re.compile(
    r"\b(must|needs?|pass|choose|use|set|give|leave|remove|rename|write|did you mean|expected|should|one of|only|"
    r"at least|at most|takes?|required?|requires|repeat|rebuild|builds?|convert|train|save|download|add|replace|lower|"
    r"increase|reduce|restore|delete|make|start|shorten|copy|read it|check|install|no such argument|"
    r"unexpected keyword argument|"
    # What is wrong with a file says that the file has to be mended.
    r"no such (file|folder)|does not exist|damaged|incomplete|truncated|not (valid )?(json|yaml|utf-8)|is empty|"
    r"is a directory|not a directory|too many levels|cannot be (read|opened|loaded)|is missing|nested too deeply|"
    r"no file named|file name too long|holds? (no|neither|an?)|lacks|is not an?|matches no|neither|"
    # A relation or a limit that a value breaks.
    r"is (above|below|a file|already)|is for|more than|the most that|without|"
    # What there is in place of what was given.
    r"(has|have) to be|which has|which holds|lists all|there are|"
    r"but (the|its|only) [\w ]+ (has|have|holds?|is|are|exist)|"
    r"(are|has|have|holds?|is) [\w'\"./\[\]-]+(, | and | or ))",
    re.IGNORECASE,
)
# Of an entrance in Python. KeyError, IndexError, AttributeError, AssertionError and RecursionError are accidents.
_EXPECTED = (ValueError, TypeError, OSError, ImportError, NotImplementedError, StrictDataclassError, TrainingError)
# What an operation deep in a library says. It is no message to the caller even where it happens to name a field.
_ACCIDENTS = re.compile(
    r"not supported between instances|unsupported operand|object is not (iterable|subscriptable|callable)|"
    r"has no attribute|has no len\(\)|cannot be interpreted as an integer|not enough values to unpack|"
    r"too many values to unpack|indices must be|could not convert string to float: '\S*'$|invalid literal for int|"
    r"math domain error|list index out of range|positional arguments? but|must be real number, not|"
    r"argument 'input' \(position|object cannot be converted|Expecting value|bad operand type"
)
_LONGEST = 1500


def judge(case: Case, result: object = None, error: BaseException | None = None) -> tuple[str, str]:
    """The class of what a case ended in, and the message or the reason."""
    if error is None:
        if case.is_wrong:
            return SILENT, f"accepted: {_short(result)}"
        fault = case.fault(result)
        return (ACCEPTED, "") if fault is None else (SILENT, fault)
    message = message_of(error)
    if not isinstance(error, (*_EXPECTED, RefusedByCommand)) or type(error) is RuntimeError:
        return TRACEBACK, f"{type(error).__name__}: {message}"
    fault = fault_of_message(message, case)
    if fault is None:
        return CLEAR, message
    if isinstance(error, TypeError) or (_ACCIDENTS.search(message) and not isinstance(error, RefusedByCommand)):
        return TRACEBACK, f"{type(error).__name__}: {message} [{fault}]"
    return VAGUE, f"{message} [{fault}]"


def message_of(error: BaseException) -> str:
    if isinstance(error, StrictDataclassFieldValidationError):
        return " ".join(str(error).split())
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        return str(error.__cause__)
    return str(error)


def fault_of_message(message: str, case: Case) -> str | None:
    """What a message lacks; None for a clear one."""
    if "\n" in message.strip():
        return "several lines"
    if len(message) > _LONGEST:
        return f"{len(message)} letters"
    if not any(name in message for name in case.names):
        return f"names none of {', '.join(case.names)}"
    # Of a key that is not known, the value says nothing.
    if "unknown key" not in message and not shows(message, case.value):
        return f"does not show {_short(case.value)}"
    if _ACCIDENTS.search(message) and not _says_what_to_do(_ACCIDENTS.sub("", message)):
        return "a message of a library"
    if not _says_what_to_do(message):
        return "does not say what to do"
    return None


def _says_what_to_do(message):
    return _INSTRUCTION.search(message) is not None


def shows(message: str, value: object) -> bool:
    """Whether a message shows a value: as Python, JSON or text, shortened, or by its shape, dtype or type."""
    # Of what is missing, nothing can be shown.
    if value is NO_VALUE or value is None:
        return True
    if isinstance(value, str) and not value and message.rstrip(". ").endswith("got"):
        # The strict dataclasses of huggingface_hub end their message with the text itself.
        return True
    lowered = message.lower()
    return any(form.lower() in lowered for form in _forms(value) if form)


def _forms(value):
    forms = [type(value).__name__]
    if isinstance(value, torch.Tensor):
        forms += [str(tuple(value.shape)), str(list(value.shape)), str(value.dtype), str(value.dtype).split(".")[-1]]
        if value.numel() and not value.is_complex():
            forms += [f"{value.flatten()[0].item():g}", f"{value.max().item():g}", f"{value.min().item():g}"]
    elif isinstance(value, bool):
        forms += [str(value)]
    elif isinstance(value, int):
        forms += (
            [f"{value:,}", str(value), f"2**{value.bit_length() - 1}"] if abs(value) < 10**4000 else ["very large"]
        )
    elif isinstance(value, float):
        forms += [repr(value), f"{value:g}", f"{value:,}", *([f"{value:.0f}"] if math.isfinite(value) else [])]
    elif isinstance(value, str):
        # A message may also say that it is a text where something else is needed.
        forms = [repr(value[:20])[1:-1], value[:20], "got str", "got a str", "not str"]
        forms += ["''", '""', "empty", "blank", "not given"] if not value else []
    else:
        forms += [repr(value)[:20], str(value)[:20], _json(value)]
        items = value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        # A message may show the item at fault.
        forms += [form for item in items for form in _forms(item) if len(form) > 1 or isinstance(item, int)]
    return forms


def _json(value):
    try:
        return json.dumps(value)[:20]
    except (TypeError, ValueError):
        return ""


def _short(value):
    text = "" if value is NO_VALUE else repr(value)
    return text if len(text) <= 120 else text[:120] + "…"
