"""
`memreason calibrate`: a halting threshold with a guarantee, chosen on held-out data.

    memreason calibrate runs/quickstart --data runs/quickstart/data --risk 0.005 --confidence 0.95
"""

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memreason_hf.adapters.base_files import block_digests, weight_files
from memreason_hf.analysis.calibration_figures import calibration_figure
from memreason_hf.checks import check_choice, check_int, check_number
from memreason_hf.command_line.calibration_inputs import CALIBRATION_DATA, DepthChoice, load_rows
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.command_line.results_folder import OUTPUT, ResultsFolder
from memreason_hf.evaluation import describe_environment
from memreason_hf.evaluation.text.results import describe_text_model
from memreason_hf.files import portable_path
from memreason_hf.halting.calibration import METHODS, Promise, calibrate
from memreason_hf.halting.candidates import candidate_thresholds
from memreason_hf.halting.repetitions import MOST_REPETITIONS, repeat_calibration
from memreason_hf.halting.results import calibration_results, calibration_table, describe_promise
from memreason_hf.halting.runs import SOLUTION_LOSSES, TEXT_LOSSES
from memreason_hf.halting.saving import calibrate_in_place, check_apart, check_calibratable, save_calibrated
from memreason_hf.halting.signals import LOSSES
from memreason_hf.hub.cards import write_card
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


PROG = "memreason calibrate"
DESCRIPTION = """\
Chooses the threshold of a halting criterion so that a promise holds: against a fixed depth, at most --risk is lost,
with a probability of at least --confidence over the held-out rows that the threshold is chosen on. Of the thresholds
for which the rows show this, it takes the one with the fewest recurrences.

What is lost: of chains and solutions, answers that are right at the fixed depth and wrong when halted (--loss
accuracy), which is at least the difference of the accuracies; of text, the rise of the mean cross-entropy of a
document in nats (--loss perplexity: 0.005 is a perplexity half a percent higher). --loss agreement counts every
difference.

The promise holds for new rows that are drawn like the held-out ones, and for the weights, the precision and the depths
it was made for; it says nothing about other data.
"""
EPILOG = """\
examples:
  memreason calibrate runs/quickstart --data runs/quickstart/data --risk 0.005 --confidence 0.95
  memreason calibrate runs/quickstart --data data --risk 0.01 --halting_criterion kl margin --repetitions 200
  memreason calibrate runs/quickstart --data data --risk 0.05 --by_group --save_to runs/calibrated
  memreason calibrate runs/text --data heldout.jsonl --risk 0.01 --max_recurrences 16 --output_dir results
  memreason calibrate runs/solver --data data/strategy_qa --risk 0.02 --in_place

methods, after Learn then Test (arXiv 2110.01052), conformal risk control (2208.02814) and CALM (2207.07061):
  fixed_sequence   tests thresholds from cautious to daring, up to the first that fails; the number of them is free
  holm             tests each, in any order, at a level that their number divides; needs more rows
  conformal        promises the mean over draws of the rows, without a confidence; needs fewer rows

Chains run once at full depth, whatever the number of thresholds (once more for criteria on states, and for a gate).
Texts and solutions run once for each threshold, up to the first that fails. With --output_dir it writes
calibration.json (its schema: memreason_hf/halting/results.py) and the picture calibration, as PNG and PDF: loss
against mean recurrences.
"""


