"""The scores of lm-eval's tasks after several numbers of recurrences. lm-eval is an optional dependency."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

from typing_extensions import TypedDict

from memreason_hf.evaluation.results import Document, Environment, ModelDescription, new_document, register_kind
from memreason_hf.tables import format_table
from modeling_recurrent import RecurrentDepthConfig


class TaskScore(TypedDict):
    """One metric of one task. Entry i of a list belongs to entry i of `settings.num_recurrences`."""

    task: str
    metric: str
    """The metric and its filter, as lm-eval names them: `acc,none`."""
    higher_is_better: bool | None
    values: list[float]
    standard_errors: list[float | None]
    """null where lm-eval has none."""


class TaskSettings(TypedDict):
    """Settings of an evaluation on tasks."""

    num_recurrences: list[int]
    """The depths, each of a pass of its own."""
    num_fewshot: int | None
    """Examples in the prompt; null: what the task says."""
    limit: int | None
    """The most questions of a task; null: all."""
    batch_size: int


class TaskResults(Document):
    """Scores of lm-eval's tasks after several numbers of recurrences."""

    kind: Literal["task_scores"]
    model: ModelDescription
    settings: TaskSettings
    scores: list[TaskScore]
    lm_eval: str
    """The version of lm-eval."""
    seconds: float


def _check_scores(results):
    expected = len(results["settings"]["num_recurrences"])
    for index, score in enumerate(results["scores"]):
        for name in ("values", "standard_errors"):
            if len(score[name]) != expected:
                raise ValueError(
                    f"scores[{index}].{name} has {len(score[name])} entries, but settings.num_recurrences has "
                    f"{expected}."
                )


register_kind("task_scores", TaskResults, check=_check_scores)


def check_lm_eval() -> None:
    """Raises an `ImportError` that says what to install, if lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise ImportError("lm-eval is not installed: pip install lm-eval")


def scores_by_recurrence(
    model,
    tokenizer,
    tasks: Sequence,
    num_recurrences: Sequence[int],
    *,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    limit: int | None = None,
    **kwargs,
) -> list[TaskScore]:
    """
    Runs lm-eval's tasks once for each depth, on one loaded model.

    Each pass gives what `lm_eval --model_args pretrained=FOLDER,num_recurrences=R` gives.

    Args:
        model ([`RecurrentDepthForCausalLM`]): The model. Its config is left as it was.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        tasks (`Sequence`): As for `lm_eval.simple_evaluate`: names, configs or `Task` objects.
        num_recurrences (`Sequence[int]`): The depths. A halting criterion of the config is switched off.
        batch_size (`int`, *optional*, defaults to 8): Rows of a forward pass.
        num_fewshot (`int`, *optional*): Examples in the prompt. Default: what the task says.
        limit (`int`, *optional*): The most questions of a task.
        kwargs: For `lm_eval.simple_evaluate`.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: no tasks or depths, a depth below 1, or a model of another type.
    """
    check_lm_eval()
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    config = model.config
    if not isinstance(config, RecurrentDepthConfig):
        raise ValueError(f"The model is of type {config.model_type!r}: depth can only be chosen in a recurrent one.")
    for name, value in (("tasks", tasks), ("num_recurrences", num_recurrences)):
        if not value:
            raise ValueError(f"{name} is empty. Give at least one.")
    if min(num_recurrences) < 1:
        raise ValueError(f"num_recurrences={min(num_recurrences)} must be at least 1.")
    before = config.num_recurrences, config.halting_criterion
    passes = []
    try:
        config.halting_criterion = None
        evaluated = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        for depth in num_recurrences:
            config.num_recurrences = depth
            passes.append(
                lm_eval.simple_evaluate(
                    evaluated,
                    tasks=list(tasks),
                    num_fewshot=num_fewshot,
                    limit=limit,
                    batch_size=batch_size,
                    log_samples=False,
                    **kwargs,
                )
            )
    finally:
        config.num_recurrences, config.halting_criterion = before
    return _collect(passes)


def _collect(passes):
    scores = []
    for task, metrics in passes[0]["results"].items():
        for metric, value in metrics.items():
            name, _, filtered = metric.partition(",")
            if name.endswith("_stderr") or not filtered or not isinstance(value, int | float):
                continue
            error = f"{name}_stderr,{filtered}"
            errors = [found["results"][task].get(error) for found in passes]
            scores.append(
                {
                    "task": task,
                    "metric": metric,
                    "higher_is_better": passes[0].get("higher_is_better", {}).get(task, {}).get(name),
                    "values": [float(found["results"][task][metric]) for found in passes],
                    "standard_errors": [float(e) if isinstance(e, int | float) else None for e in errors],
                }
            )
    return scores


def task_score_results(
    scores: list[TaskScore],
    *,
    model: ModelDescription,
    environment: Environment,
    settings: TaskSettings,
    seconds: float,
) -> dict:
    """A document of kind `"task_scores"`; the arguments are its entries."""
    import lm_eval

    return new_document(
        "task_scores",
        model=model,
        settings=settings,
        scores=scores,
        lm_eval=lm_eval.__version__,
        seconds=seconds,
        environment=environment,
    )


def task_score_table(results: dict) -> str:
    """A table of a document of kind `"task_scores"`: one line for each metric, one column for each depth."""
    depths = results["settings"]["num_recurrences"]
    lines = [
        [
            score["task"],
            score["metric"].removesuffix(",none"),
            *(_with_error(value, error) for value, error in zip(score["values"], score["standard_errors"])),
            _best(score, depths),
        ]
        for score in results["scores"]
    ]
    return format_table(["task", "metric", *(f"r={depth}" for depth in depths), "best at"], lines)


def _with_error(value, error):
    return f"{value:.4f}" if error is None else f"{value:.4f} ±{error:.4f}"


def _best(score, depths):
    if score["higher_is_better"] is None:
        return "-"
    best = (max if score["higher_is_better"] else min)(score["values"])
    return depths[score["values"].index(best)]
