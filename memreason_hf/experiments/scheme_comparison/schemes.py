"""
The schemes that are compared, each as changes of one scheme, so that all have the same numbers of tokens.

    variants = choose_variants(["plain", "memory_reason"], [1, 2, 8], {"num_prefix_tokens": 1}, mode="lora+tokens")
    variants["memory_reason_8"].scheme
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memreason_hf.steps import StepScheme


@dataclass(frozen=True)
class ComparedScheme:
    """
    One of the schemes.

    Attributes:
        title: what tables call it; `{kinds}` and `{first}` stand for the kinds and the first one.
        changes: the fields that differ from the scheme of the recipe.
    """

    title: str
    changes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """
    A scheme as it is trained.

    Attributes:
        title: what tables call it.
        scheme: the scheme.
        mode: which weights are trained, one of `ADAPTER_MODES`.
    """

    title: str
    scheme: StepScheme
    mode: str


PLAIN, PREFIX_ONLY, STUDY = "plain", "prefix_only", "memory_reason"
SCHEMES = {
    "answer_only": ComparedScheme("the answer alone", {"marks": "none", "layout": "answer_only"}),
    PLAIN: ComparedScheme("plain: steps without marks", {"marks": "none"}),
    "words": ComparedScheme("words as marks", {"marks": "words"}),
    "front": ComparedScheme("prefix tokens once", {"layout": "front"}),
    PREFIX_ONLY: ComparedScheme("prefix tokens alone", {"num_step_tokens": 0}),
    "random_marks": ComparedScheme("random tokens", {"random_marks": True}),
    STUDY: ComparedScheme("{kinds}"),
    "ordered": ComparedScheme("{first} first", {"ordered": True}),
    "plan_first": ComparedScheme("plan first", {"layout": "plan_first"}),
    "plan_only": ComparedScheme("plan and answer alone", {"layout": "plan_only"}),
}


def sweep_name(num_step_tokens: int) -> str:
    """The name of the study's scheme with another number of step tokens."""
    return f"{STUDY}_{num_step_tokens}"


def named_kinds(kinds: Sequence[str]) -> str:
    """The kinds as a title: `memory and reason`."""
    *others, last = kinds
    return f"{', '.join(others)} and {last}" if others else last


def choose_variants(
    names: Sequence[str], token_counts: Sequence[int], steps: Mapping, *, mode: str
) -> dict[str, Variant]:
    """
    The schemes to train, by name.

    Args:
        names: keys of `SCHEMES`.
        token_counts: numbers of step tokens with which the study's scheme is trained, too.
        steps: fields of the `StepScheme` that all start from.
        mode: which weights are trained. Where a scheme has no tokens, there are no rows to train, so that
            `"lora+tokens"` becomes `"lora"`.

    Raises:
        ValueError: a name is unknown, or a scheme cannot be built from these fields or trained in this mode.
    """
    unknown = [name for name in names if name not in SCHEMES]
    if unknown or not names:
        raise ValueError(f"schemes={','.join(names)!r} must name some of {', '.join(SCHEMES)}.")
    base = StepScheme(**steps)
    if base.random_marks or (base.marks, base.layout, base.ordered) != ("tokens", "steps", False):
        raise ValueError(
            f"steps={dict(steps)} changes more than kinds and numbers of tokens, from which the compared schemes are "
            "made. Leave the rest out, and choose --schemes."
        )
    chosen = {name: SCHEMES[name] for name in names}
    for count in token_counts:
        if STUDY in chosen and count == base.num_step_tokens:
            continue
        title = f"{SCHEMES[STUDY].title}, {count} step token{'s' * (count != 1)}"
        chosen[sweep_name(count)] = ComparedScheme(title, {"num_step_tokens": count})
    variants = {}
    for name, compared in chosen.items():
        try:
            scheme = dataclasses.replace(base, **compared.changes)
        except ValueError as error:
            raise ValueError(f"Scheme {name}: {error} Leave it out of --schemes, or change the tokens.") from None
        title = _title(name, compared, mode).format(kinds=named_kinds(base.kinds), first=base.kinds[0])
        variants[name] = Variant(title, scheme, _mode_of(name, scheme, mode))
    return variants


def _title(name, compared, mode):
    return "plain LoRA: steps without marks" if name == PLAIN and "lora" in mode else compared.title


def _mode_of(name, scheme, mode):
    if scheme.tokens or "tokens" not in mode:
        return mode
    if mode == "tokens":
        raise ValueError(
            f"mode='tokens' trains the rows of step tokens alone, but the scheme {name} has no tokens. Leave it out "
            "of --schemes, or use the mode lora+tokens."
        )
    return mode.removesuffix("+tokens")
