"""
`memreason evaluate-steps`: a model solves annotated questions; accuracy, steps by kind, where solutions go wrong.

    memreason evaluate-steps runs/strategy_qa --data data/strategy_qa --output_file runs/strategy_qa/generations.jsonl
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import evaluate
from transformers import HfArgumentParser

from memreason_hf.adapters.base import weights_digest
from memreason_hf.adapters.model import rows_in_place
from memreason_hf.adapters.saving import is_adapter_folder, load_adapter
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.flags import flag_parser, parse_flags
from memreason_hf.data.questions.demonstrations import Demonstrations
from memreason_hf.data.questions.memory_reason import NAMES, load_memory_reason, reference_solution
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.evaluation.solutions.generation_files import SETTINGS_SUFFIX, SUMMARY_SUFFIX
from memreason_hf.evaluation.solutions.judges import JUDGES
from memreason_hf.files import check_places, write_json
from memreason_hf.metrics import metric_path
from memreason_hf.models.loading import choose_device, load_any_config, load_model, load_tokenizer
from memreason_hf.models.pretrained import torch_dtype
from memreason_hf.steps import KINDS
from memreason_hf.steps.depth import NO_KIND_YET, DepthByKind, mean_recurrences_by_kind, read_depths
from memreason_hf.steps.tokenization import read_scheme
from modeling_recurrent import RecurrentDepthConfig


PROG = "memreason evaluate-steps"
DESCRIPTION = """\
Lets a model solve the questions of a data set, greedily, step by step, and judges the answers. Prints accuracy with a
bootstrap interval over questions, invalid answers, texts that were cut off, the steps by kind beside those of the
references, and the kind of the step at which solutions first depart from the reference.

The prompt is the question and the prefix tokens of the scheme that is saved with the tokenizer. Every text goes to
--output_file, a JSON line each, as soon as its batch is done; the same command again goes on where it was stopped.
"""
EPILOG = """\
examples:
  memreason evaluate-steps runs/strategy_qa --data data/strategy_qa --output_file runs/strategy_qa/test.jsonl
  memreason evaluate-steps MODEL --data FOLDER_WITH_JSON --name truthful_qa --num_items 100
  memreason evaluate-steps MODEL --data data/gsm8k --num_demonstrations 4 --max_new_tokens 300
  memreason evaluate-steps RECURRENT_MODEL --data data/strategy_qa --depth_by_kind memory=2,reason=16

