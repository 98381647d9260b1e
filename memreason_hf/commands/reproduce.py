"""
`memreason reproduce NAME`: runs an experiment whose numbers the README gives, from its data to its tables.

    memreason reproduce retrofit
    memreason reproduce memory_reason
"""

import dataclasses
import sys
from pathlib import Path

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.commands import finetune
from memreason_hf.experiments.given_facts import run as given_facts
from memreason_hf.experiments.given_facts.report import report as given_facts_report
from memreason_hf.experiments.retrofit.report import report
from memreason_hf.experiments.retrofit.run import (
    ALL_RESULTS_FILE,
    FIGURE_FILE,
    RetrofitArguments,
    run_retrofit,
)
from memreason_hf.experiments.scheme_comparison import run as comparison
from memreason_hf.experiments.scheme_comparison.report import report as comparison_report
from memreason_hf.recipes import FINETUNE


PROG = "memreason reproduce"
RETROFIT = """\
Trains a small Llama at fixed depth on chains through a world of 12 places and 3 relations, converts it into a model
with a loop, and goes on with both for the same number of tokens, over the same batches. Prints accuracy and
perplexity of the static model and of the loop after 1 to 32 recurrences, and whether three demands hold on every seed:
(a) one recurrence is no worse than the static model, (b) 4 and 8 recurrences are better, (c) four times the best depth
costs at most 1 % of the perplexity and one point of accuracy.

Two seeds run at a time, one thread each. The same command again keeps what is finished.
"""
EPILOG = """\
examples:
  memreason reproduce retrofit
  memreason reproduce retrofit --seeds 3 --output_dir runs/retrofit_seed_3
  memreason reproduce retrofit --seeds 0 --most_recurrences 8 --output_dir runs/without_deep_steps
  memreason reproduce retrofit --seeds 0 --source_steps 20 --further_steps 20 --output_dir runs/glimpse    # a try

OUTPUT_DIR holds a folder for each seed (source, converted, static, looped: models in the library's format; log.txt,
results.json), retrofit.json with all numbers, and retrofit.png.
"""

MEMORY_REASON = """\
Compares the scheme of memory and reason steps (arXiv 2411.13504) with its baselines: the answer alone, plain steps
(plain LoRA with an adapter), words as marks, prefix tokens once or before every step, random tokens, memory first,
plan first, plan alone, and other numbers of tokens. Every scheme is trained with the same recipe on the same
questions, in a process of its own, and solves the same test questions. Prints accuracy with its interval, generated
tokens and steps by kind.

RECIPE is one of memreason finetune, whose output_dir is not used. Without it a new small model is trained on
an artificial world: people who are related, and the coins that each has. The recipes strategyqa_llama2,
truthfulqa_llama31 and commonsenseqa carry the published settings of the 7B and 8B models. --data takes any questions
that memreason finetune takes.

Two schemes are trained at a time, one thread each (one with a GPU): about 10 minutes on 2 CPU cores for the artificial
world. The same command again keeps what is finished.
"""
MEMORY_REASON_EPILOG = """\
examples:
  memreason reproduce memory_reason
  memreason reproduce memory_reason --schemes plain,memory_reason --token_counts "" --max_steps 50    # a try
  memreason reproduce memory_reason --seed 1 --output_dir runs/memory_reason_seed_1
  memreason reproduce memory_reason tiny --data data/memory_reason --output_dir runs/small_strategy_qa
  memreason reproduce memory_reason strategyqa_llama2 --output_dir runs/strategy_qa    # Llama-2-7B
  memreason reproduce memory_reason truthfulqa_llama31 --output_dir runs/truthful_qa   # Llama-3.1-8B

OUTPUT_DIR holds data/ (the artificial world), a folder for each scheme (the model, log.txt, results.json, and
solutions.jsonl with every text), comparison.json with all numbers, the table as table.md and table.tex, and
token_counts.png.
"""

GIVEN_FACTS = """\
Shows which models read their memory steps. Every question has a world of its own, so no weights hold its facts: a
table writes what a memory step recalls, or, for models that answer at once, the facts are in the prompt. Models with
written steps are also trained on a world that they learn. All are trained on 1 to 6 hops and tested on 1 to 12,
after 1 and after 3 recurrences. Prints right answers by hops, and which answers follow from a memory step that names a
false entity.

Two models are trained at a time, one thread each. The same command again keeps what is finished.
"""
GIVEN_FACTS_EPILOG = """\
examples:
  memreason reproduce given_facts
  memreason reproduce given_facts --models steps_fixed,answer_fixed --output_dir runs/given_facts_fixed
  memreason reproduce given_facts --max_steps 20 --num_questions 12 --output_dir runs/glimpse    # a try

OUTPUT_DIR holds a folder for each model (in the library's format; log.txt, results.json), given_facts.json with all
numbers, and given_facts.png.
"""
DEFAULT_RECIPE = "memory_reason_tiny"
# What the comparison decides itself, for every scheme.
_DECIDED = {
    "steps": ("marks", "layout", "ordered", "random_marks"),
    "training": ("output_dir", "restart", "resume_from_checkpoint"),
}


