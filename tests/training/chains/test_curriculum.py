import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from small_runs import small_chains, small_model, small_trainer
from transformers import TrainerControl, TrainerState

from memreason_hf.training import CurriculumArguments, CurriculumCallback
from memreason_hf.training.runs.errors import StageNotLearnedError
from memreason_hf.training.scheduled.batches import Position


class FakeTrainer:
    """Returns the given accuracies, and records the rows that it evaluates."""

    def __init__(self, accuracies):
        self.accuracies = list(accuracies)
        self.measured, self.logs, self.restarts = [], [], 0
        self.args = SimpleNamespace(group_column="hops")
        self.eval_dataset = Dataset.from_dict({"hops": [2, 3, 3, 4, 4, 4]})
        self.meter = SimpleNamespace(gate_counts=lambda: self.accuracies.pop(0))

    def answer_accuracy(self, dataset):
        self.measured.append(list(dataset["hops"]))
        return self.accuracies.pop(0)

    def log_aside(self, logs):
        self.logs.append(logs)

    def clear_gate_counts(self):
        pass

    def restart_optimizer(self):
        self.restarts += 1


def run(callback, trainer, first, last):
    """Runs the steps first..last. Returns the step at which training stopped, if it did."""
    args = SimpleNamespace(save_strategy="steps", eval_strategy="no")
    callback.attach(trainer, np.array([1, 2, 3, 4]))
    for step in range(first, last + 1):
        control = TrainerControl()
        callback.on_step_end(args, TrainerState(global_step=step), control)
        if control.should_training_stop:
            assert control.should_save
            return step
    return None


def test_stages_end_when_their_own_group_is_learned():
    trainer = FakeTrainer([0.2, 0.95, 0.5, 0.96, 0.99])
    callback = CurriculumCallback(CurriculumArguments(eval_steps=10, threshold=0.95))
    assert run(callback, trainer, 1, 100) == 50
    assert trainer.measured == [[2], [2], [3, 3], [3, 3], [4, 4, 4]]
    assert callback.stage_starts == [0, 20, 40]
    assert callback.passed_at == 50
    assert trainer.restarts == 0
    assert trainer.logs[1] == {"stage": 2, "stage_accuracy": 0.95, "stage_steps": 20}


def test_position_counts_from_the_start_of_the_stage():
    trainer = FakeTrainer([0.99])
    callback = CurriculumCallback(CurriculumArguments(eval_steps=10))
    run(callback, trainer, 1, 12)
    assert callback.position(12) == Position(1, 3, 2)
    assert callback.schedule_start == 0


def test_minimum_steps_delay_the_first_evaluation_of_the_gate():
    trainer = FakeTrainer([0.99])
    callback = CurriculumCallback(CurriculumArguments(eval_steps=10, min_steps_per_stage=25))
    run(callback, trainer, 1, 35)
    assert callback.stage_starts == [0, 30]


def test_the_optimizer_is_restarted_at_each_new_stage():
    trainer = FakeTrainer([1.0, 1.0, 1.0])
    callback = CurriculumCallback(CurriculumArguments(eval_steps=5, optimizer="restart"))
    assert run(callback, trainer, 1, 100) == 15
    assert trainer.restarts == 2
    assert callback.schedule_start == 10


def test_final_steps_go_on_with_the_last_stage():
    callback = CurriculumCallback(CurriculumArguments(eval_steps=5, stages=[2, 4], final_steps=7))
    assert run(callback, FakeTrainer([1.0, 1.0]), 1, 100) == 17
    assert callback.position(16) == Position(1, 4, 11)


def test_a_stage_that_takes_too_long():
    trainer = FakeTrainer([0.1, 0.2, 0.3])
    callback = CurriculumCallback(CurriculumArguments(eval_steps=10, max_steps_per_stage=25))
    assert run(callback, trainer, 1, 100) == 25
    assert callback.failed
    assert len(trainer.measured) == 3
    assert "Stage 2 was not learned: after 25 steps" in callback.describe_failure(25)


def test_a_stage_may_pass_at_its_last_step():
    callback = CurriculumCallback(CurriculumArguments(eval_steps=10, max_steps_per_stage=25))
    assert run(callback, FakeTrainer([0.1, 0.2, 0.99]), 1, 26) is None
    assert callback.stage == 3


def test_the_training_gate_divides_by_the_rows():
    trainer = FakeTrainer([(1, 4), (0, 0), (39, 40)])
    callback = CurriculumCallback(CurriculumArguments(gate="train", eval_steps=5))
    run(callback, trainer, 1, 15)
    assert [log["stage_accuracy"] for log in trainer.logs] == [0.25, 0.0, 0.975]
    assert callback.stage_starts == [0, 15]


