"""Malformed values of training arguments, curricula and parts, and what trainers are given."""

import math
import random
from pathlib import Path

import torch
from datasets import Dataset
from malformed_cases import (
    NO_VALUE,
    Case,
    command,
    field_cases,
    show,
    some,
    wrong_bools,
    wrong_choices,
    wrong_floats,
    wrong_ints,
    wrong_texts,
)
from small_runs import small_chains, small_model, small_trainer

from memreason_hf.commands import train
from memreason_hf.training import CurriculumArguments, FinetuneArguments, RecurrentTrainer, RecurrentTrainingArguments
from memreason_hf.training.text.arguments import TextTrainingArguments
from memreason_hf.training.text.parts import PartArguments


# Values of this package's own fields, tried on all three classes of arguments.
OWN = {
    "recurrence_growth": wrong_choices(["linear"]),
    "recurrence_growth_ratio": wrong_floats(0, 1),
    "recurrence_growth_start": wrong_floats(0, open_low=True),
    "recurrence_loss": wrong_choices(["uniform"], optional=True),
    "exit_prior": wrong_choices(["uniform"], optional=True),
    "exit_prior_stop": wrong_floats(0, 1, open_low=True, optional=True),
    "exit_prior_weight": wrong_floats(0, optional=True),
    "recurrence_loss_decay": wrong_floats(0, open_low=True, optional=True),
    "first_weight": wrong_floats(0),
    "keep_weight": wrong_floats(0),
    "consistency_weight": wrong_floats(0),
    "consistency_recurrences": wrong_ints(1),
    "recurrence_learning_rate": wrong_floats(0, optional=True),
    "eval_num_recurrences": wrong_ints(1, optional=True),
    "length_pool": [*wrong_ints(1), 10**12],
    "expected_world_size": wrong_ints(1, optional=True),
    "save_total_limit": ["three", 2.5, math.nan, [1]],
}
# Values of the library's fields that this package refuses or that the library refuses itself.
LIBRARY = {
    "learning_rate": wrong_floats(0),
    "gradient_accumulation_steps": wrong_ints(1),
    "per_device_train_batch_size": wrong_ints(1),
    "adam_beta1": wrong_floats(0, 1),
    "adam_beta2": wrong_floats(0, 1),
    "adam_epsilon": wrong_floats(0),
    "max_grad_norm": wrong_floats(),
    "weight_decay": wrong_floats(),
    "lr_scheduler_type": wrong_choices(["linear"]),
    "optim": wrong_choices(["adamw_torch"]),
    "logging_steps": ["often", math.nan, [1]],
    "save_steps": ["often", math.nan, [1], -5],
    "save_strategy": wrong_choices(["steps"]),
    "eval_strategy": wrong_choices(["steps"]),
}
MORE = {
    RecurrentTrainingArguments: {
        "supervision": wrong_choices(["answer"]),
        "group_column": wrong_texts(),
    },
    FinetuneArguments: {"num_test": wrong_ints(0), "max_new_tokens": wrong_ints(1)},
    TextTrainingArguments: {"max_tokens": wrong_ints(1, optional=True)},
}
CURRICULUM = {
    "stages": ["text", 5, [0], [-1], ["a"], [2, 2], [3, 2], [], [1.5], [None]],
    "first_stage": wrong_ints(1),
    "last_stage": wrong_ints(1, optional=True),
    "gate": wrong_choices(["accuracy"]),
    "threshold": wrong_floats(0, 1),
    "eval_steps": wrong_ints(1),
    "gate_rows": wrong_ints(1, optional=True),
    "min_steps_per_stage": wrong_ints(0),
    "max_steps_per_stage": wrong_ints(1, optional=True),
    "optimizer": wrong_choices(["keep"]),
    "final_steps": wrong_ints(0),
    "enabled": wrong_bools(),
}
PARTS = {
    "train": wrong_choices(["loop"]),
    "lora_r": wrong_ints(1),
    "lora_alpha": wrong_floats(0, open_low=True),
    "lora_dropout": wrong_floats(0, 1),
    "lora_targets": wrong_choices(["mlp"]),
}


def cases(rng: random.Random, world: Path) -> list[Case]:
    torch.manual_seed(rng.getrandbits(30))
    made = []
    for kind, more in MORE.items():
        wrong = {**OWN, **LIBRARY, **more}
        made += field_cases(rng, kind.__name__, lambda kind=kind, **v: kind("run", use_cpu=True, **v), wrong, 2)
    made += field_cases(rng, "CurriculumArguments", _curriculum, CURRICULUM, 3)
    made += field_cases(rng, "PartArguments", lambda **v: PartArguments(**v), PARTS, 3)
    made += _pairs() + _trainers() + _commands(rng, world)
    return made


def _curriculum(**values):
    return CurriculumArguments(**{"enabled": True, **values})


def _pairs():
    made = []
    for kind in MORE:
        for values in (
            {"recurrence_loss": "last", "recurrence_loss_decay": 0.5},
            {"recurrence_loss": "uniform", "exit_prior": "geometric"},
            {"recurrence_loss": "exit_gate", "exit_prior_stop": 0.5},
            {"keep_weight": 1.0, "keep_model": "nowhere"},
            {"lr_scheduler_type": "cosine_with_min_lr"},
            {"learning_rte": 1e-3},
            {"bf16": True, "fp16": True},
            {"group_by_length": True},
            {"save_safetensors": False},
        ):
            made.append(
                Case(
                    kind.__name__,
                    f"{values}",
                    lambda scratch, kind=kind, values=values: kind("run", use_cpu=True, **values),
                    tuple(values),
                    # The trainer sees what a scheduler or a kept model needs.
                    is_wrong=bool({"learning_rte", "fp16"} & set(values)),
                )
            )
    for values in (
        {"first_stage": 5, "last_stage": 3},
        {"min_steps_per_stage": 50, "max_steps_per_stage": 10},
        {"gate": "loss", "threshold": 5.0},
    ):
        made.append(
            Case("CurriculumArguments", f"{values}", lambda s, values=values: _curriculum(**values), tuple(values))
        )
    return made


