"""
`memreason lm-eval`: the scores of lm-eval's tasks after several numbers of recurrences, in one table.

    memreason lm-eval runs/text --tasks arc_easy gsm8k --num_recurrences 1 2 4 8
"""

import dataclasses
import sys
import time
from dataclasses import dataclass, field

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.results_folder import OUTPUT, ResultsFolder
from memreason_hf.evaluation import describe_environment
from memreason_hf.evaluation.text.results import describe_text_model
from memreason_hf.evaluation.text.task_scores import (
    check_lm_eval,
    scores_by_recurrence,
    task_score_results,
    task_score_table,
)


PROG = "memreason lm-eval"
DESCRIPTION = """\
Runs tasks of EleutherAI's lm-eval (pip install lm-eval) on a recurrent-depth model, once for each depth, and prints
one table: a line for each metric, a column for each number of recurrences.
"""
EPILOG = """\
examples:
  memreason lm-eval runs/text --tasks arc_easy hellaswag --num_recurrences 1 2 4 8 --output_dir results
  memreason lm-eval runs/text --tasks gsm8k --num_recurrences 4 --limit 100

lm-eval's own command takes a depth, too, one at a time:
  lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True,num_recurrences=8 --tasks arc_easy
With --output_dir it writes task_scores.json (its schema: memreason_hf/evaluation/text/task_scores.py).
"""


@dataclass
class TaskFlags:
    """The tasks and the depths."""

    tasks: list[str] = field(metadata={"help": "Names of lm-eval's tasks and groups; `lm_eval ls tasks` lists them."})
    num_recurrences: list[int] = field(metadata={"help": "The depths, each of a pass of its own."})
    num_fewshot: int | None = field(
        default=None, metadata={"help": "Examples in the prompt. Default: what the task says."}
    )
    limit: int | None = field(default=None, metadata={"help": "The most questions of a task. Default: all."})


def make_parser() -> CommandParser:
    sections = [
        model_section(batch_size=8),
        Section("tasks", TaskFlags, "tasks", key="inputs"),
        dataclasses.replace(OUTPUT, left_out=("trained_hops",)),
    ]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Evaluates; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        model, tasks, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "task_scores", [])
        with folder.reserved():
            return _evaluate(model, tasks, output, folder)


def _evaluate(model, tasks, output, folder):
    model.check()
    try:
        check_lm_eval()
    except ImportError as error:
        raise ValueError(str(error)) from None
    config = model.load_recurrent_config()
    tokenizer, network = model.load_tokenizer(config), model.load_model()
    started = time.perf_counter()
    scores = scores_by_recurrence(
        network,
        tokenizer,
        tasks.tasks,
        tasks.num_recurrences,
        batch_size=model.batch_size,
        num_fewshot=tasks.num_fewshot,
        limit=tasks.limit,
    )
    results = task_score_results(
        scores,
        model=describe_text_model(network, model.model),
        environment=describe_environment(next(network.parameters()).device),
        settings={
            "num_recurrences": tasks.num_recurrences,
            "num_fewshot": tasks.num_fewshot,
            "limit": tasks.limit,
            "batch_size": model.batch_size,
        },
        seconds=time.perf_counter() - started,
    )
    print(f"{model.short_name}\n\n{task_score_table(results)}\n")
    folder.write(results, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
