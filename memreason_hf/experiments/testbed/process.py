"""One model of the test bed: trained, asked, and its results kept. `memreason testbed` starts a process for each."""

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import modeling_recurrent  # noqa: F401 - registers the architecture with the Auto classes
from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.multi_hop import MultiHopConfig, load_multi_hop, select_chains
from memreason_hf.experiments.testbed.evaluation import evaluate_answers, evaluate_solutions, false_memories
from memreason_hf.experiments.testbed.models import MODELS, TimeLimit, WrittenWorld, prepare_testbed_run
from memreason_hf.experiments.testbed.rows import WrittenRows, written_questions
from memreason_hf.files import write_json


SETTINGS_FILE, TRAINING_FILE, RESULTS_FILE = "settings.json", "training.json", "results.json"
SOLUTIONS_FILE, LOG_FILE = "solutions.jsonl", "log.txt"


def open_world(data: Path, config: MultiHopConfig, rows: WrittenRows) -> WrittenWorld:
    """The world of a data set that was built with `config`."""
    return WrittenWorld.open(config, load_multi_hop(data), rows)


def test_chains(world: WrittenWorld) -> Dataset:
    """The test chains by hops; of 1 hop there are only facts, all of which are in training."""
    test = world.chains["test"]
    return concatenate_datasets([select_chains(test, kind="atomic"), select_chains(test, kind="test")])


def references(rows: WrittenRows, *, seed: int, num_rows: int = 1) -> WrittenRows:
    """How right solutions of test chains are written: memory in any order, room for distractors beside 12 hops."""
    return replace(rows, seed=seed, num_rows=num_rows, max_distractors=2, disorder=None)


def run_model(name: str, folder: Path, world: WrittenWorld, settings: dict) -> dict:
    """
    Trains a model and asks it; what is done already in `folder` is not done again.

    Args:
        name: a key of `MODELS`.
        folder: of this model.
        world: chains and facts.
        settings: `seed`, `seconds`, `max_steps`, `batch_size` as `prepare_testbed_run` takes them, and what else the
            results depend on.

    Returns:
        What `results.json` holds: the training's figures and the evaluation's.
    """
    made = MODELS[name]
    training = _read(folder / TRAINING_FILE)
    if training is None:
        training = _train(name, folder, world, settings)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    started = time.perf_counter()
    chains = test_chains(world)
    if made.writes_steps:
        asked = references(world.rows, seed=world.rows.seed + 1)
        questions = written_questions(world.facts, chains, asked)
        found = evaluate_solutions(
            model,
            tokenizer,
            world.facts,
            questions,
            path=str(folder / SOLUTIONS_FILE),
            settings=settings,
        )
        trained = [row for row in questions if row["hops"] <= world.config.train_hop_counts[-1]]
        found["false_memories"] = false_memories(model, tokenizer, world.facts, trained)
    else:
        collator = ChainCollator(tokenizer.pad_token_id, "prefix")
        found = evaluate_answers(model, tokenizer, chains, collator)
    results = {"title": made.title, "training": training, **found, "seconds": time.perf_counter() - started}
    write_json(folder / RESULTS_FILE, results)
    return results


def claim_folder(folder: Path, settings: dict, *, restart: bool):
    """
    Makes `folder` that of a model with these settings. `restart` removes the test bed's model that is there.

    Raises:
        ValueError: it holds one with others, and `restart` is false.
    """
    if restart and (folder / SETTINGS_FILE).is_file():
        shutil.rmtree(folder)
    there = _read(folder / SETTINGS_FILE)
    if there is not None and there != json.loads(json.dumps(settings)):
        differing = [name for name in {**there, **settings} if there.get(name) != settings.get(name)]
        shown = ", ".join(f"{name}={there.get(name)!r} there, now {settings.get(name)!r}" for name in differing[:5])
        raise ValueError(f"{folder} holds another run ({shown}). Choose another --output_dir, or give --restart.")
    write_json(folder / SETTINGS_FILE, settings)


def read_results(folder: Path) -> dict | None:
    """What `run_model` left in a folder; None if it has not come to its end."""
    return _read(folder / RESULTS_FILE)


def _train(name, folder, world, settings):
    chosen = {key: settings[key] for key in ("seed", "seconds", "max_steps", "batch_size")}
    trainer = prepare_testbed_run(name, str(folder), world, **chosen)
    trainer.train()
    trainer.save_model()
    limit = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TimeLimit))
    trained = {
        "steps": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
        "seconds": limit.seconds_taken,
        "most_seconds": limit.seconds,
        "ended_by": "time" if limit.reached else "steps",
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    write_json(folder / TRAINING_FILE, trained)
    return trained


def _read(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): give --restart.") from None


def main(argv: list[str] | None = None) -> int:
    """Runs one model: its name and a JSON file with `data`, `config`, `rows` and `settings`."""
    name, task = sys.argv[1:] if argv is None else argv
    # Two of them share the machine: one thread each.
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = json.loads(Path(task).read_text(encoding="utf-8"))
    world = open_world(Path(task["data"]), MultiHopConfig(**task["config"]), WrittenRows(**task["rows"]))
    run_model(name, Path(task["folder"]), world, task["settings"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