@dataclass
class PromiseFlags:
    """What is promised."""

    risk: float = field(metadata={"help": "Largest mean loss: a share of rows, or nats for perplexity. Above 0."})
    confidence: float | None = field(
        default=None,
        metadata={"help": "Probability with which the promise holds. Default: 0.95; none with --method conformal."},
    )
    method: Literal["fixed_sequence", "holm", "conformal"] = field(
        default="fixed_sequence", metadata={"help": "How thresholds are tested.", "choices": list(METHODS)}
    )
    loss: Literal["accuracy", "agreement", "perplexity"] | None = field(
        default=None, metadata={"help": "What a row can lose. Default: accuracy, or perplexity for text."}
    )
    largest_loss: float = field(
        default=1.0,
        metadata={"help": "perplexity: nats that a document loses at most; a larger loss counts as this."},
    )
    against: Literal["deepest", "best"] = field(
        default="deepest",
        metadata={
            "help": "The fixed depth to compare with, at which halting ends at the latest: max_recurrences, or the "
            "best one, which a fifth of the rows chooses."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of that fifth, and of --repetitions."})


@dataclass
class HaltingFlags:
    """What is calibrated."""

    halting_criterion: list[str] | None = field(
        default=None,
        metadata={
            "help": f"One or more of {', '.join(HALTING_CRITERIA)}. Several share the error. Default: the config's."
        },
    )
    halting_granularity: str | None = field(
        default=None,
        metadata={"help": "sequence or token. Default: sequence for chains, otherwise the config's."},
    )
    min_recurrences: int | None = field(
        default=None, metadata={"help": "First recurrence at which a row or token may halt. Default: the config's."}
    )
    max_recurrences: int | None = field(
        default=None, metadata={"help": "The deepest recurrence. Default: max_recurrences of the config."}
    )
    entropy_threshold: float | None = field(
        default=None,
        metadata={"help": "kl_entropy: its other threshold, which stays as it is. Default: the config's."},
    )
    num_candidates: int = field(default=100, metadata={"help": "Thresholds of each criterion to try."})
    repetitions: int = field(
        default=0,
        metadata={
            "help": "chains: repeat the calibration on so many draws from the rows, and show how often the promise "
            "and a threshold without a guarantee are kept."
        },
    )


@dataclass
class SavingFlags:
    """Where the threshold goes."""

    in_place: bool = field(
        default=False, metadata={"help": "Write the threshold into the model's own config.json, and its card."}
    )
    save_to: str | None = field(
        default=None, metadata={"help": "Folder for a copy of the model with the threshold in its config."}
    )


def make_parser() -> CommandParser:
    sections = [
        model_section(batch_size=32),
        CALIBRATION_DATA,
        Section("promise", PromiseFlags, "promise"),
        Section("halting", HaltingFlags, "halting"),
        Section("saving", SavingFlags, "model with the threshold", key="output"),
        dataclasses.replace(OUTPUT, left_out=("trained_hops",)),
    ]
    return CommandParser(sections, model=True, prog=PROG, description=DESCRIPTION, epilog=EPILOG)


def main(argv: list[str] | None = None) -> int:
    """Calibrates; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG):
        model, data, promise, halting, saving, output = make_parser().parse_sections(argv)
        folder = ResultsFolder(output, "calibration", ["calibration"])
        with folder.reserved():
            return _calibrate(model, data, promise, halting, saving, output, folder)


def _calibrate(model, data, flags, halting, saving, output, folder):
    model.check()
    task = data.resolve_task()
    loss, promise = _promise(flags, task)
    source = _check_saving(model, saving, output)
    depth, thresholds = _depth(model.load_recurrent_config(), task, flags, halting)
    started = time.perf_counter()
    rows = load_rows(task, model, data, depth, promise, thresholds, loss=loss, largest_loss=flags.largest_loss)
    calibration = calibrate(
        rows.measure,
        thresholds,
        promise,
        num_rows=rows.num_rows,
        groups=rows.groups,
        group_names=rows.group_names,
        tries_all=task == "chains",
    )
    repetitions = None
    if halting.repetitions:
        repetitions = repeat_calibration(
            rows.signals,
            thresholds,
            promise,
            num_rows=rows.num_rows,
            repetitions=halting.repetitions,
            seed=flags.seed,
            loss=loss,
            min_recurrences=depth.min_recurrences,
        )
    results = calibration_results(
        calibration,
        **_descriptions(model, data, flags, task, depth, thresholds, rows, promise, loss),
        first_right=_first_right(rows.signals),
        repetitions=repetitions,
        seconds=time.perf_counter() - started,
    )
    title = f"{model.short_name} on {rows.num_rows} rows"
    print(f"{title}\n\n{calibration_table(results)}\n")
    folder.write(results, {"calibration": calibration_figure(results, title=title)})
    return _finish(results, source, saving, output)


def _first_right(signals):
    """When answers of chains are first right; `None` without chains."""
    if not signals:
        return None
    one = next(iter(signals.values()))
    return one.first_correct, one.lasting_correct


def _promise(flags, task):
    known = {"chains": LOSSES, "text": TEXT_LOSSES, "solutions": SOLUTION_LOSSES}[task]
    loss = known[0] if flags.loss is None else flags.loss
    if loss not in known:
        raise ValueError(f"loss={loss!r} is not for {task}: it must be one of {', '.join(known)}.")
    if flags.method == "conformal" and flags.confidence is not None:
        raise ValueError(
            f"confidence={flags.confidence:g}: method='conformal' promises the mean and has no confidence. Leave it "
            "out, or choose fixed_sequence or holm."
        )
    check_number("largest_loss", flags.largest_loss, above=0)
    if loss != "perplexity" and flags.largest_loss != 1:
        raise ValueError(f"largest_loss={flags.largest_loss:g} is for the loss 'perplexity', not {loss!r}.")
    check_number("risk", flags.risk)
    if flags.risk >= flags.largest_loss:
        raise ValueError(
            f"risk={flags.risk:g} must be below the largest loss, {flags.largest_loss:g}: it would promise nothing."
        )
    confidence = 0.95 if flags.confidence is None else flags.confidence
    return loss, Promise(flags.risk / flags.largest_loss, confidence, flags.method)


def _check_saving(model, saving, output):
    """The model's own folder, where the threshold is written somewhere."""
    if saving.in_place and saving.save_to is not None:
        raise ValueError(f"in_place=True and save_to={saving.save_to!r}: pass one of them.")
    if not saving.in_place and saving.save_to is None:
        return None
    source = check_calibratable(model.model, "in_place" if saving.in_place else "save_to")
    if saving.save_to is not None:
        check_apart(source, saving.save_to, overwrite=output.overwrite)
    return source


def _depth(config, task, flags, halting):
    """The depth of the calibration, and the thresholds to try by criterion."""
    criteria = halting.halting_criterion or ([config.halting_criterion] if config.halting_criterion else [])
    if not criteria:
        raise ValueError(
            f"The model's config has no halting_criterion. Pass --halting_criterion, one or more of "
            f"{', '.join(HALTING_CRITERIA)}."
        )
    for criterion in criteria:
        check_choice("halting_criterion", criterion, HALTING_CRITERIA)
        if criterion == "exit_gate" and not config.exit_gate:
            raise ValueError(
                "halting_criterion='exit_gate' reads a learned gate, which this model does not have. Choose another."
            )
    if halting.entropy_threshold is not None:
        check_number("entropy_threshold", halting.entropy_threshold, above=0)
        if "kl_entropy" not in criteria:
            raise ValueError(
                f"entropy_threshold={halting.entropy_threshold:g} is the fixed threshold of kl_entropy, which is not "
                f"among halting_criterion={criteria}. Leave it out."
            )
    check_int("repetitions", halting.repetitions, least=0, most=MOST_REPETITIONS, reason="each is a calibration")
    if halting.repetitions and task != "chains":
        raise ValueError(
            f"repetitions={halting.repetitions} is for chains, which run once; {task} would run for each of them."
        )
    deepest = config.max_recurrences if halting.max_recurrences is None else halting.max_recurrences
    least = config.min_recurrences if halting.min_recurrences is None else halting.min_recurrences
    check_int("max_recurrences", deepest, least=1)
    check_int("min_recurrences", least, least=1)
    if least > deepest:
        raise ValueError(f"min_recurrences={least} is above max_recurrences={deepest}.")
    granularity = halting.halting_granularity or ("sequence" if task == "chains" else config.halting_granularity)
    check_choice("halting_granularity", granularity, ("sequence", "token"))
    thresholds = {name: candidate_thresholds(name, deepest, halting.num_candidates) for name in criteria}
    depth = DepthChoice(deepest, least, granularity, flags.against, halting.entropy_threshold, flags.seed)
    return depth, thresholds


def _descriptions(model, data, flags, task, depth, thresholds, rows, promise, loss):
    """The entries of the results that the calibration itself does not know."""
    files = weight_files(model.model, model.revision)
    files = files or {path.name: path for path in Path(model.model).glob("adapter_model.*")}
    parameters = {}
    if "kl_entropy" in thresholds:
        parameters["entropy_threshold"] = float(rows.model.config.entropy_threshold)
    return {
        "model": describe_text_model(rows.model, model.model),
        "environment": describe_environment(next(rows.model.parameters()).device),
        "data": {
            "task": task,
            "paths": [portable_path(path) for path in data.data],
            "split": None if task == "text" else data.split,
            "num_rows": rows.num_rows,
        },
        "promise": {
            "risk": float(flags.risk),
            "unit": "nats" if loss == "perplexity" else "share",
            "loss": loss,
            "largest_loss": float(flags.largest_loss),
            "method": promise.method,
            "confidence": None if promise.method == "conformal" else float(promise.confidence),
            "by_group": data.by_group,
        },
        "reference": {
            "kind": flags.against,
            "num_recurrences": rows.reference,
            "accuracy": rows.accuracy,
            "nats": rows.nats,
        },
        "settings": {
            "halting_granularity": depth.granularity,
            "min_recurrences": depth.min_recurrences,
            "max_recurrences": rows.reference,
            "parameters": parameters,
            "seed": flags.seed,
            "weights": {name: digests["blocks"] for name, digests in block_digests(files).items()},
        },
    }


def _finish(results, source, saving, output):
    """Says what was found, and writes it into a config."""
    chosen, repeated = results["chosen"], results["repetitions"]
    if chosen is None:
        first = results["candidates"][0]
        raise ValueError(
            f"No threshold keeps risk={results['promise']['risk']:g}: even {first['criterion']} "
            f"{first['threshold']:g} loses {first['loss']:.4g} on {results['data']['num_rows']} rows. Try another "
            "criterion, a larger risk, more rows or a larger --min_recurrences."
        )
    parameter = HALTING_CRITERIA[chosen["criterion"]].threshold
    taken = "" if chosen["recurrences"] is None else f", {chosen['recurrences']:.2f} recurrences in the mean"
    if results["first_correct"] is not None and results["lasting_correct"] is not None:
        taken += (
            f"; answers are first right after {results['first_correct']:.2f}, and stay right from "
            f"{results['lasting_correct']:.2f} on"
        )
    print(f"Chosen: {chosen['criterion']} with {parameter} {chosen['threshold']:.6g}{taken}.")
    print(describe_promise(results))
    if repeated is not None:
        print(
            f"In {repeated['repetitions']} repetitions on draws of {repeated['num_rows']} rows, the promise was kept "
            f"in {100 * repeated['kept']:.1f} % (largest loss {repeated['largest_loss']:.4f}); without a guarantee in "
            f"{100 * repeated['naive_kept']:.1f} % (largest loss {repeated['naive_largest_loss']:.4f})."
        )
    if saving.in_place:
        calibrate_in_place(source, results)
        write_card(source)
        print(f"Wrote the threshold into {source / 'config.json'}.")
    elif saving.save_to is not None:
        save_calibrated(source, Path(saving.save_to), results, overwrite=output.overwrite, finish=write_card)
        print(f"Wrote a copy of the model with the threshold to {saving.save_to}.")
    else:
        print("--in_place or --save_to DIR writes the threshold into a config.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