class _ComparisonParser(CommandParser):
    """Takes recipes of `memreason finetune`, except for the folder of their run."""

    def _check_section(self, key, given, path):
        if key == "training":
            given = {name: value for name, value in given.items() if name != "output_dir"}
        return super()._check_section(key, given, path)


def make_parser() -> CommandParser:
    """The flags of `memreason reproduce retrofit`."""
    sections = [Section("retrofit", RetrofitArguments, "experiment")]
    prog = f"{PROG} retrofit"
    return CommandParser(sections, prog=prog, recipe=None, description=RETROFIT, epilog=EPILOG)


def reproduce_retrofit(argv: list[str]) -> None:
    """Runs the experiment and prints its report."""
    (arguments,) = make_parser().parse_sections(argv)
    results = run_retrofit(arguments)
    folder = Path(arguments.output_dir)
    print(report(results))
    print(f"\nThe experiment took {results['seconds']:.0f} s. All numbers are in {folder / ALL_RESULTS_FILE};")
    print(f"the figure is {folder / FIGURE_FILE}.")


def make_comparison_parser() -> CommandParser:
    """The flags of `memreason reproduce memory_reason`: those of the comparison, and of `memreason finetune`."""
    sections = [Section("comparison", comparison.ComparisonArguments, "comparison")]
    for section in finetune.SECTIONS:
        decided = _DECIDED.get(section.name, ())
        shown = None if section.shown is None else tuple(name for name in section.shown if name not in decided)
        flags = {**section.flags, "name": "name"} if section.name == "data" else section.flags
        sections.append(dataclasses.replace(section, left_out=(*section.left_out, *decided), shown=shown, flags=flags))
    return _ComparisonParser(
        sections,
        prog=f"{PROG} memory_reason",
        recipe="optional",
        recipe_prefix=FINETUNE,
        description=MEMORY_REASON,
        epilog=MEMORY_REASON_EPILOG,
    )


def reproduce_memory_reason(argv: list[str]) -> None:
    """Runs the comparison and prints its table."""
    parser = make_comparison_parser()
    recipe, values = parser.parse_recipe(argv)
    if recipe is None:
        _, values = parser.parse_recipe([DEFAULT_RECIPE, *argv])
    arguments = comparison.ComparisonArguments(**values.pop("comparison"))
    results = comparison.run_comparison(arguments, values)
    folder = Path(arguments.output_dir)
    print(comparison_report(results))
    tables = " and ".join(comparison.TABLE_FILES)
    print(f"\nThe comparison took {results['seconds']:.0f} s. Every text is in {folder}/*/solutions.jsonl;")
    print(f"all numbers are in {folder / comparison.ALL_RESULTS_FILE}, and the table is also in {tables} beside it.")


def make_given_facts_parser() -> CommandParser:
    """The flags of `memreason reproduce given_facts`."""
    sections = [Section("given_facts", given_facts.GivenFactsArguments, "experiment")]
    prog = f"{PROG} given_facts"
    return CommandParser(sections, prog=prog, recipe=None, description=GIVEN_FACTS, epilog=GIVEN_FACTS_EPILOG)


def reproduce_given_facts(argv: list[str]) -> None:
    """Runs the experiment and prints its report."""
    (arguments,) = make_given_facts_parser().parse_sections(argv)
    results = given_facts.run_given_facts(arguments)
    folder = Path(arguments.output_dir)
    print(given_facts_report(results))
    print(f"\nThe experiment took {results['seconds']:.0f} s. All numbers are in")
    print(f"{folder / given_facts.ALL_RESULTS_FILE}; the figure is {folder / given_facts.FIGURE_FILE}.")


# By name: what runs the experiment with the rest of the command line, and a line of help.
EXPERIMENTS = {
    "retrofit": (reproduce_retrofit, "A decoder trained at fixed depth gets a loop, and is trained on."),
    "given_facts": (reproduce_given_facts, "Facts that the question's own world gives: are memory steps read?"),
    "memory_reason": (reproduce_memory_reason, "Schemes of memory and reason steps, and their baselines."),
}


def help_text() -> str:
    """The text of `memreason reproduce --help`."""
    width = max(map(len, EXPERIMENTS))
    names = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in EXPERIMENTS.items())
    return f"""\
usage: {PROG} NAME [--flag value ...]

Runs an experiment whose numbers the README gives, from its data to its tables.

experiments:
{names}

{PROG} NAME --help explains the experiment."""


def main(argv: list[str] | None = None) -> int:
    """Runs an experiment; returns the exit code. A wrong name or flag ends the program with code 2 and one message."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    with user_errors(PROG):
        if name not in EXPERIMENTS:
            raise ValueError(f"unknown experiment {name!r}. Choose one of {', '.join(EXPERIMENTS)}.")
        EXPERIMENTS[name][0](rest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
