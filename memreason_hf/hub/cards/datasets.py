"""Cards of data sets: chains of relations, annotated questions, and text."""

from pathlib import Path

import pyarrow.parquet as parquet
from datasets import Features, load_from_disk
from huggingface_hub import DatasetCard, DatasetCardData
from pyarrow import ArrowInvalid

from memreason_hf.data.chains.folder import MANIFEST_FILE
from memreason_hf.data.questions.memory_reason import REPORT_FILE
from memreason_hf.data.saved_folders import ARROW_MARK
from memreason_hf.files import check_regular, read_json
from memreason_hf.hub.cards.markdown import LOCAL_FOLDER, code, counted, last_part, number, plain, table
from memreason_hf.hub.cards.rendering import check_languages, check_licence, licence_sentence, render
from modeling_recurrent.card_recurrent import CARD_MARK, LOOP_PAPER, STEPS_PAPER


# Columns of the data sets of this package.
_MEANINGS = {
    "input_text": "the chain: an entity and the relations to follow",
    "target_text": "the chain and its answer",
    "hops": "the number of relations",
    "entities": "the entity reached after every hop",
    "kind": "test, train or atomic: which rows of the split these are",
    "type": "hops and kind in one word, or the group of the item, as in the study's files",
    "question": "the question",
    "options": "the choices, each with a label and a text",
    "answer": "the right answer: a label, or a number",
    "steps": "the solution: steps, each with its kind, such as memory or reason, and its text",
    "text": "the text",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def make_dataset_card(
    folder: Path,
    name: str,
    *,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    language: str | list[str] | None = None,
    tags: list[str] | None = None,
    configs: list[dict] | None = None,
) -> DatasetCard:
    """
    The card of a data set. `make_card` explains the arguments.

    Args:
        folder (`Path`): A folder of chains or of annotated questions, or one with files of text.
        name (`str`): Its name on the Hub, or that of its folder.
        configs (`list[dict]`, *optional*):
            Which files the splits are in, as the Hub's viewer reads it. Default: those of the parquet files.
    """
    manifest, report = _object(folder / MANIFEST_FILE), _object(folder / REPORT_FILE)
    is_chains = "rows" in manifest
    is_questions = "splits" in report
    columns, rows = _contents(folder)
    given = {"license": check_licence(license), "license_name": license_name, "license_link": license_link}
    licence = {key: value for key, value in given.items() if value is not None}
    files = configs or _configs(folder)
    data = DatasetCardData(
        **licence,
        language=check_languages(language),
        task_categories=_tasks(is_chains, is_questions, columns),
        size_categories=[_size(sum(rows.values()))] if rows else None,
        pretty_name=_pretty(name),
        tags=list(dict.fromkeys([*(["synthetic"] if is_chains else []), *(tags or ())])) or None,
        **({"configs": files} if files else {}),
    )
    return render(
        DatasetCard,
        data,
        "dataset",
        mark=CARD_MARK,
        title=plain(name.rpartition("/")[2]),
        summary=_summary(is_chains, is_questions, columns),
        code=f'from datasets import load_dataset\ndataset = load_dataset("{name}")',
        features=_features(columns),
        splits=table(["split", "rows"], [[plain(split), number(rows[split])] for split in _in_order(rows)])
        if rows
        else "",
        making=_chains(manifest) if is_chains else _questions(report) if is_questions else [],
        limits=_limits(is_chains, is_questions),
        licence=licence_sentence(licence, of_base=False),
        citations=[LOOP_PAPER] if is_chains else [STEPS_PAPER] if is_questions else [],
    )


def _object(path):
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _contents(folder):
    """The columns of a data set, and its rows by split, from what `save_to_disk` or parquet says."""
    if (folder / ARROW_MARK).is_file():
        check_regular(folder)
        dataset = load_from_disk(folder)
        features = next(iter(dataset.values())).features if dataset else Features()
        return features, {str(split): part.num_rows for split, part in dataset.items()}
    features, rows = Features(), {}
    for path in sorted(folder.rglob("*.parquet")):
        split = path.stem.partition("-")[0]
        try:
            schema, count = parquet.read_schema(path), parquet.read_metadata(path).num_rows
        except (ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} cannot be read. The file may be truncated ({error}).") from error
        features = features or Features.from_arrow_schema(schema)
        rows[split] = rows.get(split, 0) + count
    return features, rows


def _configs(folder):
    splits = dict.fromkeys(path.stem.partition("-")[0] for path in sorted((folder / "data").glob("*-*.parquet")))
    files = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    return [{"config_name": "default", "data_files": files}] if files else None


def _in_order(splits):
    known = ("train", "validation", "test")
    return sorted(splits, key=lambda split: (known.index(split) if split in known else len(known), split))


def _size(count):
    return next((name for limit, name in _SIZES if count < limit), "n>1M")


def _pretty(name):
    return "".join(char for char in name.rpartition("/")[2] if char.isprintable())


def _features(columns):
    rows = []
    for name, feature in columns.items():
        dtype = getattr(feature, "dtype", None) or type(feature).__name__.lower()
        if hasattr(feature, "feature"):
            dtype = "list"
        rows.append([plain(name), f"{code(dtype)}", _MEANINGS.get(name, "-")])
    has_meanings = any(meaning != "-" for *_, meaning in rows)
    header = ["column", "type", *(["meaning"] if has_meanings else [])]
    return table(header, [row if has_meanings else row[:2] for row in rows]) if rows else ""


def _tasks(is_chains, is_questions, columns):
    if is_questions:
        return ["question-answering"]
    return ["text-generation"] if is_chains or "text" in columns else None


def _summary(is_chains, is_questions, columns):
    if is_chains:
        return (
            "Chains of relations in a made-up world: each chain starts at an entity and follows one relation after "
            "another, and its answer is the entity that it ends at. A model has to combine facts that it knows, as "
            "many of them as the chain has hops."
        )
    if is_questions:
        return (
            "Questions with annotated solutions: each step has a kind, which says, for example, whether it recalls "
            "knowledge (memory) or reasons over it (reason)."
        )
    if "text" in columns:
        return "Text, a document in each row."
    return f"Rows with {counted(len(columns), 'column')}." if columns else "Files of data."


def _chains(manifest):
    config = manifest.get("config")
    if not isinstance(config, dict):
        return []
    if "ood_share" in config:
        lines, script = _compositions(config), "build_composition.py"
    else:
        lines, script = _walks(config), "build_multi_hop.py"
    flags = [
        f"--{name} {value}" for name, value in config.items() if value is not None and not isinstance(value, bool)
    ]
    flags += [f"--{name}" for name, value in config.items() if value is True]
    return [*lines, f"```\npython data_scripts/{script} --output_dir DIR {' '.join(map(_flag, flags))}\n```"]


def _walks(config):
    degree = config.get("out_degree") or config["num_relations"]
    return [
        f"A world of {number(config['num_entities'])} entities and {number(config['num_relations'])} relations, each "
        f"a random permutation of the entities; an entity has {number(degree)} of them.",
        f"Training: all atomic facts, and chains of {plain(config['train_hops'])} hops, at most "
        f"{number(config['num_train_chains'])} of each. Test: chains of {plain(config['test_hops'])} hops, at most "
        f"{number(config['num_test_chains'])} of each; no test chain is a training chain.",
        f"The seed {number(config['seed'])} and these sizes give the same data again:",
    ]


def _compositions(config):
    return [
        f"A world of {number(config['num_entities'])} entities and {number(config['num_relations'])} relations; an "
        f"entity has {number(config['out_degree'])} facts, whose relations do not repeat and whose tails are drawn "
        "among all entities.",
        f"A share of {config['ood_share']:g} of the facts is out of distribution: training holds these facts, but no "
        f"composition with one. It holds {config['ratio']:g} compositions for each other fact; a share of "
        f"{config['held_out_share']:g} of those compositions is kept for the test.",
        f"The seed {number(config['seed'])} and these sizes give the same data again:",
    ]


def _flag(text):
    return "".join(char for char in text if char.isalnum() or char in " ,.-_")


def _questions(report):
    source = str(report.get("source", ""))
    if source.startswith("https://"):
        where = f" from {plain(source)}"
    else:
        shown = last_part(source) if source else LOCAL_FOLDER
        where = "" if shown == LOCAL_FOLDER else f" from {shown}"
    lines = [
        f"{plain(report.get('name', 'Questions'))}{where}. Steps without a text were dropped; training items without "
        "steps, and those whose question is also in another split, were dropped."
    ]
    names = ("num_items", "num_rows", "num_steps")
    rows = [
        [plain(split), *(number(counts[name]) for name in names)]
        for split, counts in report["splits"].items()
        if all(isinstance(counts.get(name), int) for name in names)
    ]
    return [*lines, table(["split", "items of the source", "rows", "steps"], rows)]


def _limits(is_chains, is_questions):
    if is_chains:
        return ["Entities and relations are made-up tokens. The data say nothing about natural language."]
    if is_questions:
        return ["Steps and their kinds come from the source and were not checked by hand here."]
    return []