def _trainers():
    """What trainers are given beside their arguments."""
    _, rows, _ = small_chains()

    no_ids = rows.remove_columns("input_ids")
    too_large = small_model(vocab_size=4, pad_token_id=0)
    made = []
    for label, given, names in (
        ("no rows", {"train_dataset": rows.select([])}, ["dataset", "row", "hops"]),
        ("rows without input_ids", {"train_dataset": no_ids}, ["input_ids"]),
        ("a list for rows", {"train_dataset": [1, 2]}, ["train_dataset", "input_ids", "row"]),
        ("a text for rows", {"train_dataset": "text"}, ["train_dataset", "input_ids", "row"]),
        ("a model with a small vocabulary", {"model": too_large}, ["vocab_size", "id"]),
        ("a text for a model", {"model": "nowhere"}, ["model", "nowhere"]),
        (
            "one row with wrong ids",
            {"train_dataset": Dataset.from_dict({"input_ids": [[99, 98]]})},
            ["vocab_size", "hops"],
        ),
        ("an unknown argument", {"max_stps": 5}, ["max_stps"]),
        ("a batch of 10**10", {"per_device_train_batch_size": 10**10}, ["per_device_train_batch_size"]),
        ("a curriculum beyond the data", {"curriculum": {"stages": [99], "enabled": True}}, ["stages", "99"]),
        ("no scheduler arguments", {"lr_scheduler_type": "cosine_with_min_lr"}, ["lr_scheduler"]),
        ("a kept model from nowhere", {"keep_weight": 1.0, "keep_model": "nowhere"}, ["keep_model", "nowhere"]),
        ("steps of 0", {"max_steps": 0}, ["max_steps"]),
    ):
        values = {"max_steps": 1, **given}

        def run(scratch, values=values):
            return small_trainer("run", **values).train()

        made.append(Case("RecurrentTrainer", label, run, tuple(names), NO_VALUE))
    for path in ("nowhere", "", 5):
        made.append(
            Case(
                "RecurrentTrainer.train",
                f"resume_from_checkpoint={path!r}",
                lambda scratch, path=path: small_trainer("run", max_steps=1).train(resume_from_checkpoint=path),
                ("resume_from_checkpoint", "checkpoint", "nowhere"),
                is_wrong=bool(path),
            )
        )
    for name in ("sweep", "text", "answers"):
        made.append(
            Case(
                "RecurrentTrainer.predict_answers",
                f"{name} for rows",
                lambda scratch, name=name: small_trainer("run", max_steps=1).predict_answers(name),
                ("dataset", "rows", "input_ids"),
            )
        )
    made.append(Case("RecurrentTrainer", "no model", lambda scratch: RecurrentTrainer(), ("model", "args")))
    return made


# Values that reach a run only through the whole command.
IN_A_RUN = [
    ("learning_rate", "-1", True),
    ("learning_rate", "0", False),
    ("gradient_accumulation_steps", "0", True),
    ("gradient_accumulation_steps", "-3", True),
    ("adam_beta2", "2", True),
    ("adam_beta1", "-0.5", True),
    ("lr_scheduler_type", "cosine_with_min_lr", True),
    ("lr_scheduler_type", "polynomial", False),
    ("lr_scheduler_type", "reduce_lr_on_plateau", False),
    ("optim_args", "nonsense", False),
    ("per_device_train_batch_size", "0", True),
    ("per_device_train_batch_size", "10000000000", False),
    ("save_steps", "0", False),
    ("logging_steps", "0", False),
    ("eval_steps", "-1", False),
    ("warmup_steps", "-1", False),
    ("warmup_steps", "99999", False),
    ("max_grad_norm", "nan", True),
    ("weight_decay", "nan", True),
    ("num_train_epochs", "nan", True),
    ("max_steps", "0", False),
    ("max_steps", "-5", False),
    ("seed", "-1", False),
    ("data_seed", "5", False),
    ("save_total_limit", "-1", False),
    ("save_total_limit", "0", False),
    ("length_pool", "1000000000000", False),
    ("recurrence_max", "1000000000", False),
    ("num_recurrences", "1000000000", False),
    ("hidden_size", "100000000", False),
    ("vocab_size", "5", True),
    ("pad_token_id", "999", True),
    ("dataloader_num_workers", "-1", False),
    ("fsdp", "nonsense", False),
    ("neftune_noise_alpha", "nan", True),
    ("label_smoothing_factor", "2", True),
    ("resume_from_checkpoint", "nowhere", True),
    ("output_dir", "", True),
    ("output_dir", "/dev/null", True),
    ("output_dir", "/proc/run", True),
]


def _commands(rng, world):
    def of(field, value, is_wrong):
        arguments = [str(world / "recipes" / "chains.yaml"), "--output_dir=run", f"--{field}={value}"]
        return Case(
            "memreason train",
            f"--{field} {show(value)}",
            lambda scratch: command(train.main, *arguments),
            # A path names itself.
            (field, *([value] if "/" in value or value == "nowhere" else [])),
            NO_VALUE if field == "logging_steps" else value,
            is_wrong,
            _fault_of_run,
        )

    return [of(*entry) for entry in some(rng, IN_A_RUN, len(IN_A_RUN))]


def _fault_of_run(result):
    return "the loss is not finite" if "'nan'" in result else None
