"""Which kinds of steps generated and reference solutions have, and how long they are."""

from collections import Counter
from statistics import mean, median

import evaluate

from memreason_hf.metrics.step_inputs import SolutionMetric
from memreason_hf.steps import StepScheme


_DESCRIPTION = """\
Counts the steps of generated and of reference solutions by kind (memory, reason, or the kinds of the scheme, answer,
and step for no kind), their lengths in words, and the generated texts that end inside the tokens of a step.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): generated solutions; the question may stand before each.
    references (`list` of `str`): reference solutions; an answer alone counts as one answer step.
    questions (`list` of `str`, *optional*): the question of each item, which is not counted as a step. By default a
        first line `Question: ...` is taken for the question.
    scheme (`StepScheme` or `dict`, *optional*): how the texts mark their steps. Needed if they do not use tokens, or
        have kinds other than memory and reason.
    options, match_option_text, bootstrap_samples, confidence, seed, judge: ignored; arguments of other modules in an
        `evaluate.combine`.

Returns:
    steps_by_kind, reference_steps_by_kind (`dict` from `str` to `int`): steps of each kind, over all solutions.
    steps_per_solution, reference_steps_per_solution (`float`): mean number of steps, at least 0, answers included.
    words_by_kind, reference_words_by_kind (`dict` from `str` to `dict`): `mean` and `median` words of a step, for the
        kinds that occur.
    num_truncated (`int`): generated texts that end inside the tokens of a step.
    num_without_steps, num_references_without_steps (`int`): solutions whose only steps are answers.

Raises:
    ValueError: there are no items, an argument is not a list of texts or has another length, or a field of the scheme
        is unknown.

Examples:

        >>> import evaluate
        >>> from memreason_hf.metrics import metric_path
        >>> metric = evaluate.load(metric_path("step_distribution"), keep_in_memory=True)
        >>> text = "<memory> Iron is heavier than water.\\n<reason> So it sinks.\\n<answer> The answer is: False\\n"
        >>> results = metric.compute(predictions=[text, "<prefix_0>"], references=[text, "False"])
        >>> results["steps_by_kind"]
        {'memory': 1, 'reason': 1, 'answer': 1, 'step': 0}
        >>> results["reference_steps_by_kind"]["answer"], results["num_truncated"], results["num_without_steps"]
        (2, 1, 1)
        >>> results["words_by_kind"]["memory"]
        {'mean': 5.0, 'median': 5.0}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class StepDistribution(SolutionMetric):
    description_text = _DESCRIPTION
    inputs_text = _KWARGS_DESCRIPTION

    def _measure(self, inputs):
        generated, expected = inputs.read_predictions(), inputs.read_references()
        return {
            **_describe(generated, "", inputs.scheme),
            **_describe(expected, "reference_", inputs.scheme),
            "num_truncated": sum(solution.truncated for solution in generated),
            "num_without_steps": _without_steps(generated),
            "num_references_without_steps": _without_steps(expected),
        }


def _describe(solutions, prefix, scheme: StepScheme):
    counts = Counter(step.kind for solution in solutions for step in solution)
    lengths = {kind: [] for kind in scheme.all_kinds if counts[kind]}
    for solution in solutions:
        for step in solution:
            lengths[step.kind].append(len(step.text.split()))
    return {
        f"{prefix}steps_by_kind": {kind: counts[kind] for kind in scheme.all_kinds},
        f"{prefix}steps_per_solution": counts.total() / len(solutions),
        f"{prefix}words_by_kind": {
            kind: {"mean": float(mean(words)), "median": float(median(words))} for kind, words in lengths.items()
        },
    }


def _without_steps(solutions):
    return sum(all(step.kind == "answer" for step in solution) for solution in solutions)
