import math
import re

import pytest
import torch
from datasets import Dataset
from small_runs import assert_same_weights, small_chains, small_model, small_trainer, weights

from memreason_hf.training import ChainCollator, RecurrentTrainer, RecurrentTrainingArguments
from memreason_hf.training.runs.errors import LaunchError, NonFiniteLossError
from memreason_hf.training.scheduled.batches import Position
from modeling_recurrent import sampling_recurrent


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("recurrence_loss", ["last", "uniform", "geometric"])
@pytest.mark.parametrize("supervision", ["answer", "prefix", "path"])
def test_every_parameter_moves_and_the_loss_falls(tmp_path, recurrence_loss, supervision):
    trainer = small_trainer(
        tmp_path,
        model=small_model(input_injection="concat", num_prelude_layers=1, num_coda_layers=1),
        recurrence_loss=recurrence_loss,
        supervision=supervision,
        max_steps=30,
        logging_steps=1,
        save_strategy="no",
    )
    before = weights(trainer.model)
    trainer.train()
    assert [name for name, value in weights(trainer.model).items() if torch.equal(value, before[name])] == []
    found = losses(trainer)
    assert sum(found[-5:]) < 0.95 * sum(found[:5])


def test_the_data_seed_decides_the_rows_alone(tmp_path):
    def rows(**seeds):
        trainer = small_trainer(tmp_path, **seeds)
        drawn = [tuple(trainer.schedule.rows(Position(0, None, step)).tolist()) for step in range(4)]
        return drawn, (trainer.dropout_seed(), [trainer.step_recurrences()])

    assert rows(data_seed=7) == rows()
    (order, others), (default_order, default_others) = rows(data_seed=8), rows()
    assert order != default_order and others == default_others
    assert rows(seed=8)[0] == order


def test_depth_of_a_step_follows_from_seed_and_step(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=20, logging_steps=1, save_strategy="no", seed=3)
    trainer.train()
    logged = [entry["num_recurrences"] for entry in trainer.state.log_history if "loss" in entry]
    expected = [sampling_recurrent.sample_num_recurrences(trainer.model.config, 3, step) for step in range(20)]
    assert logged == expected
    assert len(set(logged)) == 4


def test_the_loss_is_the_weighted_sum_over_recurrences(tmp_path):
    """Compared with losses that are computed outside the trainer, one recurrence at a time, with all logits."""
    model = small_model(residual_dropout=0.0)
    trainer = small_trainer(tmp_path, model=model, recurrence_loss="geometric", recurrence_loss_decay=0.7)
    batch = next(iter(trainer.get_train_dataloader()))
    num_items = trainer.count_labels([batch], torch.device("cpu"))
    model.train()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=num_items)
    recurrences = trainer.step_recurrences()
    parts = []
    for count in range(1, recurrences + 1):
        logits = model(batch["input_ids"], attention_mask=batch.get("attention_mask"), num_recurrences=count).logits
        parts.append(torch.nn.functional.cross_entropy(logits[:, -1], batch["shift_labels"][:, -1]))
    powers = [0.7 ** (recurrences - count) for count in range(1, recurrences + 1)]
    expected = sum(power * part for power, part in zip(powers, parts)) / sum(powers)
    assert recurrences > 1
    assert torch.allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("supervision", ["answer", "prefix", "path"])
def test_accumulation_is_exact(tmp_path, supervision):
    runs = []
    for name, per_device, accumulation in (("whole", 16, 1), ("parts", 4, 4)):
        trainer = small_trainer(
            tmp_path / name,
            model=small_model(residual_dropout=0.0).double(),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            supervision=supervision,
            logging_steps=1,
            max_steps=5,
            save_strategy="no",
            optim="sgd",
            length_pool=1,  # mixed lengths: micro-batches with unlike numbers of labels
        )
        trainer.train()
        runs.append(trainer)
    # The library computes losses in float32.
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-6)
    for left, right in zip(weights(runs[0].model).values(), weights(runs[1].model).values()):
        assert torch.allclose(left, right, rtol=1e-6, atol=1e-8)