class CountingTrainer(FakeTrainer):
    """Counts one answer of every step for the gate, as the meter does. They are right from a step on."""

    def __init__(self, right_from):
        super().__init__([])
        self.right_from, self.right, self.seen = right_from, 0, 0
        self.meter = SimpleNamespace(gate_counts=lambda: (self.right, self.seen))

    def step(self, step):
        self.right, self.seen = self.right + (step >= self.right_from), self.seen + 1

    def clear_gate_counts(self):
        self.right, self.seen = 0, 0


@pytest.mark.parametrize(
    "min_steps, right_from, accuracies",
    [
        # Without a minimum every evaluation counts the steps since the previous one.
        (0, 11, [0.0, 1.0, 1.0]),
        # Before the minimum, the counts are cleared wherever an evaluation would be due.
        (25, 21, [1.0]),
        (25, 26, [0.5]),
        (20, 11, [1.0]),
        (20, 12, [0.9, 1.0]),
    ],
)
def test_the_training_gate_counts_only_the_steps_since_it_was_due(min_steps, right_from, accuracies):
    trainer = CountingTrainer(right_from)
    arguments = CurriculumArguments(gate="train", eval_steps=10, min_steps_per_stage=min_steps, stages=[2, 3, 4])
    callback = CurriculumCallback(arguments)
    for step in range(1, 31):
        trainer.step(step)
        run(callback, trainer, step, step)
    assert [log["stage_accuracy"] for log in trainer.logs] == accuracies


def test_gate_rows_bound_an_evaluation_of_the_gate():
    trainer = FakeTrainer([0.0])
    callback = CurriculumCallback(CurriculumArguments(eval_steps=1, stages=[4], gate_rows=2))
    run(callback, trainer, 1, 1)
    assert trainer.measured == [[4, 4]]


def test_state_goes_through_json_and_arguments_stay_those_of_the_run():
    callback = CurriculumCallback(CurriculumArguments(eval_steps=10, max_steps_per_stage=25))
    run(callback, FakeTrainer([1.0, 0.1, 0.2, 0.3]), 1, 35)
    assert callback.failed
    state = json.loads(json.dumps(callback.progress()))
    other = CurriculumCallback(CurriculumArguments(eval_steps=10, max_steps_per_stage=50))
    other.attach(FakeTrainer([]), np.array([2, 3, 4]))
    other.restore(state)
    assert (other.stage, other.stage_start) == (3, 10)
    assert not other.is_finished(35)
    assert callback.is_finished(35)
    # Without max_steps_per_stage no stage is given up.
    unbounded = CurriculumCallback(CurriculumArguments(eval_steps=10))
    unbounded.attach(FakeTrainer([]), np.array([2, 3, 4]))
    unbounded.restore(state)
    assert not unbounded.failed and not unbounded.is_finished(35)
    callback.stage_starts.append(99)
    assert state["stage_starts"] == other.stage_starts == [0, 10]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gate": "test"}, "curriculum.gate='test'"),
        ({"optimizer": "reset"}, "curriculum.optimizer='reset'"),
        ({"threshold": 0.0}, "curriculum.threshold=0.0"),
        ({"threshold": 95.0}, "curriculum.threshold=95.0"),
        ({"eval_steps": 0}, "curriculum.eval_steps=0"),
        ({"gate_rows": 0}, "curriculum.gate_rows=0"),
        ({"stages": [3, 2]}, r"curriculum.stages=\[3, 2\]"),
        ({"stages": []}, "curriculum.stages"),
        ({"min_steps_per_stage": 5, "max_steps_per_stage": 4}, "max_steps_per_stage=4"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CurriculumArguments(**arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"stages": [2, 7]}, "Stage 7 has no training rows"),
        ({"last_stage": 9}, "Stage 9 has no training rows"),
        ({"first_stage": 8}, "There is no stage"),
    ],
)
def test_stages_need_training_rows(arguments, message):
    with pytest.raises(ValueError, match=message):
        CurriculumArguments(**arguments).resolve_stages(np.array([1, 2, 3]))
    assert CurriculumArguments(last_stage=3).resolve_stages(np.array([1, 2, 3, 4])) == [2, 3]


def test_stages_need_held_out_rows(tmp_path):
    heldout = small_chains()[2]
    with pytest.raises(ValueError, match=r"Stage 3 has no held-out rows\. Add rows of this group"):
        small_trainer(
            tmp_path,
            callbacks=[CurriculumCallback(CurriculumArguments(), heldout.filter(lambda row: row["hops"] != 3))],
        )


def test_a_curriculum_needs_groups_and_a_bound(tmp_path):
    _, train, _ = small_chains()
    with pytest.raises(ValueError, match="group_column='hops'"):
        small_trainer(tmp_path, curriculum={}, train_dataset=train.remove_columns("hops"))
    with pytest.raises(ValueError, match="needs max_steps"):
        small_trainer(tmp_path, curriculum={}, max_steps=-1)


