"""
`memreason reproduce NAME`: runs an experiment whose numbers the README gives, from its data to its tables.

    memreason reproduce retrofit
    memreason reproduce memory_reason
    memreason reproduce depth_extrapolation
"""

import dataclasses
import sys
from pathlib import Path

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.commands import finetune, train
from memreason_hf.experiments.depth_extrapolation import run as extrapolation
from memreason_hf.experiments.depth_extrapolation.report import report as extrapolation_report
from memreason_hf.experiments.given_facts import run as given_facts
from memreason_hf.experiments.given_facts.report import report as given_facts_report
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
from memreason_hf.locks import locked
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

DEPTH_EXTRAPOLATION = """\
Trains a model on short chains of facts and tests it on long ones, in the world of the depth study (arXiv 2604.07822):
200 entities, 10 relations, 2,000 facts. Then measures, for every test hop count, each fixed depth and where chains
halt by themselves: the deepest hop count that is reached at 60 and at 95 %, and what four times the best depth costs.
Chains of 100 and 1,000 hops are made for the test. Prints the numbers beside those of the study.

RECIPE is one of memreason train; its output_dir and data.path are not used. Without it, depth_extrapolation_small
trains one looped layer on chains of at most 8 hops on a CPU. depth_extrapolation is the study's own recipe at full
size: run it with max_steps of a piece that fits your time, and again with --extend.

The same command again resumes a run that was stopped, and keeps what is measured.
"""
DEPTH_EXTRAPOLATION_EPILOG = """\
examples:
  memreason reproduce depth_extrapolation
  memreason reproduce depth_extrapolation --seed 1 --output_dir runs/extrapolation_1
  memreason reproduce depth_extrapolation --max_steps 50 --deep_hops "" --output_dir runs/glimpse    # a try
  memreason reproduce depth_extrapolation quickstart --output_dir runs/small_world         # 20 entities, 1,000 hops
  memreason reproduce depth_extrapolation depth_extrapolation --curriculum_last_stage 12 --output_dir runs/study

OUTPUT_DIR holds data/, model/, extrapolation.json with all numbers, and extrapolation.png.
"""
DEFAULT_EXTRAPOLATION = "depth_extrapolation_small"
# What an experiment decides itself, by section of the recipe.
_DECIDED = {
    "steps": ("marks", "layout", "ordered", "random_marks"),
    "training": ("output_dir", "restart", "resume_from_checkpoint"),
}
_DECIDED_EXTRAPOLATION = {"training": ("output_dir",), "data": ("path", "kind")}


class _RecipeParser(CommandParser):
    """
    Takes recipes of another command, which also say where that command writes and reads; here this is passed over.

    Args:
        sections: of the other command.
        decided: the fields that an experiment decides itself, by section.
        unread: keys of a recipe that are passed over, by section.
    """

    def __init__(self, own: Section, sections: list[Section], *, decided: dict, unread: dict, **kwargs):
        self._unread = unread
        super().__init__(
            [own, *(_without(section, decided.get(section.name, ())) for section in sections)],
            recipe="optional",
            **kwargs,
        )

    def parse_or_default(self, argv: list[str], default: str) -> dict[str, dict]:
        """The values by section of the recipe and the flags, or of the recipe `default` where none is named."""
        recipe, values = self.parse_recipe(argv)
        return values if recipe is not None else self.parse_recipe([default, *argv])[1]

    def _check_section(self, key, given, path):
        unread = self._unread.get(key, ())
        return super()._check_section(key, {name: v for name, v in given.items() if name not in unread}, path)


def _without(section, names):
    """A section without some of its flags."""
    shown = None if section.shown is None else tuple(name for name in section.shown if name not in names)
    return dataclasses.replace(section, left_out=(*section.left_out, *names), shown=shown)


def make_parser() -> CommandParser:
    """The flags of `memreason reproduce retrofit`."""
    sections = [Section("retrofit", RetrofitArguments, "experiment")]
    prog = f"{PROG} retrofit"
    return CommandParser(sections, prog=prog, recipe=None, description=RETROFIT, epilog=EPILOG)


def reproduce_retrofit(argv: list[str]) -> int:
    """Runs the experiment and prints its report; returns the exit code."""
    (arguments,) = make_parser().parse_sections(argv)
    results = run_retrofit(arguments)
    folder = Path(arguments.output_dir)
    print(report(results))
    print(f"\nThe experiment took {results['seconds']:.0f} s. All numbers are in {folder / ALL_RESULTS_FILE};")
    print(f"the figure is {folder / FIGURE_FILE}.")
    return 0


