"""
The whole test bed: builds the world, trains and evaluates every model in its own process, and measures the judges.

    results = run_testbed(TestbedArguments(output_dir="runs/testbed", seed=42))
    print(report(results))

The folder then holds `data/`, a folder for each model (the model, its log, `results.json`, and `solutions.jsonl` with
every text), `testbed.json` with all numbers, and `testbed.png`.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import disable_progress_bars

from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.checks import check_finite_fields
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.multi_hop import prepare_multi_hop
from memreason_hf.evaluation.known_truth.agreement import NUM_CHANGES, measure_judge, world_guide
from memreason_hf.evaluation.known_truth.attribution import WorldJudge
from memreason_hf.evaluation.results import describe_environment, new_document, write_results
from memreason_hf.evaluation.solutions.chat_judges import ChatJudge
from memreason_hf.evaluation.solutions.judges import ExactJudge
from memreason_hf.evaluation.solutions.reply_files import ReplyFile
from memreason_hf.experiments.children import check_end, run_missing, start_child
from memreason_hf.experiments.folders import check_removable, claim_folder
from memreason_hf.experiments.hops_figure import hops_figure
from memreason_hf.experiments.testbed.models import FIXED_SECONDS, MODELS, RECURRENT_SECONDS
from memreason_hf.experiments.testbed.process import (
    LOG_FILE,
    TASK_FILE,
    TRAINING_FILE,
    read_model_results,
)
from memreason_hf.experiments.testbed.results import TestbedSettings
from memreason_hf.experiments.testbed.rows import WrittenRows, WrittenWorld, write_solutions
from memreason_hf.files import write_json
from memreason_hf.locks import locked


RESULTS_FILE, FIGURE_FILE, REPLIES_FILE = "testbed.json", "testbed.png", "judge_replies.jsonl"


@dataclass
class TestbedArguments:
    """
    Sizes and settings of the test bed. The fields are the flags of `memreason testbed`.

    Raises:
        ValueError: a value is out of range, or a model is unknown.
    """

    __test__ = False  # pytest would collect a class of this name

    output_dir: str = field(default="runs/testbed", metadata={"help": "Folder for data, models and results."})
    seed: int = field(
        default=42, metadata={"help": "Seed of the world, the chains, the initial weights and the batches."}
    )
    models: str = field(
        default=",".join(MODELS), metadata={"help": "Names of the models to train, separated by commas."}
    )
    num_test_chains: int = field(default=100, metadata={"help": "Test chains of each hop count."})
    num_judged: int = field(
        default=300,
        metadata={"help": "Correct solutions into which each kind of error and harmless change is inserted."},
    )
    num_asked: int = field(
        default=20,
        metadata={
            "help": "Solutions among these on which a language model as judge (--llm) is measured; each costs "
            f"{NUM_CHANGES} requests."
        },
    )
    fixed_seconds: float = field(
        default=FIXED_SECONDS, metadata={"help": "Time limit for training a model of fixed depth, in seconds."}
    )
    recurrent_seconds: float = field(
        default=RECURRENT_SECONDS, metadata={"help": "Time limit for training a model of recurrent depth, in seconds."}
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
    restart: bool = field(default=False, metadata={"help": "Remove the test bed in output_dir and start again."})

    def __post_init__(self):
        check_finite_fields(self)
        unknown = [name for name in self.model_names if name not in MODELS]
        if unknown or not self.model_names:
            raise ValueError(f"models={self.models!r} must name some of {', '.join(MODELS)}.")
        for name in ("num_test_chains", "num_judged", "num_asked", "at_once", "num_rows", "max_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self.disorder < 0:
            raise ValueError(f"disorder={self.disorder} must be at least 0.")
        for name in ("fixed_seconds", "recurrent_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0.")

    @property
    def model_names(self) -> list[str]:
        return [name.strip() for name in self.models.split(",") if name.strip()]


def run_testbed(arguments: TestbedArguments, judge: ChatJudge | None = None) -> dict:
    """
    Runs the test bed, or what is missing of it, and writes its files. Progress is printed.

    Args:
        arguments: sizes and settings.
        judge: a language model that is measured next to the other judges. It is told the facts of the world, and its
            replies are kept in `judge_replies.jsonl`.

    Returns:
        The contents of `testbed.json`, see `TestbedResults`.

    Raises:
        InUseError: another process runs a test bed in the folder.
        ValueError: the folder holds another test bed, or a model's process failed; the message quotes its log.
    """
    with locked(arguments.output_dir, inside=True):
        return _run_testbed(arguments, Path(arguments.output_dir), judge)


def _run_testbed(arguments, folder, judge):
    started = time.perf_counter()
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
    # In a random order, a fact can come before the fact that leads to it. To name it, a model would have to solve the
    # chain unseen. Models of this size then recall hardly any needed fact of chains of 4 hops and more.
    rows = WrittenRows(
        num_rows=arguments.num_rows, max_distractors=4, disorder=arguments.disorder, seed=arguments.seed
    )
    tasks = {name: _task(name, folder, config, rows, arguments) for name in arguments.model_names}
    if arguments.restart:
        # All are checked before any is removed.
        check_removable([folder / name for name in tasks])
    for name, task in tasks.items():
        claim_folder(folder / name, task["settings"], restart=arguments.restart)
    disable_progress_bars()
    prepare_multi_hop(config, folder / "data", overwrite=arguments.restart)
    _run_all(tasks, arguments.at_once)
    world = WrittenWorld.open(folder / "data", config, rows)
    results = new_document(
        "testbed",
        data=asdict(config),
        settings={name: getattr(arguments, name) for name in TestbedSettings.__annotations__},
        models={name: read_model_results(folder / name) for name in tasks},
        judges=_try_judges(world, arguments, folder, judge),
        environment=describe_environment("cpu"),
        seconds=time.perf_counter() - started,
    )
    write_results(folder / RESULTS_FILE, results, overwrite=True)
    save_figure(_figure(results, config), [folder / FIGURE_FILE], overwrite=True)
    return results


def _task(name, folder, config, rows, arguments):
    settings = {
        "model": name,
        "seed": arguments.seed,
        "seconds": arguments.recurrent_seconds if MODELS[name].is_recurrent else arguments.fixed_seconds,
        "max_steps": arguments.max_steps,
        "batch_size": arguments.batch_size,
        "num_rows": arguments.num_rows,
        "disorder": arguments.disorder,
        "num_test_chains": arguments.num_test_chains,
    }
    return {
        "folder": str(folder / name),
        "data": str(folder / "data"),
        "config": asdict(config),
        "rows": asdict(rows),
        "settings": settings,
    }


def _run_all(tasks, at_once):
    """Starts a process for every model without results, the longest first, and prints how each ended."""
    names = sorted(tasks, key=lambda name: -tasks[name]["settings"]["seconds"])
    folders = {name: Path(tasks[name]["folder"]) for name in names}

    def start(name):
        is_trained = (folders[name] / TRAINING_FILE).is_file()
        what = "evaluation" if is_trained else f"training, at most {tasks[name]['settings']['seconds']:.0f} s"
        print(f"{name}: {what} …", flush=True)
        return _start(name, tasks[name])

    def end(name, code):
        _end(name, tasks[name], code)

    run_missing(folders, at_once, read=read_model_results, start=start, end=end)


def _start(name, task):
    folder = Path(task["folder"])
    write_json(folder / TASK_FILE, task)
    return start_child(f"{__package__}.process", name, str(folder / TASK_FILE), log=folder / LOG_FILE)


def _end(name, task, code):
    folder = Path(task["folder"])
    results = read_model_results(folder)
    check_end(name, code, results is not None, folder / LOG_FILE)
    training = results["training"]
    why = "time limit" if training["ended_by"] == "time" else "all steps"
    print(
        f"{name}: {training['steps']:,} of {training['max_steps']:,} steps in {training['seconds']:.0f} s ({why}), "
        f"evaluated in {results['seconds']:.0f} s.",
        flush=True,
    )


def _try_judges(world, arguments, folder, judge):
    """Measures judges on inserted errors: one that knows the world, one that compares, and the language model."""
    settings = world.rows.references(arguments.seed + 2, arguments.num_judged)
    solutions = write_solutions(world.facts, world.test_chains(), settings)
    judges = {"known truth": WorldJudge(world.facts), "exact comparison": ExactJudge()}
    measured = {
        name: measure_judge(judge, world.facts, solutions, seed=arguments.seed).to_dict()
        for name, judge in judges.items()
    }
    if judge is not None:
        asked = judge.told(world_guide(world.facts))
        asked.replies = ReplyFile(folder / REPLIES_FILE)
        chosen = solutions[: arguments.num_asked]
        measured[judge.name] = measure_judge(asked, world.facts, chosen, seed=arguments.seed).to_dict()
    return measured


def _figure(results, config):
    accuracy = {
        model["title"]: {int(hops): group["accuracy"] for hops, group in model["hops"].items()}
        for model in results["models"].values()
    }
    return hops_figure(accuracy, trained_hops=config.train_hop_counts[-1], chance=1 / config.num_entities)
