"""Fine-tuning of models of every family: the loss, epochs, the best checkpoint, and runs that are interrupted."""

import logging
import os
import random
import signal

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from processes import load_result, run_child, save_result
from small_finetunes import FAMILIES, ITEMS, small_finetune, small_model, small_tokenizer
from small_runs import assert_same_weights, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from memreason_hf.adapters.modes import AdapterArguments, add_adapter, load_adapter
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.steps.tokenization import encode_prompt, read_scheme
from memreason_hf.training.runs.checkpoints import verify
from memreason_hf.training.scheduled.batches import Position
from memreason_hf.training.solutions.trainer import FinetuneArguments, FinetuneTrainer, warmup_warning


ADAPTED = ("lora_A", "lora_B")
MOVES = {"lora": ADAPTED, "tokens": ("trainable_tokens",), "lora+tokens": (*ADAPTED, "trainable_tokens")}


class At(TrainerCallback):
    """Calls a function after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action(control=control, **kwargs)
        return control


def stop(control, **kwargs):
    control.should_training_stop = True


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


# ---- The loss ----


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_mean_over_all_labels_of_the_step(tmp_path, family):
    """Compared with every row alone, without padding and with all logits. The prompt's length gives the labels."""
    model = without_dropout(small_model(family, seed=random.randrange(10**6)))
    trainer = small_finetune(tmp_path, model=model, gradient_accumulation_steps=3, max_steps=1, length_pool=1)
    depth = {"num_recurrences": trainer.step_recurrences()} if family == "recurrent" else {}
    rows = trainer.schedule.rows(Position(0, None, 0))
    tokenizer, losses = small_tokenizer(), []
    model.eval()
    for row in rows:
        ids = torch.tensor([trainer.train_dataset[int(row)]["input_ids"]])
        start = len(encode_prompt(tokenizer, ITEMS[row]["question"]))
        with torch.no_grad():
            logits = model(ids, **depth).logits[0]
        losses.append(F.cross_entropy(logits[start - 1 : -1], ids[0, start:], reduction="none"))
    expected = torch.cat(losses).mean().item()
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulating_4_times_1_equals_a_batch_of_4(tmp_path, family):
    """With plain gradient descent the change of the weights shows the gradients."""
    results = []
    for rows, accumulated in ((4, 1), (1, 4), (2, 2)):
        trainer = small_finetune(
            tmp_path / str(rows),
            model=without_dropout(small_model(family)),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulated,
            max_steps=3,
            length_pool=1,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
            eval_strategy="no",
        )
        lengths = trainer.train_rows.lengths[trainer.schedule.rows(Position(0, None, 0))]
        assert len(set(lengths)) > 1
        before = weights(trainer.model)
        trainer.train()
        results.append({name: value - before[name] for name, value in weights(trainer.model).items()})
    for other in results[1:]:
        for name, moved in results[0].items():
            assert moved.abs().max() > 1e-6, name
            torch.testing.assert_close(other[name], moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_computed_only_where_there_are_labels(tmp_path, family):
    trainer = small_finetune(tmp_path, family, max_steps=1, eval_strategy="no", per_device_train_batch_size=1)
    shapes, labels = [], []
    head = trainer.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: shapes.append(output.numel() // output.shape[-1]))
    row = trainer.schedule.rows(Position(0, None, 0))[0]
    labels = [label for label in trainer.train_dataset[int(row)]["label_ids"] if label != -100]
    trainer.train()
    assert shapes == [len(labels)]


# ---- Epochs and evaluation ----


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_evaluates_and_saves_after_every_epoch(tmp_path, family):
    trainer = small_finetune(tmp_path, family)
    before = weights(trainer.model)
    trainer.train()
    unmoved = [name for name, value in weights(trainer.model).items() if torch.equal(value, before[name])]
    assert unmoved == []
    evaluated = [entry for entry in trainer.state.log_history if "eval_acc" in entry]
    assert [(entry["step"], entry["epoch"]) for entry in evaluated] == [(3, 1), (6, 2), (9, 3)]
    assert all(entry["eval_num_test"] == 6 for entry in evaluated)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{s}" for s in (3, 6, 9)]
    trainer.save_model()
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert read_scheme(tokenizer) == read_scheme(small_tokenizer())
    ids = torch.tensor([encode_prompt(tokenizer, "Is it?")])
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, trainer.model.eval()(ids).logits)


def test_an_epoch_is_rounded_up_and_the_end_is_evaluated_too(tmp_path):
    trainer = small_finetune(tmp_path, per_device_train_batch_size=4, num_train_epochs=1.5)
    assert (trainer.steps_per_epoch, trainer.planned_steps) == (2, 3)
    trainer.train()
    evaluated = [entry for entry in trainer.state.log_history if "eval_acc" in entry]
    assert [(entry["step"], entry["epoch"]) for entry in evaluated] == [(2, 1), (3, 1.5)]
    published = small_finetune(
        tmp_path / "truthful_qa", items=(ITEMS * 106)[:632], per_device_train_batch_size=16, num_train_epochs=15
    )
    assert published.planned_steps == 600


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A model that has memorised the items."""
    folder = tmp_path_factory.mktemp("learned")
    trainer = small_finetune(folder, num_train_epochs=35, max_new_tokens=60, eval_strategy="no", save_strategy="no")
    trainer.train()
    return trainer.model


def test_overfits_a_few_items_and_writes_their_solutions(tmp_path, learned):
    trainer = small_finetune(tmp_path, model=learned, max_new_tokens=60)
    metrics = trainer.evaluate()
    assert metrics["eval_acc"] == 1.0
    assert metrics["eval_invalid"] == metrics["eval_cut"] == 0
    # Not only the answers but every word of the solutions, in left-padded batches and one by one.
    scheme, tokenizer = read_scheme(small_tokenizer()), small_tokenizer()
    one_by_one = generate_solutions(learned, tokenizer, ITEMS, batch_size=1, max_new_tokens=60)
    for item, solution in zip(ITEMS, one_by_one):
        steps = [*item["steps"], {"kind": "answer", "text": f"The answer is: {item['answer']}"}]
        assert solution.text == scheme.question_text(item["question"]) + scheme.render(steps)


def test_accuracy_is_that_of_the_first_num_test_questions(tmp_path, learned):
    wrong = [{**item, "answer": {"True": "False", "False": "True"}[item["answer"]]} for item in ITEMS]
    mixed = [ITEMS[0], wrong[1], ITEMS[2], ITEMS[3], wrong[4], wrong[5]]
    for num_test, expected in ((1, 1.0), (2, 0.5), (4, 0.75), (6, 0.5), (100, 0.5)):
        trainer = small_finetune(tmp_path, model=learned, test=mixed, num_test=num_test, max_new_tokens=60)
        metrics = trainer.evaluate()
        assert metrics["eval_acc"] == expected
        assert metrics["eval_num_test"] == min(num_test, 6)
        assert metrics["eval_invalid"] == 0
    assert trainer.evaluate(Dataset.from_list(wrong), metric_key_prefix="wrong")["wrong_acc"] == 0.0


def test_the_best_epoch_is_what_remains(tmp_path, learned):
    """The model is damaged after the second epoch. The first of two equally good checkpoints is kept."""

    def spoil(model, **kwargs):
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_()

    kept = weights(learned)
    model = small_model()
    model.load_state_dict(learned.state_dict())
    trainer = small_finetune(
        tmp_path,
        model=model,
        callbacks=[At(7, spoil)],
        num_train_epochs=4,
        learning_rate=0.0,
        max_new_tokens=60,
        save_total_limit=2,
    )
    trainer.train()
    accuracies = [entry["eval_acc"] for entry in trainer.state.log_history if "eval_acc" in entry]
    assert accuracies[:2] == [1.0, 1.0] and max(accuracies[2:]) < 1.0
    assert trainer.state.best_global_step == 3
    assert trainer.state.best_metric == 1.0
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-3"]
    assert_same_weights(weights(trainer.model), kept)
    trainer.save_model()
    assert_same_weights(weights(AutoModelForCausalLM.from_pretrained(tmp_path)), kept)
    # Resuming the finished run ends with the same weights.
    again = small_finetune(tmp_path, num_train_epochs=4, learning_rate=0.0, max_new_tokens=60, save_total_limit=2)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(again.model), kept)


# ---- Stopped and resumed ----


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, family):
    """Interrupted at the end of an epoch, and within one. GPT-2 and the recurrent model have dropout."""
    arguments = {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "per_device_train_batch_size": 1}
    whole = small_finetune(tmp_path / "whole", family, **arguments)
    whole.train()
    for step in (3, 5):
        assert_resumes_exactly(tmp_path / f"interrupted-{step}", whole, family, step, arguments)


def assert_resumes_exactly(parts, whole, family, step, arguments):
    final = weights(AutoModelForCausalLM.from_pretrained(f"{whole.args.output_dir}/checkpoint-9"))
    first = small_finetune(parts, family, callbacks=[At(step, interrupt)], **arguments)
    first.train()
    # The step of the interruption is the last one. The end of an epoch is not evaluated any more.
    assert first.interrupted and first.state.global_step == step
    assert first.last_checkpoint == str(parts / f"checkpoint-{first.state.global_step}")
    evaluated = [entry["step"] for entry in first.state.log_history if "eval_acc" in entry]
    assert evaluated == {3: [], 5: [3]}[step]
    second = small_finetune(parts, family, **arguments)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 9
    assert_same_weights(weights(AutoModelForCausalLM.from_pretrained(parts / "checkpoint-9")), final)
    assert_same_weights(weights(second.model), weights(whole.model))
    scores = [
        [(entry["step"], entry["eval_acc"]) for entry in t.state.log_history if "eval_acc" in entry]
        for t in (whole, second)
    ]
    assert scores[0] == scores[1]


def interrupt(**kwargs):
    os.kill(os.getpid(), signal.SIGINT)


def interrupt_in_evaluation(trainer, step):
    """Sends SIGINT at the third token of the evaluation after `step`. Returns a list of the generated tokens."""
    written = []

    def forward(model, *args):
        if not model.training and trainer.state.global_step == step:
            written.append(1)
            if len(written) == 3:
                interrupt()

    trainer.model.register_forward_pre_hook(forward)
    return written


@pytest.mark.parametrize("step", [6, 9])
def test_ctrl_c_while_questions_are_solved(tmp_path, step):
    """After an epoch and after the last one; and once more in the evaluation with which the resumed run begins."""
    whole = small_finetune(tmp_path / "whole")
    whole.train()
    parts = tmp_path / "parts"
    for resume in (None, True):
        stopped = small_finetune(parts)
        written = interrupt_in_evaluation(stopped, step)
        stopped.train(resume_from_checkpoint=resume)
        assert stopped.interrupted and stopped.state.global_step == step
        assert len(written) == 3
        assert stopped.last_checkpoint == str(parts / f"checkpoint-{step}")
        verify(stopped.last_checkpoint)
    last = small_finetune(parts)
    last.train(resume_from_checkpoint=True)
    assert not last.interrupted
    assert_same_weights(weights(last.model), weights(whole.model))
    assert last.state.best_global_step == whole.state.best_global_step
    logs = [[(e["step"], e["eval_acc"]) for e in t.state.log_history if "eval_acc" in e] for t in (whole, last)]
    assert logs[0] == logs[1] and len(logs[0]) == 3
    # The evaluation is not repeated.
    again = small_finetune(parts)
    written = interrupt_in_evaluation(again, 9)
    again.train(resume_from_checkpoint=True)
    assert not again.interrupted and not written


def kill_in_step(trainer):
    training_step = trainer.training_step

    def step(*args):
        loss = training_step(*args)
        return os.kill(os.getpid(), signal.SIGKILL) if trainer.state.global_step == 4 else loss

    trainer.training_step = step


def kill_in_evaluation(trainer):
    solve = trainer._solve
    trainer._solve = lambda rows: (
        os.kill(os.getpid(), signal.SIGKILL) if trainer.state.global_step == 6 else solve(rows)
    )


def train_until_killed(folder, sabotage):
    trainer = small_finetune(folder)
    sabotage(trainer)
    trainer.train()


def train_to_the_end(folder, result):
    trainer = small_finetune(folder)
    trainer.train(resume_from_checkpoint=any(name.startswith("checkpoint-") for name in os.listdir(folder)))
    save_result(result, (weights(trainer.model), trainer.resumed_from, trainer.state.best_global_step))


@pytest.mark.parametrize("sabotage", [kill_in_step, kill_in_evaluation], ids=lambda function: function.__name__)
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, sabotage):
    whole = small_finetune(tmp_path / "whole")
    whole.train()
    parts = tmp_path / "parts"
    assert run_child(train_until_killed, parts, sabotage) == -signal.SIGKILL
    assert run_child(train_to_the_end, parts, tmp_path / "result") == 0
    result, resumed_from, best = load_result(tmp_path / "result")
    assert resumed_from.endswith("checkpoint-3")
    assert best == whole.state.best_global_step
    assert_same_weights(result, weights(whole.model))


# ---- Warnings and refusals ----


@pytest.mark.parametrize(
    "warmup, steps, expected",
    [(1000, 600, ("1,000", "600", "60%")), (601, 600, ("601", "600")), (600, 600, None), (0, 600, None)],
)
def test_a_warmup_longer_than_the_run(warmup, steps, expected):
    warning = warmup_warning(warmup, steps)
    assert (warning is None) == (expected is None)
    assert all(part in warning for part in expected or ())


def test_the_warning_comes_before_training_begins(tmp_path, caplog):
    seen = []

    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.extend(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)

    trainer = small_finetune(tmp_path, callbacks=[Begin()], warmup_steps=12, max_steps=2, eval_strategy="no")
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert any("warm-up of 12 steps is longer than the run of 2" in message for message in seen)
    caplog.clear()
    other = small_finetune(tmp_path / "other", warmup_steps=2, max_steps=2, eval_strategy="no")
    with caplog.at_level(logging.WARNING):
        other.train()
    assert not any("warm-up" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_test": 0}, "num_test=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        (
            {"recurrence_loss": "uniform"},
            "recurrence_loss='uniform' is for recurrent-depth models, .* LlamaForCausalLM",
        ),
        ({"eval_num_recurrences": 3}, "eval_num_recurrences=3 is for recurrent-depth models"),
        ({"recurrence_loss": "all"}, "recurrence_loss='all'"),
        ({"save_total_limit": 1}, "save_total_limit=1"),
    ],
    ids=str,
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_finetune(tmp_path, **arguments)


def test_it_needs_its_own_arguments_and_a_collator(tmp_path):
    trainer = small_finetune(tmp_path)
    with pytest.raises(ValueError, match="args must be FinetuneArguments, got NoneType"):
        FinetuneTrainer(trainer.model, None)
    with pytest.raises(ValueError, match=r"data_collator is not given: use StepCollator\(tokenizer\)"):
        FinetuneTrainer(trainer.model, FinetuneArguments(output_dir=str(tmp_path), use_cpu=True))
    args = FinetuneArguments(output_dir=str(tmp_path), use_cpu=True, eval_strategy="no")
    evaluating = FinetuneTrainer(trainer.model, args, data_collator=trainer.data_collator)
    for call in (evaluating.train, evaluating.evaluate):
        with pytest.raises(ValueError, match=r"Trainer: .* requires an? \w+_dataset"):
            call()
    with pytest.raises(ValueError, match="the eval_dataset is empty"):
        evaluating.evaluate([])


def test_without_evaluation_no_checkpoint_is_the_best(tmp_path):
    trainer = small_finetune(tmp_path, eval_strategy="no")
    trainer.train()
    assert trainer.state.best_metric is None
    assert [entry for entry in trainer.state.log_history if "eval_acc" in entry] == []
    assert (tmp_path / "checkpoint-9").is_dir()


def test_recurrences_of_a_recurrent_model_are_drawn_and_logged(tmp_path):
    trainer = small_finetune(
        tmp_path, "recurrent", num_train_epochs=6, eval_num_recurrences=2, recurrence_loss="uniform"
    )
    counts = []
    trainer.model.register_forward_pre_hook(
        lambda module, inputs, given: counts.append((module.training, given.get("num_recurrences"))), with_kwargs=True
    )
    trainer.train()
    assert {count for training, count in counts if training} == {2, 3, 4}
    assert {count for training, count in counts if not training} == {2}
    logged = [entry["num_recurrences"] for entry in trainer.state.log_history if "num_recurrences" in entry]
    assert logged == [count for training, count in counts if training]


# ---- What is trained ----


def with_adapter(family, mode, **arguments):
    model = small_model(family)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return add_adapter(model, small_tokenizer(), AdapterArguments(mode, lora_dropout=0.2, **arguments))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MOVES)
def test_every_mode_moves_what_it_must_and_nothing_else(tmp_path, family, mode):
    model = with_adapter(family, mode, lora_targets="all")
    before = weights(model)
    trainer = small_finetune(tmp_path, model=model, max_steps=3, eval_strategy="no")
    trainer.train()
    for name, value in weights(model).items():
        should_move = any(part in name for part in MOVES[mode])
        assert torch.equal(value, before[name]) is not should_move, name


@pytest.mark.parametrize(
    "family, mode", [("llama", "lora"), ("llama", "lora+tokens"), ("gpt2", "tokens"), ("recurrent", "lora+tokens")]
)
def test_a_run_with_an_adapter_resumes_and_is_loaded_back(tmp_path, family, mode):
    whole = small_finetune(tmp_path / "whole", model=with_adapter(family, mode))
    whole.train()
    parts = tmp_path / "parts"
    small_finetune(parts, model=with_adapter(family, mode), callbacks=[At(4, interrupt)]).train()
    second = small_finetune(parts, model=with_adapter(family, mode))
    second.train(resume_from_checkpoint=True)
    assert second.resumed_from.endswith("checkpoint-4")
    assert_same_weights(weights(second.model), weights(whole.model))
    second.save_model()
    assert not (parts / "model.safetensors").exists()
    loaded, tokenizer = load_adapter(parts, base=small_model(family))
    ids = torch.tensor([encode_prompt(tokenizer, "Is it?")])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, second.model.eval()(ids).logits)
