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
from memreason_hf.experiments.halting_rules import run as halting_rules
from memreason_hf.experiments.halting_rules.report import report as halting_rules_report
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


HALTING = """\
Trains three small models on the quickstart's world: with a loss at every recurrence, and with an exit gate that learns
jointly, held close to a uniform prior (Ouro, arXiv 2510.25741) or to a geometric one (PonderNet, 2107.05407). Then
lets every rule decide when to stop: the criteria of the package, the gates, gates that are fitted to the frozen model
afterwards (to settled answers, to improvement, to the expected loss; after joint training, fitting to improvement is
the second stage of Ouro), and an oracle, which stops at the first right answer.

Prints, for each rule, recurrences and accuracy with a threshold that is calibrated on other chains, and how often a
promise is kept in repeated calibrations, beside thresholds without a guarantee. One picture shows accuracy against
mean recurrences. Takes about 13 CPU minutes; two models are trained at a time. The same command again keeps what is
finished.
"""
HALTING_EPILOG = """\
examples:
  memreason reproduce halting
  memreason reproduce halting --seed 1 --output_dir runs/halting_seed_1
  memreason reproduce halting --models plain --risk 0.01 --output_dir runs/halting_plain
  memreason reproduce halting --max_steps 30 --repetitions 5 --output_dir runs/glimpse    # a try

OUTPUT_DIR holds data/, a folder for each model (the model, log.txt, results.json), halting_rules.json with all
numbers, and halting_rules.png.
"""


def make_halting_parser() -> CommandParser:
    """The flags of `memreason reproduce halting`."""
    sections = [Section("halting", halting_rules.HaltingRulesArguments, "experiment")]
    return CommandParser(sections, prog=f"{PROG} halting", recipe=None, description=HALTING, epilog=HALTING_EPILOG)


def reproduce_halting(argv: list[str]) -> None:
    """Runs the experiment and prints its tables."""
    (arguments,) = make_halting_parser().parse_sections(argv)
    results = halting_rules.run_halting_rules(arguments)
    folder = Path(arguments.output_dir)
    print("\n" + halting_rules_report(results))
    print(f"\nThe experiment took {results['seconds']:.0f} s. All numbers are in", end=" ")
    print(f"{folder / halting_rules.ALL_RESULTS_FILE}; the figure is {folder / halting_rules.FIGURE_FILE}.")


# By name: what runs the experiment with the rest of the command line, and a line of help.
EXPERIMENTS = {
    "retrofit": (reproduce_retrofit, "A decoder trained at fixed depth gets a loop, and is trained on."),
    "halting": (reproduce_halting, "Criteria, learned gates and calibrated thresholds that decide when to stop."),
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