--output_file X writes X (the schema: memreason_hf/evaluation/solutions/generation.py), X.settings.json (what the texts
depend on) and X.summary.json (the figures that are printed).
"""
METRICS = ("answer_accuracy", "step_distribution", "step_attribution")


@dataclass
class EvaluateStepsArguments:
    model: str | None = field(
        default=None,
        metadata={"help": "Folder or name on the Hub, or an adapter's folder; also as the first argument."},
    )
    data: str | None = field(
        default=None,
        metadata={"help": "Folder of data_scripts/build_memory_reason.py; or, with --name, the source that it reads."},
    )
    name: str | None = field(default=None, metadata={"help": f"The data set in a source: {', '.join(NAMES)}."})
    split: str = field(default="test", metadata={"help": "Split of the data set."})
    num_items: int | None = field(default=None, metadata={"help": "Only the first so many items."})
    output_file: str | None = field(
        default=None, metadata={"help": "JSON lines with every text. Default: only the figures are printed."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Start the output file anew."})
    batch_size: int = field(default=16, metadata={"help": "Texts generated together. Changes the speed only."})
    max_new_tokens: int = field(default=512, metadata={"help": "The most tokens of a solution."})
    num_demonstrations: int = field(default=0, metadata={"help": "Solved training questions before each question."})
    seed: int = field(default=0, metadata={"help": "Decides which demonstrations, and resamples the questions."})
    match_option_text: bool = field(
        default=False, metadata={"help": "Also take the text of an option for its letter."}
    )
    judge: str = field(
        default="overlap",
        metadata={"help": f"Who compares steps with the references: {', '.join(JUDGES)}.", "choices": list(JUDGES)},
    )
    num_recurrences: int | None = field(
        default=None, metadata={"help": "Recurrent-depth models: a fixed depth. Default: the model's."}
    )
    max_recurrences: int | None = field(default=None, metadata={"help": "Recurrent-depth models: the deepest."})
    halting_criterion: str | None = field(
        default=None, metadata={"help": "Recurrent-depth models: what decides who halts."}
    )
    depth_by_kind: str | None = field(
        default=None,
        metadata={
            "help": "Recurrent-depth models: recurrences while a step of a kind is written, for example "
            "memory=2,reason=16; where a criterion halts, at most so many. Other tokens: num_recurrences or "
            "max_recurrences."
        },
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Folder with the extended tokenizer, where it is not beside the model."}
    )
    base: str | None = field(
        default=None, metadata={"help": "An adapter's base model, where it is not the one that the adapter names."}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the weights; auto: as saved, an adapter's base as in training."}
    )
    device: str | None = field(
        default=None, metadata={"help": "For example cpu or cuda:1. Default: cuda if there is."}
    )
    no_progress: bool = field(default=False, metadata={"help": "Show no progress bar."})


def make_parser() -> HfArgumentParser:
    usage = "%(prog)s MODEL --data FOLDER [--flag value ...]"
    return flag_parser(EvaluateStepsArguments, prog=PROG, usage=usage, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Evaluates; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        return _evaluate(_parse(list(sys.argv[1:] if argv is None else argv)))


def _parse(argv):
    if argv and not argv[0].startswith("-"):
        argv = ["--model", *argv]
    arguments = parse_flags(make_parser(), argv)
    for name in ("model", "data"):
        if getattr(arguments, name) is None:
            raise ValueError(f"{name} is not given: {PROG} MODEL --data FOLDER.")
    return arguments


def _evaluate(arguments):
    files = _output_files(arguments)
    dataset = load_memory_reason(arguments.data, arguments.name)
    rows = _rows(dataset, arguments.split, arguments.num_items)
    demonstrations = _demonstrations(dataset, arguments)
    model, tokenizer, depth = _load_model(arguments)
    scheme = read_scheme(tokenizer)

    started = time.perf_counter()
    with rows_in_place(model):
        generations = generate_solutions(
            model,
            tokenizer,
            rows,
            batch_size=arguments.batch_size,
            max_new_tokens=arguments.max_new_tokens,
            demonstrations=demonstrations,
            match_option_text=arguments.match_option_text,
            path=files[0] if files else None,
            settings=_settings(arguments, scheme, depth, model) if files else None,
            overwrite=arguments.overwrite,
            progress=not arguments.no_progress,
            **_generate_arguments(model, tokenizer, depth),
        )
    seconds = time.perf_counter() - started
    results = _measure(generations, rows, scheme, arguments)
    taken = [generation.recurrences for generation in generations if generation.recurrences is not None]
    if taken:
        results["mean_recurrences_by_kind"] = mean_recurrences_by_kind(taken)
    print(_report(results, generations, arguments, seconds))
    if files:
        summary = {key: value for key, value in results.items() if key != "attributions"}
        write_json(files[2], summary, ensure_ascii=False)
        print(f"texts: {files[0]}")
    return 0


def _output_files(arguments):
    if arguments.output_file is None:
        return []
    path = Path(arguments.output_file)
    # One that is there is gone on with.
    check_places([path], overwrite=True)
    return [path, *(path.with_name(path.name + suffix) for suffix in (SETTINGS_SUFFIX, SUMMARY_SUFFIX))]


def _rows(dataset, split, num_items):
    if split not in dataset:
        raise ValueError(f"split={split!r} is not in the data; there are {', '.join(dataset)}.")
    rows = dataset[split]
    if num_items is not None:
        if num_items < 1:
            raise ValueError(f"num_items={num_items} must be at least 1.")
        rows = rows.select(range(min(num_items, len(rows))))
    return list(rows)


def _demonstrations(dataset, arguments):
    if not arguments.num_demonstrations:
        return None
    if "train" not in dataset:
        raise ValueError(
            f"num_demonstrations={arguments.num_demonstrations} are drawn from the split 'train': not there."
        )
    return Demonstrations(dataset["train"], arguments.num_demonstrations, seed=arguments.seed)


def _load_model(arguments):
    """The model on its device, its tokenizer, and what `generate` is told about its depth."""
    depth = {
        name: getattr(arguments, name)
        for name in ("num_recurrences", "max_recurrences", "halting_criterion", "depth_by_kind")
        if getattr(arguments, name) is not None
    }
    is_adapter = is_adapter_folder(arguments.model)
    if is_adapter:
        _check_adapter_flags(arguments)
    config = load_any_config(arguments.model, arguments.base)
    if depth and not isinstance(config, RecurrentDepthConfig):
        raise ValueError(
            f"{', '.join(depth)}: model={arguments.model!r} is a {config.model_type!r} model, without recurrences."
        )
    if "depth_by_kind" in depth:
        depth["depth_by_kind"] = read_depths(depth["depth_by_kind"])
    device = choose_device(arguments.device)
    if is_adapter:
        # Not merged into its base, which would round it.
        model, tokenizer = load_adapter(arguments.model, base=arguments.base, dtype=torch_dtype(arguments.dtype))
    else:
        tokenizer = load_tokenizer(arguments.model, arguments.tokenizer, config)
        read_scheme(tokenizer)
        model = load_model(arguments.model, arguments.dtype)
    return model.to(device), tokenizer, depth


def _check_adapter_flags(arguments):
    if arguments.tokenizer is not None:
        raise ValueError(
            f"tokenizer={arguments.tokenizer!r}: model={arguments.model!r} is an adapter, which has its tokenizer "
            "beside it. Leave --tokenizer out."
        )


def _generate_arguments(model, tokenizer, depth):
    """The arguments of `generate` for what was asked of depth."""
    if "depth_by_kind" not in depth:
        return depth
    asked, fixed = depth.get("halting_criterion"), depth.get("num_recurrences")
    criterion = asked or (model.config.halting_criterion if fixed is None else None)
    if criterion in (None, "none"):
        criterion, name = "none", "num_recurrences"
    else:
        name = "max_recurrences"
    other = "max_recurrences" if name == "num_recurrences" else "num_recurrences"
    if other in depth:
        rule = "no criterion halts" if criterion == "none" else f"{criterion} halts"
        raise ValueError(f"{other}={depth[other]}: with depth_by_kind, where {rule}, other tokens go by {name}.")
    otherwise = depth.get(name, getattr(model.config, name))
    schedule = DepthByKind(tokenizer, depth["depth_by_kind"], otherwise)
    return {"depth_schedule": schedule, "halting_criterion": criterion}


def _settings(arguments, scheme, depth, model):
    """What the texts depend on beside the questions."""
    names = ("model", "tokenizer", "data", "name", "split", "max_new_tokens", "num_demonstrations", "dtype")
    values = {name: getattr(arguments, name) for name in names}
    if arguments.num_demonstrations:
        values["seed"] = arguments.seed
    if arguments.base is not None:
        values["base"] = arguments.base
    # A folder can hold another model than before: of a run that was begun anew, or went on.
    values["weights"] = weights_digest(model)
    return {**values, "match_option_text": arguments.match_option_text, "scheme": scheme.to_dict(), **depth}


def _measure(generations, rows, scheme, arguments):
    metrics = evaluate.combine([evaluate.load(metric_path(name), keep_in_memory=True) for name in METRICS])
    return metrics.compute(
        predictions=[generation.text for generation in generations],
        references=[scheme.render(reference_solution(row)) for row in rows],
        questions=[row["question"] for row in rows],
        options=[row["options"] for row in rows],
        match_option_text=arguments.match_option_text,
        scheme=scheme,
        judge=arguments.judge,
        seed=arguments.seed,
    )


def _report(results, generations, arguments, seconds):
    low, high = results["accuracy_interval"]
    num_tokens = sum(generation.num_tokens for generation in generations)
    num_cut = sum(generation.is_cut for generation in generations)
    title = f"{arguments.model} on {arguments.data}, {arguments.split}"
    lines = [
        f"{title}: {results['num_items']:,} items, {results['num_questions']:,} questions",
        f"accuracy {results['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})",
        f"no valid answer {results['num_invalid_answers']:,}; several options {results['num_several_answers']:,}",
        f"cut off before their end {num_cut:,} (at most {arguments.max_new_tokens} tokens, or the model's context); "
        f"inside a step's tokens {results['num_truncated']:,}",
        "",
        f"{'steps':<28}" + "".join(f"{kind:>9}" for kind in KINDS),
    ]
    for title, key in (
        ("generated", "steps_by_kind"),
        ("reference", "reference_steps_by_kind"),
        (f"first departures ({arguments.judge})", "departures_by_kind"),
    ):
        lines.append(f"{title:<28}" + "".join(f"{results[key][kind]:>9,}" for kind in KINDS))
    if means := results.get("mean_recurrences_by_kind"):
        shown = "".join(f"{means[kind]:>9.2f}" if kind in means else f"{'-':>9}" for kind in KINDS)
        lines.append(f"{'mean recurrences of a token':<28}{shown}")
        if NO_KIND_YET in means:
            lines.append(f"before the kind of a step is told {means[NO_KIND_YET]:.2f}")
    lines += [
        f"no departure {results['num_without_departure']:,}; undecided {results['num_undecided']:,}; "
        f"no reference steps {results['num_without_reference']:,}",
        "",
        f"{seconds:.1f} s; {num_tokens:,} tokens in all, those of an earlier run included",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
