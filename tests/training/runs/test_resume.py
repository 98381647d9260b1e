import json
import shutil

import pytest
import torch
from small_runs import assert_same_weights, small_chains, small_model, small_trainer, weights
from transformers import AutoModelForCausalLM, TrainerCallback

from memreason_hf.training.runs.errors import CheckpointError, OutputFolderError
from memreason_hf.training.runs.trainer import ResumableCallback


CURRICULUM = {"threshold": 1e-9, "eval_steps": 5, "gate": "train"}


class StopAt(TrainerCallback):
    """Ends training after a step, as a smaller max_steps would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of 12 steps, and its weights."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = small_trainer(folder)
    trainer.train()
    return folder, weights(trainer.model)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that folder. Moving a run does not make it another one."""
    return shutil.copytree(finished[0], tmp_path / "run")


def assert_resumes_exactly(tmp_path, stop=6, **arguments):
    whole = small_trainer(tmp_path / "whole", **arguments)
    whole.train()
    first = small_trainer(tmp_path / "parts", callbacks=[StopAt(stop)], **arguments)
    first.train()
    assert first.state.global_step == stop
    second = small_trainer(tmp_path / "parts", **arguments)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == whole.state.global_step
    assert_same_weights(weights(second.model), weights(whole.model))
    return whole, second


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"optim": "adamw_torch"},
        {"optim": "adamw_torch_fused"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 3},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8},
        {"bf16": True},
        {"supervision": "prefix", "recurrence_loss": "geometric"},
        {"length_pool": 1, "save_steps": 3},
        {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "accuracy"},
    ],
    ids=str,
)
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, arguments):
    assert_resumes_exactly(tmp_path, **arguments)


# Every pair of values occurs.
@pytest.mark.parametrize(
    "optimizer, gate, save_steps",
    [("keep", "train", 3), ("keep", "heldout", 4), ("restart", "train", 4), ("restart", "heldout", 3)],
)
def test_a_resumed_curriculum_ends_with_the_same_weights(tmp_path, optimizer, gate, save_steps):
    """From a checkpoint at the start of a stage, and from one within a stage."""
    whole, second = assert_resumes_exactly(
        tmp_path,
        stop=9,
        curriculum={**CURRICULUM, "optimizer": optimizer, "gate": gate, "eval_steps": 3, "final_steps": 4},
        save_steps=save_steps,
        warmup_steps=2,
        max_steps=60,
        lr_scheduler_type="linear",
        learning_rate=0.05,
    )
    assert second.curriculum.stage_starts == whole.curriculum.stage_starts
    assert len(whole.curriculum.stage_starts) == 3
    rates = [[e["learning_rate"] for e in t.state.log_history if "loss" in e][-1] for t in (whole, second)]
    assert rates[0] == rates[1]


def test_the_gate_remembers_its_counts(tmp_path):
    """An evaluation of the gate after a checkpoint also counts the training rows before the checkpoint."""
    arguments = {"curriculum": {**CURRICULUM, "eval_steps": 8, "threshold": 1.0}, "save_steps": 6, "max_steps": 8}
    whole, second = assert_resumes_exactly(tmp_path, **arguments)
    evaluations = [[e for e in t.state.log_history if "stage_accuracy" in e] for t in (whole, second)]
    assert evaluations[0] == evaluations[1] != []


def test_a_finished_run_returns_at_once(run, finished):
    again = small_trainer(run)
    steps = []
    again.training_step = lambda *args, **kwargs: steps.append(args)
    for _ in range(2):
        assert again.train(resume_from_checkpoint=True).global_step == 12
    assert steps == []
    assert_same_weights(weights(again.model), finished[1])
    assert sorted(path.name for path in run.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-4",
        "checkpoint-8",
    ]


def test_a_finished_curriculum_returns_at_once(tmp_path):
    arguments = {"curriculum": {**CURRICULUM, "final_steps": 2}, "max_steps": 100}
    first = small_trainer(tmp_path, **arguments)
    first.train()
    again = small_trainer(tmp_path, **arguments)
    again.training_step = None
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == first.state.global_step < 100
    assert_same_weights(weights(again.model), weights(first.model))


def test_a_run_with_more_steps_continues_where_it_ended(tmp_path, finished):
    small_trainer(tmp_path, max_steps=8).train()
    longer = small_trainer(tmp_path, max_steps=12)
    longer.train(resume_from_checkpoint=True)
    assert_same_weights(weights(longer.model), finished[1])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_checkpoint_is_skipped_or_refused_by_name(run, finished, caplog, name, damage):
    bad = run / "checkpoint-12" / name
    if damage == "missing":
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=rf"checkpoint-12.*{name}"):
        small_trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-12"))
    trainer = small_trainer(run)
    with caplog.at_level("WARNING"):
        trainer.train(resume_from_checkpoint=True)
    assert name in caplog.text
    assert trainer.resumed_from.endswith("checkpoint-8")
    # The damaged checkpoint has been replaced.
    assert_same_weights(weights(AutoModelForCausalLM.from_pretrained(run / "checkpoint-12")), finished[1])


