"""
The kinds of steps: those of the study, kinds that a user names, and the words that their tokens start from.

    read_kinds("search,compute")            # ("search", "compute")
    all_kinds(("search", "compute"))        # ("search", "compute", "answer", "step")
"""

import re
from collections.abc import Iterable, Mapping

from memreason_hf.checks import check_sequence, check_type, shortened


PREFIX = "prefix"
ANSWER = "answer"
NO_KIND = "step"
# Those of "Disentangling Memory and Reasoning Ability in Large Language Models" (arXiv 2411.13504).
STUDY_KINDS = ("memory", "reason")
# Every scheme has an answer, and steps without a kind.
KINDS = (*STUDY_KINDS, ANSWER, NO_KIND)
# What published texts call a kind.
ALIASES = {"rag": "memory"}

_MOST_KINDS = 100
_NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_NUMBERED = re.compile(r".*_\d+")
# The groups of tokens of a scheme with random marks.
_RANDOM = re.compile(r"random\d+")
# What tables, figures and metrics call something else.
_RESERVED = {
    PREFIX: "the tokens before every step",
    "question": "the text before the first step",
    "begin": "the token at the start of a text",
    "plan": "the marks before the steps",
    "marks": "the tokens of all marks",
    "none": "no kind",
    "undecided": "a step that could not be judged",
    "otherwise": "all other kinds",
    **{alias: f"an alias of {kind}" for alias, kind in ALIASES.items()},
}
# Attributes of every tokenizer: `tokenizer.mask_token`.
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def check_kind(name: str, kind: object) -> None:
    """
    Checks that a value can be the kind of a step.

    Args:
        name: of the value, for the message.

    Raises:
        ValueError: it is not a lower-case name, or the name has another meaning.

    Example:

        >>> check_kind("kind", "Search")
        Traceback (most recent call last):
        ValueError: kind='Search' must be a lower-case word such as search or look_up.
    """
    if kind in KINDS:
        return
    if not isinstance(kind, str) or not _NAME.fullmatch(kind):
        raise ValueError(f"{name}={shortened(kind)} must be a lower-case word such as search or look_up.")
    if kind in _RESERVED:
        known = f" The kinds of the study are {', '.join(KINDS)}." if kind in ALIASES else ""
        raise ValueError(f"{name}={kind!r} already means {_RESERVED[kind]}. Choose another word.{known}")
    if kind in _ROLES:
        raise ValueError(f"{name}={kind!r} would take the place of the tokenizer's {kind}_token. Choose another word.")
    if _NUMBERED.fullmatch(kind) or _RANDOM.fullmatch(kind):
        raise ValueError(
            f"{name}={kind!r} looks like one of several tokens: those of a kind are numbered, <{kind}_0>. Choose a "
            "word without a number at its end."
        )


def is_kind(name: str) -> bool:
    """Whether a name can be the kind of a step."""
    try:
        check_kind("kind", name)
    except ValueError:
        return False
    return True


def read_kinds(kinds: str | Iterable[str]) -> tuple[str, ...]:
    """
    The kinds that a user names, without the answer and steps without a kind, which every scheme has.

    Args:
        kinds: names, or a text such as `"search,compute"`.

    Raises:
        ValueError, TypeError: there are none or too many, one cannot be a kind, or one occurs twice.
    """
    if isinstance(kinds, str):
        kinds = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    check_sequence("kinds", kinds, "a list of names, such as ['search', 'compute']")
    kinds = tuple(kinds)
    if not kinds:
        raise ValueError("kinds=[] must name at least one kind. For marks without kinds use num_step_tokens=0.")
    if len(kinds) > _MOST_KINDS:
        raise ValueError(f"kinds={shortened(kinds)} must be at most {_MOST_KINDS} names, got {len(kinds)}.")
    for kind in kinds:
        check_kind("kinds", kind)
        if kind in (ANSWER, NO_KIND):
            raise ValueError(f"kinds={shortened(kinds)} names {kind!r}, which every scheme has. Leave it out.")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds={shortened(kinds)} names a kind twice. Name each once.")
    return kinds


def all_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds that a user names, then `"answer"` and `"step"`."""
    return (*kinds, ANSWER, NO_KIND)


def kind_order(kinds: Iterable[str]) -> list[str]:
    """
    Kinds in the order of tables, each once: those of the study, then others as they come, answer and step last.

    Example:

        >>> kind_order(["answer", "search", "memory", "search"])
        ['memory', 'search', 'answer']
    """
    kinds = list(dict.fromkeys(kinds))
    ranks = {**{kind: index - len(KINDS) for index, kind in enumerate(STUDY_KINDS)}, ANSWER: 1, NO_KIND: 2}
    return sorted(kinds, key=lambda kind: ranks.get(kind, 0))


def default_word(name: str) -> str:
    """The word that the rows of a kind start from if a user names no other: `look up` for `look_up`."""
    return name.replace("_", " ")


def read_words(words: str | Mapping[str, str] | None, kinds: Iterable[str]) -> dict[str, str]:
    """
    The words of kinds that differ from the names of the kinds.

    Args:
        words: words by kind, or a text such as `"search=look up,compute=calculate"`. `"prefix"` counts as a kind.
        kinds: all kinds of the scheme.

    Raises:
        ValueError, TypeError: another form, a kind that the scheme does not have, or a word that is empty.
    """
    if words is None:
        return {}
    if isinstance(words, str):
        words = dict(_pair(part, words) for part in words.split(",") if part.strip())
    check_type("kind_words", words, Mapping, "a mapping from kinds to words, such as {'search': 'look up'}")
    known = (PREFIX, *kinds)
    for kind, word in words.items():
        if kind not in known:
            raise ValueError(
                f"kind_words={shortened(words)} names {kind!r}, but the kinds of the scheme are {', '.join(known)}."
            )
        check_type(f"kind_words[{kind!r}]", word, str, "a word")
        if not word.strip() or not word.isprintable() or ":" in word:
            raise ValueError(
                f"kind_words[{kind!r}]={shortened(word)} must be a word, or a few in one line, without a colon."
            )
    words = {kind: " ".join(words[kind].split()) for kind in known if kind in words}
    return {kind: word for kind, word in words.items() if word != default_word(kind)}


def random_groups(count: int) -> tuple[str, ...]:
    """The names of the groups of tokens that random marks are drawn from: `random1`, `random2`, …"""
    return tuple(f"random{number}" for number in range(1, count + 1))


def is_random_group(name: str) -> bool:
    """Whether a name is one of `random_groups`."""
    return isinstance(name, str) and _RANDOM.fullmatch(name) is not None


def _pair(part, text):
    kind, separator, word = part.partition("=")
    if not separator:
        raise ValueError(f"kind_words={shortened(text)} must read search=look up,compute=calculate, got {part!r}.")
    return kind.strip(), word.strip()
