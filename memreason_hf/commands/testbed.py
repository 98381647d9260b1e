"""
`memreason testbed`: does it show where errors come from, to tell memory from reasoning? Four small models, one world.

    memreason testbed
"""

import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import disable_progress_bars
from transformers import HfArgumentParser

from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.flags import flag_parser, parse_flags
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
from memreason_hf.experiments.testbed.report import report
from memreason_hf.experiments.testbed.rows import WrittenRows, write_solutions
from memreason_hf.files import write_json


PROG = "memreason testbed"
DESCRIPTION = """\
Builds a world of 20 entities and 4 relations, and trains four small models on the same chains of 1 to 6 hops: they
answer at once or write memory and reason steps first, at a fixed or at a recurrent depth. Then it asks them about
chains of up to 12 hops that were in no training, and prints accuracy by hops, the tokens they generate, the
recurrences they take by kind of step, and at which kind of step their wrong solutions go wrong first. The truth of
every step is known: the judge that says so is tried on errors put into right solutions, and on changes that are no
errors.

Two models are trained at a time, one thread each: some 6 minutes on 2 CPU cores. The same command again keeps what is
done.
"""
EPILOG = """\
examples:
  memreason testbed
  memreason testbed --output_dir runs/testbed_seed_1 --seed 1
  memreason testbed --output_dir runs/glimpse --max_steps 100 --num_test_chains 10      # a glimpse; learns little
  memreason testbed --models steps_fixed,steps_recurrent --disorder 1000 --output_dir runs/any_order

a question:   Question: <e_3> <x_5> <r_1> <x_6> <r_0>      let x_5 be the r_1 of e_3, x_6 the r_0 of that
a solution:   <memory> <e_7> <x_6> <r_0> <e_2>             what is recalled, needed or not, in any order
              <memory> <e_3> <x_5> <r_1> <e_7>
              <reason> <e_3> <x_5> <r_1> <e_7>             the fact that is used, and the entity reached
              <reason> <e_7> <x_6> <r_0> <e_2>
              <answer> The answer is: <e_2>

OUTPUT_DIR holds data/, a folder for each model (the model, its log, results.json, and solutions.jsonl with every
text), testbed.json with all figures, and testbed.png.
"""
SCHEMA_VERSION = 1


@dataclass
class TestbedArguments:
    __test__ = False

    output_dir: str = field(default="runs/testbed", metadata={"help": "Everything goes here."})
    seed: int = field(default=42, metadata={"help": "Of the world, the chains, the weights and the batches."})
    models: str = field(default=",".join(MODELS), metadata={"help": "Which of the four."})
    num_test_chains: int = field(default=100, metadata={"help": "Test chains of each hop count."})
    num_judged: int = field(
        default=300, metadata={"help": "Right solutions into which every kind of error and change is put."}
    )
    fixed_seconds: float = field(
        default=FIXED_SECONDS, metadata={"help": "The most that training at fixed depth takes, each model."}
    )
    recurrent_seconds: float = field(
        default=RECURRENT_SECONDS, metadata={"help": "The most that training at recurrent depth takes, each model."}
    )
    max_steps: int | None = field(default=None, metadata={"help": "Training steps of every model. Default: its own."})
    batch_size: int | None = field(default=None, metadata={"help": "Rows of a step. Default: the model's own."})
    num_rows: int = field(default=30_000, metadata={"help": "Written solutions to train on."})
    disorder: float = field(
        default=2.5,
        metadata={"help": "Places that a needed fact comes late among memory steps, in training; 1000: any order."},
    )
    at_once: int = field(default=2, metadata={"help": "Models trained at the same time, one thread each."})
    restart: bool = field(default=False, metadata={"help": "Begin anew in a folder that holds another test bed."})