def test_an_explicit_path(run, finished, tmp_path):
    early = small_trainer(run)
    early.train(resume_from_checkpoint=str(run / "checkpoint-4"))
    assert early.resumed_from == str(run / "checkpoint-4")
    assert early.last_checkpoint == str(run / "checkpoint-12")
    assert_same_weights(weights(early.model), finished[1])
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        small_trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-99"))
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        small_trainer(tmp_path / "new").train(resume_from_checkpoint=True)


def test_a_checkpoint_without_the_state_of_a_callback_is_refused(run):
    class Progress(ResumableCallback):
        def progress(self):
            return {"seen": 1}

        def restore(self, progress):
            self.restored = progress

    with pytest.raises(CheckpointError, match=r"checkpoint-12.*callbacks\.json holds no state of Progress"):
        small_trainer(run, callbacks=[Progress()]).train(resume_from_checkpoint=True)
    saved = small_trainer(run.parent / "saved", callbacks=[Progress()], max_steps=4)
    saved.train()
    again = Progress()
    small_trainer(run.parent / "saved", callbacks=[again], max_steps=4).train(resume_from_checkpoint=True)
    assert again.restored == {"seen": 1}


def test_a_checkpoint_without_optimizer_is_refused(tmp_path):
    small_trainer(tmp_path, save_only_model=True, max_steps=8).train()
    with pytest.raises(CheckpointError, match="save_only_model"):
        small_trainer(tmp_path, max_steps=12).train(resume_from_checkpoint=True)


def test_a_folder_with_checkpoints_is_not_overwritten_by_accident(tmp_path):
    small_trainer(tmp_path, max_steps=4).train()
    with pytest.raises(OutputFolderError, match=r"holds checkpoint-4.*resume_from_checkpoint=True.*--restart"):
        small_trainer(tmp_path, max_steps=4).train()
    again = small_trainer(tmp_path, max_steps=8, restart=True)
    again.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    with pytest.raises(OutputFolderError, match="contradict"):
        small_trainer(tmp_path, restart=True).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate": 0.5}, "training.learning_rate was 0.01, now 0.5"),
        ({"seed": 9}, "training.seed"),
        ({"per_device_train_batch_size": 4}, "training.global_batch_size was 16, now 4"),
        ({"supervision": "prefix"}, "training.supervision"),
        ({"curriculum": CURRICULUM}, "curriculum.stages"),
        ({"model": {"num_recurrences": 4}}, "model.num_recurrences was 3, now 4"),
        ({"train_dataset": 100}, "data.train"),
    ],
    ids=str,
)
def test_another_run_is_refused_and_nothing_changes(run, change, message):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    change = dict(change)
    if "model" in change:
        change["model"] = small_model(**change["model"])
    if "train_dataset" in change:
        change["train_dataset"] = small_chains()[1].select(range(change["train_dataset"]))
    with pytest.raises(OutputFolderError, match=message):
        small_trainer(run, **change).train(resume_from_checkpoint=True)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_how_often_it_saves_and_logs_does_not_make_another_run(run):
    more = small_trainer(
        run,
        max_steps=14,
        logging_steps=5,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
    )
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 14


def test_the_best_checkpoint_is_known_by_its_real_path(tmp_path):
    arguments = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    trainer = small_trainer(tmp_path / "old", max_steps=10, save_total_limit=2, **arguments)
    scores = iter([0.1, 0.9, 0.2, 0.3, 0.4])
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *a, **k: {**evaluate(*a, **k), "eval_accuracy": next(scores)}
    trainer.train()
    best = tmp_path / "old" / "checkpoint-4"
    assert trainer.state.best_model_checkpoint == str(best)
    assert sorted(path.name for path in (tmp_path / "old").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-4"]
    state = json.loads((tmp_path / "old" / "checkpoint-10" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    saved = weights(AutoModelForCausalLM.from_pretrained(best))
    assert_same_weights(weights(trainer.model), saved)
    # Also after the folder was moved.
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = small_trainer(tmp_path / "new", max_steps=10, save_total_limit=2, **arguments)
    moved.train(resume_from_checkpoint=True)
    assert moved.state.best_model_checkpoint == str(tmp_path / "new" / "checkpoint-4")
    assert_same_weights(weights(moved.model), saved)


def test_the_saved_model_loads_with_its_tokenizer_and_leaves_no_temporary_files(tmp_path):
    heldout = small_chains()[2]
    trainer = small_trainer(tmp_path, max_steps=4)
    trainer.train()
    trainer.save_model()
    trainer.save_model()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(weights(loaded), weights(trainer.model))
    ids = torch.tensor([heldout[0]["input_ids"]])
    trainer.model.eval()
    assert torch.equal(loaded(ids).logits, trainer.model(ids).logits)
    again = small_trainer(tmp_path, max_steps=4)
    assert again.train(resume_from_checkpoint=True).global_step == 4
