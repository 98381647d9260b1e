"""
The whole comparison: trains and evaluates every scheme in its own process, on the same data with the same recipe.

    results = run_comparison(ComparisonArguments(output_dir="runs/memory_reason"), sections)
    print(report(results))

The folder then holds `data/` if the questions are those of the artificial world, a folder for each scheme (the model,
its log, `results.json`, and `solutions.jsonl` with every text), `comparison.json` with all numbers, the table as
`table.md` and `table.tex`, and `token_counts.png`.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import disable_progress_bars

from memreason_hf.adapters.modes import AdapterArguments
from memreason_hf.analysis.depth_figures import save_figure
from memreason_hf.checks import check_int
from memreason_hf.data.questions.memory_reason import check_output_folder, save_memory_reason
from memreason_hf.evaluation.results import describe_environment, new_document, write_results
from memreason_hf.experiments.children import check_end, run_missing, start_child
from memreason_hf.experiments.folders import check_removable, claim_folder, portable_sections
from memreason_hf.experiments.scheme_comparison.figures import token_counts_figure
from memreason_hf.experiments.scheme_comparison.process import LOG_FILE, TASK_FILE, TRAINING_FILE, read_scheme_results
from memreason_hf.experiments.scheme_comparison.report import report
from memreason_hf.experiments.scheme_comparison.schemes import (
    PLAIN,
    PREFIX_ONLY,
    SCHEMES,
    STUDY,
    choose_variants,
    named_kinds,
    sweep_name,
)
from memreason_hf.experiments.scheme_comparison.world import WorldQuestions, build_world_questions
from memreason_hf.files import whole_file, write_json
from memreason_hf.locks import locked
from memreason_hf.steps import StepScheme


ALL_RESULTS_FILE, FIGURE_FILE = "comparison.json", "token_counts.png"
TABLE_FILES = {"table.md": "markdown", "table.tex": "latex"}
DATA_FOLDER = "data"
# Schemes that are shown as lines in the figure of the sweep.
_LINES = ("answer_only", PLAIN, "random_marks")
_SEED = 42
# Sections that are always there.
_SECTIONS = ("data", "model", "new_model", "steps", "adapter", "training")


@dataclass
class ComparisonArguments:
    """
    What is compared. The fields are flags of `memreason reproduce memory_reason`.

    Raises:
        ValueError: a value is out of range.
    """

    output_dir: str = field(
        default="runs/memory_reason", metadata={"help": "Folder for the data, the models and the results."}
    )
    schemes: str = field(
        default=",".join(SCHEMES), metadata={"help": "Names of the schemes to train, separated by commas."}
    )
    token_counts: str = field(
        default="1,4,8",
        metadata={
            "help": "Numbers of step tokens with which memory and reason steps are trained in addition to that of the "
            "recipe, separated by commas. Empty for none."
        },
    )
    num_items: int = field(
        default=300, metadata={"help": "Test questions that every scheme solves in the end, the first of the split."}
    )
    num_world_items: int = field(
        default=1000, metadata={"help": "Training questions of the artificial world, which is used without --data."}
    )
    at_once: int | None = field(
        default=None,
        metadata={
            "help": "Schemes that are trained at the same time. Default: 2 with one thread each, or 1 with a GPU."
        },
    )
    restart: bool = field(default=False, metadata={"help": "Remove the comparison in output_dir and start again."})

    def __post_init__(self):
        for name, least in (("num_items", 1), ("num_world_items", 1), ("at_once", 1)):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), least=least)
        try:
            valid = len(set(self.counts)) == len(self.counts) and min(self.counts, default=1) >= 1
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(
                f"token_counts={self.token_counts!r} must be different whole numbers from 1 on, such as 1,4,8, or "
                "empty."
            )

    @property
    def scheme_names(self) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in self.schemes.split(",") if name.strip()))

    @property
    def counts(self) -> list[int]:
        return [int(part) for part in self.token_counts.split(",") if part.strip()]


def run_comparison(arguments: ComparisonArguments, sections: dict[str, dict]) -> dict:
    """
    Runs the comparison, or what is missing of it, and writes its files. Progress is printed.

    Args:
        arguments: what is compared.
        sections: the sections of a fine-tuning recipe, which `prepare_finetuning` takes, and its section `training`.
            Section `steps` holds what all schemes have in common. Without `data.path` and `data.name` the questions
            are those of the artificial world. `training.seed` decides the world, too.

    Returns:
        The contents of `comparison.json`, see `ComparisonResults`.

    Raises:
        InUseError: another process runs a comparison in the folder.
        ValueError: a value is out of range, the folder holds another comparison, or the process of a scheme failed;
            the message quotes its log.
    """
    sections = {name: dict(sections.get(name) or {}) for name in dict.fromkeys((*_SECTIONS, *sections))}
    mode = AdapterArguments(**sections["adapter"]).mode
    variants = choose_variants(arguments.scheme_names, arguments.counts, sections["steps"], mode=mode)
    with locked(arguments.output_dir, inside=True):
        return _run(arguments, sections, variants, Path(arguments.output_dir))


def _run(arguments, sections, variants, folder):
    started = time.perf_counter()
    seed = sections["training"].setdefault("seed", _SEED)
    world = None
    if not sections["data"].get("path") and not sections["data"].get("name"):
        world = WorldQuestions(arguments.num_world_items, arguments.num_items, seed)
        sections["data"]["path"] = str(folder / DATA_FOLDER)
    has_gpu = torch.accelerator.is_available() and not sections["training"].get("use_cpu")
    at_once = arguments.at_once or (1 if has_gpu else 2)
    tasks = {
        name: _task(folder / name, variant, sections, arguments.num_items, None if has_gpu else 1)
        for name, variant in variants.items()
    }
    if arguments.restart:
        # All are checked before any is removed.
        check_removable([folder / name for name in tasks])
        if world is not None:
            check_output_folder(folder / DATA_FOLDER, True)
    for name, task in tasks.items():
        settings = {**portable_sections(task["sections"]), "num_items": arguments.num_items}
        if world is not None:
            settings["num_world_items"] = world.num_train
        claim_folder(folder / name, settings, restart=arguments.restart)
    if world is not None:
        disable_progress_bars()
        save_memory_reason(build_world_questions(world), folder / DATA_FOLDER, overwrite=arguments.restart)
    _run_all(tasks, at_once)
    results = new_document(
        "scheme_comparison",
        recipe=portable_sections(sections),
        num_items=min(read_scheme_results(folder / name)["measures"]["num_items"] for name in tasks),
        seed=seed,
        schemes={name: _scheme_results(variant, folder / name) for name, variant in variants.items()},
        token_counts=_sweep(variants, arguments),
        environment=describe_environment("cuda" if has_gpu and torch.cuda.is_available() else "cpu"),
        seconds=time.perf_counter() - started,
    )
    _write(results, folder)
    return results


def _scheme_results(variant, folder):
    about = {"title": variant.title, "scheme": variant.scheme.to_dict(), "mode": variant.mode}
    return {**about, **read_scheme_results(folder)}


def _sweep(variants, arguments):
    """The numbers of step tokens in the figure, in order."""
    counts = {variant.scheme.num_step_tokens for name, variant in variants.items() if name == STUDY}
    return sorted({*counts, *arguments.counts})


def _task(folder, variant, sections, num_items, threads):
    changed = {"steps": variant.scheme.to_dict(), "adapter": {**sections["adapter"], "mode": variant.mode}}
    return {"folder": str(folder), "sections": {**sections, **changed}, "num_items": num_items, "threads": threads}


def _run_all(tasks, at_once):
    """Starts a process for every scheme without results, and prints how each ended."""
    folders = {name: Path(task["folder"]) for name, task in tasks.items()}
    done = sum(read_scheme_results(folder) is not None for folder in folders.values())

    def start(name):
        folder = folders[name]
        what = "evaluation" if (folder / TRAINING_FILE).is_file() else "training"
        print(f"{name}: {what}; the log is {folder / LOG_FILE} …", flush=True)
        write_json(folder / TASK_FILE, tasks[name])
        return start_child(
            f"{__package__}.process", str(folder / TASK_FILE), log=folder / LOG_FILE, threads=tasks[name]["threads"]
        )

    def end(name, code):
        nonlocal done
        folder = folders[name]
        results = read_scheme_results(folder)
        check_end(name, code, results is not None, folder / LOG_FILE)
        done += 1
        print(
            f"{name}: {results['measures']['accuracy']:.1%} right; trained in {results['training']['seconds']:.0f} s, "
            f"evaluated in {results['seconds']:.0f} s ({done} of {len(tasks)} schemes).",
            flush=True,
        )

    run_missing(folders, at_once, read=read_scheme_results, start=start, end=end)


def _write(results, folder):
    write_results(folder / ALL_RESULTS_FILE, results, overwrite=True)
    for name, format in TABLE_FILES.items():
        with whole_file(folder / name, overwrite=True) as temporary:
            temporary.write_text(report(results, format) + "\n", encoding="utf-8")
    figure = _figure(results)
    if figure is not None:
        save_figure(figure, [folder / FIGURE_FILE], overwrite=True)


def _figure(results):
    """The figure of the sweep; None without one."""
    schemes = results["schemes"]
    points = {count: schemes.get(sweep_name(count)) or schemes.get(STUDY) for count in results["token_counts"]}
    if len(points) < 2:
        return None
    if PREFIX_ONLY in schemes:
        points[0] = schemes[PREFIX_ONLY]
    by_count = {
        count: (entry["measures"]["accuracy"], *entry["measures"]["accuracy_interval"])
        for count, entry in points.items()
    }
    others = {schemes[name]["title"]: schemes[name]["measures"]["accuracy"] for name in _LINES if name in schemes}
    scheme = StepScheme.from_dict(next(iter(points.values()))["scheme"])
    about = {"num_prefix_tokens": scheme.num_prefix_tokens, "title": named_kinds(scheme.kinds)}
    return token_counts_figure(by_count, others, **about)
