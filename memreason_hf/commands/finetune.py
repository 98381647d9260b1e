"""`memreason finetune RECIPE`: teaches a causal language model to solve questions in memory and reason steps."""

import sys

from memreason_hf.adapters.modes import AdapterArguments
from memreason_hf.command_line.errors import USER_ERRORS, user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.training_runs import output_folder_of, run_training, say
from memreason_hf.data.questions.prompt_arguments import PromptArguments
from memreason_hf.models.new_models import NewModelArguments
from memreason_hf.recipes import FINETUNE
from memreason_hf.steps import StepScheme
from memreason_hf.training.runs.errors import TrainingError
from memreason_hf.training.solutions.recipe import BaseModelArguments, QuestionArguments, prepare_finetuning
from memreason_hf.training.solutions.trainer import FinetuneArguments


PROG = "memreason finetune"
DESCRIPTION = """\
Teaches a causal language model (Llama, Qwen, GPT-2, recurrent-depth ...) to solve annotated questions step by step,
each step marked as memory or reason. RECIPE has the sections data, model, new_model, steps, prompt, adapter and
training. Every key is also a flag.

The tokenizer gets the tokens of the scheme (section steps), and the model gets embedding rows for them. The mode
decides what is trained: all weights (full), low-rank updates (lora), the new rows alone (tokens), both (lora+tokens),
or virtual tokens in front of every text (prompt). memreason merge makes one whole model of an adapter. The loss is on
the solution only. After every epoch the model solves num_test questions, greedily: eval_acc. In the end --output_dir
holds the best epoch, with the tokenizer, its scheme and the prompt, for memreason evaluate-steps or your own code.

The same command again resumes a run that was killed, from the newest complete checkpoint, and ends with the same
weights; after a finished run it returns at once. With --extend and a greater --num_train_epochs or --max_steps it
trains a run on. Ctrl-C and SIGTERM save and stop.
"""
EPILOG = """\
examples:
  memreason finetune tiny --data data/memory_reason              # a new small model: minutes on a CPU
  memreason finetune tiny --data data/memory_reason --architecture recurrent --output_dir runs/tiny_recurrent
  memreason finetune strategyqa_llama2 --output_dir runs/strategy_qa
  memreason finetune tiny --data questions.jsonl --test_fraction 0.2 --columns question=query,answer=target
  memreason finetune my_recipe.yaml --model INSTRUCT_MODEL --chat_template --system "Solve in short steps."
  memreason finetune my_recipe.yaml --mode lora --lora_targets all --learning_rate 1e-4
  memreason finetune my_recipe.yaml --mode lora+tokens --lora_modules q_proj v_proj --use_dora
  memreason finetune my_recipe.yaml --mode prompt --prompt_init_text "Mark each step as memory or reason."
  memreason finetune my_recipe.yaml --packing_length 2048        # several solutions in a row
  memreason finetune tiny --data data/memory_reason --num_train_epochs 4 --extend   # 2 epochs more
  accelerate launch --config_file cpu_2.yaml -m memreason_hf.commands.finetune my_recipe.yaml --expected_world_size 2

a recipe:
  data:
    path: data/memory_reason      # the study's JSON files; or a file, a folder or a Hub dataset of your own
    name: strategy_qa             # which data set of the JSON files
    max_length: 700
    too_long: drop                # leaves longer items out and counts them; answers are never cut off
  model:
    path: Qwen/Qwen2.5-0.5B
  steps:
    num_prefix_tokens: 2
    num_step_tokens: 4
  adapter:
    mode: lora+tokens
    lora_r: 16
    lora_targets: mlp             # or attention, or all
  training:
    output_dir: runs/strategy_qa
    num_train_epochs: 10
    per_device_train_batch_size: 1
    gradient_accumulation_steps: 16
    learning_rate: 2e-4
    warmup_steps: 100
    num_test: 200
"""

SECTIONS = [
    Section(
        "data",
        QuestionArguments,
        "data",
        flags={"path": "data", "name": "data_name", "revision": "data_revision", "eval_path": "eval_data"},
    ),
    Section("model", BaseModelArguments, "model", flags={"path": "model"}),
    Section(
        "new_model",
        NewModelArguments,
        "a new small model instead, with a tokenizer learned from the training texts",
    ),
    Section("steps", StepScheme, "marks of steps"),
    Section("prompt", PromptArguments, "prompts; by default the question alone, as in the study"),
    Section("adapter", AdapterArguments, "what is trained"),
    Section(
        "training",
        FinetuneArguments,
        "training; --help_all also lists transformers' TrainingArguments",
        shown=(
            "output_dir",
            "restart",
            "extend",
            "resume_from_checkpoint",
            "num_train_epochs",
            "max_steps",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "bf16",
            "seed",
            "length_pool",
            "packing_length",
            "num_test",
            "max_new_tokens",
            "per_device_eval_batch_size",
            "eval_strategy",
            "save_strategy",
            "save_total_limit",
            "load_best_model_at_end",
            "logging_steps",
            "recurrence_loss",
            "recurrence_loss_decay",
            "exit_prior",
            "exit_prior_stop",
            "exit_prior_weight",
            "eval_num_recurrences",
            "use_cpu",
            "expected_world_size",
        ),
    ),
]


def make_parser() -> CommandParser:
    return CommandParser(
        SECTIONS, recipe="required", recipe_prefix=FINETUNE, prog=PROG, description=DESCRIPTION, epilog=EPILOG
    )


def main(argv: list[str] | None = None) -> int:
    """
    Trains; returns the exit code: 0, 130 after Ctrl-C, or 143 after SIGTERM. A wrong recipe, bad data and a failed
    training end the program with code 2 and one message.
    """
    with user_errors(PROG, *USER_ERRORS, TrainingError, ImportError):
        _, values = make_parser().parse_recipe(argv)
        output_folder_of(values)
        args = FinetuneArguments(**values.pop("training"))
        trainer, report = prepare_finetuning(args, **values)
        say(trainer, report.describe())
        if trainer.packing is not None:
            say(trainer, trainer.packing.describe())
    return run_training(trainer, PROG, _best)


def _best(trainer):
    state = trainer.state
    if state.best_metric is None:
        return ""
    epoch = state.best_global_step / trainer.steps_per_epoch
    return f"Its eval_acc is {state.best_metric:.1%}, the best, after epoch {epoch:g} (step {state.best_global_step})."


if __name__ == "__main__":
    sys.exit(main())
