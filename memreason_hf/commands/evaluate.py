"""
`memreason evaluate`: a model decides its depth; accuracy and recurrences used, by group.

    memreason evaluate runs/quickstart --data runs/quickstart/data --halting_criterion kl_entropy --output_dir results
    accelerate launch -m memreason_hf.commands.evaluate RECIPE.yaml --halting_criterion kl_entropy
"""

import copy
import sys
from dataclasses import dataclass, field, fields, make_dataclass

from memreason_hf.analysis import accuracy_figure
from memreason_hf.evaluation import (
    evaluation_results,
    halting_statistics,
    predict_answers,
    results_table,
    sweep_depth,
)
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA, criterion_parameters

from .errors import user_errors
from .evaluation_inputs import (
    INPUTS,
    OUTPUT,
    ModelParser,
    ResultsFolder,
    all_processes,
    load_config,
    load_inputs,
    print_time,
    trained_range,
)
from .recipe import RecipeSection


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

With --output_dir it writes evaluation.json (its schema: memreason_hf/evaluation/results.py) and, with a baseline,
evaluation.png and evaluation.pdf.
"""


def _criteria_reading(parameter):
    return [name for name, criterion in HALTING_CRITERIA.items() if parameter in {f.name for f in fields(criterion)}]


def _parameter_field(name):
    kind = int if RecurrentDepthConfig.__annotations__[name] is int else float
    help_text = f"Parameter of the criteria {', '.join(_criteria_reading(name))}. Default: the model's."
    return name, kind | None, field(default=None, metadata={"help": help_text})


@dataclass
class _DepthArguments:
    """How deep an answer may go, by the names of the config's fields; what is not given is the config's."""

    halting_criterion: str | None = field(
        default=None,
        metadata={"help": f"Who halts: {', '.join(HALTING_CRITERIA)}, or none. Default: the model's."},
    )
    halting_granularity: str = field(
        default="sequence",
        metadata={"help": "sequence: a row halts when its last token does; token: every token decides for itself."},
    )
    min_recurrences: int | None = field(default=None, metadata={"help": "No row halts before. Default: the model's."})
    max_recurrences: int | None = field(default=None, metadata={"help": "Every row halts here. Default: the model's."})
    num_recurrences: int | None = field(
        default=None, metadata={"help": "The same fixed depth for every row, in place of a criterion."}
    )
    fixed_baseline: bool = field(
        default=False, metadata={"help": "Compare with the best fixed depth of each group, from 1 to max_recurrences."}
    )


# A new criterion brings its flags along.
HaltingArguments = make_dataclass(
    "HaltingArguments", [_parameter_field(name) for name in criterion_parameters()], bases=(_DepthArguments,)
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


def depth_settings(config: RecurrentDepthConfig, halting: "HaltingArguments") -> tuple[dict, dict]:
    """
    What the flags and the config together ask for.

    Returns:
        The `settings` entry of the results (without `batch_size`), and the arguments of `forward`.

    Raises:
        ValueError, StrictDataclassError: what the config refuses by these names; a fixed depth and a criterion.
    """
    names = ("halting_criterion", "halting_granularity", "min_recurrences", "max_recurrences", *criterion_parameters())
    given = {name: getattr(halting, name) for name in names if getattr(halting, name) is not None}
    switched_off = given.get("halting_criterion") == "none"
    if halting.num_recurrences is not None and "halting_criterion" in given and not switched_off:
        raise ValueError(
            f"num_recurrences={halting.num_recurrences} fixes the depth and halting_criterion="
            f"{given['halting_criterion']!r} decides it: give one of them; max_recurrences bounds a criterion."
        )
    asked = copy.deepcopy(config)
    for name, value in given.items():
        setattr(asked, name, None if name == "halting_criterion" and switched_off else value)
    if halting.num_recurrences is not None:
        asked.num_recurrences = halting.num_recurrences
    asked.validate()

    criterion = None if halting.num_recurrences is not None else asked.halting_criterion
    parameters = {}
    if criterion is not None:
        parameters = {entry.name: getattr(asked, entry.name) for entry in fields(HALTING_CRITERIA[criterion])}
    settings = {
        "num_recurrences": asked.num_recurrences if criterion is None else None,
        "halting_criterion": criterion,
        "halting_granularity": asked.halting_granularity,
        "min_recurrences": asked.min_recurrences,
        "max_recurrences": asked.max_recurrences,
        "parameters": parameters,
    }
    if criterion is None:
        return settings, {"num_recurrences": asked.num_recurrences}
    return settings, {**{name: getattr(asked, name) for name in names[:4]}, **parameters}


def describe_depth(settings: dict) -> str:
    """One line on how the depth was decided."""
    if settings["num_recurrences"] is not None:
        return f"fixed at {settings['num_recurrences']} recurrences"
    parameters = ", ".join(f"{name} {value:g}" for name, value in settings["parameters"].items())
    return (
        f"halting by {settings['halting_criterion']} ({parameters}), {settings['min_recurrences']} to "
        f"{settings['max_recurrences']} recurrences"
    )


if __name__ == "__main__":
    sys.exit(main())