def make_parser() -> HfArgumentParser:
    usage = "%(prog)s [--flag value ...]"
    return flag_parser(TestbedArguments, prog=PROG, usage=usage, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Runs the test bed; returns the exit code. A wrong flag ends the program with code 2 and one message."""
    with user_errors(PROG):
        arguments = parse_flags(make_parser(), list(sys.argv[1:] if argv is None else argv))
        return _testbed(arguments, _check(arguments))


def _check(arguments):
    """The names of the models that are asked for."""
    names = [name.strip() for name in arguments.models.split(",") if name.strip()]
    unknown = [name for name in names if name not in MODELS]
    if unknown or not names:
        raise ValueError(f"models={arguments.models!r}: there are {', '.join(MODELS)}.")
    for name in ("num_test_chains", "num_judged", "at_once", "num_rows"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1.")
    for name in ("max_steps", "batch_size"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1.")
    if arguments.disorder < 0:
        raise ValueError(f"disorder={arguments.disorder} must be at least 0.")
    for name in ("fixed_seconds", "recurrent_seconds"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"{name}={getattr(arguments, name)} must be above 0.")
    return names


def _testbed(arguments, names):
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
    # In any order whatever a fact whose predecessor was not said yet can be named only by solving the chain unseen:
    # models of this size then recall hardly any needed fact of chains of 4 hops and more.
    rows = WrittenRows(
        num_rows=arguments.num_rows, max_distractors=4, disorder=arguments.disorder, seed=arguments.seed
    )
    tasks = {name: _task(name, folder, config, rows, arguments) for name in names}
    for name in names:
        claim_folder(folder / name, tasks[name]["settings"], restart=arguments.restart)
    disable_progress_bars()
    prepare_multi_hop(config, folder / "data", overwrite=arguments.restart)
    _run_all(tasks, arguments.at_once)
    world = open_world(folder / "data", config, rows)
    judged = _judge(world, rows, arguments)
    results = {
        "schema_version": SCHEMA_VERSION,
        "kind": "testbed",
        "data": asdict(config),
        "settings": {name: getattr(arguments, name) for name in ("seed", "num_judged", "at_once")},
        "models": {name: read_results(folder / name) for name in names},
        "judges": judged,
        "environment": describe_environment("cpu"),
        "seconds": time.perf_counter() - started,
    }
    write_json(folder / "testbed.json", results)
    accuracy = {
        model["title"]: {int(hops): group["accuracy"] for hops, group in model["hops"].items()}
        for model in results["models"].values()
    }
    trained_hops = config.train_hop_counts[-1]
    figure = hops_figure(accuracy, trained_hops=trained_hops, chance=1 / config.num_entities)
    save_figure(figure, [folder / "testbed.png"], overwrite=True)
    print(report(results))
    print(f"\nAll of it took {results['seconds']:.0f} s. Every text is in {folder}/*/solutions.jsonl;")
    print(f"the picture is {folder / 'testbed.png'}.")
    return 0


def _task(name, folder, config, rows, arguments):
    seconds = arguments.recurrent_seconds if MODELS[name].is_recurrent else arguments.fixed_seconds
    settings = {
        "model": name,
        "seed": arguments.seed,
        "seconds": seconds,
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
    """Processes for the models that have no results yet, the longest first; prints what each of them ended with."""
    waiting = [name for name in tasks if read_results(Path(tasks[name]["folder"])) is None]
    waiting.sort(key=lambda name: -tasks[name]["settings"]["seconds"])
    for name in tasks:
        if name not in waiting:
            print(f"{name}: kept, as {tasks[name]['folder']} holds it.", flush=True)
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
        raise ValueError(f"{name} ended with code {code}: {' '.join(log[-3:])[-600:]} All of it: {folder / LOG_FILE}.")
    trained = results["training"]
    why = "its time was up" if trained["ended_by"] == "time" else "all its steps"
    print(
        f"{name}: {trained['steps']:,} of {trained['max_steps']:,} steps in {trained['seconds']:.0f} s ({why}), "
        f"asked in {results['seconds']:.0f} s.",
        flush=True,
    )


def _judge(world, rows, arguments):
    """What the judge that knows the world, and one that compares with a reference, find of errors put in."""
    asked = references(rows, seed=arguments.seed + 2, num_rows=arguments.num_judged)
    solutions = write_solutions(world.facts, test_chains(world), asked)
    judges = {"known truth": WorldJudge(world.facts), "exact comparison": ExactJudge()}
    return {
        name: measure_judge(judge, world.facts, solutions, seed=arguments.seed).to_dict()
        for name, judge in judges.items()
    }


if __name__ == "__main__":
    sys.exit(main())
