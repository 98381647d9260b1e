"""
The whole experiment: trains the models and measures every rule with each, in a process of its own.

    results = run_halting_rules(HaltingRulesArguments(output_dir="runs/halting"))
    print(report(results))

The folder then holds `data/`, a folder for each model (the model, its log, `results.json`), `halting_rules.json` with
all numbers, and `halting_rules.png`.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import disable_progress_bars

from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.checks import check_int
from memreason_hf.data.chains.multi_hop import MultiHopConfig, prepare_multi_hop
from memreason_hf.evaluation.results import describe_environment, new_document, write_results
from memreason_hf.experiments.children import check_end, run_missing, start_child
from memreason_hf.experiments.folders import check_removable, claim_folder
from memreason_hf.experiments.halting_rules.figures import rules_figure
from memreason_hf.experiments.halting_rules.models import MODELS, data_section
from memreason_hf.experiments.halting_rules.process import LOG_FILE, TASK_FILE, read_model_results
from memreason_hf.files import write_json
from memreason_hf.halting.calibration import Promise
from memreason_hf.halting.repetitions import MOST_REPETITIONS
from memreason_hf.locks import locked


ALL_RESULTS_FILE, FIGURE_FILE, DATA_FOLDER = "halting_rules.json", "halting_rules.png", "data"
# Hop counts of the test chains; of two hops there are only 64 that training does not use.
_GROUPS, _TWO_HOPS = 12, 64


@dataclass
class HaltingRulesArguments:
    """
    Sizes and settings. The fields are the flags of `memreason reproduce halting`.

    Raises:
        ValueError: a value is out of range, or a model is unknown.
    """

    output_dir: str = field(default="runs/halting", metadata={"help": "Folder for data, models and results."})
    models: str = field(
        default=",".join(MODELS), metadata={"help": "Names of the models to train, separated by commas."}
    )
    seed: int = field(
        default=42, metadata={"help": "Seed of the world, the chains, the weights, the batches and the repetitions."}
    )
    max_steps: int = field(default=1500, metadata={"help": "Training steps of each model."})
    num_test_chains: int = field(
        default=300,
        metadata={
            "help": "Chains of each hop count that are not trained on. A third each fits gates, calibrates "
            "thresholds, and tests both."
        },
    )
    risk: float = field(default=0.005, metadata={"help": "Share of answers that calibrated halting may lose."})
    confidence: float = field(default=0.95, metadata={"help": "Probability with which it loses no more."})
    repetitions: int = field(default=200, metadata={"help": "Repeated calibrations that check the promise."})
    at_once: int = field(default=2, metadata={"help": "Models at the same time, one thread each."})
    restart: bool = field(default=False, metadata={"help": "Remove the experiment in output_dir and start again."})

    def __post_init__(self):
        unknown = [name for name in self.model_names if name not in MODELS]
        if unknown or not self.model_names:
            raise ValueError(f"models={self.models!r} must name some of {', '.join(MODELS)}.")
        for name in ("max_steps", "num_test_chains", "at_once"):
            check_int(name, getattr(self, name), least=1)
        check_int("repetitions", self.repetitions, least=0, most=MOST_REPETITIONS, reason="each is a calibration")
        check_int("seed", self.seed, least=0)
        needed = Promise(self.risk, self.confidence).rows_needed()
        calibrated = (min(self.num_test_chains, _TWO_HOPS) + (_GROUPS - 1) * self.num_test_chains) // 3 - _GROUPS
        if calibrated < needed:
            raise ValueError(
                f"risk={self.risk:g} and confidence={self.confidence:g} need {needed} chains to calibrate on, but "
                f"num_test_chains={self.num_test_chains} leaves about {max(calibrated, 0)}. Raise num_test_chains or "
                "risk."
            )

    @property
    def model_names(self) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in self.models.split(",") if name.strip()))


def run_halting_rules(arguments: HaltingRulesArguments) -> dict:
    """
    Runs the experiment, or what is missing of it, and writes its files. Progress is printed.

    Returns:
        The contents of `halting_rules.json`, see `HaltingRulesResults`.

    Raises:
        InUseError: another process runs an experiment in the folder.
        ValueError: the folder holds another experiment, or a model's process failed; the message quotes its log.
    """
    with locked(arguments.output_dir, inside=True):
        return _run(arguments, Path(arguments.output_dir))


def _run(arguments, folder):
    started = time.perf_counter()
    names = ("seed", "max_steps", "num_test_chains", "risk", "confidence", "repetitions")
    settings = {name: getattr(arguments, name) for name in names}
    data = folder / DATA_FOLDER
    folders = {name: folder / name for name in arguments.model_names}
    if arguments.restart:
        # All are checked before any is removed.
        check_removable(folders.values())
    for name, place in folders.items():
        claim_folder(place, {"model": name, **settings}, restart=arguments.restart)
    disable_progress_bars()
    section = data_section(str(data), arguments.seed, arguments.num_test_chains)
    config = MultiHopConfig(**{name: value for name, value in section.items() if name != "path"})
    prepare_multi_hop(config, data, overwrite=arguments.restart)
    _run_all(folders, data, settings, arguments.at_once)
    results = new_document(
        "halting_rules",
        settings={**settings, "data": asdict(config)},
        models={name: read_model_results(place) for name, place in folders.items()},
        environment=describe_environment("cpu"),
        seconds=time.perf_counter() - started,
    )
    write_results(folder / ALL_RESULTS_FILE, results, overwrite=True)
    save_figure(rules_figure(results["models"]), [folder / FIGURE_FILE], overwrite=True)
    return results


def _run_all(folders, data, settings, at_once):
    """Starts a process for every model without results, and prints how each ended."""

    def start(name):
        folder = folders[name]
        print(f"{name}: training and measurement; the log is {folder / LOG_FILE} …", flush=True)
        write_json(folder / TASK_FILE, {"folder": str(folder), "name": name, "data": str(data), "settings": settings})
        return start_child(f"{__package__}.process", str(folder / TASK_FILE), log=folder / LOG_FILE)

    def end(name, code):
        results = read_model_results(folders[name])
        check_end(name, code, results is not None, folders[name] / LOG_FILE)
        print(
            f"{name}: {results['fixed'][-1]:.1%} right at full depth; {results['cpu_seconds']:.0f} CPU seconds.",
            flush=True,
        )

    run_missing(folders, at_once, read=read_model_results, start=start, end=end)
