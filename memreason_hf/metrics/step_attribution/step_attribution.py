"""At a step of which kind generated solutions first depart from the references."""

from collections import Counter

import evaluate

from memreason_hf.evaluation.solutions.attribution import NO_DEPARTURE, NO_REFERENCE, attribute
from memreason_hf.evaluation.solutions.judges import UNDECIDED, find_judge
from memreason_hf.metrics.step_inputs import SolutionMetric, mark_answer


_DESCRIPTION = """\
Finds the first step of each generated solution that departs from the steps of its reference, and counts such steps by
kind: does a model go wrong where it recalls knowledge, or where it reasons over it? The judge of a step is
exchangeable: exact comparison, overlap of tokens, a language model, or any function.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): generated solutions; the question may stand before each.
    references (`list` of `str`): reference solutions; from an answer alone nothing can depart.
    judge (`str` or callable, *optional*, defaults to `"overlap"`): "exact", "overlap", or a function of a step, the
        reference steps and the question that returns "agrees", "departs" or "undecided", for example a
        `TokenOverlapJudge` or `LanguageModelJudge` of `memreason_hf.evaluation.solutions.judges`.
    questions (`list` of `str`, *optional*): the question of each item, to which judges may refer.
    scheme (`StepScheme` or `dict`, *optional*): how the texts mark their steps. Needed if they do not use tokens, or
        have kinds other than memory and reason.
    options, match_option_text, bootstrap_samples, confidence, seed: ignored; arguments of other modules in an
        `evaluate.combine`.

Returns:
    departures_by_kind (`dict` from `str` to `int`): solutions whose first departing step is of this kind.
    num_departures, num_without_departure, num_undecided, num_without_reference (`int`): numbers of solutions that
        depart, whose steps all agree, that do not depart but have a step that could not be judged, and whose reference
        has no steps. They add up to the number of solutions.
    attributions (`list` of `dict`): for each solution `outcome` (a kind, "none", "undecided" or "no reference"),
        `step` (the index of the departing step, or None) and `text` (of that step).

Raises:
    ValueError: there are no items, an argument is not a list of texts or has another length, or the judge or its
        verdict is unknown.

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
class StepAttribution(SolutionMetric):
    description_text = _DESCRIPTION
    inputs_text = _KWARGS_DESCRIPTION

    def _measure(self, inputs):
        judge = find_judge(inputs.judge)
        attributions = []
        solutions, references = inputs.read_predictions(), inputs.read_references()
        for solution, reference, question in zip(solutions, references, inputs.questions):
            mark_answer(solution)
            attribution = attribute(solution, reference, judge, question=question or "")
            text = None if attribution.step is None else solution[attribution.step].text
            attributions.append({"outcome": attribution.outcome, "step": attribution.step, "text": text})
        counts = Counter(attribution["outcome"] for attribution in attributions)
        return {
            "departures_by_kind": {kind: counts[kind] for kind in inputs.scheme.all_kinds},
            "num_departures": sum(counts[kind] for kind in inputs.scheme.all_kinds),
            "num_without_departure": counts[NO_DEPARTURE],
            "num_undecided": counts[UNDECIDED],
            "num_without_reference": counts[NO_REFERENCE],
            "attributions": attributions,
        }
