"""
What a file of generated texts shows: a verdict on every text, accuracy, steps by kind, and where solutions go wrong.

    scored = judge_scored(score_texts(rows, scheme), scheme, TokenOverlapJudge())
    scores = measure_scores(scored, scheme)
    print(score_report("test.jsonl", scores, judge="overlap"))

Where a text shows no marks of steps that can be read, nothing is said about its steps: the scheme may be another one,
or the texts were decoded with the wrong tokenizer.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import evaluate
import numpy as np

from memreason_hf.analysis.solution_report import answer_judge_lines
from memreason_hf.evaluation.solutions.answer_judges import AnswerJudge, ask_judge
from memreason_hf.evaluation.solutions.answers import Verdict, end_of_question, extract_answer, judge_answer
from memreason_hf.evaluation.solutions.attribution import (
    MISSING,
    OUTCOMES,
    RIGHT,
    WRONG,
    JudgedSolution,
    attribute_all,
    count_outcomes,
)
from memreason_hf.evaluation.solutions.intervals import accuracy_interval
from memreason_hf.evaluation.solutions.judges import SolutionToJudge, StepJudge
from memreason_hf.evaluation.solutions.text_files import TextRow, complete_rows
from memreason_hf.messages import first_few
from memreason_hf.metrics import metric_path
from memreason_hf.metrics.step_inputs import (
    is_solution,
    mark_answer,
    read_reference,
    read_solution,
)
from memreason_hf.steps import ANSWER_MARKER, Step, StepScheme, answer_step
from memreason_hf.tables import format_table


# As for the metrics.
_NUM_SAMPLES, _CONFIDENCE = 1000, 0.95
# What a judge of answers is told where a file has no questions.
_NO_QUESTION = "(not known)"
_VERDICTS = {True: "correct", False: "wrong", None: None}


@dataclass(frozen=True)
class ScoredText:
    """
    A generated text and the verdict on it.

    Attributes:
        row: the text as the file has it, with its options, its right answer and its reference steps.
        solution: the text without the question before it.
        steps: the steps of the solution.
        verdict: of the answer rule, or of a judge of answers (`judge_answers`).
        has_marks: whether the text has at least one mark of a step that can be read.
        is_truncated: whether it ends inside the tokens of a step.
        judged: what a judge said about the steps; None if it was not asked.
        answer_judge: the name of the judge that was asked about the answer.
    """

    row: TextRow
    solution: str
    steps: list[Step]
    verdict: Verdict
    has_marks: bool
    is_truncated: bool
    judged: JudgedSolution | None = None
    answer_judge: str | None = None

    @property
    def answer(self) -> str:
        """`"right"`, `"wrong"`, or `"missing"` without a valid answer."""
        if not self.verdict.is_valid:
            return MISSING
        return RIGHT if self.verdict.is_correct else WRONG

    def to_dict(self) -> dict:
        """The line of a scores file, without the name of the file that was scored."""
        row, verdict = self.row, self.verdict
        line = {
            "index": row.index,
            "question": row.question,
            "text": row.text,
            "verdict": _VERDICTS[verdict.is_correct],
            "answer": verdict.answer,
            "reference": verdict.reference,
            "several": verdict.several,
            "verdict_in_file": _VERDICTS[row.verdict],
            "has_marks": self.has_marks,
            "is_truncated": self.is_truncated,
            "steps": [{"kind": step.kind, "text": step.text} for step in self.steps],
        }
        if verdict.said_by_judge is not None:
            line["answer_judge"] = {"name": self.answer_judge, "verdict": verdict.said_by_judge}
        if self.judged is not None:
            attribution = self.judged.attribution
            line |= {"outcome": attribution.outcome, "step": attribution.step, "judged": list(self.judged.verdicts)}
            line |= {} if self.judged.fault is None else {"fault": self.judged.fault}
        return line


def score_texts(
    rows: Iterable[TextRow],
    scheme: StepScheme,
    *,
    answer_rule: str = "published",
    match_option_text: bool = False,
) -> list[ScoredText]:
    """
    Judges the answer of every text by the answer rule, and reads its steps.

    Args:
        rows: from `read_texts` or `join_questions`.
        scheme: how the texts mark their steps. A scheme with tokens reads any number of them.
        answer_rule, match_option_text: `rule` and `match_option_text` of `extract_answer`.

    Raises:
        ValueError: the right answer of a text is not known, or cannot be read; names the text.

    Example:

        >>> row = TextRow(0, "<memory> Iron is heavy.\\n<answer> The answer is: False", "Does it float?", "False")
        >>> (scored,) = score_texts([row], StepScheme())
        >>> scored.answer, scored.has_marks, [step.kind for step in scored.steps]
        ('right', True, ['memory', 'answer'])
    """
    settings = {"rule": answer_rule, "match_option_text": match_option_text}
    rows = complete_rows([_read_reference(row, scheme) for row in rows])
    return [_score(row, scheme, settings) for row in rows]


def judge_answers(scored: Sequence[ScoredText], answer_judge: AnswerJudge) -> list[ScoredText]:
    """
    The same texts, with the verdicts of a judge on free-text answers that differ from all right ones.

    Raises:
        ValueError, OSError: the judge cannot be used, see `ChatAnswerJudge`.
    """
    rows = [
        {
            "question": entry.row.question or _NO_QUESTION,
            "answer": entry.row.reference,
            "accepted_answers": entry.row.accepted_answers,
            "answer_type": entry.row.answer_type,
        }
        for entry in scored
    ]
    verdicts = ask_judge([entry.verdict for entry in scored], rows, answer_judge)
    return [
        entry
        if verdict.said_by_judge is None
        else dataclasses.replace(entry, verdict=verdict, answer_judge=answer_judge.name)
        for entry, verdict in zip(scored, verdicts)
    ]


def judge_scored(scored: Sequence[ScoredText], scheme: StepScheme, judge: StepJudge) -> list[ScoredText]:
    """
    The same texts, each with what a judge says about its steps. Texts without readable marks are not judged.

    Raises:
        ValueError, OSError: the judge cannot be used, see `attribute_all`.
    """
    chosen = [index for index, entry in enumerate(scored) if shows_steps(entry, scheme)]
    solutions = [
        SolutionToJudge(
            entry.steps,
            [*entry.row.steps, answer_step(entry.verdict.reference)],
            entry.row.question or "",
            entry.verdict.reference,
            entry.answer,
        )
        for entry in (scored[index] for index in chosen)
    ]
    judged = list(scored)
    for index, said in zip(chosen, attribute_all(judge, solutions)):
        judged[index] = dataclasses.replace(scored[index], judged=said)
    return judged


def shows_steps(entry: ScoredText, scheme: StepScheme) -> bool:
    """Whether the steps of a text can be spoken of: it has a mark, or its scheme has none."""
    return entry.has_marks or scheme.marks == "none"


def measure_scores(scored: Sequence[ScoredText], scheme: StepScheme, *, seed: int = 0) -> dict:
    """
    The numbers of one file.

    Args:
        scored: its texts; not empty.
        scheme: how they mark their steps.
        seed: of the interval.

    Returns:
        What `.summary.json` holds for a file. `steps` is None if no text shows its steps, and `outcomes` is None if no
        judge was asked.
    """
    verdicts = [entry.verdict for entry in scored]
    correct = np.array([verdict.is_correct for verdict in verdicts], dtype=float)
    keys = [entry.row.question if entry.row.question is not None else f"{entry.row.index}" for entry in scored]
    _, groups = np.unique(keys, return_inverse=True)
    known = [entry for entry in scored if entry.row.verdict is not None]
    different = [entry.row.index for entry in known if entry.row.verdict != entry.verdict.is_correct]
    shown = [entry for entry in scored if shows_steps(entry, scheme)]
    distribution = _distribution(shown, scheme) if shown else None
    judged = [entry for entry in shown if entry.judged is not None]
    return {
        "num_items": len(scored),
        "num_questions": len(set(keys)),
        "accuracy": float(correct.mean()),
        "accuracy_interval": accuracy_interval(correct, groups, _NUM_SAMPLES, _CONFIDENCE, seed),
        "num_correct": int(correct.sum()),
        "num_invalid_answers": sum(not verdict.is_valid for verdict in verdicts),
        "num_several_answers": sum(verdict.several for verdict in verdicts),
        "num_judged_answers": sum(verdict.by_judge for verdict in verdicts),
        "num_right_by_judge": sum(verdict.by_judge and verdict.is_correct for verdict in verdicts),
        "num_undecided_answers": sum(verdict.is_undecided for verdict in verdicts),
        "verdicts_in_file": {"count": len(known), "same": len(known) - len(different), "different": different},
        "num_with_marks": sum(entry.has_marks for entry in scored),
        "num_showing_steps": len(shown),
        "num_truncated": sum(entry.is_truncated for entry in scored),
        "steps": distribution,
        "outcomes": _outcomes(judged, list(distribution["steps_by_kind"])) if judged else None,
        "faults": list(dict.fromkeys(entry.judged.fault for entry in judged if entry.judged.fault is not None)),
    }


def score_report(name: str, scores: Mapping, *, judge: str | None, answer_judge: str | None = None) -> str:
    """
    The numbers of one file as text.

    Args:
        name: of the file.
        scores: from `measure_scores`.
        judge: the name of the judge; None if none was asked.
        answer_judge: the same of the judge of free-text answers.
    """
    low, high = scores["accuracy_interval"]
    lines = [
        f"{name}: {scores['num_items']:,} texts, {scores['num_questions']:,} questions",
        f"accuracy {scores['accuracy']:.1%} ({scores['num_correct']:,} right; 95 % interval {low:.1%} to {high:.1%})",
        f"no valid answer {scores['num_invalid_answers']:,}; several options {scores['num_several_answers']:,}; "
        f"cut off inside a step's tokens {scores['num_truncated']:,}",
        *answer_judge_lines(scores, answer_judge),
    ]
    in_file = scores["verdicts_in_file"]
    if in_file["count"]:
        lines.append(
            f"verdicts in the file: {in_file['same']:,} of {in_file['count']:,} the same{_different(in_file)}"
        )
    if scores["steps"] is None:
        return "\n".join([*lines, "steps by kind: not counted, because no text shows readable marks of steps"])
    if scores["num_showing_steps"] < scores["num_items"]:
        lines.append(
            f"steps: those of the {scores['num_showing_steps']:,} of {scores['num_items']:,} texts that show readable "
            "marks"
        )
    lines += ["", _steps_table(scores["steps"])]
    if scores["outcomes"] is not None:
        lines += ["", _outcomes_table(scores["outcomes"], judge)]
        if scores["faults"]:
            lines.append(f"not judged: {scores['faults'][0]}")
    return "\n".join(lines)


def comparison_of_files(scores: Mapping[str, Mapping]) -> str:
    """The main numbers of several files as a table, one line each."""
    lines = []
    for name, part in scores.items():
        low, high = part["accuracy_interval"]
        in_file = part["verdicts_in_file"]
        lines.append(
            [
                name,
                f"{part['num_items']:,}",
                f"{100 * part['accuracy']:.1f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                f"{part['num_invalid_answers']:,}",
                f"{part['num_showing_steps']:,}",
                f"{in_file['same']:,} of {in_file['count']:,}" if in_file["count"] else "-",
            ]
        )
    header = ["file", "texts", "accuracy, %", "95 % interval", "no answer", "with marks", "verdicts as in file"]
    return format_table(header, lines)


def score_lines(name: str, scored: Iterable[ScoredText]) -> Iterator[dict]:
    """The lines of a scores file for one file of texts."""
    for entry in scored:
        yield {"file": name, **entry.to_dict()}


def _score(row, scheme, settings):
    verdict = judge_answer(
        row.text,
        row.reference,
        row.options,
        answer_type=row.answer_type,
        accepted_answers=row.accepted_answers,
        question=row.question,
        **settings,
    )
    end = None if row.question is None else end_of_question(row.text, row.question)
    solution = row.text[end or 0 :]
    # Of the text as it stands: `mark_answer` also names an answer that has no mark.
    spans, _ = scheme.locate(solution)
    has_marks = any(span.mark_end > span.start for span in spans)
    steps = read_solution(solution, scheme, None)
    mark_answer(steps)
    return ScoredText(row, solution, list(steps), verdict, has_marks, steps.truncated)


def _read_reference(row, scheme):
    """A row with the answer alone as its reference, and the reference steps without the answer."""
    if row.reference is None or not is_solution(row.reference):
        return row
    answer = extract_answer(row.reference, {}, answer_type="text", question=row.question).value
    if answer is None:
        raise ValueError(
            f"text {row.index}: the reference {row.reference[-80:]!r} gives no answer. It must be an answer, or a "
            f"solution that ends with '{ANSWER_MARKER} …'."
        )
    steps = tuple(step for step in read_reference(row.reference, scheme, row.question) if step.kind != "answer")
    return dataclasses.replace(row, reference=answer, steps=row.steps or steps)


def _distribution(shown, scheme):
    """What the metric `step_distribution` says of the texts that show their steps."""
    metric = evaluate.load(metric_path("step_distribution"), keep_in_memory=True)
    references = [
        scheme.render([*entry.row.steps, answer_step(entry.verdict.reference)]) if entry.row.steps else "-"
        for entry in shown
    ]
    results = metric.compute(predictions=[entry.solution for entry in shown], references=references, scheme=scheme)
    names = ["steps_by_kind", "steps_per_solution", "words_by_kind", "num_without_steps"]
    if any(entry.row.steps for entry in shown):
        names += ["reference_steps_by_kind"]
    return {name: results[name] for name in names}


def _outcomes(judged, kinds):
    return count_outcomes([entry.judged for entry in judged], [entry.answer for entry in judged], kinds)


def _different(in_file):
    return f"; different: {first_few(in_file['different'], 10)}" if in_file["different"] else ""


def _steps_table(steps):
    kinds = list(steps["steps_by_kind"])
    lines = [["generated steps", *(f"{steps['steps_by_kind'][kind]:,}" for kind in kinds)]]
    if "reference_steps_by_kind" in steps:
        lines.append(["reference steps", *(f"{steps['reference_steps_by_kind'][kind]:,}" for kind in kinds)])
    words = steps["words_by_kind"]
    lines.append(["words of a step", *(f"{words[kind]['mean']:.1f}" if kind in words else "-" for kind in kinds)])
    return format_table(["", *kinds], lines)


def _outcomes_table(outcomes, judge):
    """Where right and wrong solutions first depart. Outcomes that are neither kinds nor found are left out."""
    names = list(outcomes[RIGHT])
    kept = [name for name in names if name not in OUTCOMES or any(part[name] for part in outcomes.values())]
    lines = [
        [f"{answer} answers", f"{sum(part.values()):,}", *(f"{part[name]:,}" for name in kept)]
        for answer, part in outcomes.items()
    ]
    return format_table([f"first departure ({judge})", "all", *kept], lines)
