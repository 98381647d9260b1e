"""What makes another run: everything that is not listed as changing no weights."""

import copy
import json
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import ClassVar

import pytest
import torch
from small_finetunes import small_finetune, small_tokenizer
from small_finetunes import small_model as small_finetune_model
from small_runs import small_chains, small_model, small_trainer
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from memreason_hf.adapters.modes import AdapterArguments, add_adapter
from memreason_hf.training import (
    CurriculumArguments,
    CurriculumCallback,
    FinetuneArguments,
    RecurrentTrainingArguments,
)
from memreason_hf.training.chains import curriculum
from memreason_hf.training.runs import fingerprint
from memreason_hf.training.runs.fingerprint import (
    UNCOUNTED_CONFIG,
    counted_arguments,
    plain_value,
    run_fingerprint,
)


CLASSES = (RecurrentTrainingArguments, FinetuneArguments)
FIELDS = [(cls, item.name) for cls in CLASSES for item in fields(cls)]
# What the arguments classes of this package list themselves.
OWN_UNCOUNTED = {"expected_world_size", "restart", "extend", "keep_model"}
UNCOUNTED = {*fingerprint.UNCOUNTED_ARGUMENTS, *OWN_UNCOUNTED, "hub_token"}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """Its learning rate looks ahead, so that the length of the run counts."""
    return small_trainer(tmp_path_factory.mktemp("run"), lr_scheduler_type="linear")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run"))
    return {cls: cls(output_dir=folder, use_cpu=True, lr_scheduler_type="linear") for cls in CLASSES}


