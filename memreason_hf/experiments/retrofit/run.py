"""
The whole experiment: trains and evaluates the models of every seed in their own process, and judges them.

    results = run_retrofit(RetrofitArguments(output_dir="runs/retrofit", seeds="0,1,2"))
    print(report(results))

The folder then holds a folder for each seed (the models, a log, `results.json`), `retrofit.json` with all numbers, and
`retrofit.png`.
"""

import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.checks import check_finite_fields
from memreason_hf.evaluation.results import describe_environment, new_document, write_results
from memreason_hf.experiments.children import check_end, run_children, start_child
from memreason_hf.experiments.folders import check_removable, claim_folder, read_finished
from memreason_hf.experiments.retrofit.figures import depth_figure
from memreason_hf.experiments.retrofit.process import LOG_FILE, RESULTS_FILE, TASK_FILE
from memreason_hf.experiments.retrofit.results import judge_all
from memreason_hf.experiments.retrofit.training import LEAST_RECURRENCES, Recipe
from memreason_hf.files import write_json
from memreason_hf.locks import locked


ALL_RESULTS_FILE, FIGURE_FILE = "retrofit.json", "retrofit.png"


@dataclass
class RetrofitArguments:
    """
    Sizes and settings of the experiment. The fields are flags of `memreason reproduce`.

    Raises:
        ValueError: a value is out of range.
    """

    output_dir: str = field(default="runs/retrofit", metadata={"help": "Folder for models and results."})
    seeds: str = field(
        default="0,1,2",
        metadata={"help": "Seeds, separated by commas. Each has its own world, chains, first weights and batches."},
    )
    source_steps: int = field(default=1000, metadata={"help": "Training steps of the source, at fixed depth."})
    further_steps: int = field(
        default=800, metadata={"help": "Training steps after that, of the static and of the looped model."}
    )
    batch_size: int = field(default=64, metadata={"help": "Rows of a training step."})
    mean_recurrences: int = field(default=8, metadata={"help": "Mean of the depths that training draws."})
    most_recurrences: int = field(default=32, metadata={"help": "The deepest that training draws; the least is 4."})
    gate: float = field(default=0.5, metadata={"help": "What the gates on the way back into the loop start at."})
    gradients: str = field(
        default="separate",
        metadata={
            "help": "Whether all weights learn from deep recurrences (shared), or only what these have in addition "
            "(separate)."
        },
    )
    num_test_chains: int = field(default=512, metadata={"help": "Test chains, none of which is trained on."})
    at_once: int = field(default=2, metadata={"help": "Seeds that run at the same time, one thread each."})
    restart: bool = field(default=False, metadata={"help": "Remove the experiment in output_dir and start again."})

    def __post_init__(self):
        check_finite_fields(self)
        try:
            valid = len(set(self.seed_numbers)) == len(self.seed_numbers) > 0 and min(self.seed_numbers) >= 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"seeds={self.seeds!r} must be different whole numbers from 0 on, such as 0,1,2.")
        for name in ("source_steps", "further_steps", "batch_size", "num_test_chains", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not LEAST_RECURRENCES <= self.mean_recurrences <= self.most_recurrences:
            raise ValueError(
                f"mean_recurrences={self.mean_recurrences} must be from {LEAST_RECURRENCES} to "
                f"most_recurrences={self.most_recurrences}."
            )
        if self.gradients not in ("separate", "shared"):
            raise ValueError(f"gradients={self.gradients!r} must be separate or shared.")

    @property
    def seed_numbers(self) -> list[int]:
        return [int(part) for part in self.seeds.split(",") if part.strip()]

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{entry.name: getattr(self, entry.name) for entry in fields(Recipe)})


def run_retrofit(arguments: RetrofitArguments) -> dict:
    """
    Runs the experiment, or what is missing of it, and writes its files. Progress is printed.

    Returns:
        The contents of `retrofit.json`, see `RetrofitResults`.

    Raises:
        InUseError: another process runs the experiment in the folder.
        ValueError: the folder holds another experiment, or the process of a seed failed; the message quotes its log.
    """
    with locked(arguments.output_dir, inside=True):
        return _run_retrofit(arguments, Path(arguments.output_dir))


def _run_retrofit(arguments, folder):
    started = time.perf_counter()
    tasks = {seed: _task(folder / f"seed_{seed}", arguments, seed) for seed in arguments.seed_numbers}
    if arguments.restart:
        # All are checked before any is removed.
        check_removable([Path(task["folder"]) for task in tasks.values()])
    for task in tasks.values():
        settings = {**task["recipe"], "num_test_chains": task["num_test_chains"], "seed": task["seed"]}
        claim_folder(Path(task["folder"]), settings, restart=arguments.restart)
    _run_all(tasks, arguments.at_once)
    seeds = {str(seed): read_finished(Path(task["folder"]) / RESULTS_FILE) for seed, task in tasks.items()}
    results = new_document(
        "retrofit",
        recipe=asdict(arguments.recipe),
        num_test_chains=arguments.num_test_chains,
        seeds=seeds,
        verdict=judge_all([entry["verdict"] for entry in seeds.values()]),
        environment=describe_environment("cpu"),
        seconds=time.perf_counter() - started,
    )
    write_results(folder / ALL_RESULTS_FILE, results, overwrite=True)
    save_figure(depth_figure(results), [folder / FIGURE_FILE], overwrite=True)
    return results


def _task(folder, arguments, seed):
    return {
        "folder": str(folder),
        "recipe": asdict(arguments.recipe),
        "num_test_chains": arguments.num_test_chains,
        "seed": seed,
    }


def _run_all(tasks, at_once):
    """Starts a process for every seed without results, and prints how each ended."""
    waiting = []
    for seed, task in tasks.items():
        if read_finished(Path(task["folder"]) / RESULTS_FILE) is None:
            waiting.append(seed)
        else:
            print(f"seed {seed}: kept the results in {task['folder']}.", flush=True)

    def start(seed):
        print(f"seed {seed}: training; the log is {Path(tasks[seed]['folder']) / LOG_FILE} …", flush=True)
        return _start(tasks[seed])

    run_children(waiting, at_once, start, lambda seed, code: _end(seed, tasks[seed], code))


def _start(task):
    folder = Path(task["folder"])
    write_json(folder / TASK_FILE, task)
    return start_child(f"{__package__}.process", str(folder / TASK_FILE), log=folder / LOG_FILE)


def _end(seed, task, code):
    folder = Path(task["folder"])
    results = read_finished(folder / RESULTS_FILE)
    check_end(f"Seed {seed}", code, results is not None, folder / LOG_FILE)
    seconds = {name: entry["seconds"] for name, entry in results["training"].items()}
    print(f"seed {seed}: trained in " + ", ".join(f"{time:.0f} s ({name})" for name, time in seconds.items()) + ".")
