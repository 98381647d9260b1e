"""Which kinds of steps generated and reference solutions have, and how long they are."""

from collections import Counter
from statistics import mean, median

import evaluate

from memreason_hf.metrics.step_inputs import (
    check_rows,
    metric_info,
    read_reference,
    read_scheme_argument,
    read_solution,
)
from memreason_hf.steps import KINDS


_DESCRIPTION = """\
Counts the steps of generated and of reference solutions by kind (memory, reason, answer, and step for none), their
lengths in words, and the generated texts that end inside the tokens of a step.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): generated solutions; the question may stand before each.
    references (`list` of `str`): reference solutions; one that is nothing but an answer has no steps beside it.
    questions (`list` of `str`, *optional*): the question of each item, which is no step. Without them a first line
        `Question: ...` is none.
    scheme (`StepScheme` or `dict`, *optional*): how the texts mark their steps. Needed only where they do not by
        tokens.
    options, match_option_text, bootstrap_samples, confidence, seed, judge: for the other modules of an
        `evaluate.combine`; not used.

Returns:
    steps_by_kind, reference_steps_by_kind (`dict` from `str` to `int`): steps of each kind, all solutions together.
    steps_per_solution, reference_steps_per_solution (`float`): mean number of steps, answers included.
    words_by_kind, reference_words_by_kind (`dict` from `str` to `dict`): `mean` and `median` words of a step, for the
        kinds that occur.
    num_truncated (`int`): generated texts that end inside the tokens of a step.
    num_without_steps, num_references_without_steps (`int`): solutions that have no step beside an answer.

Raises:
    ValueError: no items, keywords of another length, an unknown field of the scheme.

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
class StepDistribution(evaluate.Metric):
    def _info(self):
        return metric_info(_DESCRIPTION, _KWARGS_DESCRIPTION)

    def _compute(
        self,
        predictions,
        references,
        questions=None,
        scheme=None,
        options=None,
        match_option_text=False,
        bootstrap_samples=1000,
        confidence=0.95,
        seed=0,
        judge=None,
    ):
        check_rows(predictions, questions=questions)
        scheme = read_scheme_argument(scheme)
        asked = [None] * len(predictions) if questions is None else questions
        generated = [read_solution(text, scheme, question) for text, question in zip(predictions, asked)]
        expected = [read_reference(text, scheme, question) for text, question in zip(references, asked)]
        return {
            **_describe(generated, ""),
            **_describe(expected, "reference_"),
            "num_truncated": sum(solution.truncated for solution in generated),
            "num_without_steps": _without_steps(generated),
            "num_references_without_steps": _without_steps(expected),
        }


def _describe(solutions, prefix):
    counts = Counter(step.kind for solution in solutions for step in solution)
    lengths = {kind: [] for kind in KINDS if counts[kind]}
    for solution in solutions:
        for step in solution:
            lengths[step.kind].append(len(step.text.split()))
    return {
        f"{prefix}steps_by_kind": {kind: counts[kind] for kind in KINDS},
        f"{prefix}steps_per_solution": counts.total() / len(solutions),
        f"{prefix}words_by_kind": {
            kind: {"mean": float(mean(words)), "median": float(median(words))} for kind, words in lengths.items()
        },
    }


def _without_steps(solutions):
    return sum(all(step.kind == "answer" for step in solution) for solution in solutions)
