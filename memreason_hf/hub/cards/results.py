"""
The results in the folder of a model, as tables, pictures and entries of the card's `model-index`.

A part of the package that writes another kind of results document registers how a card shows it:

    register_section("calibration", make_section)
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult

# Imported for the kinds of documents that they register.
import memreason_hf.evaluation.chains.results
import memreason_hf.evaluation.text.results
import memreason_hf.evaluation.text.task_scores  # noqa: F401
from memreason_hf.adapters.base_files import block_digests, weight_files
from memreason_hf.evaluation.results import read_results
from memreason_hf.evaluation.solutions.generation_files import SETTINGS_SUFFIX, SUMMARY_SUFFIX, items_of
from memreason_hf.files import read_json
from memreason_hf.hub.cards.folders import ModelFolder
from memreason_hf.hub.cards.markdown import LOCAL_FOLDER, counted, last_part, number, percent, plain, table
from memreason_hf.steps import kind_order


logger = logging.getLogger(__name__)

# A table shows at most so many groups, and of deeper recurrences powers of two.
_MOST_GROUPS, _MOST_RECURRENCES = 24, 10
_TASK = "text-generation"
_LONGEST_NAME = 120


@dataclass(frozen=True)
class ResultsSection:
    """
    Results of one file, for a card.

    Attributes:
        title: Heading, in Markdown.
        lines: Paragraphs and tables, in Markdown.
        pictures: File names beside the results, and what they show; those that are missing are left out.
        entries: For the card's `model-index`.
    """

    title: str
    lines: list[str]
    pictures: dict[str, str] = field(default_factory=dict)
    entries: list[EvalResult] = field(default_factory=list)


_SECTIONS: dict[str, Callable[[dict], ResultsSection]] = {}


def register_section(kind: str, make: Callable[[dict], ResultsSection]) -> None:
    """
    Registers how a card shows documents of one kind.

    Args:
        kind (`str`): The kind, as `memreason_hf.evaluation.results.register_kind` knows it.
        make (`Callable`): Called with a document that fits its schema.

    Raises:
        ValueError: the kind is registered already.
    """
    if kind in _SECTIONS:
        raise ValueError(f"kind={kind!r} is already registered.")
    _SECTIONS[kind] = make


def result_files(folder: Path) -> list[Path]:
    """The results files of a folder and of the folders in it, and the pictures that a card shows with them."""
    places = [folder, *sorted(path for path in folder.iterdir() if _may_hold_results(path))]
    documents = [path for place in places for path in sorted(place.glob("*.json")) if _kind_of(path) is not None]
    pictures = [path.with_name(name) for path in documents for name in _read_section(path)[1].pictures]
    return [*documents, *(path for path in dict.fromkeys(pictures) if path.is_file())]


def results_sections(folder: ModelFolder) -> list[ResultsSection]:
    """
    The results in a folder, as a card shows them. Links are relative to the folder.

    Results of a model with another number of parameters are left out with a warning.
    """
    sections = []
    for path in result_files(folder.path):
        if path.suffix != ".json":
            continue
        document, section = _read_section(path)
        if not _is_of(folder, document, path):
            logger.warning("%s holds results of another model than the one beside it. The card leaves them out.", path)
            continue
        pictures = {
            (path.with_name(name)).relative_to(folder.path).as_posix(): text
            for name, text in section.pictures.items()
            if path.with_name(name).is_file()
        }
        sections.append(ResultsSection(section.title, section.lines, pictures, section.entries))
    return sections


def _may_hold_results(path):
    return path.is_dir() and not path.name.startswith((".", "checkpoint-"))


def _kind_of(path):
    """The kind of a results document or `"solutions"` for a summary of solutions; `None` for any other file."""
    if path.name.endswith(SUMMARY_SUFFIX):
        return "solutions"
    if path.name.endswith(SETTINGS_SUFFIX):
        return None
    try:
        content = read_json(path)
    except ValueError:
        return None
    is_document = isinstance(content, dict) and "schema_version" in content and isinstance(content.get("kind"), str)
    return content["kind"] if is_document and content["kind"] in _SECTIONS else None


def _read_section(path):
    if _kind_of(path) == "solutions":
        document = read_json(path)
        settings = path.with_name(path.name.removesuffix(SUMMARY_SUFFIX) + SETTINGS_SUFFIX)
        document = {**document, "settings": read_json(settings) if settings.is_file() else {}}
        return document, _solutions(document)
    document = read_results(path)
    return document, _SECTIONS[document["kind"]](document)


def _is_of(folder, document, path):
    """Whether results may belong to the model of a folder."""
    if "weights" in document.get("settings", {}):
        files = weight_files(str(folder.path)) or {item.name: item for item in folder.path.glob("adapter_model.*")}
        present = {name: digests["blocks"] for name, digests in block_digests(files).items()}
        return not present or present == document["settings"]["weights"]
    counted = document.get("model", {}).get("num_parameters")
    # An adapter is merged into its base before it is evaluated.
    return folder.is_adapter or None in (counted, folder.num_parameters) or counted == folder.num_parameters


def _name_of(path):
    name = last_part(path)
    return "local data" if name == LOCAL_FOLDER else name


def _identifier(path):
    """A dataset's `type` for the `model-index`: letters, digits and dashes."""
    name = last_part(path)
    slug = re.sub(r"[^0-9A-Za-z]+", "-", "" if name == LOCAL_FOLDER else Path(str(path)).name).strip("-").lower()
    return slug[:_LONGEST_NAME] or "local-data"


