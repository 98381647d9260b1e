"""Accuracy of the answers of generated solutions, with an interval that resamples questions."""

from collections import Counter

import evaluate
import numpy as np

from memreason_hf.evaluation.solutions.answers import judge_answer
from memreason_hf.metrics.step_inputs import check_rows, metric_info, read_options, reference_answer


_DESCRIPTION = """\
The share of generated solutions that answer rightly, how many give no valid answer, which options were answered how
often, and a bootstrap interval. The answer is what follows the last `The answer is:`. The interval resamples
questions, not items: several solutions of one question are not independent.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list` of `str`): generated solutions; the question may stand before each.
    references (`list` of `str`): reference solutions, or the right answers alone.
    questions (`list` of `str`, *optional*): the question of each item. Items of one question are resampled together,
        and the answer is looked for after it. Without them each item is a question of its own.
    options (*optional*): labels to texts, or the labels: once for all items, or for each. Without them the references
        tell: True or False, any letter, or a number.
    match_option_text (`bool`): also take the text of an option for its label.
    bootstrap_samples (`int`): resampled sets of questions; 0 for no interval.
    confidence (`float`): of the interval.
    seed (`int`): of the resampling.
    scheme, judge: for the other modules of an `evaluate.combine`; not used.

Returns:
    accuracy (`float`): share of right answers, between 0 and 1; an invalid answer is wrong.
    accuracy_interval (`list` of two `float`, or None): percentile bootstrap over questions.
    num_items, num_questions, num_invalid_answers, num_several_answers (`int`): items; questions; items without a valid
        answer; items that name several options, of which the first counted.
    count_by_answer, count_by_reference (`dict` from `str` to `int`): how often each option was answered and was right.

Raises:
    ValueError: no items, keywords of another length, a reference without an answer.

Examples:

        >>> import evaluate
        >>> from memreason_hf.metrics import metric_path
        >>> metric = evaluate.load(metric_path("answer_accuracy"), keep_in_memory=True)
        >>> predictions = ["<reason> It floats. <answer> The answer is: True", "The answer is: false.", "It sinks."]
        >>> results = metric.compute(predictions=predictions, references=["True", "True", "False"])
        >>> round(results["accuracy"], 3), results["num_invalid_answers"], results["count_by_answer"]
        (0.333, 1, {'True': 1, 'False': 1})

    Letters, with the options that there are:

        >>> results = metric.compute(
        ...     predictions=["The answer is: B, C", "The answer is: E"], references=["B", "C"], options=["A", "B", "C"]
        ... )
        >>> results["accuracy"], results["num_several_answers"], results["num_invalid_answers"]
        (0.5, 1, 1)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class AnswerAccuracy(evaluate.Metric):
    def _info(self):
        return metric_info(_DESCRIPTION, _KWARGS_DESCRIPTION)

    def _compute(
        self,
        predictions,
        references,
        questions=None,
        options=None,
        match_option_text=False,
        bootstrap_samples=1000,
        confidence=0.95,
        seed=0,
        scheme=None,
        judge=None,
    ):
        check_rows(predictions, questions=questions)
        if bootstrap_samples < 0 or not 0 < confidence < 1:
            raise ValueError(
                f"bootstrap_samples={bootstrap_samples} must not be negative, and confidence={confidence} must lie "
                "between 0 and 1."
            )
        options = read_options(options, references)
        asked = [None] * len(predictions) if questions is None else list(questions)
        verdicts = []
        for index, (text, reference, labels, question) in enumerate(zip(predictions, references, options, asked)):
            try:
                right = reference_answer(reference, labels, question)
                verdict = judge_answer(text, right, labels, question=question, match_option_text=match_option_text)
            except ValueError as error:
                raise ValueError(f"Item {index}: {error}") from None
            verdicts.append(verdict)
        correct = np.array([verdict.is_correct for verdict in verdicts], dtype=float)
        _, groups = np.unique(np.arange(len(correct)) if questions is None else asked, return_inverse=True)
        order = {label: None for labels in options for label in labels}
        return {
            "accuracy": float(correct.mean()),
            "accuracy_interval": _interval(correct, groups, bootstrap_samples, confidence, seed),
            "num_items": len(verdicts),
            "num_questions": int(groups.max()) + 1,
            "num_invalid_answers": sum(not verdict.is_valid for verdict in verdicts),
            "num_several_answers": sum(verdict.several for verdict in verdicts),
            "count_by_answer": _counts([verdict.answer for verdict in verdicts if verdict.is_valid], order),
            "count_by_reference": _counts([verdict.reference for verdict in verdicts], order),
        }


def _interval(correct, groups, num_samples, confidence, seed):
    """Percentiles of the accuracy over resampled questions, each taken with all its items."""
    if num_samples == 0:
        return None
    items = np.bincount(groups)
    hits = np.bincount(groups, weights=correct)
    generator = np.random.default_rng(seed)
    # How often each question is drawn when as many are drawn as there are.
    draws = generator.multinomial(len(items), np.full(len(items), 1 / len(items)), size=num_samples)
    accuracies = (draws @ hits) / (draws @ items)
    tail = (1 - confidence) / 2
    return [float(value) for value in np.quantile(accuracies, [tail, 1 - tail])]


def _counts(values, order):
    counts = Counter(values)
    names = [label for label in order if label in counts] if order else sorted(counts)
    return {name: counts[name] for name in dict.fromkeys([*names, *counts])}
