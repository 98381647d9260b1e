"""
The whole experiment: trains and evaluates every model in its own process.

    results = run_given_facts(GivenFactsArguments(output_dir="runs/given_facts"))
    print(report(results))

The folder then holds a folder for each model, `given_facts.json` with all numbers, and `given_facts.png`.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.checks import check_finite_fields
from memreason_hf.evaluation.results import describe_environment, new_document, write_results
from memreason_hf.experiments.children import check_end, run_missing, start_child
from memreason_hf.experiments.folders import check_removable, claim_folder, read_finished
from memreason_hf.experiments.given_facts.models import MODELS
from memreason_hf.experiments.given_facts.process import LOG_FILE, RESULTS_FILE, TASK_FILE
from memreason_hf.experiments.given_facts.results import GivenFactsSettings
from memreason_hf.experiments.given_facts.training import TEST_HOPS, TRAINED_HOPS
from memreason_hf.experiments.given_facts.world import NUM_ENTITIES
from memreason_hf.experiments.hops_figure import hops_figure
from memreason_hf.files import write_json
from memreason_hf.locks import locked


ALL_RESULTS_FILE, FIGURE_FILE = "given_facts.json", "given_facts.png"


@dataclass
class GivenFactsArguments:
    """
    Sizes and settings of the experiment. The fields are flags of `memreason reproduce`.

    Raises:
        ValueError: a value is out of range, or a model is unknown.
    """

    output_dir: str = field(default="runs/given_facts", metadata={"help": "Folder for models and results."})
    seed: int = field(
        default=0, metadata={"help": "Seed of the worlds, the questions, the initial weights and the batches."}
    )
    models: str = field(
        default=",".join(MODELS), metadata={"help": "Names of the models to train, separated by commas."}
    )
    num_questions: int = field(
        default=240, metadata={"help": f"Test questions, shared evenly among 1 to {TEST_HOPS} hops."}
    )
    max_steps: int | None = field(
        default=None, metadata={"help": "Training steps of every model. Default: the model's own number."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Rows of a training step. Default: the model's own number."}
    )
    at_once: int = field(default=2, metadata={"help": "Models that are trained at the same time, one thread each."})
    restart: bool = field(default=False, metadata={"help": "Remove the experiment in output_dir and start again."})

    def __post_init__(self):
        check_finite_fields(self)
        names = self.model_names
        if not names or len(set(names)) < len(names) or not set(names) <= set(MODELS):
            raise ValueError(f"models={self.models!r} must name some of {', '.join(MODELS)}, each once.")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0.")
        if self.num_questions < TEST_HOPS:
            raise ValueError(
                f"num_questions={self.num_questions} must be at least {TEST_HOPS}, one for each hop count."
            )
        for name in ("max_steps", "batch_size", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    @property
    def model_names(self) -> list[str]:
        return [name.strip() for name in self.models.split(",") if name.strip()]


def run_given_facts(arguments: GivenFactsArguments) -> dict:
    """
    Runs the experiment, or what is missing of it, and writes its files. Progress is printed.

    Returns:
        The contents of `given_facts.json`, see `GivenFactsResults`.

    Raises:
        InUseError: another process runs the experiment in the folder.
        ValueError: the folder holds another experiment, or a model's process failed; the message quotes its log.
    """
    with locked(arguments.output_dir, inside=True):
        return _run(arguments, Path(arguments.output_dir))


def _run(arguments, folder):
    started = time.perf_counter()
    folders = {name: folder / name for name in arguments.model_names}
    if arguments.restart:
        # All are checked before any is removed.
        check_removable(folders.values())
    settings = {key: getattr(arguments, key) for key in ("seed", "max_steps", "batch_size", "num_questions")}
    for name, path in folders.items():
        claim_folder(path, {"model": name, **settings}, restart=arguments.restart)
    _run_all(folders, settings, arguments.at_once)
    results = new_document(
        "given_facts",
        trained_hops=TRAINED_HOPS,
        settings={name: getattr(arguments, name) for name in GivenFactsSettings.__annotations__},
        models={name: read_finished(path / RESULTS_FILE) for name, path in folders.items()},
        environment=describe_environment("cpu"),
        seconds=time.perf_counter() - started,
    )
    write_results(folder / ALL_RESULTS_FILE, results, overwrite=True)
    save_figure(_figure(results), [folder / FIGURE_FILE], overwrite=True)
    return results


def _figure(results):
    """Right answers on fresh worlds."""
    accuracy = {
        entry["title"]: {int(hops): group["accuracy"] for hops, group in entry["fresh"]["hops"].items()}
        for entry in results["models"].values()
    }
    label = "right answers, fresh worlds"
    return hops_figure(accuracy, trained_hops=results["trained_hops"], chance=1 / NUM_ENTITIES, label=label)


def _run_all(folders, settings, at_once):
    """Starts a process for every model without results, and prints how each ended."""

    def start(name):
        task = folders[name] / TASK_FILE
        write_json(task, {"folder": str(folders[name]), "settings": settings})
        print(f"{name}: training; the log is {folders[name] / LOG_FILE} …", flush=True)
        return start_child(f"{__package__}.process", name, str(task), log=folders[name] / LOG_FILE)

    def end(name, code):
        results = read_finished(folders[name] / RESULTS_FILE)
        check_end(name, code, results is not None, folders[name] / LOG_FILE)
        print(f"{name}: {results['training']['steps']:,} steps.", flush=True)

    run_missing(folders, at_once, read=lambda folder: read_finished(folder / RESULTS_FILE), start=start, end=end)
