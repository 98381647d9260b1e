"""Check first, claim last: a value that cannot train leaves no trace; and one run at a time in a folder."""

import threading

import pytest
import torch
from small_runs import assert_same_weights, small_trainer, weights
from transformers import TrainerCallback

from memreason_hf.locks import InUseError, locked
from memreason_hf.training.runs.errors import ArgumentsError, OutputFolderError


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": -1}, "learning_rate=-1 must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a number"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1"),
        ({"adam_beta2": 2}, "adam_beta2=2 must be at least 0 and below 1"),
        ({"adam_epsilon": -1e-8}, "adam_epsilon=-1e-08 must be at least 0"),
        ({"max_grad_norm": -1}, "max_grad_norm=-1 must be at least 0"),
        ({"warmup_steps": -3}, "warmup_steps"),
        ({"save_steps": 0}, "save_steps"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"max_steps": 10**20}, "max_steps=100000000000000000000 must be at most .*would not end"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs=0 must be above 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"save_total_limit": 0}, "save_total_limit=0 must be at least 1"),
        (
            {"per_device_train_batch_size": 10**10},
            "per_device_train_batch_size=10000000000 must be at most .*in memory",
        ),
        ({"per_device_eval_batch_size": 10**10}, "per_device_eval_batch_size=10000000000 must be at most"),
        ({"gradient_accumulation_steps": 10**10}, "gradient_accumulation_steps=10000000000 must be at most"),
        ({"length_pool": 10**12}, "length_pool=1000000000000 must be at most .*sorted in memory"),
        ({"eval_num_recurrences": 10**9}, "eval_num_recurrences=1000000000 must be at most"),
        ({"consistency_recurrences": 10**9}, "consistency_recurrences=1000000000 must be at most"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_type='warmup_stable_decay'.*num_decay_steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr'"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"x": 1}}, "lr_scheduler_kwargs={'x': 1}"),
        ({"optim": "adamw_torch", "optim_args": "x"}, "optim"),
        ({"optim": "adamw_torch", "optim_args": "foo=bar"}, "optim_args='foo=bar'.*does not read 'foo'"),
        ({"optim": "sgd", "optim_args": "momentum=0.9, nesterof=1"}, "does not read 'nesterof'"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"x": 1}}, "reads no lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}}, "lr_scheduler_kwargs={'power'"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": float("nan")}}, "num_cycles=nan must"),
        (
            {
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 2, "min_lr_ratio": -1.0},
            },
            "lr_scheduler_kwargs={'num_decay_steps': 2, 'min_lr_ratio': -1.0}: .*would be -",
        ),
        ({"label_names": ["a"]}, r"label_names=\['a'\] has no effect"),
        ({"include_for_metrics": ["loss"]}, r"include_for_metrics=\['loss'\] has no effect"),
        ({"eval_accumulation_steps": 0}, "eval_accumulation_steps=0 must be at least 1"),
        ({"dataloader_prefetch_factor": 2**70}, "dataloader_prefetch_factor=1180591620717411303424 has no effect"),
        ({"lr_scheduler_kwargs": "nonsense"}, "lr_scheduler_kwargs='nonsense' must be names and values"),
        ({"neftune_noise_alpha": -1}, "neftune_noise_alpha=-1 must be at least 0"),
        ({"neftune_noise_alpha": float("nan")}, "neftune_noise_alpha=nan must be a number"),
        ({"recurrence_loss_decay": float("nan")}, "recurrence_loss_decay=nan must be a number"),
        ({"recurrence_growth_start": float("inf")}, "recurrence_growth_start=inf must be a finite number"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers=-1 must be at least 0"),
        ({"dataloader_num_workers": 1, "dataloader_prefetch_factor": 0}, "dataloader_prefetch_factor=0 must be"),
        ({"data_seed": -1}, "data_seed=-1 must be at least 0"),
        ({"deepspeed": "zero.json"}, "deepspeed='zero.json' is not supported"),
        ({"accelerator_config": {"nonsense": 1}}, "accelerator_config={'nonsense': 1}: .*'nonsense'"),
        ({"gradient_checkpointing_kwargs": {"reentrant": 1}}, "has 'reentrant'. Known are: use_reentrant"),
        ({"torch_compile_mode": "nonsense"}, "torch_compile_mode='nonsense' must be one of default"),
    ],
    ids=str,
)
def test_a_bad_value_leaves_no_trace(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_trainer(tmp_path / "run", **arguments).train()
    # The library makes the folder itself.
    assert [path for path in tmp_path.rglob("*") if path.name != "run"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"optim": "sgd", "optim_args": "momentum=0, nesterov=no"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}},
        {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {}},
    ],
    ids=str,
)
def test_right_values_of_the_optimizer_are_accepted(tmp_path, arguments):
    """Also those that are the defaults."""
    small_trainer(tmp_path, **arguments).check_before_claim()