def make_comparison_parser() -> CommandParser:
    """The flags of `memreason reproduce memory_reason`: those of the comparison, and of `memreason finetune`."""
    # `name` is free here: the flag that names the data set.
    sections = [
        dataclasses.replace(section, flags={**section.flags, "name": "name"}) if section.name == "data" else section
        for section in finetune.SECTIONS
    ]
    return _RecipeParser(
        Section("comparison", comparison.ComparisonArguments, "comparison"),
        sections,
        decided=_DECIDED,
        unread={"training": ("output_dir",)},
        prog=f"{PROG} memory_reason",
        recipe_prefix=FINETUNE,
        description=MEMORY_REASON,
        epilog=MEMORY_REASON_EPILOG,
    )


def reproduce_memory_reason(argv: list[str]) -> int:
    """Runs the comparison and prints its table; returns the exit code."""
    values = make_comparison_parser().parse_or_default(argv, DEFAULT_RECIPE)
    arguments = comparison.ComparisonArguments(**values.pop("comparison"))
    results = comparison.run_comparison(arguments, values)
    folder = Path(arguments.output_dir)
    print(comparison_report(results))
    tables = " and ".join(comparison.TABLE_FILES)
    print(f"\nThe comparison took {results['seconds']:.0f} s. Every text is in {folder}/*/solutions.jsonl;")
    print(f"all numbers are in {folder / comparison.ALL_RESULTS_FILE}, and the table is also in {tables} beside it.")
    return 0


def make_extrapolation_parser() -> CommandParser:
    """The flags of `memreason reproduce depth_extrapolation`: its own, and those of `memreason train`."""
    return _RecipeParser(
        Section("extrapolation", extrapolation.ExtrapolationArguments, "experiment"),
        train.SECTIONS,
        decided=_DECIDED_EXTRAPOLATION,
        unread=_DECIDED_EXTRAPOLATION,
        prog=f"{PROG} depth_extrapolation",
        description=DEPTH_EXTRAPOLATION,
        epilog=DEPTH_EXTRAPOLATION_EPILOG,
    )


def reproduce_depth_extrapolation(argv: list[str]) -> int:
    """Trains, measures and prints the tables; returns the exit code, 130 after Ctrl-C in training."""
    values = make_extrapolation_parser().parse_or_default(argv, DEFAULT_EXTRAPOLATION)
    arguments = extrapolation.ExtrapolationArguments(**values.pop("extrapolation"))
    arguments.check(values)
    folder = Path(arguments.output_dir)
    values["training"]["output_dir"] = str(folder / extrapolation.MODEL_FOLDER)
    values["data"]["path"] = str(folder / extrapolation.DATA_FOLDER)
    code = train.train(values, f"{PROG} depth_extrapolation")
    if code:
        return code
    with locked(folder, inside=True):
        results = extrapolation.run_evaluation(arguments, values)
    print(f"\n{extrapolation_report(results)}")
    print(f"\nAll numbers are in {folder / extrapolation.ALL_RESULTS_FILE};")
    print(f"the figure is {folder / extrapolation.FIGURE_FILE}.")
    return 0


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


def reproduce_halting(argv: list[str]) -> int:
    """Runs the experiment and prints its tables; returns the exit code."""
    (arguments,) = make_halting_parser().parse_sections(argv)
    results = halting_rules.run_halting_rules(arguments)
    folder = Path(arguments.output_dir)
    print("\n" + halting_rules_report(results))
    print(f"\nThe experiment took {results['seconds']:.0f} s. All numbers are in", end=" ")
    print(f"{folder / halting_rules.ALL_RESULTS_FILE}; the figure is {folder / halting_rules.FIGURE_FILE}.")
    return 0


def make_given_facts_parser() -> CommandParser:
    """The flags of `memreason reproduce given_facts`."""
    sections = [Section("given_facts", given_facts.GivenFactsArguments, "experiment")]
    prog = f"{PROG} given_facts"
    return CommandParser(sections, prog=prog, recipe=None, description=GIVEN_FACTS, epilog=GIVEN_FACTS_EPILOG)


def reproduce_given_facts(argv: list[str]) -> int:
    """Runs the experiment and prints its report; returns the exit code."""
    (arguments,) = make_given_facts_parser().parse_sections(argv)
    results = given_facts.run_given_facts(arguments)
    folder = Path(arguments.output_dir)
    print(given_facts_report(results))
    print(f"\nThe experiment took {results['seconds']:.0f} s. All numbers are in")
    print(f"{folder / given_facts.ALL_RESULTS_FILE}; the figure is {folder / given_facts.FIGURE_FILE}.")
    return 0


# By name: what runs the experiment with the rest of the command line, and a line of help.
EXPERIMENTS = {
    "retrofit": (reproduce_retrofit, "A decoder trained at fixed depth gets a loop, and is trained on."),
    "depth_extrapolation": (reproduce_depth_extrapolation, "Trained on short chains of facts, tested on long ones."),
    "halting": (reproduce_halting, "Criteria, learned gates and calibrated thresholds that decide when to stop."),
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
        return EXPERIMENTS[name][0](rest)


if __name__ == "__main__":
    sys.exit(main())
