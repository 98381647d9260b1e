"""`memreason train RECIPE`: trains a recurrent-depth model on chains or text, or resumes a run that was stopped."""

import sys

from memreason_hf.command_line.errors import USER_ERRORS, user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.training_runs import output_folder_of, run_training, say
from memreason_hf.data.text.arguments import TextArguments
from memreason_hf.models.recurrent_models import ModelArguments
from memreason_hf.recipes import load_recipe, recipe_names
from memreason_hf.training import CurriculumArguments, RecurrentTrainingArguments
from memreason_hf.training.chains.recipe import DataArguments, prepare_run
from memreason_hf.training.runs.errors import TrainingError
from memreason_hf.training.text.arguments import TextTrainingArguments
from memreason_hf.training.text.recipe import TextModelArguments, prepare_text_run


PROG = "memreason train"
DESCRIPTION = """\
Trains a recurrent-depth model by a RECIPE with the sections model, data, training and curriculum. Every key is also a
flag. This is the help for chains of relations. For text (data.kind: text) other keys exist: memreason train --kind
text --help.

The data set is built if its folder does not exist. The same command again resumes a run that was killed, from the
newest complete checkpoint, and ends with the same weights, bit for bit with the same number of threads
(OMP_NUM_THREADS); after a finished run it returns at once. Ctrl-C and SIGTERM save and stop.
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

TEXT_DESCRIPTION = """\
Trains a recurrent-depth model on text by a RECIPE with the sections model, data and training, where data.kind is text.
Every key is also a flag.

The texts are local files (txt, jsonl, parquet) or a data set of the Hub, in memory or streamed. They are tokenised and
packed into rows of data.sequence_length tokens. A document sees no other document of its row, and its positions start
at 0. The run ends with the token budget --max_tokens, after --max_steps, or after --num_train_epochs passes. With
held-out texts and --eval_strategy steps the logs have eval_perplexity, at the depth of the model's config.

The model is new, with a tokenizer that is learned from the texts, or comes from model.path. model.train decides what
is trained: all, the loop (its layers and what re-enters them), or LoRA in the loop, which is merged when it is saved.

The same command again resumes a run that was killed, from the newest complete checkpoint, also in the middle of a
stream, and ends with the same weights, bit for bit with the same number of threads (OMP_NUM_THREADS); after a finished
run it returns at once. Ctrl-C and SIGTERM save and stop.
"""

TEXT_EPILOG = """\
examples:
  memreason train text_tiny --files my_texts                # a new small model: minutes on a CPU
  memreason train text_tiny --files 'corpus/**/*.txt' --sample_by paragraph --output_dir runs/other
  memreason train my_recipe.yaml --dataset HuggingFaceFW/fineweb-edu --dataset_config sample-10BT --streaming
  memreason train my_recipe.yaml --model_path models/looped --train lora --learning_rate 1e-4
  memreason train --kind text --model_path models/looped --files my_texts --max_tokens 10000000 --output_dir runs/more
  accelerate launch --config_file cpu_2.yaml -m memreason_hf.commands.train my_recipe.yaml --expected_world_size 2

