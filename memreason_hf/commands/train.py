"""`memreason train RECIPE`: trains a recurrent-depth model, or resumes a run that was stopped."""

import sys

from memreason_hf.command_line.errors import USER_ERRORS, user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.training_runs import output_folder_of, run_training
from memreason_hf.models.recurrent_models import ModelArguments
from memreason_hf.training import CurriculumArguments, RecurrentTrainingArguments
from memreason_hf.training.chains.recipe import DataArguments, prepare_run
from memreason_hf.training.runs.errors import TrainingError


PROG = "memreason train"
DESCRIPTION = """\
Trains a recurrent-depth model by a RECIPE with the sections model, data, training and curriculum. Every key is also a
flag.

The data set is built if its folder does not exist. The same command again resumes a run that was killed, from the
newest complete checkpoint, and ends with the same weights; after a finished run it returns at once. Ctrl-C saves and
stops.
"""

EPILOG = """\
examples:
  memreason train depth_extrapolation --data_path data/multi_hop --output_dir runs/study
  memreason train my_recipe.yaml --learning_rate 3e-4 --max_steps 2000 --output_dir runs/other
  accelerate launch --config_file cpu_2.yaml -m memreason_hf.commands.train my_recipe.yaml --expected_world_size 2

a recipe:
  model:
    style: gpt2                   # or llama; then any field of RecurrentDepthConfig
    hidden_size: 64
    num_recurrent_layers: 1
    num_attention_heads: 4
    position_embedding_type: none
    sliding_window: 3
    input_injection: add
    state_norm: layernorm
    num_recurrences: 12
    recurrence_sampling: uniform  # the recurrences of a training step are drawn at random
    recurrence_min: 8
    recurrence_max: 16
  data:
    path: data/small_world
    num_entities: 20
    num_relations: 4
    train_hops: 2-8
    cap_to_available: true
  training:
    output_dir: runs/small_world
    supervision: prefix           # labels: the entity reached after every relation
    learning_rate: 3e-3
    max_steps: 5000
  curriculum:                     # without this section, training starts with all hop counts
    gate: train
    threshold: 0.98
    eval_steps: 25
"""

SECTIONS = [
    Section(
        "data",
        DataArguments,
        "data",
        flags={"path": "data_path", "seed": "build_seed"},
        shown=(
            "path",
            "eval_split",
            "num_entities",
            "num_relations",
            "train_hops",
            "test_hops",
            "num_train_chains",
            "num_test_chains",
            "cap_to_available",
        ),
    ),
    Section(
        "model",
        ModelArguments,
        "model",
        flags={"style": "model_style", "path": "model_path", "use_cache": "model_use_cache"},
        shown=(
            "style",
            "path",
            "hidden_size",
            "num_prelude_layers",
            "num_recurrent_layers",
            "num_coda_layers",
            "num_attention_heads",
            "position_embedding_type",
            "sliding_window",
            "residual_init_scale",
            "num_recurrences",
            "recurrence_sampling",
            "recurrence_min",
            "recurrence_max",
            "backprop_recurrences",
            "input_injection",
            "state_init",
            "state_norm",
        ),
    ),
    Section(
        "training",
        RecurrentTrainingArguments,
        "training; --help_all also lists transformers' TrainingArguments",
        shown=(
            "output_dir",
            "restart",
            "resume_from_checkpoint",
            "max_steps",
            "num_train_epochs",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "bf16",
            "seed",
            "supervision",
            "recurrence_loss",
            "recurrence_loss_decay",
            "length_pool",
            "logging_steps",
            "eval_strategy",
            "eval_steps",
            "eval_num_recurrences",
            "per_device_eval_batch_size",
            "save_steps",
            "save_total_limit",
            "use_cpu",
            "expected_world_size",
        ),
    ),
    Section("curriculum", CurriculumArguments, "curriculum", prefix="curriculum_"),
]


def make_parser() -> CommandParser:
    return CommandParser(SECTIONS, recipe="required", prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """
    Trains; returns the exit code: 0, or 130 after Ctrl-C. A wrong recipe and a failed training end the program with
    code 2 and one message.
    """
    with user_errors(PROG):
        _, values = make_parser().parse_recipe(argv)
    return train(values, PROG)


def train(values: dict[str, dict], command: str) -> int:
    """
    Trains by the values of a recipe; returns the exit code as `main` does.

    Args:
        values: for each of `SECTIONS`, the fields that are given.
        command: begins the message of an error.
    """
    with user_errors(command, *USER_ERRORS, TrainingError):
        output_folder_of(values)
        args = RecurrentTrainingArguments(**values["training"])
        trainer = prepare_run(args, model=values["model"], data=values["data"], curriculum=values["curriculum"])
    return run_training(trainer, command, _stages_left)


def _stages_left(trainer):
    curriculum = trainer.curriculum
    if curriculum is None or curriculum.passed_at is not None:
        return ""
    left = ", ".join(map(str, curriculum.stages[curriculum.stage_index :]))
    return f"max_steps={trainer.state.max_steps} ended it before these stages were passed: {left}."


if __name__ == "__main__":
    sys.exit(main())
