"""At a step of which kind generated solutions first depart from the references."""

from collections import Counter

import evaluate

from memreason_hf.evaluation.solutions.attribution import NO_DEPARTURE, NO_REFERENCE, attribute
from memreason_hf.evaluation.solutions.judges import UNDECIDED, find_judge
from memreason_hf.metrics.step_inputs import (
    check_rows,
    mark_answer,
    metric_info,
    read_reference,
    read_scheme_argument,
    read_solution,
)
from memreason_hf.steps import KINDS


_DESCRIPTION = """\
Finds the first step of each generated solution that departs from the steps of its reference, and counts such steps by
kind: does a model go wrong where it recalls knowledge, or where it reasons over it? Who judges a step can be
exchanged: exact comparison, overlap of tokens, a language model, or any function.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): generated solutions; the question may stand before each.
    references (`list` of `str`): reference solutions; one that is nothing but an answer cannot be departed from.
    judge (`str` or callable): "exact", "overlap" (the default), or a function of a step, the reference steps and the
        question that returns "agrees", "departs" or "undecided": a `TokenOverlapJudge` or `LanguageModelJudge` of
        `memreason_hf.evaluation.solutions.judges`, for example.
    questions (`list` of `str`, *optional*): the question of each item; judges may refer to it.
    scheme (`StepScheme` or `dict`, *optional*): how the texts mark their steps. Needed only where they do not by
        tokens.
    options, match_option_text, bootstrap_samples, confidence, seed: for the other modules of an `evaluate.combine`;
        not used.

Returns:
    departures_by_kind (`dict` from `str` to `int`): solutions that first depart at a step of this kind.
    num_departures, num_without_departure, num_undecided, num_without_reference (`int`): solutions that depart; whose
        steps all agree; that do not depart, but have a step that could not be judged; without reference steps. They
        add up to the number of solutions.
    attributions (`list` of `dict`): for each solution `outcome` (a kind, "none", "undecided" or "no reference"),
        `step` (the index of the departing step, or None) and `text` (what it says).

Raises:
    ValueError: no items, keywords of another length, an unknown judge or verdict.

Examples:

        >>> import evaluate
        >>> from memreason_hf.metrics import metric_path
        >>> metric = evaluate.load(metric_path("step_attribution"), keep_in_memory=True)
        >>> right = "<memory> Oslo has 700,000 people.\\n<reason> Few towns have more.\\n<answer> The answer is: True"
        >>> recalled, concluded = right.replace("700", "900"), right.replace("True", "False")
        >>> results = metric.compute(
        ...     predictions=[right, recalled, concluded, right], references=[right, right, right, "True"]
        ... )
        >>> results["departures_by_kind"]
        {'memory': 1, 'reason': 0, 'answer': 1, 'step': 0}
        >>> results["attributions"][1]
        {'outcome': 'memory', 'step': 0, 'text': 'Oslo has 900,000 people.'}
        >>> results["num_without_departure"], results["num_without_reference"]
        (1, 1)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class StepAttribution(evaluate.Metric):
    def _info(self):
        return metric_info(_DESCRIPTION, _KWARGS_DESCRIPTION)

    def _compute(
        self,
        predictions,
        references,
        questions=None,
        scheme=None,
        judge="overlap",
        options=None,
        match_option_text=False,
        bootstrap_samples=1000,
        confidence=0.95,
        seed=0,
    ):
        check_rows(predictions, questions=questions)
        scheme, judge = read_scheme_argument(scheme), find_judge(judge)
        asked = [None] * len(predictions) if questions is None else questions
        attributions = []
        for text, reference, question in zip(predictions, references, asked):
            solution = read_solution(text, scheme, question)
            mark_answer(solution)
            expected = read_reference(reference, scheme, question)
            found = attribute(solution, expected, judge, question=question or "")
            departing = None if found.step is None else solution[found.step].text
            attributions.append({"outcome": found.outcome, "step": found.step, "text": departing})
        counts = Counter(attribution["outcome"] for attribution in attributions)
        return {
            "departures_by_kind": {kind: counts[kind] for kind in KINDS},
            "num_departures": sum(counts[kind] for kind in KINDS),
            "num_without_departure": counts[NO_DEPARTURE],
            "num_undecided": counts[UNDECIDED],
            "num_without_reference": counts[NO_REFERENCE],
            "attributions": attributions,
        }
