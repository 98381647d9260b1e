"""
`memreason reproduce NAME`: runs an experiment whose numbers the README gives, from its data to its tables.

    memreason reproduce retrofit
"""

import sys
from pathlib import Path

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.experiments.retrofit.report import report
from memreason_hf.experiments.retrofit.run import (
    ALL_RESULTS_FILE,
    FIGURE_FILE,
    RetrofitArguments,
    run_retrofit,
)


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


# By name: what runs the experiment with the rest of the command line, and a line of help.
EXPERIMENTS = {
    "retrofit": (reproduce_retrofit, "A decoder trained at fixed depth gets a loop, and is trained on."),
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
