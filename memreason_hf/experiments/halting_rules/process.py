"""Trains and measures one model in its own process, and keeps the results in its folder."""

import sys
import time
from pathlib import Path

from datasets import disable_progress_bars

from memreason_hf.data.chains.multi_hop import encode_chains, load_multi_hop, load_multi_hop_tokenizer, select_chains
from memreason_hf.experiments.children import running_child
from memreason_hf.experiments.folders import read_finished
from memreason_hf.experiments.halting_rules.models import DEPTH, MODELS, sections
from memreason_hf.experiments.halting_rules.rules import all_signals, measure_rules, repeat
from memreason_hf.experiments.training import train_and_save
from memreason_hf.files import read_json, write_json
from memreason_hf.models.loading import load_model
from memreason_hf.training.chains.arguments import RecurrentTrainingArguments
from memreason_hf.training.chains.recipe import prepare_run
from memreason_hf.training.runs.checkpoints import list_checkpoints
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


TRAINING_FILE, RESULTS_FILE, LOG_FILE, TASK_FILE = "training.json", "results.json", "log.txt", "task.json"
# Criteria whose calibration is repeated, beside that of the first gate, whose loss depends smoothly on its threshold.
REPEATED = ("kl_entropy", "margin")


def run_model(folder: Path, name: str, data: Path, settings: dict) -> dict:
    """
    Trains a model and measures all rules with it. What `folder` already holds is not repeated.

    Args:
        folder: of this model.
        name: one of `MODELS`.
        data: folder of the data set, which exists.
        settings: of `HaltingRulesArguments`.

    Returns:
        The contents of `results.json`, see `ModelResults`.
    """
    training = read_finished(folder / TRAINING_FILE)
    if training is None:
        training = _train(folder, name, data, settings)
    started, cpu = time.perf_counter(), time.process_time()
    tokenizer = load_multi_hop_tokenizer(data)
    dataset = encode_chains(select_chains(load_multi_hop(data)["test"], kind="test"), tokenizer)
    variant, model = MODELS[name], load_model(str(folder))
    signals = all_signals(model, dataset, tokenizer.pad_token_id, DEPTH, variant.fits, variant.has_gate)
    promise = {"risk": settings["risk"], "confidence": settings["confidence"]}
    measures = measure_rules(signals, **promise)
    repeated = [
        repeat(signals, title, **promise, times=settings["repetitions"], seed=settings["seed"])
        for title in (*REPEATED, next(title for title in signals if title not in HALTING_CRITERIA))
        if settings["repetitions"]
    ]
    results = {
        "title": variant.title,
        "training": training,
        **measures,
        "repetitions": repeated,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": training["cpu_seconds"] + time.process_time() - cpu,
    }
    write_json(folder / RESULTS_FILE, results)
    return results


def read_model_results(folder: Path) -> dict | None:
    """The results that `run_model` left in a folder; None if it has not finished."""
    return read_finished(folder / RESULTS_FILE)


def _train(folder, name, data, settings):
    started, cpu = time.perf_counter(), time.process_time()
    parts = sections(
        name, str(folder), str(data), settings["seed"], settings["max_steps"], settings["num_test_chains"]
    )
    trainer = prepare_run(RecurrentTrainingArguments(**parts.pop("training")), **parts)
    training = train_and_save(trainer, True if list_checkpoints(folder) else None)
    trainer.save_state()
    training |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    trainer.end()
    write_json(folder / TRAINING_FILE, training)
    return training


def main(argv: list[str] | None = None) -> int:
    """Runs one model: a JSON file with `folder`, `name`, `data` and `settings`."""
    (task,) = sys.argv[1:] if argv is None else argv
    disable_progress_bars()
    task = read_json(task)
    with running_child(task["folder"]):
        run_model(Path(task["folder"]), task["name"], Path(task["data"]), task["settings"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
