"""`memreason train RECIPE`: trains a recurrent-depth model, or goes on with a run that was stopped."""

import sys
from pathlib import Path

from memreason_hf.training import CurriculumArguments, RecurrentTrainingArguments
from memreason_hf.training.checkpoints import checkpoint_step, list_checkpoints
from memreason_hf.training.errors import TrainingError
from memreason_hf.training.runs import DataArguments, ModelArguments, prepare_run

from .errors import USER_ERRORS, user_errors
from .recipe import RecipeParser, RecipeSection


INTERRUPTED = 130

DESCRIPTION = """\
Trains a recurrent-depth model by a RECIPE: a YAML file with the sections model, data, training and curriculum, or the
name of one that comes with the package. Every key is also a flag, which wins over the recipe.

The data set is built if its folder is not there. The same command again resumes a run that was killed, from the newest
complete checkpoint, and ends with the same weights; of a finished run it returns at once. Ctrl-C saves and stops.
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
    position_embedding_type: "none"
    sliding_window: 3
    input_injection: add
    state_norm: layernorm
    num_recurrences: 12
    recurrence_sampling: uniform  # how many recurrences a step takes is drawn anew for each
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
  curriculum:                     # leave the section out to train on all hop counts from the start
    gate: train
    threshold: 0.98
    eval_steps: 25
"""

SECTIONS = [
    RecipeSection(
        "data",
        DataArguments,
        "data (section data)",
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
    RecipeSection(
        "model",
        ModelArguments,
        "model (section model)",
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
    RecipeSection(
        "training",
        RecurrentTrainingArguments,
        "training (section training; all of transformers' TrainingArguments with --help_all)",
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
    RecipeSection("curriculum", CurriculumArguments, "curriculum (section curriculum)", prefix="curriculum_"),
]


def make_parser() -> RecipeParser:
    return RecipeParser(SECTIONS, prog="memreason train", description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """
    Trains; returns the exit code: 0, or 130 after Ctrl-C. A wrong recipe and a failed training end the program with
    code 2 and one message.
    """
    with user_errors("memreason train", *USER_ERRORS, TrainingError):
        _, values = make_parser().parse_recipe(argv)
        if "output_dir" not in values["training"]:
            raise ValueError("training.output_dir is not given: where to save, --output_dir FOLDER.")
        args = RecurrentTrainingArguments(**values["training"])
        trainer = prepare_run(args, model=values["model"], data=values["data"], curriculum=values["curriculum"])
    resume = args.resume_from_checkpoint
    if resume is None and not args.restart and list_checkpoints(args.output_dir):
        resume = True
    with user_errors("memreason train", TrainingError):
        trainer.train(resume)
    if not trainer.interrupted:
        trainer.save_model()
        trainer.save_state()
    _say(trainer, _summary(trainer))
    trainer.end()
    return INTERRUPTED if trainer.interrupted else 0


def _summary(trainer):
    steps, curriculum = trainer.state.global_step, trainer.curriculum
    if trainer.interrupted:
        saved = f"saved {trainer.last_checkpoint}" if trainer.last_checkpoint else "nothing was saved"
        return f"Stopped after step {steps}; {saved}. The same command again goes on from there."
    already = trainer.resumed_from is not None and checkpoint_step(trainer.resumed_from) == steps
    lines = [
        f"{'The run was finished already, after' if already else 'Trained for'} {steps} steps.",
        f"The model is in {Path(trainer.args.output_dir)}.",
    ]
    if curriculum is not None and curriculum.passed_at is None:
        left = ", ".join(map(str, curriculum.stages[curriculum.stage_index :]))
        lines.append(f"max_steps={trainer.state.max_steps} ended it before these stages were passed: {left}.")
    return " ".join(lines)


def _say(trainer, message):
    if trainer.is_world_process_zero():
        print(message, flush=True)


if __name__ == "__main__":
    sys.exit(main())
