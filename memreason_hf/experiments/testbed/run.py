"""
The test bed as a whole: one world, four models that are trained and asked in processes of their own, and two judges.

    arguments = TestbedArguments(output_dir="runs/testbed", max_steps=100)
    arguments.check()
    results = run_testbed(arguments)
"""

import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import disable_progress_bars

from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.data.chains.multi_hop import MultiHopConfig, prepare_multi_hop
from memreason_hf.evaluation.chains.results import describe_environment
from memreason_hf.evaluation.solutions.judges import ExactJudge
from memreason_hf.experiments.testbed.attribution import WorldJudge, measure_judge
from memreason_hf.experiments.testbed.figures import hops_figure
from memreason_hf.experiments.testbed.models import FIXED_SECONDS, MODELS, RECURRENT_SECONDS
from memreason_hf.experiments.testbed.process import (
    LOG_FILE,
    TRAINING_FILE,
    claim_folder,
    open_world,
    read_results,
    references,
    test_chains,
)
from memreason_hf.experiments.testbed.rows import WrittenRows, write_solutions
from memreason_hf.files import write_json


SCHEMA_VERSION = 1
RESULTS_FILE, FIGURE_FILE = "testbed.json", "testbed.png"
_MOST_LOG_LETTERS = 600


@dataclass
class TestbedArguments:
    """Sizes of the test bed."""

    # The name does not make it a test.
    __test__ = False

    output_dir: str = field(default="runs/testbed", metadata={"help": "Folder for data, models and results."})
    seed: int = field(
        default=42, metadata={"help": "Seed of the world, the chains, the initial weights and the batches."}
    )
    models: str = field(
        default=",".join(MODELS), metadata={"help": "Models to train, separated by commas, of the four."}
    )
    num_test_chains: int = field(default=100, metadata={"help": "Test chains of each hop count."})
    num_judged: int = field(
        default=300,
        metadata={"help": "Right solutions that every kind of error and harmless change is put into, for the judges."},
    )
    fixed_seconds: float = field(
        default=FIXED_SECONDS, metadata={"help": "Longest training of each model of fixed depth, in seconds."}
    )
    recurrent_seconds: float = field(
        default=RECURRENT_SECONDS, metadata={"help": "Longest training of each model of recurrent depth, in seconds."}
    )
    max_steps: int | None = field(
        default=None, metadata={"help": "Training steps of every model. Default: the model's own number."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Rows of a training step. Default: the model's own number."}
    )
    num_rows: int = field(default=30_000, metadata={"help": "Solutions to train on, written out in steps."})
    disorder: float = field(
        default=2.5,
        metadata={
            "help": "How far the memory steps of training solutions are shuffled, in places; 1000 for any order."
        },
    )
    at_once: int = field(default=2, metadata={"help": "Models that are trained at the same time, one thread each."})
    restart: bool = field(default=False, metadata={"help": "Remove another test bed from output_dir and start anew."})

    @property
    def model_names(self) -> list[str]:
        """The names in `models`."""
        return [name.strip() for name in self.models.split(",") if name.strip()]

    def check(self) -> None:
        """
        Refuses impossible values before any work is done.

        Raises:
            ValueError: names the field and its value.
        """
        if not self.model_names or not set(self.model_names) <= set(MODELS):
            raise ValueError(f"models={self.models!r} must name some of {', '.join(MODELS)}.")
        for name in ("num_test_chains", "num_judged", "at_once", "num_rows", "max_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.disorder < 0:
            raise ValueError(f"disorder={self.disorder} must be at least 0.")
        for name in ("fixed_seconds", "recurrent_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")


def run_testbed(arguments: TestbedArguments) -> dict:
    """
    Builds the world, trains and asks the models, and tries the judges. Prints a line for each model. What an earlier
    run with the same arguments has finished in `output_dir` is kept.

    Returns:
        The content of `testbed.json`; see `memreason_hf.experiments.testbed.report`.

    Raises:
        ValueError: the folder holds another test bed, or the process of a model has failed.
    """
    started = time.perf_counter()
    folder = Path(arguments.output_dir)
    config = MultiHopConfig(
        num_entities=20,
        num_relations=4,
        train_hops="2-6",
        test_hops="1-12",
        num_test_chains=arguments.num_test_chains,
        num_atomic_probes=arguments.num_test_chains,
        cap_to_available=True,
        seed=arguments.seed,
    )
    # In an arbitrary order, a fact whose predecessor has not been written yet can only be named by solving the chain
    # in one go. Models of this size then recall hardly any fact of chains of 4 hops or more.
    rows = WrittenRows(
        num_rows=arguments.num_rows, max_distractors=4, disorder=arguments.disorder, seed=arguments.seed
    )
    tasks = {name: _task(name, folder, config, rows, arguments) for name in arguments.model_names}
    for name, task in tasks.items():
        claim_folder(folder / name, task["settings"], restart=arguments.restart)
    disable_progress_bars()
    prepare_multi_hop(config, folder / "data", overwrite=arguments.restart)
    _run_all(tasks, arguments.at_once)
    judged = _judge(open_world(folder / "data", config, rows), rows, arguments)
    results = {
        "schema_version": SCHEMA_VERSION,
        "kind": "testbed",
        "data": asdict(config),
        "settings": {name: getattr(arguments, name) for name in ("seed", "num_judged", "at_once")},
        "models": {name: read_results(folder / name) for name in tasks},
        "judges": judged,
        "environment": describe_environment("cpu"),
        "seconds": time.perf_counter() - started,
    }
    write_json(folder / RESULTS_FILE, results)
    _draw(results, config, folder / FIGURE_FILE)
    return results


def _draw(results, config, path):
    accuracy = {
        model["title"]: {int(hops): group["accuracy"] for hops, group in model["hops"].items()}
        for model in results["models"].values()
    }
    trained_hops = config.train_hop_counts[-1]
    figure = hops_figure(accuracy, trained_hops=trained_hops, chance=1 / config.num_entities)
    save_figure(figure, [path], overwrite=True)


def _task(name, folder, config, rows, arguments):
    """What the process of a model reads."""
    seconds = arguments.recurrent_seconds if MODELS[name].is_recurrent else arguments.fixed_seconds
    settings = {"model": name, "seed": arguments.seed, "seconds": seconds}
    for key in ("max_steps", "batch_size", "num_rows", "disorder", "num_test_chains"):
        settings[key] = getattr(arguments, key)
    return {
        "folder": str(folder / name),
        "data": str(folder / "data"),
        "config": asdict(config),
        "rows": asdict(rows),
        "settings": settings,
    }


def _run_all(tasks, at_once):
    """Processes for the models that have no results yet, the longest first; prints how each of them ended."""
    waiting = [name for name in tasks if read_results(Path(tasks[name]["folder"])) is None]
    waiting.sort(key=lambda name: -tasks[name]["settings"]["seconds"])
    for name in tasks:
        if name not in waiting:
            print(f"{name}: kept the results in {tasks[name]['folder']}.", flush=True)
    running: dict[str, subprocess.Popen] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                is_trained = (Path(tasks[name]["folder"]) / TRAINING_FILE).is_file()
                what = "asking" if is_trained else f"training, at most {tasks[name]['settings']['seconds']:.0f} s"
                print(f"{name}: {what} …", flush=True)
                running[name] = _start(name, tasks[name])
            time.sleep(0.2)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                _end(name, tasks[name], running.pop(name).returncode)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def _start(name, task):
    folder = Path(task["folder"])
    write_json(folder / "task.json", task)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "memreason_hf.experiments.testbed.process", name, str(folder / "task.json")]
    with open(folder / LOG_FILE, "w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _end(name, task, code):
    folder = Path(task["folder"])
    results = read_results(folder)
    if code or results is None:
        log = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
        last = " ".join(log[-3:])[-_MOST_LOG_LETTERS:]
        raise ValueError(f"{name} ended with code {code}: {last} The whole log is in {folder / LOG_FILE}.")
    trained = results["training"]
    why = "its time was up" if trained["ended_by"] == "time" else "all its steps"
    print(
        f"{name}: {trained['steps']:,} of {trained['max_steps']:,} steps in {trained['seconds']:.0f} s ({why}), "
        f"asked in {results['seconds']:.0f} s.",
        flush=True,
    )


def _judge(world, rows, arguments):
    """How well a judge that knows the world and one that compares with a reference find errors that were put in."""
    written = references(rows, seed=arguments.seed + 2, num_rows=arguments.num_judged)
    solutions = write_solutions(world.facts, test_chains(world), written)
    judges = {"known truth": WorldJudge(world.facts), "exact comparison": ExactJudge()}
    return {
        name: measure_judge(judge, world.facts, solutions, seed=arguments.seed).to_dict()
        for name, judge in judges.items()
    }
