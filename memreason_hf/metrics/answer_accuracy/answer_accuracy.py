"""Accuracy of the answers of generated solutions, with an interval that resamples questions."""

from collections import Counter

import evaluate
import numpy as np

from memreason_hf.evaluation.solutions.intervals import accuracy_interval
from memreason_hf.metrics.step_inputs import SolutionMetric, read_options


_DESCRIPTION = """\
The share of generated solutions whose answer is right, how many give no valid answer, how often each option was
answered, and a bootstrap interval. The answer is what follows the last `The answer is:`. The interval resamples
questions, not items, because several solutions of one question are not independent.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): generated solutions; the question may stand before each.
    references (`list` of `str`): reference solutions, or the right answers alone.
    questions (`list` of `str`, *optional*): the question of each item. Items of one question are resampled together,
        and the answer is searched for after the question. By default each item is a question of its own.
    options (*optional*): labels to texts, or the labels: once for all items, or for each item. By default they follow
        from the references: True or False, yes or no, any letter, or a number.
    answer_types (*optional*): `"letters"`, `"true_false"`, `"yes_no"`, `"number"` or `"text"`, once for all items or
        for each. By default they follow from the options. Free text needs them.
    accepted_answers (`list` of `list` of `str`, *optional*): further right answers of each item.
    match_option_text (`bool`, *optional*, defaults to `False`): also accept the text of an option for its label.
    answer_rule (`str`, *optional*, defaults to `"published"`): `"lenient"` also reads answers in markup, parentheses
        or a box, and after `Answer:`.
    answer_judge (`Callable`, *optional*): decides about free-text answers in other words, for example an `AnswerJudge`
        (`memreason_hf.evaluation.solutions.answer_judges`).
    bootstrap_samples (`int`, *optional*, defaults to 1000): resampled sets of questions; 0 for no interval.
    confidence (`float`, *optional*, defaults to 0.95): of the interval, between 0 and 1.
    seed (`int`, *optional*, defaults to 0): of the resampling.
    scheme, judge: ignored; arguments of other modules in an `evaluate.combine`.

Returns:
    accuracy (`float`): share of right answers, between 0 and 1, higher is better; an invalid answer is wrong.
    accuracy_interval (`list` of two `float`, or None): percentile bootstrap over questions, between 0 and 1.
    num_items, num_questions, num_invalid_answers, num_several_answers, num_judged_answers, num_undecided_answers
        (`int`): numbers of items, of distinct questions, of items without a valid answer, of items that name several
        options (the first one counts), of items that the judge of answers decided about, and of those about which it
        gave no readable verdict, which count as wrong.
    count_by_answer, count_by_reference (`dict` from `str` to `int`): how often each option was answered, and how often
        it was right.

Raises:
    ValueError: there are no items, an argument is not a list of texts or has another length, or a reference has no
        answer.

Examples:

        >>> import evaluate
        >>> from memreason_hf.metrics import metric_path
        >>> metric = evaluate.load(metric_path("answer_accuracy"), keep_in_memory=True)
        >>> predictions = ["<reason> It floats. <answer> The answer is: True", "The answer is: false.", "It sinks."]
        >>> results = metric.compute(predictions=predictions, references=["True", "True", "False"])
        >>> round(results["accuracy"], 3), results["num_invalid_answers"], results["count_by_answer"]
        (0.333, 1, {'True': 1, 'False': 1})

    Letters, with the options that a question has:

        >>> results = metric.compute(
        ...     predictions=["The answer is: B, C", "The answer is: E"], references=["B", "C"], options=["A", "B", "C"]
        ... )
        >>> results["accuracy"], results["num_several_answers"], results["num_invalid_answers"]
        (0.5, 1, 1)

    Free text, with another answer that is also right:

        >>> results = metric.compute(
        ...     predictions=["The answer is: the Nile."], references=["Nile River"], answer_types="text",
        ...     accepted_answers=[["Nile"]],
        ... )
        >>> results["accuracy"]
        1.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AnswerAccuracy(SolutionMetric):
    description_text = _DESCRIPTION
    inputs_text = _KWARGS_DESCRIPTION

    def _measure(self, inputs):
        options = read_options(inputs.options, inputs.references, inputs.answer_types)
        verdicts = []
        for index, labels in enumerate(options):
            try:
                verdict = inputs.judge_answer_of(index, labels)
            except ValueError as error:
                raise ValueError(f"Item {index}: {error}") from None
            verdicts.append(verdict)
        verdicts = inputs.ask_answer_judge(verdicts)
        correct = np.array([verdict.is_correct for verdict in verdicts], dtype=float)
        groups = np.arange(len(correct))
        if inputs.questions[0] is not None:
            _, groups = np.unique(inputs.questions, return_inverse=True)
        order = {label: None for labels in options for label in labels}
        return {
            "accuracy": float(correct.mean()),
            "accuracy_interval": accuracy_interval(
                correct, groups, inputs.bootstrap_samples, inputs.confidence, inputs.seed
            ),
            "num_items": len(verdicts),
            "num_questions": int(groups.max()) + 1,
            "num_invalid_answers": sum(not verdict.is_valid for verdict in verdicts),
            "num_several_answers": sum(verdict.several for verdict in verdicts),
            "num_judged_answers": sum(verdict.by_judge for verdict in verdicts),
            "num_undecided_answers": sum(verdict.is_undecided for verdict in verdicts),
            "count_by_answer": _counts([verdict.answer for verdict in verdicts if verdict.is_valid], order),
            "count_by_reference": _counts([verdict.reference for verdict in verdicts], order),
        }


def _counts(values, order):
    counts = Counter(values)
    names = [label for label in order if label in counts] if order else sorted(counts)
    return {name: counts[name] for name in dict.fromkeys([*names, *counts])}
