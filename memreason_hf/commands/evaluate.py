"""
`memreason evaluate`: a model decides its depth; accuracy and recurrences used, by group.

    memreason evaluate runs/quickstart --data runs/quickstart/data --halting_criterion kl_entropy --output_dir results
    accelerate launch -m memreason_hf.commands.evaluate RECIPE.yaml --halting_criterion kl_entropy
"""

import dataclasses
import sys
from dataclasses import dataclass, field

from memreason_hf.analysis import accuracy_figure
from memreason_hf.command_line.chain_inputs import CHAINS, all_processes, load_chain_inputs, print_time
from memreason_hf.command_line.depth_arguments import DEPTH, depth_settings, describe_depth
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.results_folder import OUTPUT, ResultsFolder
from memreason_hf.evaluation import (
    evaluation_results,
    halting_statistics,
    predict_answers,
    results_table,
    sweep_depth,
)


PROG = "memreason evaluate"
DESCRIPTION = """\
Runs a model on every row of a data set and lets it decide how many recurrences each answer takes. Prints, by group
(hop count), the accuracy and the mean, median, standard deviation, minimum and maximum of the recurrences.

A halting criterion looks at the model after every recurrence. A row halts when the criterion holds, from
min_recurrences on, and at max_recurrences at the latest. Without --halting_criterion, the model's config decides;
--num_recurrences fixes the depth instead. --fixed_baseline also reads the accuracy after every fixed number of
recurrences, compares with the best one of each group, and draws where the rows halted.
"""
EPILOG = """\
examples:
  memreason evaluate runs/quickstart --data runs/quickstart/data --halting_criterion kl_entropy --max_recurrences 96
  memreason evaluate runs/quickstart --data data --halting_criterion confidence --confidence_threshold 0.95
  memreason evaluate runs/quickstart --data data --num_recurrences 16 --hops 2-8,16,40
  memreason evaluate runs/quickstart --data data --fixed_baseline --output_dir results

With --output_dir it writes evaluation.json (its schema: memreason_hf/evaluation/chains/results.py) and, with a
baseline, evaluation.png and evaluation.pdf.
"""


@dataclass
class BaselineArguments:
    """What the halting is compared with."""

    fixed_baseline: bool = field(
        default=False,
        metadata={"help": "Compare with the best fixed depth of each group, from 1 to max_recurrences recurrences."},
    )


def make_parser() -> CommandParser:
    depth = dataclasses.replace(DEPTH, defaults={"halting_granularity": "sequence"})
    baseline = Section("baseline", BaselineArguments, "baseline", key="halting")
    sections = [model_section(batch_size=128), CHAINS, depth, baseline, OUTPUT]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Evaluates; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG), all_processes():
        model, chains, depth, baseline_arguments, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "evaluation", ["evaluation"] if baseline_arguments.fixed_baseline else [])
        with folder.reserved():
            return _evaluate(model, chains, depth, baseline_arguments, output, folder)


def _evaluate(model, chains, depth, baseline_arguments, output, folder):
    model.check()
    chains.check()
    config = model.load_recurrent_config()
    settings, forward_arguments = depth_settings(config, depth)
    inputs = load_chain_inputs(model, chains, config, output.trained_hops)

    predictions = predict_answers(**inputs.arguments, **forward_arguments)
    statistics = halting_statistics(predictions)
    baseline = None
    if baseline_arguments.fixed_baseline:
        deepest = settings["num_recurrences"] or settings["max_recurrences"]
        baseline = sweep_depth(**inputs.arguments, max_recurrences=deepest)
    if not inputs.is_main_process:
        return 0

    settings["batch_size"] = model.batch_size
    results = evaluation_results(statistics, inputs.header, settings, predictions.seconds, baseline)
    print(f"{inputs.title}\n{describe_depth(settings)}; accuracies in percent\n\n{results_table(results)}\n")
    print_time("evaluation", predictions.seconds, len(predictions))
    figures = {}
    if baseline is not None:
        print_time("baseline, all depths in one pass", baseline.seconds, len(predictions))
        figures["evaluation"] = accuracy_figure(
            baseline, halting=statistics, **inputs.figure_arguments(f"{inputs.title},\n{describe_depth(settings)}")
        )
    folder.write(results, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
