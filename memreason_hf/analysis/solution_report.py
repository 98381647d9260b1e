"""What a set of generated solutions shows: accuracy, steps by kind, and where solutions depart from the references."""

from collections import Counter
from collections.abc import Mapping, Sequence

import evaluate

from memreason_hf.data.questions.memory_reason import reference_solution
from memreason_hf.data.questions.schema import type_of_row
from memreason_hf.evaluation.solutions.answer_judges import AnswerJudge
from memreason_hf.evaluation.solutions.generation import GeneratedSolution
from memreason_hf.evaluation.solutions.judges import StepJudge
from memreason_hf.evaluation.solutions.votes import by_item, majority, measure_votes
from memreason_hf.metrics import metric_path
from memreason_hf.steps import StepScheme
from memreason_hf.steps.depth import NO_KIND_YET, mean_recurrences_by_kind


METRICS = ("answer_accuracy", "step_distribution", "step_attribution")
# A line of the report and the outcome of `step_attribution` that it counts.
_OTHER_OUTCOMES = (
    ("no answer", "num_without_answer"),
    ("no departure", "num_without_departure"),
    ("undecided", "num_undecided"),
    ("no reference steps", "num_without_reference"),
    ("not judged", "num_not_judged"),
)


def measure_solutions(
    generations: Sequence[GeneratedSolution],
    rows: Sequence[Mapping],
    scheme: StepScheme,
    *,
    match_option_text: bool,
    judge: str | StepJudge | None,
    seed: int,
    answer_rule: str = "published",
    answer_judge: AnswerJudge | None = None,
) -> dict:
    """
    The results of the three metrics of solutions together, the tokens of all solutions, and the mean recurrences by
    kind where they were recorded.

    Where items have several solutions, each of them counts, so `accuracy` is that of a single one. `num_items` counts
    the items, and `num_texts` their solutions. In addition there are the results of `measure_votes` and
    `majority_interval`, like `accuracy_interval`.

    Args:
        generations: from `generate_solutions`.
        rows: the questions, as `load_memory_reason` gives them; each index of a solution is that of its row.
        scheme: of the steps.
        match_option_text, judge, seed, answer_rule, answer_judge: as for the metrics. Without a judge,
            `step_attribution` is left out.
    """
    names = METRICS if judge is not None else METRICS[:-1]
    metrics = evaluate.combine([evaluate.load(metric_path(name), keep_in_memory=True) for name in names])
    keywords = {"match_option_text": match_option_text, "scheme": scheme, "answer_rule": answer_rule, "seed": seed}
    keywords |= {} if judge is None else {"judge": judge}
    keywords |= {} if answer_judge is None else {"answer_judge": answer_judge}
    results = metrics.compute(**_texts(generations, rows, scheme), **keywords)
    results["num_tokens"] = sum(generation.num_tokens for generation in generations)
    recorded = [generation.recurrences for generation in generations if generation.recurrences is not None]
    if recorded:
        results["mean_recurrences_by_kind"] = mean_recurrences_by_kind(recorded)
    items = by_item(generations)
    said = Counter(one.answer_judge["verdict"] for one in generations if one.answer_judge is not None)
    results["num_right_by_judge"] = said["right"]
    # The metrics count texts.
    results["num_texts"], results["num_items"] = results["num_items"], len(items)
    if len(items) < len(generations):
        results |= measure_votes(generations)
        chosen = [majority(solutions) for solutions in items.values()]
        metric = evaluate.load(metric_path(METRICS[0]), keep_in_memory=True)
        votes = metric.compute(**_texts(chosen, rows, scheme), **keywords)
        results["majority_interval"] = votes["accuracy_interval"]
    return results


