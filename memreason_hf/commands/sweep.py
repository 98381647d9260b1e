"""
`memreason sweep`: accuracy and logit margins after every recurrence, by group, in one pass.

    memreason sweep runs/quickstart --data runs/quickstart/data --max_recurrences 96 --output_dir results
    accelerate launch -m memreason_hf.commands.sweep RECIPE.yaml --max_recurrences 96
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

from memreason_hf.analysis import accuracy_figure, margin_figure
from memreason_hf.checks import check_int
from memreason_hf.command_line.chain_inputs import CHAINS, all_processes, load_chain_inputs, print_time
from memreason_hf.command_line.depth_arguments import DEPTH
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.results_folder import OUTPUT, ResultsFolder
from memreason_hf.evaluation import (
    depth_sweep_results,
    read_results,
    results_table,
    statistics_from_results,
    sweep_depth,
)
from memreason_hf.evaluation.chains.predictions import sorted_groups
from memreason_hf.evaluation.mode import MOST_RECURRENCES


PROG = "memreason sweep"
DESCRIPTION = """\
Runs a model on every row of a data set and reads its answer after each of the recurrences 1..max_recurrences, in one
pass. Prints, by group (hop count), the best accuracy and the recurrence where it is first reached, the mean recurrence
at which the correct answer first ranks first, the share of rows where it ever does, and the accuracy after some
recurrences.
"""
EPILOG = """\
examples:
  memreason sweep runs/quickstart --data runs/quickstart/data --max_recurrences 96 --output_dir results
  memreason sweep runs/quickstart --data data --hops 2-8,16,40 --max_rows_per_group 100
  memreason sweep runs/quickstart --data data --output_dir results --halting_results results/evaluation.json

With --output_dir it writes depth_sweep.json (its schema: memreason_hf/evaluation/chains/results.py) and two figures,
as PNG and PDF: depth_sweep (accuracy) and depth_margins (logit of the right answer minus the best other logit).
"""


@dataclass
class FigureArguments:
    """What is drawn into the figures."""

    halting_results: str | None = field(
        default=None,
        metadata={"help": "An evaluation.json of memreason evaluate over the same groups, to draw where rows halted."},
    )


def make_parser() -> CommandParser:
    # A sweep reads every depth, so of the depth flags it has the deepest one only.
    left_out = tuple(set(DEPTH.hints) - {"max_recurrences"})
    depth = dataclasses.replace(DEPTH, key="sweep", left_out=left_out)
    figures = Section("figures", FigureArguments, "figures", key="sweep")
    sections = [model_section(batch_size=128), CHAINS, depth, figures, OUTPUT]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Sweeps; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG), all_processes():
        model, chains, depth, figure_arguments, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "depth_sweep", ["depth_sweep", "depth_margins"])
        with folder.reserved():
            return _sweep(model, chains, depth, figure_arguments, output, folder)


def _sweep(model, chains, depth, figure_arguments, output, folder):
    model.check()
    chains.check()
    config = model.load_recurrent_config()
    max_recurrences = config.max_recurrences if depth.max_recurrences is None else depth.max_recurrences
    check_int("max_recurrences", max_recurrences, least=1, most=MOST_RECURRENCES)
    halting_path, halting = figure_arguments.halting_results, None
    if halting_path is not None:
        if not Path(halting_path).is_file():
            raise FileNotFoundError(f"halting_results={halting_path!r}: no such file. Pass an evaluation.json.")
        halting = statistics_from_results(read_results(halting_path))
    inputs = load_chain_inputs(model, chains, config, output.trained_hops)
    unknown = sorted_groups(set(halting.by_group if halting else ()) - set(inputs.dataset[chains.group_column]))
    if unknown:
        raise ValueError(
            f"halting_results={halting_path!r} has groups that are not swept: {unknown}. Give results over the same "
            "rows."
        )

    sweep = sweep_depth(**inputs.arguments, max_recurrences=max_recurrences)
    if not inputs.is_main_process:
        return 0
    results = depth_sweep_results(sweep, inputs.header, model.batch_size)
    print(f"{inputs.title}\nafter 1 to {max_recurrences} recurrences; accuracies in percent\n")
    print(results_table(results) + "\n")
    print_time("sweep, all depths in one pass", sweep.seconds, int(sweep.counts.sum()))
    shared = {"halting": halting, **inputs.figure_arguments(inputs.title)}
    folder.write(
        results,
        {"depth_sweep": accuracy_figure(sweep, **shared), "depth_margins": margin_figure(sweep, **shared)},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
