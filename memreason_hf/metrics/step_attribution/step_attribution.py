"""At a step of which kind generated solutions first depart from the references."""

from collections import Counter

import evaluate

from memreason_hf.evaluation.solutions.attribution import (
    MISSING,
    NO_ANSWER,
    NO_DEPARTURE,
    NO_REFERENCE,
    NOT_JUDGED,
    RIGHT,
    WRONG,
    attribute_all,
    count_outcomes,
)
from memreason_hf.evaluation.solutions.judges import UNDECIDED, SolutionToJudge, find_judge
from memreason_hf.metrics.step_inputs import SolutionMetric, mark_answer, read_options


_DESCRIPTION = """\
Finds the first step of each generated solution that departs from the steps of its reference, and counts such steps by
kind: does a model go wrong where it recalls knowledge, or where it reasons over it? Solutions with a right and with a
wrong answer are also counted apart. The judge of a step is exchangeable: exact comparison, overlap of tokens, a
language model, or any function.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): generated solutions; the question may stand before each.
    references (`list` of `str`): reference solutions; from an answer alone nothing can depart.
    judge (`str` or callable, *optional*, defaults to `"overlap"`): "exact", "overlap", or a function of a step, the
        reference steps and the question that returns "agrees", "departs" or "undecided", for example a
        `TokenOverlapJudge` or `LanguageModelJudge` of `memreason_hf.evaluation.solutions.judges`. A `ChatJudge`
        (`memreason_hf.evaluation.solutions.chat_judges`) also judges solutions without reference steps.
    questions (`list` of `str`, *optional*): the question of each item, to which judges may refer.
    scheme (`StepScheme` or `dict`, *optional*): how the texts mark their steps. Needed if they do not use tokens, or
        have kinds other than memory and reason.
    options, answer_types, accepted_answers, answer_rule, match_option_text (*optional*): as for `answer_accuracy`,
        whose rule decides whether an answer is right. Where a reference gives no answer that the rule can read, the
        words of the answers are compared.
    bootstrap_samples, confidence, seed: ignored; arguments of other modules in an `evaluate.combine`.

Returns:
    departures_by_kind (`dict` from `str` to `int`): solutions whose first departing step is of this kind.
    num_departures, num_without_answer, num_without_departure, num_undecided, num_without_reference, num_not_judged
        (`int`): numbers of solutions that depart, that do not depart but give no answer, whose steps all agree, that
        do not depart but have a step that could not be judged, whose reference has no steps, and at which the judge
        failed. They add up to the number of solutions.
    outcomes_by_answer (`dict`): under "right" and "wrong", solutions with such an answer by outcome. A missing answer
        is wrong. Solutions whose reference gives no answer that the rule can read are in neither.
    attributions (`list` of `dict`): for each solution `outcome` (a kind, "no answer", "none", "undecided",
        "no reference" or "not judged"), `step` (the index of the departing step, or None) and `text` (of that step);
        `fault`, the reason, where the judge failed.

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
        >>> results["outcomes_by_answer"]["wrong"]["answer"], results["outcomes_by_answer"]["right"]["memory"]
        (1, 1)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class StepAttribution(SolutionMetric):
    description_text = _DESCRIPTION
    inputs_text = _KWARGS_DESCRIPTION

    def _measure(self, inputs):
        answers = _answers(inputs)
        solutions = inputs.read_predictions()
        for solution in solutions:
            mark_answer(solution)
        rows = zip(solutions, inputs.read_references(), inputs.questions, answers)
        judged = attribute_all(
            find_judge(inputs.judge),
            [
                SolutionToJudge(solution, reference, question or "", _right_answer(reference), answer)
                for solution, reference, question, answer in rows
            ],
        )
        attributions = [_describe(entry, solution) for entry, solution in zip(judged, solutions)]
        counts = Counter(attribution["outcome"] for attribution in attributions)
        known = [index for index, answer in enumerate(answers) if answer is not None]
        return {
            "departures_by_kind": {kind: counts[kind] for kind in inputs.scheme.all_kinds},
            "num_departures": sum(counts[kind] for kind in inputs.scheme.all_kinds),
            "num_without_answer": counts[NO_ANSWER],
            "num_without_departure": counts[NO_DEPARTURE],
            "num_undecided": counts[UNDECIDED],
            "num_without_reference": counts[NO_REFERENCE],
            "num_not_judged": counts[NOT_JUDGED],
            "outcomes_by_answer": count_outcomes(
                [judged[index] for index in known], [answers[index] for index in known], inputs.scheme.all_kinds
            ),
            "attributions": attributions,
        }


def _answers(inputs):
    """What the answer rule says of every solution; None where it cannot read the answer of the reference."""
    verdicts = []
    options = None if inputs.options is None else read_options(inputs.options, inputs.references)
    for index, (reference, answer_type) in enumerate(zip(inputs.references, inputs.answer_types)):
        try:
            labels = read_options(None, [reference], [answer_type])[0] if options is None else options[index]
            verdicts.append(inputs.judge_answer_of(index, labels))
        except ValueError:
            verdicts.append(None)
    return [_answer_of(verdict) for verdict in inputs.ask_answer_judge(verdicts)]


def _answer_of(verdict):
    if verdict is None:
        return None
    return MISSING if not verdict.is_valid else RIGHT if verdict.is_correct else WRONG


def _right_answer(reference):
    return next((step.text for step in reversed(reference) if step.kind == "answer"), None)


def _describe(judged, solution):
    step = judged.attribution.step
    text = None if step is None else solution[step].text
    described = {"outcome": judged.attribution.outcome, "step": step, "text": text}
    return described if judged.fault is None else {**described, "fault": judged.fault}