def _entry(path, metric, value, name, *, split=None, task=_TASK):
    return EvalResult(
        task_type=task,
        dataset_type=_identifier(path),
        # Not Markdown: the name is data.
        dataset_name=_identifier(path),
        dataset_split=_flat(str(split))[:_LONGEST_NAME] or None if split is not None else None,
        metric_type=metric,
        metric_value=value,
        metric_name=name[:_LONGEST_NAME],
    )


def _rows_of(data):
    kind = "" if data["kind"] in ("all", data["split"]) else f" {plain(data['kind'])}"
    return f"{number(data['num_rows'])}{kind} rows of the split {plain(data['split'])} of {_name_of(data['path'])}"


def _groups(document):
    """The groups of a document that a table shows: all, or spread over them with the first and the last."""
    groups = document["groups"]
    if len(groups) <= _MOST_GROUPS:
        return groups
    last = len(groups) - 1
    places = sorted({round(index * last / (_MOST_GROUPS - 1)) for index in range(_MOST_GROUPS)})
    return [groups[place] for place in places]


def _shown_recurrences(last, best):
    if last <= _MOST_RECURRENCES:
        return list(range(1, last + 1))
    return sorted({*(2**power for power in range(last.bit_length()) if 2**power <= last), best, last})


def _trained(document):
    hops = document["model"].get("trained_hops")
    return "" if hops is None else f" Training had chains of up to {hops} hops."


def _evaluation(document):
    settings, overall = document["settings"], document["overall"]
    if settings["num_recurrences"] is not None:
        how = f"with {counted(settings['num_recurrences'], 'recurrence')}"
    else:
        values = "".join(f", {plain(name)} {number(value)}" for name, value in settings["parameters"].items())
        how = (
            f"halting by {plain(settings['halting_criterion'])} for each {plain(settings['halting_granularity'])}"
            f"{values}, at most {settings['max_recurrences']} recurrences"
        )
    has_fixed = any(entry["fixed"] for entry in document["groups"])
    header = [plain(document["data"]["group_column"]), "rows", "accuracy", "mean recurrences", "smallest", "largest"]
    header += ["best fixed depth", "its accuracy"] if has_fixed else []
    rows = [["all", *_evaluation_row(overall, has_fixed)]]
    rows += [[plain(entry["group"]), *_evaluation_row(entry, has_fixed)] for entry in _groups(document)]
    lines = [f"{_rows_of(document['data'])}, {how}.{_trained(document)}", table(header, rows)]
    data = document["data"]
    entries = [_entry(data["path"], "accuracy", overall["accuracy"], f"Accuracy, {_flat(how)}", split=data["split"])]
    return ResultsSection(
        "Accuracy and depth", lines, {"evaluation.png": "Accuracy and recurrences by group"}, entries
    )


def _evaluation_row(entry, has_fixed):
    taken = entry["recurrences"]
    cells = [number(entry["count"]), percent(entry["accuracy"]), f"{taken['mean']:.2f}"]
    cells += [str(taken["minimum"]), str(taken["maximum"])]
    if has_fixed:
        fixed = entry["fixed"]
        cells += [str(fixed["best_recurrence"]), percent(fixed["best_accuracy"])] if fixed else ["-", "-"]
    return cells


def _flat(markdown):
    """Text of the metadata, which is not Markdown."""
    return re.sub(r"[^0-9A-Za-z ,.%_-]+", "", markdown.replace("\\", "")).strip()


def _sweep(document):
    overall, data = document["overall"], document["data"]
    shown = _shown_recurrences(document["settings"]["max_recurrences"], overall["best_recurrence"])
    header = [plain(data["group_column"]), "rows", *(f"r = {recurrence}" for recurrence in shown), "best at"]

    def row(name, entry):
        accuracies = [percent(entry["accuracy"][recurrence - 1]) for recurrence in shown]
        return [name, number(entry["count"]), *accuracies, str(entry["best_recurrence"])]

    rows = [row("all", overall), *(row(plain(entry["group"]), entry) for entry in _groups(document))]
    lines = [f"Accuracy after r recurrences on {_rows_of(data)}.{_trained(document)}", table(header, rows)]
    pictures = {"depth_sweep.png": "Accuracy by group and recurrence", "depth_margins.png": "Margins of the answers"}
    name = f"Accuracy after {counted(overall['best_recurrence'], 'recurrence')}"
    entries = [_entry(data["path"], "accuracy", overall["best_accuracy"], name, split=data["split"])]
    return ResultsSection("Accuracy by recurrence", lines, pictures, entries)