class Recorder:
    """Records the step, the seed of dropout and the model's arguments of every micro-batch."""

    def __init__(self, trainer):
        self.calls = []
        model_inputs = trainer.model_inputs

        def record(batch):
            inputs = model_inputs(batch)
            self.calls.append((trainer.state.global_step, torch.initial_seed(), inputs))
            return inputs

        trainer.model_inputs = record

    def by_step(self, name):
        values = {}
        for step, _, inputs in self.calls:
            values.setdefault(step, []).append(inputs[name])
        return list(values.values())


def record_run(folder, **arguments):
    model = small_model(state_init="normal")
    defaults = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 3}
    trainer = small_trainer(folder, model=model, save_strategy="no", restart=True, **{**defaults, **arguments})
    recorder = Recorder(trainer)
    trainer.train()
    return recorder


def test_every_micro_batch_has_dropout_of_its_own(tmp_path):
    seeds = [seed for _, seed, _ in record_run(tmp_path).calls]
    assert len(seeds) == len(set(seeds)) == 12
    # The same run draws the same dropout, whatever the state of torch's generator.
    torch.manual_seed(123)
    assert [seed for _, seed, _ in record_run(tmp_path).calls] == seeds
    assert not set(seeds) & {seed for _, seed, _ in record_run(tmp_path, seed=8).calls}


def test_every_rank_has_dropout_of_its_own(tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path)
    seeds = set()
    for rank in range(4):
        monkeypatch.setattr(type(trainer.args), "process_index", rank)
        seeds.add(trainer.dropout_seed())
    assert len(seeds) == 4


def test_the_initial_state_is_drawn_once_a_step(tmp_path):
    first, other = (record_run(tmp_path, seed=seed).by_step("state_seed") for seed in (7, 70))
    assert [len(set(seeds)) for seeds in first] == [1, 1, 1]
    assert len({seeds[0] for seeds in first + other}) == 6
    # Without noise there is no seed.
    arguments = small_trainer(tmp_path, model=small_model()).depth_arguments()
    assert "state_seed" not in arguments


def test_all_micro_batches_share_the_noise_of_the_initial_state(tmp_path):
    """Compared with the whole batch at once: micro-batches must not start from noise of their own."""
    overrides = {"state_init": "normal", "residual_dropout": 0.0}
    runs = []
    for name, per_device, accumulation in (("whole", 16, 1), ("parts", 4, 4)):
        trainer = small_trainer(
            tmp_path / name,
            model=small_model(**overrides),
            per_device_train_batch_size=per_device,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            max_steps=4,
            save_strategy="no",
        )
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_two_runs_with_one_seed_are_equal(tmp_path):
    """With dropout, whatever the state of torch's generator."""
    results = []
    for name in ("first", "second"):
        model = small_model()
        trainer = small_trainer(tmp_path / name, model=model, max_steps=6)
        torch.randn(len(results) + 1)
        trainer.train()
        results.append(weights(trainer.model))
    assert_same_weights(*results)
    other = small_trainer(tmp_path / "other", max_steps=6, seed=8)
    other.train()
    assert any(not torch.equal(value, results[0][name]) for name, value in weights(other.model).items())


def test_logs_hold_rates_depth_and_accuracy(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=4)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert 2 <= entry["num_recurrences"] <= 5
    assert 0 <= entry["accuracy"] <= 1
    assert entry["tokens_per_second"] > entry["steps_per_second"] > 0
    # Only unpadded tokens count: 16 rows of 2 to 5 tokens in a step.
    assert 2 * 16 <= entry["tokens_per_second"] / entry["steps_per_second"] <= 5 * 16
    evaluation = next(entry for entry in trainer.state.log_history if "eval_accuracy" in entry)
    assert {"eval_accuracy_2", "eval_accuracy_3", "eval_accuracy_4", "eval_num_recurrences"} <= set(evaluation)
    assert evaluation["eval_tokens_per_second"] > 0


