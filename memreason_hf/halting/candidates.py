"""
The thresholds that a calibration tries, from cautious to daring.

They are fixed before any row is seen: a test that the rows had a part in choosing would promise nothing.
"""

import numpy as np

from memreason_hf.checks import check_choice, check_int
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


# (most cautious, most daring); both are in the units of the criterion.
_BELOW = {
    "kl": (1e-8, 10.0),
    "kl_entropy": (1e-8, 10.0),
    "entropy": (1e-6, 10.0),
    "state_difference": (1e-6, 2.0),
    "acceleration": (1e-6, 2.0),
}
_LOGITS = (50.0, 0.01)
# Of probabilities, what is missing to 1.
_MISSING = (1e-6, 0.99)


def candidate_thresholds(criterion: str, max_recurrences: int, count: int = 100) -> list[float | int]:
    """
    The thresholds of a criterion, in the order in which they are tested.

    All are numbers of float32, in which the model compares.

    Args:
        criterion: its name.
        max_recurrences: the deepest recurrence: the most cautious `argmax_patience`.
        count: how many, of criteria with a threshold that is not a whole number.

    Example:

        >>> candidate_thresholds("argmax_stability", 4)
        [4, 3, 2, 1]
        >>> [round(value, 3) for value in candidate_thresholds("margin", 16, count=3)]
        [50.0, 0.707, 0.01]
    """
    check_choice("halting_criterion", criterion, HALTING_CRITERIA)
    check_int("num_candidates", count, least=2, most=10_000, reason="each is tested")
    check_int("max_recurrences", max_recurrences, least=1)
    if criterion == "argmax_stability":
        return list(range(max_recurrences, 0, -1))
    if criterion in ("confidence", "exit_gate"):
        values = 1 - np.geomspace(*_MISSING, count)
    elif criterion == "margin":
        values = np.geomspace(*_LOGITS, count)
    elif criterion in _BELOW:
        values = np.geomspace(*_BELOW[criterion], count)
    else:
        raise ValueError(f"halting_criterion={criterion!r} has no thresholds to try. Pass one of {', '.join(_BELOW)}.")
    return values.astype(np.float32).astype(float).tolist()


__all__ = ["candidate_thresholds"]
