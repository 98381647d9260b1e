"""
`memreason sweep`: accuracy and logit margins after every recurrence, by group, in one pass.

    memreason sweep runs/quickstart --data runs/quickstart/data --max_recurrences 96 --output_dir results
    memreason sweep runs/a --data data --other_models runs/b runs/c --max_recurrences 50 --output_dir results
    accelerate launch -m memreason_hf.commands.sweep RECIPE.yaml --max_recurrences 96
"""

import dataclasses
import os
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

from memreason_hf.analysis import accuracy_figure, margin_figure
from memreason_hf.analysis.depth_comparison import comparison_figure, comparison_table, depth_comparison
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
from memreason_hf.messages import first_few, visible


PROG = "memreason sweep"
DESCRIPTION = """\
Runs a model on every row of a data set and reads its answer after each of the recurrences 1..max_recurrences, in one
pass. Prints, by group (hop count), the best accuracy and the recurrence where it is first reached, the mean recurrence
at which the correct answer first ranks first, the share of rows where it ever does, and the accuracy after some
recurrences.

With --other_models or --compare several models stand side by side: the mean logit margin of the right answer after
each recurrence and the mean first recurrence at which it ranks first, over the same rows. Each model reads the rows
with its own tokenizer.
"""
EPILOG = """\
examples:
  memreason sweep runs/quickstart --data runs/quickstart/data --max_recurrences 96 --output_dir results
  memreason sweep runs/quickstart --data data --hops 2-8,16,40 --max_rows_per_group 100
  memreason sweep runs/quickstart --data data --output_dir results --halting_results results/evaluation.json
  memreason sweep runs/a --data data --other_models runs/b runs/c --max_recurrences 50 --output_dir results
  memreason sweep runs/a --data data --max_recurrences 50 --compare results/b/depth_sweep.json

With --output_dir it writes depth_sweep.json (its schema: memreason_hf/evaluation/chains/results.py) and two figures,
as PNG and PDF: depth_sweep (accuracy) and depth_margins (logit of the right answer minus the best other logit).
Several models are written to depth_comparison.json (memreason_hf/analysis/depth_comparison.py) and a figure of this
name, too; depth_sweep.json is about MODEL.
"""


@dataclass
class FigureArguments:
    """What is drawn into the figures."""

    halting_results: str | None = field(
        default=None,
        metadata={"help": "An evaluation.json of memreason evaluate over the same groups, to draw where rows halted."},
    )


@dataclass
class OtherModels:
    """Models to compare with."""

    other_models: list[str] | None = field(
        default=None,
        metadata={
            "help": "Folders or names on the Hub of other models, which are swept over the same rows. --dtype, "
            "--device and --trust_remote_code count for all of them."
        },
    )
    compare: list[str] | None = field(
        default=None, metadata={"help": "depth_sweep.json files of other models over the same rows."}
    )


def make_parser() -> CommandParser:
    # A sweep reads every depth, so of the depth flags it has the deepest one only.
    left_out = tuple(set(DEPTH.hints) - {"max_recurrences"})
    depth = dataclasses.replace(DEPTH, key="sweep", left_out=left_out)
    figures = Section("figures", FigureArguments, "figures", key="sweep")
    others = Section("others", OtherModels, "other models", key="sweep")
    sections = [model_section(batch_size=128), CHAINS, depth, figures, others, OUTPUT]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Sweeps; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG), all_processes():
        model, chains, depth, figure_arguments, others, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "depth_sweep", ["depth_sweep", "depth_margins"])
        with ExitStack() as stack:
            stack.enter_context(folder.reserved())
            compared = None
            if others.other_models or others.compare:
                compared = ResultsFolder(output, "depth_comparison", ["depth_comparison"])
                stack.enter_context(compared.reserved())
            return _sweep(model, chains, depth, figure_arguments, others, output, folder, compared)


