"""What a card says about the steps that a model writes, by the scheme that is saved with its tokenizer."""

from dataclasses import fields

from memreason_hf.hub.cards.markdown import code, counted
from memreason_hf.steps import STUDY_KINDS, StepScheme


_FIELDS = {item.name for item in fields(StepScheme)}


def read_saved_scheme(values: dict) -> StepScheme | None:
    """The scheme that a tokenizer or a config holds; None if there is none, or one of a newer release."""
    if not values:
        return None
    try:
        # A config also holds the ids of the tokens there.
        return StepScheme.from_dict({name: value for name, value in values.items() if name in _FIELDS})
    except (TypeError, ValueError):
        return None


def describe_steps(scheme: StepScheme) -> str:
    """A sentence on what the model writes."""
    if scheme.layout == "answer_only":
        return "It answers questions without writing steps."
    if not scheme.has_kinds:
        return "It writes solutions in steps, which do not show a kind."
    if scheme.kinds == STUDY_KINDS:
        return (
            "It writes solutions in steps, each of which is marked: a memory step recalls knowledge, a reason step "
            "reasons over it."
        )
    kinds = ", ".join(map(code, scheme.kinds))
    return f"It writes solutions in steps, each of which is marked with its kind: {kinds}."


def describe_marks(scheme: StepScheme) -> str | None:
    """The tokens that mark a step; None without tokens."""
    if scheme.marks != "tokens":
        return None
    prefix = f"{counted(scheme.num_prefix_tokens, 'token')} for a prefix"
    if scheme.layout == "front":
        return f"before the first step {prefix}"
    if not scheme.num_step_tokens:
        return f"before every step {prefix}"
    what = "of a random group, as a control" if scheme.random_marks else "for its kind"
    return f"before every step {prefix} and {counted(scheme.num_step_tokens, 'token')} {what}"


def steps_limit(scheme: StepScheme) -> str | None:
    """What nothing checks about the steps; None if the model writes none."""
    if scheme.layout == "answer_only":
        return None
    if not scheme.has_kinds:
        return "Nothing checks that a step is true, or that it follows from the steps before it."
    checked = "that a memory step is true, or that a reason step follows"
    if scheme.kinds != STUDY_KINDS:
        checked = "that a step is of its kind, or that it is true"
    return f"The kind of a step is what the model writes. Nothing checks {checked}."