def _perplexity(document):
    best, last = document["best_recurrence"], document["settings"]["max_recurrences"]
    bits = document["bits_per_byte"]
    header = ["recurrences", "loss", "perplexity", *(["bits per byte"] if bits else [])]
    rows = []
    for recurrence in _shown_recurrences(last, best):
        perplexity = document["perplexity"][recurrence - 1]
        row = [str(recurrence), f"{document['loss'][recurrence - 1]:.4f}"]
        row.append("too large" if perplexity is None else number(perplexity))
        rows.append(row + ([f"{bits[recurrence - 1]:.4f}"] if bits else []))
    names = list(dict.fromkeys(_name_of(name) for name in document["data"]["files"]))
    where = ", ".join(names[:5]) + (f" and {len(names) - 5} more files" if len(names) > 5 else "")
    text = f"{number(document['data']['num_tokens'])} tokens of {where}; the lowest loss is at recurrence {best}."
    entries = []
    if document["perplexity"][best - 1] is not None and document["data"]["files"]:
        name, value = f"Perplexity after {counted(best, 'recurrence')}", document["perplexity"][best - 1]
        entries = [_entry(document["data"]["files"][0], "perplexity", value, name)]
    picture = {"perplexity.png": "Loss by recurrence"}
    return ResultsSection("Perplexity by recurrence", [text, table(header, rows)], picture, entries)


def _task_scores(document):
    depths = document["settings"]["num_recurrences"]
    header = ["task", "metric", *(f"r = {depth}" for depth in depths)]
    rows, entries = [], []
    for score in document["scores"]:
        values = [
            number(value) + ("" if error is None else f" ± {number(error)}")
            for value, error in zip(score["values"], score["standard_errors"])
        ]
        metric = score["metric"].removesuffix(",none")
        rows.append([plain(score["task"]), plain(metric), *values])
        for depth, value in zip(depths, score["values"]):
            name = f"{_flat(metric)} after {counted(depth, 'recurrence')}"
            entries.append(_entry(score["task"], _flat(metric.partition(",")[0]), value, name))
    limit = document["settings"]["limit"]
    shots = document["settings"]["num_fewshot"]
    text = f"Scored with lm-eval {plain(document['lm_eval'])} after r recurrences"
    text += "" if shots is None else f", {shots} examples in the prompt"
    text += "." if limit is None else f". Only the first {number(limit)} questions of each task were used."
    return ResultsSection("Tasks", [text, table(header, rows)], {}, entries)


def _sampled(document):
    """What solutions are called, which are several of each question where they were drawn."""
    count = document.get("num_samples", 1)
    if count > 1:
        return f"{counted(count, 'drawn solution')} of each"
    return "Drawn solutions" if document["settings"].get("sampling") else "Greedy solutions"


def _solutions(document):
    settings = document["settings"]
    low, high = document["accuracy_interval"]
    data = settings.get("name") or settings.get("data")
    where = f" of {_name_of(data)}" if data else ""
    split = f", split {plain(settings['split'])}" if settings.get("split") else ""
    right = percent(document["accuracy"])
    lines = [
        f"{_sampled(document)} of {number(items_of(document))} questions{where}{split}: {right} of the answers are "
        f"right (95 % interval {percent(low)} to {percent(high)}); "
        f"{number(document['num_invalid_answers'])} texts have no valid answer."
    ]
    if judge := settings.get("answer_judge"):
        lines[0] += (
            f" {plain(judge['name'])} judged {number(document['num_judged_answers'])} free-text answers in other "
            f"words, of which {number(document['num_right_by_judge'])} count as right; "
            f"{number(document['num_undecided_answers'])} without a readable reply count as wrong."
        )
    counts = {
        name: document[key]
        for name, key in (
            ("generated", "steps_by_kind"),
            ("reference", "reference_steps_by_kind"),
            ("first departures", "departures_by_kind"),
        )
        if key in document
    }
    kinds = kind_order(kind for by_kind in counts.values() for kind in by_kind)
    rows = [[name, *(number(by_kind.get(kind, 0)) for kind in kinds)] for name, by_kind in counts.items()]
    lines.append(table(["steps", *map(plain, kinds)], rows))
    entries = []
    if data:
        entries = [_entry(data, "accuracy", document["accuracy"], "Accuracy", split=settings.get("split"))]
    return ResultsSection("Solutions in steps", lines, {}, entries)


register_section("evaluation", _evaluation)
register_section("depth_sweep", _sweep)
register_section("perplexity", _perplexity)
register_section("task_scores", _task_scores)