def _sweep(model, chains, depth, figure_arguments, others, output, folder, compared):
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

    compared_with = _open_others(model, others, inputs, chains)
    sweep = sweep_depth(**inputs.arguments, max_recurrences=max_recurrences)
    results = depth_sweep_results(sweep, inputs.header, model.batch_size)
    sweeps = {model.short_name: results}
    for label, other in compared_with.items():
        sweeps[label] = other if isinstance(other, dict) else _sweep_other(other, chains, max_recurrences)
    if not inputs.is_main_process:
        return 0
    print(f"{inputs.title}\nafter 1 to {max_recurrences} recurrences; accuracies in percent\n")
    print(results_table(results) + "\n")
    print_time("sweep, all depths in one pass", sweep.seconds, int(sweep.counts.sum()))
    shared = {"halting": halting, **inputs.figure_arguments(inputs.title)}
    if compared is not None:
        _show_comparison(sweeps, compared)
    folder.write(
        results,
        {"depth_sweep": accuracy_figure(sweep, **shared), "depth_margins": margin_figure(sweep, **shared)},
    )
    return 0


def _open_others(model, others, inputs, chains):
    """By label, what is compared with MODEL: the flags of a model that is still to be swept, or results."""
    found, taken = {}, {os.path.realpath(model.model)}
    for flag in ("other_models", "compare"):
        for name in getattr(others, flag) or ():
            if os.path.realpath(name) in taken:
                raise ValueError(f"{flag}: {name!r} is compared twice. Name every model once.")
            taken.add(os.path.realpath(name))
    for name in others.other_models or ():
        # These flags belong to MODEL alone.
        other = dataclasses.replace(model, model=name, revision=None, tokenizer=None, base=None)
        try:
            other.load_recurrent_config()
        except (ValueError, OSError) as error:
            raise ValueError(f"other_models={name!r} cannot be read: {error}") from error
        found[_label([name], [model.short_name, *found])] = other
    for path in others.compare or ():
        results = _read_sweep(path, inputs, chains)
        places = [results["model"]["name_or_path"], Path(path).parent, path]
        found[_label(places, [model.short_name, *found])] = results
    return found


def _label(places, taken):
    """The end of the first path or name that no other model has; otherwise the last one with a number."""
    labels = [visible("/".join(Path(place).parts[-2:])) for place in places]
    numbered = (f"{labels[-1]} ({number})" for number in count(2))
    return next(label for label in chain(labels, numbered) if label not in taken)


def _show_comparison(sweeps, folder):
    comparison = depth_comparison(sweeps)
    print(f"\n{len(sweeps)} models over the same rows\n\n{comparison_table(comparison)}\n")
    data = comparison["data"]
    title = f"{len(sweeps)} models on {data['num_rows']} rows of the {data['split']} split"
    if folder.results_path is not None:
        folder.write(comparison, {"depth_comparison": comparison_figure(comparison, title=title)})


def _sweep_other(model, chains, max_recurrences):
    inputs = load_chain_inputs(model, chains, model.load_recurrent_config(), None)
    sweep = sweep_depth(**inputs.arguments, max_recurrences=max_recurrences)
    return depth_sweep_results(sweep, inputs.header, model.batch_size)


def _read_sweep(path, inputs, chains):
    if not Path(path).is_file():
        raise FileNotFoundError(f"compare={path!r}: no such file. Pass a depth_sweep.json of this command.")
    results = read_results(path)
    if results["kind"] != "depth_sweep":
        raise ValueError(
            f"compare={path!r} holds results of kind {results['kind']!r}, but must be of kind 'depth_sweep'."
        )
    counts = Counter(inputs.dataset[chains.group_column])
    other = {group["group"]: group["count"] for group in results["groups"]}
    if other != counts:
        differing = sorted_groups(group for group in {*counts, *other} if counts.get(group) != other.get(group))
        raise ValueError(
            f"compare={path!r} is over other rows: it differs in the groups {first_few(differing)}. Sweep the same "
            "rows, with the same --split, --kind, --hops and --max_rows_per_group."
        )
    return results


if __name__ == "__main__":
    sys.exit(main())
