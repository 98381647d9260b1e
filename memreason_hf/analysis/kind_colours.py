"""The colours of kinds of steps, in figures and on pages."""

from collections.abc import Sequence

from memreason_hf.steps import KINDS, STUDY_KINDS


# The colours of Okabe and Ito, which people with common colour blindness can distinguish. Steps also carry names.
KIND_COLOURS = {
    "begin": "#000000",
    "question": "#737373",
    "plan": "#E69F00",
    "memory": "#0072B2",
    "reason": "#D55E00",
    "answer": "#009E73",
    "step": "#CC79A7",
    "marks": "#56B4E9",
}
# For kinds that a user names: those of memory and reason, then the dark colours of Tol that are far from all others.
_OF_KINDS = (KIND_COLOURS["memory"], KIND_COLOURS["reason"], "#882255", "#117733", "#332288", "#999933", "#AA4499")


def kind_colours(kinds: Sequence[str] = KINDS) -> dict[str, str]:
    """
    The colour of everything that a token can belong to, as `#RRGGBB`, in the order of a text.

    Args:
        kinds: all kinds of a scheme, `scheme.all_kinds`. Colours begin again after seven kinds of one's own.

    Example:

        >>> kind_colours(("search", "answer", "step"))["search"]
        '#0072B2'
    """
    # Memory and reason keep their colours in every scheme.
    free = [colour for kind, colour in zip((*STUDY_KINDS, *_OF_KINDS[2:]), _OF_KINDS) if kind not in kinds]
    own = [kind for kind in kinds if kind not in KIND_COLOURS]
    colours = {kind: free[index % len(free)] for index, kind in enumerate(own)}
    order = ("begin", "question", "plan", *kinds, "marks")
    return {kind: colours.get(kind) or KIND_COLOURS[kind] for kind in order}
