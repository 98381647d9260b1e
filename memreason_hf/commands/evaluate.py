"""
`memreason evaluate`: a model decides its depth; accuracy and recurrences used, by group.

    memreason evaluate runs/quickstart --data runs/quickstart/data --halting_criterion kl_entropy --output_dir results
    accelerate launch -m memreason_hf.commands.evaluate RECIPE.yaml --halting_criterion kl_entropy
"""

import sys
from dataclasses import dataclass, field

from memreason_hf.analysis import accuracy_figure
from memreason_hf.command_line.depth_arguments import DepthArguments, depth_settings, describe_depth
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
    evaluation_results,
    halting_statistics,
    predict_answers,
    results_table,
    sweep_depth,
)


PROG = "memreason evaluate"
DESCRIPTION = """\
Runs a model on every row of a data set and lets it decide how many recurrences each answer takes. Prints, by group
(hop count), how often it was right and the mean, median, standard deviation, minimum and maximum of the recurrences.

A halting criterion looks at the model after each recurrence and stops a row when it holds, not before min_recurrences
and at the latest at max_recurrences. Without --halting_criterion the model's own config decides; --num_recurrences
asks for a fixed depth. --fixed_baseline also reads the accuracy after every fixed number of recurrences, compares with
the best one of each group, and draws where the rows stopped.
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
class HaltingArguments(DepthArguments):
    """`DepthArguments` of an evaluation."""

    halting_granularity: str = field(
        default="sequence",
        metadata={"help": "sequence: a row halts when its last token does; token: every token decides for itself."},
    )
    fixed_baseline: bool = field(
        default=False, metadata={"help": "Compare with the best fixed depth of each group, from 1 to max_recurrences."}
    )


HALTING = RecipeSection("halting", HaltingArguments, "depth (section halting of a recipe)")


def make_parser() -> ModelParser:
    return ModelParser([INPUTS, HALTING, OUTPUT], prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    with user_errors(PROG), all_processes():
        return _evaluate(*make_parser().parse_sections(argv))


def _evaluate(inputs, halting, output):
    folder = ResultsFolder(output, "evaluation", ["evaluation"] if halting.fixed_baseline else [])
    config = load_config(inputs)
    settings, forward_arguments = depth_settings(config, halting)
    loaded = load_inputs(inputs, config, trained_range(output, inputs))

    predictions = predict_answers(**loaded.arguments, **forward_arguments)
    statistics = halting_statistics(predictions)
    baseline = None
    if halting.fixed_baseline:
        deepest = settings["num_recurrences"] or settings["max_recurrences"]
        baseline = sweep_depth(**loaded.arguments, max_recurrences=deepest)
    if not loaded.is_main_process:
        return 0

    settings["batch_size"] = inputs.batch_size
    results = evaluation_results(statistics, loaded.header, settings, predictions.seconds, baseline)
    print(f"{loaded.title}\n{describe_depth(settings)}; accuracies in percent\n\n{results_table(results)}\n")
    print_time("evaluation", predictions.seconds, len(predictions))
    figures = {}
    if baseline is not None:
        print_time("baseline, all depths in one pass", baseline.seconds, len(predictions))
        figures["evaluation"] = accuracy_figure(
            baseline, halting=statistics, **loaded.figure_arguments(f"{loaded.title},\n{describe_depth(settings)}")
        )
    folder.write(results, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