def another(value):
    """A value of about the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return [*value, "x"]
    return "x"


@pytest.mark.parametrize("cls, name", FIELDS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_every_field_counts_unless_it_is_listed(arguments, cls, name):
    args = copy.copy(arguments[cls])
    before = counted_arguments(args)
    setattr(args, name, another(getattr(args, name)))
    changed = {key for key, value in counted_arguments(args).items() if value != before.get(key)}
    uncounted = name in UNCOUNTED or name in fingerprint.UNCOUNTED_EVALUATION
    assert changed == (set() if uncounted else {name})


def test_the_counted_fields_of_today(arguments):
    """Read this list when a field is added: those that change no weights belong into the other one."""
    counted = {
        *(
            "learning_rate",
            "lr_scheduler_type",
            "lr_scheduler_kwargs",
            "warmup_steps",
            "max_steps",
            "num_train_epochs",
        ),
        *("optim", "optim_args", "optim_target_modules", "weight_decay", "max_grad_norm", "label_smoothing_factor"),
        *("adam_beta1", "adam_beta2", "adam_epsilon", "average_tokens_across_devices", "neftune_noise_alpha"),
        *("seed", "data_seed", "full_determinism", "tf32", "bf16_full_eval", "fp16_full_eval", "use_cache"),
        *("use_liger_kernel", "liger_kernel_config", "auto_find_batch_size", "train_sampling_strategy"),
        *("length_column_name", "label_names", "remove_unused_columns", "dataloader_drop_last", "dataloader_in_order"),
        *("ignore_data_skip", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        *("prediction_loss_only", "include_for_metrics", "batch_eval_metrics"),
        *("eval_do_concat_batches", "eval_use_gather_object"),
        *("recurrence_loss", "recurrence_loss_decay", "eval_num_recurrences", "length_pool"),
        *("recurrence_growth", "recurrence_growth_ratio", "recurrence_growth_start"),
        *("exit_prior", "exit_prior_stop", "exit_prior_weight"),
        *("first_weight", "keep_weight", "consistency_weight", "consistency_recurrences", "recurrence_learning_rate"),
    }
    own = {
        RecurrentTrainingArguments: {"supervision", "group_column"},
        FinetuneArguments: {"num_test", "max_new_tokens", "packing_length"},
    }
    for cls, args in arguments.items():
        assert set(counted_arguments(args)) == counted | own[cls]


def test_the_uncounted_entries_of_configs():
    """An entry that changes weights and stood here would let another run resume silently."""
    library = {"transformers_version", "recurrent_depth_version", "architectures", "auto_map", "_name_or_path"}
    assert set(UNCOUNTED_CONFIG) == library | {"dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}


@dataclass
class NewerArguments(RecurrentTrainingArguments):
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("nickname",)

    temperature: float = field(default=1.0)
    nickname: str = field(default="")
    api_token: str = field(default="")


def test_a_new_field_of_a_subclass_counts_unless_the_class_lists_it(tmp_path):
    def counted(**changes):
        return counted_arguments(NewerArguments(output_dir=str(tmp_path), use_cpu=True, **changes))

    assert counted(temperature=2.0) == {**counted(), "temperature": 2.0} != counted()
    assert counted(nickname="x", restart=True) == counted()
    # A secret must not be written into the folder of the run.
    assert counted(api_token="secret") == counted()


@pytest.mark.parametrize(
    "schedule, length, evaluation",
    [
        ("constant", False, False),
        ("constant_with_warmup", False, False),
        ("inverse_sqrt", False, False),
        ("linear", True, False),
        ("cosine", True, False),
        ("warmup_stable_decay", True, False),
        ("reduce_lr_on_plateau", True, True),
        ("greedy", True, True),
    ],
)
def test_length_and_evaluation_count_where_the_learning_rate_follows_them(arguments, schedule, length, evaluation):
    args = copy.copy(arguments[RecurrentTrainingArguments])
    args.lr_scheduler_type = SchedulerType(schedule)
    counted = counted_arguments(args)
    assert set(fingerprint.UNCOUNTED_LENGTH) <= set(counted) if length else "max_steps" not in counted
    assert set(fingerprint.UNCOUNTED_EVALUATION) <= set(counted) if evaluation else "eval_steps" not in counted
    assert counted["lr_scheduler_type"] == schedule


def test_a_warm_up_that_is_a_share_of_the_run_follows_its_length(arguments):
    args = copy.copy(arguments[RecurrentTrainingArguments])
    args.lr_scheduler_type = "constant_with_warmup"
    for warmup, follows in ((0, False), (0.1, True), (1, False), (20, False)):
        args.warmup_steps = warmup
        assert ("max_steps" in counted_arguments(args)) is follows


LEGITIMATE = {
    "moved, and begun with other words": {"output_dir": "elsewhere", "resume_from_checkpoint": "x", "restart": True},
    "more steps": {"max_steps": 999},
    "logs": {"logging_steps": 3, "logging_first_step": True, "report_to": [], "run_name": "x"},
    "checkpoints": {"save_steps": 3, "save_total_limit": 5, "save_only_model": True},
    "evaluations": {"eval_strategy": "steps", "eval_steps": 3, "eval_delay": 2, "per_device_eval_batch_size": 3},
    "micro-batches": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    "processes": {"ddp_timeout": 60, "ddp_find_unused_parameters": True},
    "memory": {"gradient_checkpointing": True, "torch_empty_cache_steps": 4},
    "loading": {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3},
}


@pytest.mark.parametrize("changes", LEGITIMATE.values(), ids=LEGITIMATE)
def test_the_same_run_with_other_words(tmp_path, changes):
    expected = small_trainer(tmp_path).run_fingerprint()
    changes = {**changes, "output_dir": str(tmp_path / "elsewhere")} if "output_dir" in changes else changes
    assert small_trainer(**{"output_dir": tmp_path, **changes}).run_fingerprint() == expected


def test_the_precision_counts_wherever_it_was_chosen(tmp_path, monkeypatch):
    by_argument = small_trainer(tmp_path, bf16=True).run_fingerprint()
    assert by_argument != small_trainer(tmp_path).run_fingerprint()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert small_trainer(tmp_path).run_fingerprint() == by_argument


@pytest.mark.parametrize("name", ["num_recurrences", "recurrence_min", "residual_dropout", "input_injection"])
def test_every_field_of_the_config_counts(trainer, name):
    before = trainer.run_fingerprint()
    config, value = trainer.model.config, getattr(trainer.model.config, name)
    other = {"input_injection": "none"}.get(name, value if isinstance(value, str) else value + 0.5)
    try:
        object.__setattr__(config, name, other)
        after = trainer.run_fingerprint()
    finally:
        object.__setattr__(config, name, value)
    assert {key for key in before if before[key] != after[key]} == {f"model.{name}"}


def test_what_the_library_writes_into_a_config_does_not_count(trainer, tmp_path):
    before = trainer.run_fingerprint()
    trainer.model.save_pretrained(tmp_path)
    loaded = type(trainer.model).from_pretrained(tmp_path)
    assert loaded.config.to_dict() != trainer.model.config.to_dict()
    assert small_trainer(tmp_path / "run", model=loaded, lr_scheduler_type="linear").run_fingerprint() == before
    # The Trainer takes these from the tokenizer when training begins.
    loaded.config.eos_token_id = 3
    assert small_trainer(tmp_path / "run", model=loaded, lr_scheduler_type="linear").run_fingerprint() == before


def test_the_dtype_of_the_weights_and_the_row_of_padding_count(trainer, tmp_path):
    before = trainer.run_fingerprint()
    for model, name in (
        (small_model().to(torch.bfloat16), "model.dtype"),
        (small_model(pad_token_id=None), "model.padding_idx"),
    ):
        after = small_trainer(tmp_path, model=model, lr_scheduler_type="linear").run_fingerprint()
        assert {key for key in before if before[key] != after[key]} == {name}


def test_rows_and_the_model_that_training_starts_from_count(trainer):
    before = trainer.run_fingerprint()
    trainer.origin = {"model.path": "elsewhere"}
    try:
        assert trainer.run_fingerprint() == before | {"model.path": "elsewhere"}
    finally:
        trainer.origin = {}


@pytest.mark.parametrize("name", [item.name for item in fields(CurriculumArguments)])
def test_every_field_of_a_curriculum_counts_unless_it_is_listed(tmp_path, name):
    def counted(**changes):
        callback = CurriculumCallback(CurriculumArguments(**{"max_steps_per_stage": 9, **changes}))
        small_trainer(tmp_path, callbacks=[callback])
        return callback.fingerprint()

    change = {
        "enabled": False,
        "gate": "train",
        "optimizer": "restart",
        "threshold": 0.5,
        "stages": [2, 3],
        "last_stage": 3,
        "first_stage": 3,
    }.get(name, 7)
    before, after = counted(), counted(**{name: change})
    changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    if name in ("stages", "first_stage", "last_stage"):
        assert changed == {"curriculum.stages"}
    elif name == "gate":
        assert changed == {"curriculum.gate", "data.heldout"}
    else:
        assert changed == (set() if name in curriculum.UNCOUNTED else {f"curriculum.{name}"})


def test_held_out_rows_count_where_they_decide(tmp_path):
    _, _, heldout = small_chains()

    def rows(**changes):
        callback = CurriculumCallback(CurriculumArguments(**changes), heldout.select(range(len(heldout) - 1, -1, -1)))
        small_trainer(tmp_path, callbacks=[callback])
        return callback.fingerprint().get("data.heldout")

    whole = CurriculumCallback(CurriculumArguments())
    small_trainer(tmp_path, callbacks=[whole])
    assert rows() != whole.fingerprint()["data.heldout"]
    assert rows(gate="train") is None


def finetune_with_adapter(folder, model=None, **arguments):
    model = small_finetune_model() if model is None else model
    torch.manual_seed(0)
    model = add_adapter(model, small_tokenizer(), AdapterArguments(**{"mode": "lora+tokens", **arguments}))
    return small_finetune(folder, model=model)


def test_every_setting_of_an_adapter_counts(tmp_path):
    before = finetune_with_adapter(tmp_path).run_fingerprint()
    for change, names in (
        ({"lora_r": 8}, {"adapter.r"}),
        ({"lora_alpha": 8}, {"adapter.lora_alpha"}),
        ({"lora_dropout": 0.5}, {"adapter.lora_dropout"}),
        ({"lora_targets": "all"}, {"adapter.target_modules"}),
        ({"mode": "lora"}, {"adapter.mode"}),
    ):
        after = finetune_with_adapter(tmp_path, **change).run_fingerprint()
        assert {key for key in {**before, **after} if before.get(key) != after.get(key)} == names
    # Settings that AdapterArguments does not have count, too.
    trainer = finetune_with_adapter(tmp_path)
    config = trainer.model.peft_config["default"]
    config.use_rslora = True
    assert trainer.run_fingerprint() != before
    config.use_rslora = False
    config.inference_mode, config.base_model_name_or_path = True, "elsewhere"
    assert trainer.run_fingerprint() == before


def test_the_weights_of_an_adapters_base_count(tmp_path):
    """The base is not in the checkpoints, so a run must not be resumed on another one."""
    prints = []
    for seed in (0, 0, 1):
        small_finetune_model(seed=seed).save_pretrained(tmp_path / "base")
        model = type(small_finetune_model()).from_pretrained(tmp_path / "base")
        prints.append(finetune_with_adapter(tmp_path / "run", model).run_fingerprint())
    assert prints[0] == prints[1]
    assert {key for key in prints[0] if prints[0][key] != prints[2][key]} == {"adapter.base"}


def test_a_fingerprint_goes_through_json_unchanged(tmp_path):
    callback = CurriculumCallback(CurriculumArguments())
    for trainer in (small_trainer(tmp_path / "a", callbacks=[callback]), finetune_with_adapter(tmp_path / "b")):
        found = trainer.run_fingerprint()
        assert json.loads(json.dumps(found)) == found
        assert run_fingerprint(trainer).items() <= found.items()


def test_plain_values():
    values = {
        "a": IntervalStrategy.STEPS,
        "b": (1, {torch.bfloat16, torch.float16}),
        3: CurriculumArguments(eval_steps=2),
    }
    plain = plain_value(values, "x")
    assert json.loads(json.dumps(plain)) == plain
    assert plain["a"] == "steps" and plain["b"] == [1, ["bfloat16", "float16"]] and plain["3"]["eval_steps"] == 2
    with pytest.raises(TypeError, match=r"training.hook=<object .* has no JSON form.*not_in_fingerprint"):
        plain_value({"hook": [object()]}["hook"][0], "training.hook")
