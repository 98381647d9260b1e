import pytest
import torch

from memreason_hf.training import RecurrentTrainingArguments


def make(tmp_path, **arguments):
    return RecurrentTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"recurrence_loss": "all"}, "recurrence_loss='all'"),
        ({"supervision": "none"}, "supervision='none'"),
        ({"recurrence_loss_decay": 0.0}, "recurrence_loss_decay=0.0"),
        ({"length_pool": 0}, "length_pool=0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0"),
        ({"eval_num_recurrences": 0}, "eval_num_recurrences=0"),
        ({"expected_world_size": 0}, "expected_world_size=0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"train_sampling_strategy": "group_by_length"}, "length_pool"),
        ({"save_strategy": "epoch"}, "save_strategy='epoch'"),
        ({"save_strategy": "best", "metric_for_best_model": "accuracy"}, "save_strategy='best'"),
        ({"eval_strategy": "epoch"}, "eval_strategy='epoch'"),
        ({"save_total_limit": 1, "metric_for_best_model": "accuracy"}, "save_total_limit=1"),
    ],
)
def test_what_would_be_ignored_or_is_impossible_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **arguments)


def test_the_least_values_are_allowed(tmp_path):
    make(
        tmp_path,
        recurrence_loss_decay=1e-9,
        length_pool=1,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        eval_num_recurrences=1,
        expected_world_size=1,
        save_total_limit=1,
    )
    make(tmp_path, save_total_limit=2, metric_for_best_model="accuracy")
    for name in ("recurrence_loss_decay", "per_device_eval_batch_size"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            make(tmp_path, **{name: 0})
    with pytest.raises(ValueError, match="logging_strategy='epoch'"):
        make(tmp_path, logging_strategy="epoch")


def test_documented_defaults(tmp_path):
    args = make(tmp_path)
    assert (args.learning_rate, args.weight_decay, args.save_total_limit) == (1e-4, 0.01, 2)
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (128, 512)
    assert args.lr_scheduler_type == "constant_with_warmup"
    assert not args.logging_nan_inf_filter
    assert not args.remove_unused_columns
    assert make(tmp_path, ignore_data_skip=False).ignore_data_skip


def test_the_best_model_is_the_most_accurate(tmp_path):
    args = make(tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, save_steps=2)
    assert args.metric_for_best_model == "accuracy"
    assert args.greater_is_better
    chosen = make(
        tmp_path,
        load_best_model_at_end=True,
        metric_for_best_model="num_recurrences",
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
    )
    assert chosen.metric_for_best_model == "num_recurrences"
    assert make(tmp_path).metric_for_best_model is None


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for machines without an accelerator")
def test_bf16_works_without_an_accelerator(tmp_path):
    assert RecurrentTrainingArguments(output_dir=str(tmp_path), bf16=True).use_cpu


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"recurrence_growth": "sqrt"}, "recurrence_growth='sqrt' must be one of none, linear, 1-sqrt"),
        ({"recurrence_growth_ratio": 0.0}, "recurrence_growth_ratio=0.0"),
        ({"recurrence_growth_ratio": 1.5}, "recurrence_growth_ratio=1.5"),
        ({"recurrence_growth_start": 0.5}, "recurrence_growth_start=0.5"),
        ({"keep_weight": -1.0}, "keep_weight=-1.0"),
        ({"first_weight": float("nan")}, "first_weight=nan"),
        ({"consistency_weight": float("inf")}, "consistency_weight=inf"),
        ({"consistency_recurrences": 0}, "consistency_recurrences=0"),
        ({"recurrence_learning_rate": 0.0}, "recurrence_learning_rate=0.0"),
        ({"keep_model": "folder"}, "keep_model='folder' has no effect with keep_weight=0"),
    ],
    ids=str,
)
def test_impossible_depths_and_losses_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **arguments)
