"""
`memreason fit-gate`: fits an exit gate to a frozen model.

    memreason fit-gate runs/quickstart runs/gated --data runs/quickstart/data
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memreason_hf.checks import check_int, check_number
from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.gate_inputs import GATE_DATA, load_gate_inputs
from memreason_hf.command_line.model_flags import model_section
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.evaluation import describe_environment, write_results
from memreason_hf.evaluation.text.results import describe_text_model
from memreason_hf.files import check_folder, portable_path, whole_folder
from memreason_hf.halting.gate_results import describe_gate, gate_results
from memreason_hf.halting.gates import OBJECTIVES, fit_gate, install_gate, read_gate_rows
from memreason_hf.halting.saving import CALIBRATION_KEY
from memreason_hf.hub.cards import write_card
from memreason_hf.models.exit_gates import EXIT_PRIORS


PROG = "memreason fit-gate"
DESCRIPTION = """\
Fits an exit gate to a model and writes a copy of the model that has it. The gate is a linear layer on the normed
state, which gives the probability of leaving the loop after each recurrence. It reads the states of one pass over the
data at full depth, and the fit does not depend on chance. No other weight changes, so every other halting criterion
does the same as before.

The criterion exit_gate halts where the probability of having left reaches exit_gate_threshold. memreason calibrate
chooses that threshold, on other data. A gate can also be trained together with its model: memreason train
--exit_gate true --recurrence_loss exit_gate.
"""
EPILOG = """\
examples:
  memreason fit-gate runs/quickstart runs/gated --data runs/quickstart/data
  memreason fit-gate runs/quickstart runs/gated --data data --objective improvement --num_recurrences 32
  memreason fit-gate runs/text runs/gated --data corpus.jsonl --objective expected_loss --exit_prior geometric
  memreason calibrate runs/gated --data runs/quickstart/data --halting_criterion exit_gate --risk 0.005

objectives:
  settled         leave where the answer stays the same up to the last recurrence
  improvement     stay where the last recurrence improved the loss: the second stage of Ouro (arXiv 2510.25741)
  expected_loss   the smallest expected loss where the gate leaves, held close to a prior: uniform (Ouro), or
                  geometric (PonderNet, arXiv 2107.05407), without which there is no reason to leave early

OUT holds the model, its tokenizer, its card, and exit_gate.json with how the gate was found (its schema:
memreason_hf/halting/gate_results.py).
"""


@dataclass
class GateFlags:
    """How a gate is fitted."""

    out: str = field(metadata={"help": "Folder to write."})
    objective: Literal["settled", "improvement", "expected_loss"] = field(
        default="settled", metadata={"help": "What the gate is fitted to.", "choices": list(OBJECTIVES)}
    )
    num_recurrences: int | None = field(
        default=None, metadata={"help": "Recurrences of the pass, at least 2. Default: max_recurrences of the config."}
    )
    exit_prior: Literal["uniform", "geometric"] | None = field(
        default=None, metadata={"help": "expected_loss: the prior. Default: geometric.", "choices": list(EXIT_PRIORS)}
    )
    exit_prior_stop: float | None = field(
        default=None,
        metadata={"help": "Geometric prior: probability of leaving after each recurrence. Default: 0.2."},
    )
    exit_prior_weight: float | None = field(
        default=None, metadata={"help": "expected_loss: weight of the distance from the prior. Default: 0.05."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the choice of the rows, if there are more than needed."})
    overwrite: bool = field(default=False, metadata={"help": "Replace a folder that is not empty."})

    def resolve_prior(self) -> dict:
        """
        The arguments of `fit_gate` for the prior; empty without one.

        Raises:
            ValueError: a value is out of range, or has no effect.
        """
        given = {
            name: getattr(self, name)
            for name in ("exit_prior", "exit_prior_stop", "exit_prior_weight")
            if getattr(self, name) is not None
        }
        if self.objective != "expected_loss":
            for name, value in given.items():
                raise ValueError(f"{name}={value!r} is for objective='expected_loss', not {self.objective!r}.")
            return {}
        prior = self.exit_prior or "geometric"
        if prior != "geometric" and self.exit_prior_stop is not None:
            raise ValueError(f"exit_prior_stop={self.exit_prior_stop} is of the geometric prior, not {prior!r}.")
        stop = 0.2 if self.exit_prior_stop is None else self.exit_prior_stop
        weight = 0.05 if self.exit_prior_weight is None else self.exit_prior_weight
        check_number("exit_prior_stop", stop, above=0, below=1)
        check_number("exit_prior_weight", weight, least=0)
        return {"prior": prior, "stop": stop, "prior_weight": weight}


def make_parser() -> CommandParser:
    sections = [
        model_section(batch_size=32),
        Section("gate", GateFlags, "gate"),
        GATE_DATA,
    ]
    return CommandParser(
        sections, recipe=None, places=("model", "out"), prog=PROG, description=DESCRIPTION, epilog=EPILOG
    )


def main(argv: list[str] | None = None) -> int:
    """Fits a gate; returns the exit code. A wrong flag or input ends the program with code 2 and one message."""
    with user_errors(PROG, stopped="no half-written folder was left"):
        return _fit(*make_parser().parse_sections(argv))


def _fit(model, flags, data):
    model.check()
    check_int("seed", flags.seed, least=0)
    task, prior = data.resolve_task(), flags.resolve_prior()
    config = model.load_recurrent_config()
    depth = config.max_recurrences if flags.num_recurrences is None else flags.num_recurrences
    check_int("num_recurrences", depth, least=2)
    out = Path(flags.out)
    source = Path(model.model)
    if source.is_dir() and out.absolute().resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"out={flags.out!r} is or holds the model's own folder. Pass another one.")
    check_folder(out, overwrite=flags.overwrite)
    started = time.perf_counter()
    network, batches = load_gate_inputs(task, model, data, flags.seed)
    if not hasattr(network, "save_pretrained") or hasattr(network, "peft_config"):
        raise ValueError(f"model={model.model!r} is an adapter. Merge it into its base first: memreason merge.")
    rows = read_gate_rows(network, batches, num_recurrences=depth, max_labels=data.max_labels)
    fit = fit_gate(rows, objective=flags.objective, **prior)
    install_gate(network, fit)
    _forget_calibration(network.config)
    results = gate_results(
        fit,
        model=describe_text_model(network, flags.out),
        environment=describe_environment(next(network.parameters()).device),
        data={
            "task": task,
            "paths": [portable_path(path) for path in data.data],
            "split": data.split if task == "chains" else None,
            "num_labels": len(rows),
        },
        objective={
            "name": flags.objective,
            "prior": prior.get("prior"),
            "prior_stop": prior.get("stop") if prior.get("prior") == "geometric" else None,
            "prior_weight": prior.get("prior_weight"),
        },
        seed=flags.seed,
        seconds=time.perf_counter() - started,
    )
    with whole_folder(out, overwrite=flags.overwrite) as staged:
        network.save_pretrained(staged)
        model.load_tokenizer(config).save_pretrained(staged)
        write_results(staged / "exit_gate.json", results)
        write_card(staged)
    print(describe_gate(results))
    print(f"Wrote {flags.out}. memreason calibrate {flags.out} --halting_criterion exit_gate chooses its threshold.")
    return 0


def _forget_calibration(config):
    """A promise about the threshold of an earlier gate does not hold for this one."""
    if config.halting_criterion == "exit_gate" and getattr(config, CALIBRATION_KEY, None) is not None:
        delattr(config, CALIBRATION_KEY)
        config.halting_criterion = None


if __name__ == "__main__":
    sys.exit(main())