a recipe:
  data:
    kind: text
    files: corpus/*.jsonl         # or a list; or dataset: owner/name, dataset_config, split
    column: text
    sequence_length: 1024
    too_long: split               # or truncate, or error
    streaming: true
    eval_documents: 200           # held out; or eval_files, eval_split
  model:
    path: models/looped           # or a new one: style, hidden_size, num_recurrent_layers ...
    train: loop                   # or all, or lora
    num_recurrences: 4
    recurrence_sampling: uniform  # the recurrences of a training step are drawn at random
    recurrence_min: 1
    recurrence_max: 8
  training:
    output_dir: runs/text
    max_tokens: 1000000000
    recurrence_growth: 1-sqrt     # the mean depth grows along the run
    keep_weight: 1.0              # holds one recurrence where it was
    per_device_train_batch_size: 16
    learning_rate: 3e-4
    bf16: true
    eval_strategy: steps
    eval_steps: 500
"""

SECTIONS = [
    Section(
        "data",
        DataArguments,
        "data",
        flags={"path": "data_path", "seed": "build_seed"},
        shown=(
            "kind",
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
            "extend",
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
            "exit_prior",
            "exit_prior_stop",
            "exit_prior_weight",
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
_CHAIN_SECTIONS = {section.name: section for section in SECTIONS}
_MODEL, _TRAINING = _CHAIN_SECTIONS["model"], _CHAIN_SECTIONS["training"]
_NOT_FOR_TEXT = ("supervision", "length_pool")

TEXT_SECTIONS = [
    Section("data", TextArguments, "data"),
    Section(
        "model",
        TextModelArguments,
        "model",
        flags=_MODEL.flags,
        shown=("path", "train", "lora_r", "lora_alpha", "lora_targets", "dtype", "vocab_size", *_MODEL.shown),
    ),
    Section(
        "training",
        TextTrainingArguments,
        _TRAINING.title,
        shown=(
            "output_dir",
            "max_tokens",
            *(name for name in _TRAINING.shown if name not in _NOT_FOR_TEXT),
            "recurrence_growth",
            "recurrence_growth_ratio",
            "first_weight",
            "keep_weight",
            "keep_model",
            "consistency_weight",
            "consistency_recurrences",
            "activation_checkpointing",
        ),
    ),
]


def make_parser(kind: str = "chains") -> CommandParser:
    """
    The parser for one kind of data.

    Args:
        kind: "chains" or "text".
    """
    if kind == "text":
        return CommandParser(
            TEXT_SECTIONS, recipe="optional", prog=PROG, description=TEXT_DESCRIPTION, epilog=TEXT_EPILOG
        )
    return CommandParser(SECTIONS, recipe="required", prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def kind_of(argv: list[str]) -> str:
    """
    The kind of data that the flag `--kind` or the recipe names. It decides which keys and flags exist.

    A recipe that cannot be read counts as one on chains: the parser says what is wrong with it.
    """
    for index, argument in enumerate(argv):
        if argument.startswith("--kind"):
            value = argument.partition("=")[2] or next(iter(argv[index + 1 :]), "")
            return value if value == "text" else "chains"
    names = [*recipe_names(), *(argument for argument in argv if argument.endswith((".yaml", ".yml"))), *argv[:1]]
    recipe = next((argument for argument in argv if argument in names and not argument.startswith("-")), None)
    try:
        content = {} if recipe is None else load_recipe(recipe)
    except (OSError, ValueError):
        content = {}
    return "text" if content.get("data", {}).get("kind") == "text" else "chains"


def main(argv: list[str] | None = None) -> int:
    """
    Trains; returns the exit code: 0, 130 after Ctrl-C, or 143 after SIGTERM. A wrong recipe and a failed training end
    the program with code 2 and one message.
    """
    argv = sys.argv[1:] if argv is None else argv
    with user_errors(PROG):
        kind = kind_of(argv)
        _, values = make_parser(kind).parse_recipe(argv)
        values["data"]["kind"] = kind
    return train_text(values, PROG) if kind == "text" else train(values, PROG)


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


def train_text(values: dict[str, dict], command: str) -> int:
    """
    Trains on text by the values of a recipe; returns the exit code as `main` does.

    Args:
        values: for each of `TEXT_SECTIONS`, the fields that are given.
        command: begins the message of an error.
    """
    with user_errors(command, *USER_ERRORS, TrainingError):
        output_folder_of(values)
        args = TextTrainingArguments(**values["training"])
        trainer, report = prepare_text_run(args, model=values["model"], data=values["data"])
        say(trainer, report)
    return run_training(trainer, command, _describe_tokens)


def _describe_tokens(trainer):
    return f"{trainer.state.num_input_tokens_seen:,} tokens were seen. {trainer.describe_stream()}"


def _stages_left(trainer):
    curriculum = trainer.curriculum
    if curriculum is None or curriculum.passed_at is not None:
        return ""
    left = ", ".join(map(str, curriculum.stages[curriculum.stage_index :]))
    return f"max_steps={trainer.state.max_steps} ended it before these stages were passed: {left}."


if __name__ == "__main__":
    sys.exit(main())