def test_training_accuracy_is_that_of_the_answers(tmp_path):
    """A model that always predicts one token is right as often as that token is the answer."""
    model = small_model(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    trainer = small_trainer(
        tmp_path,
        model=model,
        supervision="prefix",
        learning_rate=0.0,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["accuracy"] == (batch["shift_labels"][:, -1] == 0).float().mean().item()
    assert entry["loss"] == pytest.approx(math.log(model.config.vocab_size), rel=1e-5)


def test_evaluation_agrees_with_the_model_row_by_row(tmp_path):
    heldout = small_chains()[2]
    trainer = small_trainer(tmp_path, eval_num_recurrences=4)
    metrics = trainer.evaluate()
    right = {}
    trainer.model.eval()
    with torch.no_grad():
        for row in heldout:
            logits = trainer.model(torch.tensor([row["input_ids"]]), num_recurrences=4).logits[0, -1]
            right.setdefault(row["hops"], []).append(logits.argmax().item() == row["label_ids"][-1])
    for hops, answers in right.items():
        assert metrics[f"eval_accuracy_{hops}"] == pytest.approx(sum(answers) / len(answers))
    assert metrics["eval_num_recurrences"] == 4.0
    both = trainer.evaluate({"a": heldout, "b": heldout.select([0])}, metric_key_prefix="test")
    assert both["test_a_accuracy"] == metrics["eval_accuracy"]
    assert {name for name in both if name.startswith("test_b_accuracy_")} == {"test_b_accuracy_2"}


def test_evaluation_halts_as_the_config_says_and_training_does_not(tmp_path):
    halting = {"halting_criterion": "kl", "halting_granularity": "sequence", "kl_threshold": 1e-4}
    model = small_model(**halting, max_recurrences=30)
    trainer = small_trainer(tmp_path, model=model, max_steps=8, logging_steps=1, save_strategy="no")
    trainer.train()
    logged = [entry["num_recurrences"] for entry in trainer.state.log_history if "loss" in entry]
    config = trainer.model.config
    assert logged == [sampling_recurrent.sample_num_recurrences(config, 7, step) for step in range(8)]
    answers = trainer.predict_answers(trainer.eval_dataset)
    assert len(set(answers.num_recurrences)) > 1
    metrics = trainer.evaluate()
    assert metrics["eval_num_recurrences"] == pytest.approx(sum(answers.num_recurrences) / len(answers))


def test_evaluation_during_training_leaves_no_trace(tmp_path):
    results = []
    for name, strategy in (("with", "steps"), ("without", "no")):
        trainer = small_trainer(tmp_path / name, max_steps=6, eval_strategy=strategy, eval_steps=2)
        trainer.train()
        results.append(weights(trainer.model))
    assert_same_weights(*results)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_and_infinity_stop_training_before_they_reach_the_weights(tmp_path, where):
    model = small_model()
    trainer = small_trainer(tmp_path, model=model, max_steps=12, save_steps=4)
    compute_loss = trainer.compute_loss

    def poisoned(model, inputs, **kwargs):
        loss = compute_loss(model, inputs, **kwargs)
        if trainer.state.global_step == 5:
            factor = torch.tensor(1.0, requires_grad=True)
            if where == "gradient":
                factor.register_hook(lambda gradient: gradient)
                loss.register_hook(lambda gradient: gradient * float("inf"))
            else:
                factor = factor * float("nan")
            loss = loss * factor
            losses.append(float(loss))
        return loss

    losses = []
    trainer.compute_loss = poisoned
    with pytest.raises(NonFiniteLossError, match=r"Step 6: the loss is .*checkpoint-4") as error:
        trainer.train()
    # The loss of this step alone.
    named = float(re.search(r"the loss is (\S+),", str(error.value))[1])
    assert named == pytest.approx(sum(losses), rel=1e-5, nan_ok=True)
    assert all(torch.isfinite(value).all() for value in weights(trainer.model).values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "run.json"]
    # Without NaN the run continues from its checkpoint.
    healthy = small_trainer(tmp_path, max_steps=12, save_steps=4)
    healthy.train(resume_from_checkpoint=True)
    undisturbed = small_trainer(tmp_path / "undisturbed", max_steps=12, save_steps=4)
    undisturbed.train()
    assert_same_weights(weights(healthy.model), weights(undisturbed.model))


def test_the_message_says_that_there_is_no_checkpoint_yet(tmp_path):
    trainer = small_trainer(tmp_path, learning_rate=1e30, max_grad_norm=0.0, max_steps=12, save_steps=50)
    with pytest.raises(NonFiniteLossError, match="There is no checkpoint yet"):
        trainer.train()


def test_the_learning_rate_falls_over_the_whole_run(tmp_path):
    trainer = small_trainer(tmp_path, lr_scheduler_type="linear", max_steps=8, logging_steps=1, save_strategy="no")
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([1e-2 * (8 - step) / 8 for step in range(8)])


def test_epochs_give_the_number_of_steps(tmp_path):
    _, train, _ = small_chains()
    trainer = small_trainer(tmp_path, max_steps=-1, num_train_epochs=1.5, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == math.ceil(1.5 * len(train) / 16)
    assert trainer.state.epoch == pytest.approx(trainer.state.global_step * 16 / len(train))


def test_a_model_keeps_its_use_cache(tmp_path):
    trainer = small_trainer(tmp_path, model=small_model(use_cache=True), max_steps=1)
    trainer.train()
    assert trainer.model.config.use_cache


def test_bf16(tmp_path):
    trainer = small_trainer(tmp_path, bf16=True, max_steps=8, logging_steps=1, eval_strategy="steps", eval_steps=8)
    trainer.train()
    assert all(value.dtype == torch.float32 for value in weights(trainer.model).values())
    assert all(math.isfinite(loss) for loss in losses(trainer))
    full = small_trainer(tmp_path / "full", max_steps=8, logging_steps=1)
    full.train()
    assert losses(trainer) != losses(full)
    assert losses(trainer) == pytest.approx(losses(full), rel=0.05)


def test_what_does_not_fit_together_is_refused(tmp_path):
    _, train, heldout = small_chains()
    with pytest.raises(ValueError, match="empty"):
        small_trainer(tmp_path, train_dataset=train.select([]))
    with pytest.raises(ValueError, match=r"The vocabulary does not match: .*vocab_size is 5"):
        small_trainer(tmp_path, model=small_model(vocab_size=5))
    with pytest.raises(ValueError, match="input_ids"):
        small_trainer(tmp_path, train_dataset=Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(LaunchError, match="expected_world_size=2, but 1"):
        small_trainer(tmp_path, expected_world_size=2)
    args = RecurrentTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="data_collator"):
        RecurrentTrainer(model=small_model(), args=args, train_dataset=train)
    with pytest.raises(ValueError, match="RecurrentTrainingArguments"):
        RecurrentTrainer(model=small_model(), data_collator=ChainCollator(0))
    with pytest.raises(ValueError, match="model_init is not supported"):
        small_trainer(tmp_path, model_init=small_model)
    trainer = small_trainer(tmp_path)
    with pytest.raises(ValueError, match="empty"):
        trainer.evaluate(heldout.select([]))
    with pytest.raises(ValueError, match="trial is not supported"):
        trainer.train(trial={"learning_rate": 1.0})
    evaluating = RecurrentTrainer(model=small_model(), args=args, data_collator=ChainCollator(0))
    for call in (evaluating.train, evaluating.get_train_dataloader, evaluating.evaluate):
        with pytest.raises(ValueError, match=r"Trainer: .* requires"):
            call()
