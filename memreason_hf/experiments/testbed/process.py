"""Trains and evaluates one model of the test bed in its own process, and keeps the results in its folder."""

import sys
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_recurrent  # noqa: F401 - registers the architecture with the Auto classes
from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.experiments.children import running_child
from memreason_hf.experiments.folders import read_finished
from memreason_hf.experiments.testbed.evaluation import evaluate_answers, evaluate_solutions, false_memories
from memreason_hf.experiments.testbed.models import MODELS
from memreason_hf.experiments.testbed.rows import WrittenRows, WrittenWorld, written_questions
from memreason_hf.experiments.testbed.training import TimeLimit, prepare_testbed_run
from memreason_hf.experiments.training import train_and_save
from memreason_hf.files import read_json, write_json


TRAINING_FILE, RESULTS_FILE = "training.json", "results.json"
SOLUTIONS_FILE, LOG_FILE, TASK_FILE = "solutions.jsonl", "log.txt", "task.json"


def run_model(name: str, folder: Path, world: WrittenWorld, settings: dict) -> dict:
    """
    Trains and evaluates a model. Training that `folder` already holds is not repeated.

    Args:
        name: a key of `MODELS`.
        folder: of this model.
        world: chains and facts.
        settings: `seed`, `seconds`, `max_steps` and `batch_size` for `prepare_testbed_run`, and all other values that
            the results depend on.

    Returns:
        The contents of `results.json`, see `ModelResults`.
    """
    training = read_finished(folder / TRAINING_FILE)
    if training is None:
        training = _train(name, folder, world, settings)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    started = time.perf_counter()
    chains = world.test_chains()
    if MODELS[name].writes_steps:
        questions = written_questions(world.facts, chains, world.rows.references(world.rows.seed + 1))
        path = str(folder / SOLUTIONS_FILE)
        measured = evaluate_solutions(model, tokenizer, world.facts, questions, path=path, settings=settings)
        trained = [row for row in questions if row["hops"] <= world.config.train_hop_counts[-1]]
        measured["false_memories"] = false_memories(model, tokenizer, world.facts, trained)
    else:
        measured = evaluate_answers(model, tokenizer, chains, ChainCollator(tokenizer.pad_token_id, "prefix"))
    seconds = time.perf_counter() - started
    results = {"title": MODELS[name].title, "training": training, **measured, "seconds": seconds}
    write_json(folder / RESULTS_FILE, results)
    return results


def read_model_results(folder: Path) -> dict | None:
    """The results that `run_model` left in a folder; None if it has not finished."""
    return read_finished(folder / RESULTS_FILE)


def _train(name, folder, world, settings):
    chosen = {key: settings[key] for key in ("seed", "seconds", "max_steps", "batch_size")}
    trainer = prepare_testbed_run(name, str(folder), world, **chosen)
    training = train_and_save(trainer)
    limit = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TimeLimit))
    training |= {
        "max_steps": trainer.state.max_steps,
        "seconds": limit.seconds_taken,
        "most_seconds": limit.seconds,
        "ended_by": "time" if limit.is_reached else "steps",
    }
    write_json(folder / TRAINING_FILE, training)
    return training


def main(argv: list[str] | None = None) -> int:
    """Runs one model: its name, and a JSON file with `data`, `folder`, `config`, `rows` and `settings`."""
    name, task = sys.argv[1:] if argv is None else argv
    task = read_json(task)
    with running_child(task["folder"]):
        world = WrittenWorld.open(Path(task["data"]), MultiHopConfig(**task["config"]), WrittenRows(**task["rows"]))
        run_model(name, Path(task["folder"]), world, task["settings"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