def _texts(generations, rows, scheme):
    """The texts of solutions and what belongs to them, for the metrics."""
    solved = [rows[generation.index] for generation in generations]
    return {
        "predictions": [generation.text for generation in generations],
        "references": [scheme.render(reference_solution(row)) for row in solved],
        "questions": [row["question"] for row in solved],
        "options": [row["options"] for row in solved],
        "answer_types": [type_of_row(row) for row in solved],
        "accepted_answers": [row.get("accepted_answers") or [] for row in solved],
    }


def solution_report(
    results: Mapping,
    generations: Sequence[GeneratedSolution],
    *,
    title: str,
    max_new_tokens: int,
    judge: str,
    answer_judge: str | None = None,
) -> str:
    """
    The results as text.

    Args:
        results: from `measure_solutions`.
        title: names the model and the data.
        max_new_tokens, judge: what the solutions were generated and measured with.
        answer_judge: the name of the judge of free-text answers, if one was asked.
    """
    low, high = results["accuracy_interval"]
    num_cut = sum(generation.is_cut for generation in generations)
    kinds = list(results["steps_by_kind"])
    widths = {kind: max(9, len(kind) + 2) for kind in kinds}
    texts = f", {results['num_texts']:,} texts" if results["num_texts"] > results["num_items"] else ""
    lines = [
        f"{title}: {results['num_items']:,} items, {results['num_questions']:,} questions{texts}",
        f"accuracy {results['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})",
        *_vote_lines(results),
        f"no valid answer {results['num_invalid_answers']:,}; several options {results['num_several_answers']:,}",
        *answer_judge_lines(results, answer_judge),
        f"cut off before their end {num_cut:,} (at most {max_new_tokens} tokens, or the model's context); "
        f"inside a step's tokens {results['num_truncated']:,}",
        "",
        f"{'steps':<28}" + "".join(f"{kind:>{widths[kind]}}" for kind in kinds),
    ]
    rows = [("generated", results["steps_by_kind"]), ("reference", results["reference_steps_by_kind"])]
    if "departures_by_kind" in results:
        rows.append((f"first departures ({judge})", results["departures_by_kind"]))
        rows += [(f"  {answer} answers", counts) for answer, counts in results["outcomes_by_answer"].items()]
    for name, counts in rows:
        lines.append(f"{name:<28}" + "".join(f"{counts[kind]:>{widths[kind]},}" for kind in kinds))
    if means := results.get("mean_recurrences_by_kind"):
        values = {kind: f"{means[kind]:.2f}" if kind in means else "-" for kind in kinds}
        shown = "".join(f"{value:>{widths[kind]}}" for kind, value in values.items())
        lines.append(f"{'mean recurrences of a token':<28}{shown}")
        if NO_KIND_YET in means:
            lines.append(f"tokens before the first step with a kind {means[NO_KIND_YET]:.2f}")
    if "departures_by_kind" in results:
        lines.append("; ".join(f"{name} {results[key]:,}" for name, key in _OTHER_OUTCOMES))
    return "\n".join(lines)


def answer_judge_lines(results: Mapping, name: str | None) -> list[str]:
    """
    What a judge of answers decided, as the lines of a report; none where nobody was asked.

    Args:
        results: with `num_judged_answers`, `num_right_by_judge` and `num_undecided_answers`.
        name: of the judge.
    """
    if name is None:
        return []
    num_judged, num_right = results["num_judged_answers"], results["num_right_by_judge"]
    line = f"free-text answers in other words, judged by {name}: {num_right:,} right, {num_judged - num_right:,} wrong"
    if num_undecided := results["num_undecided_answers"]:
        line += f"; {num_undecided:,} without a readable reply, which count as wrong"
    return [line]


def _vote_lines(results):
    """What several solutions of a question show together."""
    if "num_samples" not in results:
        return []
    low, high = results["majority_interval"]
    passes = ", ".join(f"pass@{k} {share:.1%}" for k, share in results["pass_at"].items())
    return [
        f"majority of {results['num_samples']} solutions {results['majority_accuracy']:.1%} "
        f"(95 % interval {low:.1%} to {high:.1%}); {passes}"
    ]
