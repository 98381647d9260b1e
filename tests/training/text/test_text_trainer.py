"""Runs on text: stopped anywhere they end with the weights of an undisturbed run; budgets, logs and perplexity."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from processes import load_result, run_child, run_ranks, save_result
from small_runs import assert_same_weights, weights
from small_texts import small_rows, small_stream, small_text_model, small_text_trainer
from transformers import TrainerCallback

from memreason_hf.data.text.collator import TextCollator
from memreason_hf.training.runs.errors import OutputFolderError
from memreason_hf.training.scheduled.batches import BatchSchedule, Position
from memreason_hf.training.text.batches import TextRows, steps_for_tokens


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGINT)


def dataset(folder, source, **settings):
    return small_rows() if source == "memory" else small_stream(folder / "texts", **settings)


@pytest.mark.parametrize("source", ["memory", "stream"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_stopped_and_resumed_is_undisturbed(tmp_path, source, accumulation):
    """Stopped between checkpoints, which saves, and resumed from an older one."""
    size = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
    whole = small_text_trainer(tmp_path / "whole", dataset(tmp_path, source), **size)
    whole.train()
    parts = small_text_trainer(tmp_path / "parts", dataset(tmp_path, source), callbacks=[StopAt(5)], **size)
    parts.train()
    assert parts.interrupted and parts.state.global_step == 5
    for checkpoint in (True, str(tmp_path / "parts" / "checkpoint-3")):
        resumed = small_text_trainer(tmp_path / "parts", dataset(tmp_path, source), **size)
        resumed.train(resume_from_checkpoint=checkpoint)
        assert_same_weights(weights(resumed.model), weights(whole.model))
        assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen > 0
    if source == "stream":
        # The control: the same steps from the beginning of the stream end elsewhere.
        trainer = small_text_trainer(tmp_path / "parts", dataset(tmp_path, source), **size)
        trainer.after_restoring = lambda: None
        trainer.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
        assert not torch.equal(trainer.model.lm_head.weight, whole.model.lm_head.weight)
        assert whole.stream.shares[0].epoch >= 1


def killed_in_a_stream(folder):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:
                os.kill(os.getpid(), signal.SIGKILL)

    small_text_trainer(folder / "run", small_stream(folder / "texts"), callbacks=[Kill()]).train()


def test_killed_in_a_stream(tmp_path):
    whole = small_text_trainer(tmp_path / "whole", small_stream(tmp_path / "texts"))
    whole.train()
    assert run_child(killed_in_a_stream, tmp_path) == -signal.SIGKILL
    resumed = small_text_trainer(tmp_path / "run", small_stream(tmp_path / "texts"))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.resumed_from.endswith("checkpoint-6")
    assert_same_weights(weights(resumed.model), weights(whole.model))


def train_on_ranks(folder, source, world_size, num_streams, name, stop=None, resume=None):
    rank = int(os.environ.get("RANK", 0))
    data = small_rows()
    if source == "stream":
        data = small_stream(folder / "texts", rank=rank, world_size=world_size, num_streams=num_streams)
    trainer = small_text_trainer(
        folder / name,
        data,
        model=small_text_model(residual_dropout=0.0 if world_size != 2 or name == "two" else 0.1),
        callbacks=[StopAt(stop)] if stop and rank == 0 else [],
        per_device_train_batch_size=8 // world_size,
        expected_world_size=world_size,
        logging_steps=1,
    )
    trainer.train(resume_from_checkpoint=resume)
    save_result(folder / f"{name}-{rank}", (trainer.state.log_history, weights(trainer.model)))
    trainer.end()


@pytest.mark.parametrize("source", ["memory", "stream"])
def test_two_processes_have_the_gradients_of_one(tmp_path, source):
    small_stream(tmp_path / "texts").close()
    run_ranks(train_on_ranks, tmp_path, source, 1, 2, "one", world_size=1)
    run_ranks(train_on_ranks, tmp_path, source, 2, 2, "two")
    single, ranks = load_result(tmp_path / "one-0"), [load_result(tmp_path / f"two-{rank}") for rank in range(2)]
    assert_same_weights(ranks[0][1], ranks[1][1])
    fingerprints = [json.loads((tmp_path / name / "run.json").read_text())["fingerprint"] for name in ("one", "two")]
    assert fingerprints[0] == fingerprints[1]
    for name in ("loss", "grad_norm", "num_input_tokens_seen"):
        expected, found = ([entry[name] for entry in log if name in entry] for log in (single[0], ranks[0][0]))
        assert len(expected) == 10
        assert found == pytest.approx(expected, rel=1e-3 if name == "grad_norm" else 1e-5), name
    for name, value in single[1].items():
        assert torch.allclose(ranks[0][1][name], value, rtol=1e-3, atol=1e-4), name


def test_a_stream_resumes_on_two_processes(tmp_path):
    small_stream(tmp_path / "texts").close()
    run_ranks(train_on_ranks, tmp_path, "stream", 2, 4, "whole")
    run_ranks(train_on_ranks, tmp_path, "stream", 2, 4, "parts", 5)
    run_ranks(train_on_ranks, tmp_path, "stream", 2, 4, "parts", None, True)
    for rank in range(2):
        assert_same_weights(load_result(tmp_path / f"parts-{rank}")[1], load_result(tmp_path / "whole-0")[1])


@pytest.mark.parametrize("source", ["memory", "stream"])
def test_the_token_budget_ends_the_run(tmp_path, source):
    trainer = small_text_trainer(tmp_path / "run", dataset(tmp_path, source), max_steps=-1, max_tokens=1000)
    trainer.train()
    logged = [entry["num_input_tokens_seen"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == sorted(logged) and logged[-1] <= trainer.state.num_input_tokens_seen
    per_step = 4 * 24
    if source == "memory":
        lengths = TextRows(small_rows(), None).lengths
        seen = trainer.state.num_input_tokens_seen
        assert 1000 <= seen < 1000 + per_step
        steps = [trainer.schedule.rows(Position(0, None, step)) for step in range(trainer.state.global_step)]
        assert seen == sum(int(lengths[rows].sum()) for rows in steps)
    else:
        assert trainer.state.global_step == math.ceil(1000 / per_step)
    # The shorter of two limits.
    short = small_text_trainer(tmp_path / "short", dataset(tmp_path, source), max_steps=3, max_tokens=1000)
    assert short.planned_steps == 3
    assert all("tokens_per_second" in entry for entry in trainer.state.log_history if "loss" in entry)


def test_epochs_in_memory(tmp_path):
    trainer = small_text_trainer(tmp_path, max_steps=-1, num_train_epochs=2)
    assert trainer.planned_steps == math.ceil(2 * len(small_rows()) / 4)


@pytest.mark.parametrize(
    "source, arguments, message",
    [
        ("memory", {"max_tokens": 95}, r"max_tokens=95 is less than one batch: 4 rows of 24 tokens are 96\. Raise"),
        ("stream", {"max_tokens": 95}, r"max_tokens=95 is less than one batch: 4 rows of 24 tokens are 96\. Raise"),
        ("stream", {"max_steps": -1}, r"data\.streaming=True: .* Set training\.max_tokens or training\.max_steps"),
        ("memory", {"max_tokens": 0}, r"max_tokens=0 must be at least 1"),
        ("memory", {"include_num_input_tokens_seen": True}, "num_input_tokens_seen is always logged"),
        ("three", {}, r"data\.num_streams=3 gives each process 3 shares, but the 4 rows of its training step"),
    ],
)
def test_impossible_runs_are_refused(tmp_path, source, arguments, message):
    data = dataset(tmp_path, source, **({"num_streams": 3} if source == "three" else {}))
    with pytest.raises(ValueError, match=message):
        small_text_trainer(tmp_path / "run", data, **arguments)


def test_a_foreign_vocabulary(tmp_path):
    with pytest.raises(ValueError, match=r"The vocabulary does not match: .* vocab_size is 50"):
        small_text_trainer(tmp_path, model=small_text_model(vocab_size=50))


def test_another_stream_is_another_run(tmp_path):
    small_text_trainer(tmp_path / "run", small_stream(tmp_path / "texts"), max_steps=3).train()
    with pytest.raises(OutputFolderError, match=r"data\.train was"):
        small_text_trainer(tmp_path / "run", small_stream(tmp_path / "texts", shuffle_buffer=8), max_steps=3).train(
            resume_from_checkpoint=True
        )


def test_perplexity_is_that_of_the_rows(tmp_path):
    heldout = small_rows(count=20, seed=9)
    trainer = small_text_trainer(
        tmp_path, eval_dataset=heldout, eval_strategy="steps", eval_steps=5, per_device_eval_batch_size=3
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_perplexity" in entry]
    assert [entry["step"] for entry in logged] == [5, 10]
    metrics = trainer.evaluate()
    assert metrics["eval_perplexity"] == pytest.approx(logged[-1]["eval_perplexity"])
    model, rows = trainer.model.eval(), TextRows(heldout, None)
    losses = []
    for index in range(len(rows)):
        batch = TextCollator(0)([rows[index]])
        with torch.no_grad():
            logits = model(batch["input_ids"], position_ids=batch["position_ids"], num_recurrences=3).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0], batch["shift_labels"][0], reduction="none"))
    expected = torch.cat(losses).mean().item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert metrics["eval_num_recurrences"] == 3
    trainer.args.eval_num_recurrences = 1
    assert trainer.evaluate()["eval_loss"] != pytest.approx(expected, rel=1e-4)


def test_training_learns(tmp_path):
    trainer = small_text_trainer(tmp_path, max_steps=60, eval_dataset=small_rows(count=20, seed=9))
    before = trainer.evaluate()["eval_perplexity"]
    start = weights(trainer.model)
    trainer.train()
    assert trainer.evaluate()["eval_perplexity"] < before / 3
    for name, value in weights(trainer.model).items():
        assert not torch.equal(value, start[name]), name


@pytest.mark.parametrize("batch_size, length_pool", [(1, 1), (3, 1), (4, 2), (12, 3)])
def test_the_steps_of_a_budget(batch_size, length_pool):
    """As counted step by step, within a pass and over several."""
    lengths = np.random.default_rng(0).integers(1, 20, 10)
    schedule = BatchSchedule(lengths, None, batch_size, length_pool, 0)
    seen = np.cumsum([lengths[schedule.rows(Position(0, None, step))].sum() for step in range(80)])
    for budget in (1, 5, int(lengths.sum()), int(lengths.sum()) + 1, *range(100, int(seen[-1]), 37)):
        assert steps_for_tokens(schedule, lengths, budget) == 1 + int(np.searchsorted(seen, budget))


def test_the_steps_of_a_large_budget_are_found_at_once(monkeypatch):
    lengths = np.full(10, 20)
    schedule, calls = BatchSchedule(lengths, None, 4, 1, 0), []
    rows = schedule.rows
    monkeypatch.setattr(schedule, "rows", lambda position: calls.append(1) or rows(position))
    assert steps_for_tokens(schedule, lengths, 80 * 10**12) == 10**12
    assert len(calls) < 10
