"""
The evaluation of a model that `memreason train` has trained, and its files.

    results = run_evaluation(ExtrapolationArguments(output_dir="runs/extrapolation"), recipe)
    print(report(results))
"""

import time
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.checks import check_int
from memreason_hf.data.chains.config import MAX_HOPS, MultiHopConfig, parse_hop_counts
from memreason_hf.evaluation.mode import MOST_RECURRENCES
from memreason_hf.evaluation.results import describe_environment, new_document, write_results
from memreason_hf.experiments.depth_extrapolation.evaluation import Evaluation
from memreason_hf.experiments.depth_extrapolation.figures import extrapolation_figure
from memreason_hf.experiments.depth_extrapolation.results import measure_reach
from memreason_hf.experiments.folders import claim_folder, portable_sections, read_finished
from memreason_hf.files import read_json, write_json


ALL_RESULTS_FILE, FIGURE_FILE = "extrapolation.json", "extrapolation.png"
MODEL_FOLDER, DATA_FOLDER, MEASURES_FOLDER = "model", "data", "measures"


@dataclass
class ExtrapolationArguments:
    """
    Where everything goes, and what is measured. The fields are flags of `memreason reproduce`.

    Raises:
        ValueError, TypeError: a value is out of range.
    """

    output_dir: str = field(
        default="runs/depth_extrapolation_small", metadata={"help": "Folder for data, model and results."}
    )
    measured_recurrences: int = field(
        default=160, metadata={"help": "The deepest recurrence that is measured, 4 times the test hops of the study."}
    )
    num_measured_chains: int = field(default=100, metadata={"help": "Test chains of each hop count, at most."})
    deep_hops: str = field(
        default="100,1000", metadata={"help": "Hop counts of chains that are made for the test; empty for none."}
    )
    num_deep_chains: int = field(default=20, metadata={"help": "Chains of each of these hop counts."})
    measured_batch_size: int = field(default=100, metadata={"help": "Chains of a forward call of the evaluation."})

    def __post_init__(self):
        check_int("measured_recurrences", self.measured_recurrences, least=1, most=MOST_RECURRENCES)
        for name in ("num_measured_chains", "num_deep_chains", "measured_batch_size"):
            check_int(name, getattr(self, name), least=1)
        for hops in self.deep_hop_counts:
            if not 2 <= hops <= MAX_HOPS:
                raise ValueError(f"deep_hops={self.deep_hops!r} must be hop counts from 2 to {MAX_HOPS:,}.")

    def check(self, recipe: dict[str, dict]) -> None:
        """
        Refuses what does not fit the training, before it begins.

        Raises:
            ValueError: chains of `deep_hops` would not be longer than those of training.
        """
        trained = trained_hops(recipe)
        for hops in self.deep_hop_counts:
            if hops <= trained:
                raise ValueError(
                    f"deep_hops={self.deep_hops!r} must be above the hop counts of training, which go to {trained}."
                )

    @property
    def deep_hop_counts(self) -> tuple[int, ...]:
        return parse_hop_counts(self.deep_hops) if self.deep_hops else ()


def run_evaluation(arguments: ExtrapolationArguments, recipe: dict[str, dict], *, progress: bool = True) -> dict:
    """
    Measures the model in `output_dir`, or what is missing of it, and writes the files.

    Args:
        recipe: the sections of the training recipe, with the flags that changed them.
        progress: whether progress bars are shown.

    Returns:
        The contents of `extrapolation.json`, see `ExtrapolationResults`.

    Raises:
        ValueError: see `ExtrapolationArguments.check`; the folder holds other measures, or those of another model.
    """
    started = time.perf_counter()
    arguments.check(recipe)
    folder = Path(arguments.output_dir)
    data_config = _config_of(recipe["data"])
    model, measures = folder / MODEL_FOLDER, folder / MEASURES_FOLDER
    state = read_json(model / "trainer_state.json")
    names = ("measured_recurrences", "num_measured_chains", "num_deep_chains")
    settings = {**{name: getattr(arguments, name) for name in names}, "steps": state["global_step"]}
    claim_folder(measures, settings, restart=False)
    evaluation = Evaluation(
        model,
        folder / DATA_FOLDER,
        num_chains=arguments.num_measured_chains,
        batch_size=arguments.measured_batch_size,
        progress=progress,
    )
    hop_counts = _once(
        measures / "results_hops.json", lambda: evaluation.measure_hop_counts(arguments.measured_recurrences)
    )
    deep = [
        _once(
            measures / f"results_{hops}.json",
            partial(evaluation.measure_deep, data_config, hops, arguments.num_deep_chains),
        )
        for hops in arguments.deep_hop_counts
    ]
    # With the recipe's own number, or that of the library, of one device.
    batch_size = state["train_batch_size"] * recipe["training"].get("gradient_accumulation_steps", 1)
    results = new_document(
        "depth_extrapolation",
        recipe=portable_sections(recipe),
        training={
            "steps": state["global_step"],
            "chains": state["global_step"] * batch_size,
            "num_parameters": sum(p.numel() for p in evaluation.model.parameters()),
            "trained_hops": trained_hops(recipe),
        },
        hop_counts=hop_counts,
        max_recurrences=arguments.measured_recurrences,
        deep=deep,
        reach=measure_reach(hop_counts),
        environment=describe_environment(evaluation.device),
        seconds=time.perf_counter() - started,
    )
    write_results(folder / ALL_RESULTS_FILE, results, overwrite=True)
    save_figure(extrapolation_figure(results), [folder / FIGURE_FILE], overwrite=True)
    return results


def trained_hops(recipe: dict[str, dict]) -> int:
    """
    The longest chains that a recipe trains on: those of the data, or of the last stage of its curriculum.

    Example:

        >>> trained_hops({"data": {"train_hops": "2-40"}, "curriculum": {"last_stage": 12}})
        12
    """
    counts = _config_of(recipe["data"]).train_hop_counts
    curriculum = recipe.get("curriculum") or {}
    if not curriculum.get("enabled", True):
        return max(counts)
    last = max(curriculum.get("stages") or [curriculum.get("last_stage") or max(counts)])
    return max((hops for hops in counts if hops <= last), default=1)


def _config_of(data):
    """The world of the data section of a recipe."""
    names = {entry.name for entry in fields(MultiHopConfig)}
    return MultiHopConfig(**{name: value for name, value in data.items() if name in names})


def _once(path, measure):
    found = read_finished(path)
    if found is None:
        found = measure()
        write_json(path, found)
    return found
