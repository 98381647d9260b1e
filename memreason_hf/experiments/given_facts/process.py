"""Trains and evaluates one model of the experiment in its own process, and keeps the results in its folder."""

import sys
import time
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import modeling_recurrent  # noqa: F401 - registers the architecture with the Auto classes
from memreason_hf.experiments.children import running_child
from memreason_hf.experiments.folders import read_finished
from memreason_hf.experiments.given_facts.evaluation import evaluate_answers, evaluate_steps
from memreason_hf.experiments.given_facts.models import MODELS
from memreason_hf.experiments.given_facts.training import learned_world, prepare_run
from memreason_hf.experiments.training import train_and_save
from memreason_hf.files import read_json, write_json
from memreason_hf.steps.attention import restore_step_attention
from memreason_hf.steps.depth import DepthByKind


TRAINING_FILE, RESULTS_FILE, LOG_FILE, TASK_FILE = "training.json", "results.json", "log.txt", "task.json"


def run_model(name: str, folder: Path, settings: dict) -> dict:
    """
    Trains and evaluates a model. Training that `folder` already holds is not repeated.

    Args:
        name: a key of `MODELS`.
        settings: `seed`, `max_steps`, `batch_size` and `num_questions`.

    Returns:
        The contents of `results.json`, see `ModelResults`.
    """
    training = read_finished(folder / TRAINING_FILE)
    if training is None:
        training = _train(name, folder, settings)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    started = time.process_time()
    sizes = {"num_questions": settings["num_questions"], "seed": settings["seed"]}
    results = {"title": MODELS[name].title, "training": training}
    if MODELS[name].writes_steps:
        restore_step_attention(model, folder)
        results["fresh"] = evaluate_steps(model, tokenizer, None, **sizes)
        if MODELS[name].fresh_share < 1.0:
            results["learned"] = evaluate_steps(model, tokenizer, learned_world(settings["seed"]), **sizes)
        if model.config.recurrence_sampling != "fixed":
            most = model.config.num_recurrences
            depths = DepthByKind(tokenizer, {"memory": 2, "reason": most}, otherwise=most)
            results["depth_by_kind"] = evaluate_steps(model, tokenizer, None, depths=depths, **sizes)
    else:
        results["fresh"] = evaluate_answers(model, tokenizer, **sizes)
    results["seconds"] = time.process_time() - started
    write_json(folder / RESULTS_FILE, results)
    return results


def _train(name, folder, settings):
    trainer = prepare_run(
        MODELS[name],
        str(folder),
        seed=settings["seed"],
        max_steps=settings["max_steps"],
        batch_size=settings["batch_size"],
    )
    started = time.process_time()
    training = {**train_and_save(trainer), "seconds": time.process_time() - started}
    write_json(folder / TRAINING_FILE, training)
    return training


def main(argv: list[str] | None = None) -> int:
    """Runs one model: its name, and a JSON file with `folder` and `settings`."""
    name, task = sys.argv[1:] if argv is None else argv
    task = read_json(task)
    with running_child(task["folder"]):
        run_model(name, Path(task["folder"]), task["settings"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