@pytest.mark.parametrize("gate", ["heldout", "train"])
def test_training_ends_when_the_last_stage_is_passed(tmp_path, gate):
    trainer = small_trainer(
        tmp_path,
        curriculum={"threshold": 1e-9, "eval_steps": 5, "gate": gate, "final_steps": 3},
        max_steps=100,
        save_steps=1000,
        eval_strategy="steps",
        eval_steps=1000,
    )
    trainer.train()
    assert trainer.curriculum.passed_at is not None
    assert trainer.state.global_step == trainer.curriculum.passed_at + 3 < 100
    # The last step is evaluated and saved, although neither was due.
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}").is_dir()
    assert any("eval_accuracy" in entry for entry in trainer.state.log_history)
    evaluations = [entry for entry in trainer.state.log_history if "stage_accuracy" in entry]
    assert {entry["stage"] for entry in evaluations} == {2, 3, 4}


def test_a_trainer_that_starts_again_forgets_the_first_run(tmp_path):
    trainer = small_trainer(tmp_path, curriculum={"threshold": 1e-9, "eval_steps": 2, "gate": "train"}, max_steps=50)
    trainer.train()
    first = trainer.curriculum.progress()
    assert first["passed_at"] == trainer.state.global_step == 6
    trainer.meter.set_gate_counts(3, 4)
    trainer.before_first_step()
    assert trainer.meter.gate_counts() == (0, 0)
    assert trainer.curriculum.progress() == CurriculumCallback(CurriculumArguments()).progress() != first


def test_only_the_main_rank_takes_the_counts_of_a_checkpoint(tmp_path, monkeypatch):
    """The counts are sums over all ranks."""
    trainer = small_trainer(tmp_path, curriculum={"gate": "train"})
    trainer.curriculum.gate_right, trainer.curriculum.gate_seen = 3, 5
    for rank, expected in ((0, (3, 5)), (1, (0, 0))):
        monkeypatch.setattr(type(trainer.args), "process_index", rank)
        trainer.after_restoring()
        assert trainer.meter.gate_counts() == expected


def test_an_evaluation_of_the_gate_does_not_cancel_a_log(tmp_path):
    trainer = small_trainer(
        tmp_path, curriculum={"threshold": 1.0, "eval_steps": 2}, max_steps=6, logging_steps=2, save_strategy="no"
    )
    trainer.train()
    losses = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [2, 4, 6]
    epochs = [entry["epoch"] for entry in trainer.state.log_history]
    assert epochs == sorted(epochs)


def test_training_stops_with_an_error_when_a_stage_is_not_learned(tmp_path):
    curriculum = {"threshold": 1.0, "eval_steps": 3, "max_steps_per_stage": 5}
    with pytest.raises(StageNotLearnedError, match=r"Stage 2 was not learned: after 5 steps.*max_steps_per_stage"):
        small_trainer(tmp_path, curriculum=curriculum).train()
    assert (tmp_path / "checkpoint-5").is_dir()
    # Resuming raises the same error without another step.
    again = small_trainer(tmp_path, curriculum=curriculum)
    with pytest.raises(StageNotLearnedError):
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 5
    # With more steps training continues.
    more = small_trainer(tmp_path, curriculum={**curriculum, "max_steps_per_stage": 8})
    with pytest.raises(StageNotLearnedError, match="after 8 steps"):
        more.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear", "reduce_lr_on_plateau"])
def test_a_restart_returns_to_the_first_learning_rate(tmp_path, schedule):
    trainer = small_trainer(
        tmp_path,
        lr_scheduler_type=schedule,
        learning_rate=0.02,
        eval_strategy="steps",
        eval_steps=4,
        metric_for_best_model="accuracy",
        max_steps=4,
        save_strategy="no",
    )
    trainer.train()
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-7
    before = trainer.lr_scheduler
    trainer.restart_optimizer()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.02}
    assert len(trainer.optimizer.state) == 0
    # Callbacks are given the new schedule, which the next checkpoint saves.
    assert trainer.callback_handler.lr_scheduler is trainer.lr_scheduler is not before


def test_a_new_stage_restarts_the_optimizer_and_its_warm_up(tmp_path):
    trainer = small_trainer(
        tmp_path,
        model=small_model(residual_dropout=0.0),
        curriculum={"threshold": 1e-9, "eval_steps": 4, "optimizer": "restart", "gate": "train"},
        warmup_steps=3,
        logging_steps=1,
        max_steps=11,
    )
    trainer.train()
    assert trainer.curriculum.stage_starts[:2] == [0, 4]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    # The learning rate of each step. The library's warm-up starts at 0.
    assert rates[:8] == [pytest.approx(1e-2 * share) for share in (0, 1 / 3, 2 / 3, 1)] * 2
    assert [entry["stage"] for entry in trainer.state.log_history if "loss" in entry][:8] == [2] * 4 + [3] * 4
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {11 - trainer.curriculum.stage_start}
