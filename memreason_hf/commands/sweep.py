"""
`memreason sweep`: accuracy and logit margins after every recurrence, by group, in one pass.

    memreason sweep runs/quickstart --data runs/quickstart/data --max_recurrences 96 --output_dir results
    accelerate launch -m memreason_hf.commands.sweep RECIPE.yaml --max_recurrences 96
"""

import sys
from dataclasses import dataclass, field

from memreason_hf.analysis import accuracy_figure, margin_figure
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.evaluation_inputs import (
    INPUTS,
    OUTPUT,
    ResultsFolder,
    all_processes,
    load_config,
    load_inputs,
    print_time,
    trained_range,
)
from memreason_hf.command_line.model_parser import ModelParser
from memreason_hf.command_line.recipe_parser import RecipeSection
from memreason_hf.evaluation import (
    depth_sweep_results,
    read_results,
    results_table,
    statistics_from_results,
    sweep_depth,
)
from memreason_hf.evaluation.chains.predictions import sorted_groups


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

With --output_dir it writes depth_sweep.json (its schema: memreason_hf/evaluation/chains/results.py) and two
pictures, as PNG and PDF: depth_sweep (accuracy) and depth_margins (the logit of the right answer minus the best other
one).
"""


@dataclass
class SweepArguments:
    """How deep the sweep goes, and what is drawn into it."""

    max_recurrences: int | None = field(
        default=None, metadata={"help": "The last recurrence to read. Default: the max_recurrences of the model."}
    )
    halting_results: str | None = field(
        default=None, metadata={"help": "An evaluation.json of the same groups: its halting points are drawn in."}
    )


SWEEP = RecipeSection("sweep", SweepArguments, "depth (section sweep of a recipe)")


def make_parser() -> ModelParser:
    return ModelParser([INPUTS, SWEEP, OUTPUT], prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    with user_errors(PROG), all_processes():
        return _sweep(*make_parser().parse_sections(argv))


def _sweep(inputs, arguments, output):
    folder = ResultsFolder(output, "depth_sweep", ["depth_sweep", "depth_margins"])
    config = load_config(inputs)
    max_recurrences = config.max_recurrences if arguments.max_recurrences is None else arguments.max_recurrences
    if max_recurrences < 1:
        raise ValueError(f"max_recurrences={max_recurrences} must be at least 1.")
    halting = None
    if arguments.halting_results is not None:
        halting = statistics_from_results(read_results(arguments.halting_results))
    loaded = load_inputs(inputs, config, trained_range(output, inputs))
    unknown = sorted_groups(set(halting.by_group if halting else ()) - set(loaded.dataset[inputs.group_column]))
    if unknown:
        raise ValueError(
            f"halting_results={arguments.halting_results!r} has groups that are not swept: {unknown}. Take results "
            "over the same rows."
        )

    sweep = sweep_depth(**loaded.arguments, max_recurrences=max_recurrences)
    if not loaded.is_main_process:
        return 0
    results = depth_sweep_results(sweep, loaded.header, inputs.batch_size)
    print(f"{loaded.title}\nafter 1 to {max_recurrences} recurrences; accuracies in percent\n")
    print(results_table(results) + "\n")
    print_time("sweep, all depths in one pass", sweep.seconds, int(sweep.counts.sum()))
    figure_arguments = {"halting": halting, **loaded.figure_arguments(loaded.title)}
    folder.write(
        results,
        {
            "depth_sweep": accuracy_figure(sweep, **figure_arguments),
            "depth_margins": margin_figure(sweep, **figure_arguments),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
