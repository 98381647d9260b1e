"""Trains and evaluates the models of one seed in its own process, and keeps what is finished in its folder."""

import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import modeling_recurrent  # noqa: F401 - registers the architecture with the Auto classes
from memreason_hf.experiments.children import running_child
from memreason_hf.experiments.folders import read_finished
from memreason_hf.experiments.retrofit.evaluation import evaluate_chains
from memreason_hf.experiments.retrofit.results import DEEPER, judge_seed
from memreason_hf.experiments.retrofit.training import (
    Recipe,
    convert_source,
    train_looped,
    train_source,
    train_static,
)
from memreason_hf.experiments.retrofit.world import draw_data
from memreason_hf.files import read_json, write_json


TRAINING_FILE, CONVERSION_FILE, RESULTS_FILE = "training.json", "conversion.json", "results.json"
LOG_FILE, TASK_FILE = "log.txt", "task.json"
# The best depth is sought among the depths that training draws; four times as many are measured.
DEEPEST_BEST = 32


def run_seed(folder: Path, recipe: Recipe, num_test: int, seed: int) -> dict:
    """
    Trains and evaluates the models of a seed. What `folder` already holds is not repeated.

    Returns:
        The contents of `results.json`, see `SeedResults`.

    Raises:
        ValueError: the converted model does not compute what the source computes.
    """
    sizes = (steps * recipe.batch_size for steps in (recipe.source_steps, recipe.further_steps))
    world, test, source_chains, further = draw_data(seed, num_test, *sizes)
    source, converted, static, looped = (folder / name for name in ("source", "converted", "static", "looped"))
    training = {"source": _once(source, lambda: train_source(source, world, source_chains, recipe, seed=seed))}
    difference = _convert_once(converted, source, recipe, test, seed)
    training["static"] = _once(static, lambda: train_static(static, source, further, recipe, seed=seed))
    training["looped"] = _once(looped, lambda: train_looped(looped, converted, further, recipe, seed=seed))
    started = time.perf_counter()
    models = {name: AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=False) for name in training}
    measures = {name: evaluate_chains(model, test, DEEPER * DEEPEST_BEST) for name, model in models.items()}
    results = {
        "conversion_difference": difference,
        "weight_difference": _largest_difference(models["static"], models["looped"]),
        "training": training,
        **measures,
        "verdict": judge_seed(measures["static"], measures["looped"]),
        "seconds": time.perf_counter() - started,
    }
    write_json(folder / RESULTS_FILE, results)
    return results


def _once(folder, train):
    """Trains a model, unless an earlier run has."""
    training = read_finished(folder / TRAINING_FILE)
    if training is None:
        training = train()
        write_json(folder / TRAINING_FILE, training)
    return training


def _convert_once(folder, source, recipe, test, seed):
    conversion = read_finished(folder / CONVERSION_FILE)
    if conversion is None:
        conversion = {"difference": convert_source(folder, source, recipe, test, seed=seed)}
        if conversion["difference"] != 0.0:
            raise ValueError(
                f"The converted model differs from its source by {conversion['difference']} in a logit after one "
                "recurrence."
            )
        write_json(folder / CONVERSION_FILE, conversion)
    return conversion["difference"]


def _largest_difference(static, looped):
    with torch.no_grad():
        pairs = ((weight, looped.get_parameter(name)) for name, weight in static.named_parameters())
        return max(float((one - other).abs().max()) for one, other in pairs)


def main(argv: list[str] | None = None) -> int:
    """Runs one seed: a JSON file with `folder`, `recipe`, `num_test_chains` and `seed`."""
    (task,) = sys.argv[1:] if argv is None else argv
    task = read_json(task)
    with running_child(task["folder"]):
        run_seed(Path(task["folder"]), Recipe(**task["recipe"]), task["num_test_chains"], task["seed"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