def test_the_check_changes_nothing(tmp_path):
    """The optimizer and the schedule of the run are made when it begins, from the same random numbers."""
    trainer = small_trainer(tmp_path / "a")
    state = torch.get_rng_state()
    trainer.check_before_claim()
    assert trainer.optimizer is None and trainer.lr_scheduler is None
    assert torch.equal(torch.get_rng_state(), state)
    own = small_trainer(tmp_path / "b")
    own.optimizer = torch.optim.SGD(own.model.parameters(), lr=0.1)
    kept = own.optimizer
    own.check_before_claim()
    assert own.optimizer is kept and own.lr_scheduler is None
    own.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(kept)
    own.check_before_claim()
    assert own.lr_scheduler is not None


def test_an_optimizer_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path / "run")

    def broken(*args):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(trainer, "create_optimizer", broken)
    with pytest.raises(ArgumentsError, match=r"optim='adamw.*no kernel"):
        trainer.train()
    # The library makes the folder itself.
    assert [path for path in tmp_path.rglob("*") if path.name != "run"] == []


class Failing(TrainerCallback):
    """Fails after a training step, as a missing package or a full memory may."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("no kernel")


def test_a_failure_before_the_first_checkpoint_takes_the_claim_back(tmp_path):
    """The right value is then not another run. A checkpoint, however, keeps its run."""
    with pytest.raises(RuntimeError, match="no kernel"):
        small_trainer(tmp_path / "run", callbacks=[Failing(3)]).train()
    assert [path for path in tmp_path.rglob("*") if path.name != "run"] == []
    with pytest.raises(RuntimeError, match="no kernel"):
        small_trainer(tmp_path / "run", seed=8, callbacks=[Failing(6)]).train()
    assert (tmp_path / "run" / "run.json").is_file()
    with pytest.raises(OutputFolderError, match="seed was 8, now 9"):
        small_trainer(tmp_path / "run", seed=9).train(resume_from_checkpoint=True)
    small_trainer(tmp_path / "run", seed=8).train(resume_from_checkpoint=True)


def test_a_report_whose_package_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(ValueError, match=r"report_to='wandb' needs the package wandb"):
        small_trainer(tmp_path / "run", report_to=["wandb"])


class Meanwhile(TrainerCallback):
    """Starts another run in the same folder in the middle of training, as another process would."""

    def __init__(self, folder, **arguments):
        self.folder, self.arguments, self.errors = folder, arguments, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            thread = threading.Thread(target=self.start)
            thread.start()
            thread.join()

    def start(self):
        try:
            small_trainer(self.folder, **self.arguments).train()
        except Exception as error:
            self.errors.append(error)


@pytest.mark.parametrize("other", [{"seed": 8, "restart": True}, {}], ids=["another run", "the same run"])
def test_a_second_run_in_the_folder_is_refused(tmp_path, other):
    meanwhile = Meanwhile(tmp_path / "run", **other)
    trainer = small_trainer(tmp_path / "run", callbacks=[meanwhile])
    trainer.train()
    (error,) = meanwhile.errors
    assert isinstance(error, InUseError) and "run is in use by" in str(error)
    whole = small_trainer(tmp_path / "whole")
    whole.train()
    assert_same_weights(weights(trainer.model), weights(whole.model))
    assert not (tmp_path / "run" / ".memreason.lock").exists()
    # The lock is free again.
    with locked(tmp_path / "run", inside=True):
        pass


def test_intervals_of_a_resumed_run_are_its_own(tmp_path):
    small_trainer(tmp_path, max_steps=4).train()
    again = small_trainer(tmp_path, max_steps=10, save_steps=3, logging_steps=5)
    again.train(resume_from_checkpoint=True)
    steps = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert steps == [4, 6, 9, 10]
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry][-2:] == [5, 10]


def test_a_finished_run_rotates_what_a_kill_has_left(tmp_path):
    small_trainer(tmp_path, max_steps=12).train()
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3
    small_trainer(tmp_path, max_steps=12, save_total_limit=1).train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]


def test_the_mean_loss_is_that_of_the_whole_run(tmp_path):
    whole = small_trainer(tmp_path / "whole", logging_steps=1)
    expected = whole.train().training_loss
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert len(losses) == 12 and expected == pytest.approx(sum(losses) / 12, rel=1e-5)
    small_trainer(tmp_path / "parts", max_steps=8).train()
    for _ in range(2):  # resumed, then finished
        again = small_trainer(tmp_path / "parts")
        assert again.train(resume_from_checkpoint=True).training_loss == expected
        assert again.state.log_history[-1]["train_loss"] == expected


def test_another_number_of_threads_is_a_warning(tmp_path, caplog):
    small_trainer(tmp_path, max_steps=4).train()
    small_trainer(tmp_path, max_steps=5).train(resume_from_checkpoint=True)
    assert "threads" not in caplog.text
    torch.set_num_threads(2)
    small_trainer(tmp_path, max_steps=6).train(resume_from_checkpoint=True)
    assert "checkpoint-5 was written with num_threads=1, but now it is 2" in caplog.text
    assert "OMP_NUM_THREADS=1" in caplog.text
