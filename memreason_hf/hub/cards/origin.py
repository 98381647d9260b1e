"""Where a model comes from: its base, the conversion, the adapter, and the licence that follows from the base."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, try_to_load_from_cache
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HfHubHTTPError

from memreason_hf.hub.cards.folders import ModelFolder
from memreason_hf.hub.cards.markdown import LOCAL_FOLDER, code, counted, is_hub_name, last_part, number, plain
from memreason_hf.models.conversion.record import CONVERSION_FILE, read_record


# Seconds.
_PATIENCE = 10
# What the HTTP library raises where no answer came. Its name depends on the version of huggingface_hub.
_NO_ANSWER = HfHubHTTPError.__mro__[1]
_CASES = {
    "no_padding": "without padding",
    "left_padding": "padded on the left",
    "right_padding": "padded on the right",
    "cached": "token by token from the cache",
    "generate": "in generate",
}


@dataclass(frozen=True)
class Base:
    """
    What a model was made from.

    Attributes:
        name: Its name on the Hub, as metadata; `None` for a folder, and where nobody knows which of the two it is.
        shown: What the card calls it, in Markdown.
        commit: The commit on the Hub.
        folder: Where it is on this machine.
        relation: `adapter`, `finetune` or `quantized`, as the Hub calls it.
    """

    name: str | None
    shown: str
    commit: str | None = None
    folder: Path | None = None
    relation: str | None = None


def find_base(folder: ModelFolder, base_model: str | None = None) -> Base | None:
    """
    The base of a model.

    Args:
        folder (`ModelFolder`): The model.
        base_model (`str`, *optional*): Its base on the Hub, as the publisher names it.

    Raises:
        ValueError: `base_model` is not the name of a repository.
    """
    relation = _relation(folder)
    if base_model is not None:
        if not is_hub_name(base_model):
            raise ValueError(
                f"base_model={base_model!r} is not the name of a repository. Pass owner/name, as on the Hub."
            )
        return Base(base_model, _link(base_model), relation=relation)
    if folder.is_adapter:
        name, commit = folder.adapter.get("base_model_name_or_path"), folder.adapter.get("revision")
    elif folder.record is not None:
        source = folder.record["source"]
        name, commit = source["name_or_path"], source["commit"]
    else:
        name, commit = folder.fingerprint.get("model.path"), None
    return None if not name else _base(str(name), commit, relation)


def _relation(folder):
    if folder.is_adapter:
        return "adapter"
    if folder.config.get("quantization_config"):
        return "quantized"
    # The Hub has no word for a conversion.
    return None if folder.record is not None else "finetune"


def _base(name, commit, relation):
    # Of a text that cannot be a path, os.path only says that there is no such folder.
    path = Path(name)
    if os.path.isdir(name):
        # The Hub's name of a folder that was converted from it.
        record = read_record(path) if (path / CONVERSION_FILE).is_file() else None
        ancestor = record["source"] if record is not None else {}
        known = ancestor.get("name_or_path") if ancestor.get("commit") and relation != "adapter" else None
        shown = _local(name)
        if ancestor.get("commit"):
            shown += f", which was converted from {_link(ancestor['name_or_path'])}"
        return Base(known, shown, ancestor.get("commit") if known else None, path, relation)
    # A relative path looks like a name on the Hub. Only a commit, or a file in the cache, tells the two apart.
    if is_hub_name(name) and (commit or isinstance(try_to_load_from_cache(name, "config.json"), str)):
        return Base(name, _link(name), commit, None, relation)
    return Base(None, _local(name), None, None, relation)


def _link(name):
    return f"[{plain(name)}](https://huggingface.co/{name})"


def _local(path):
    name = last_part(path)
    return name if name == LOCAL_FOLDER else f"the local folder {name}"


def find_licence(base: Base | None, *, ask_hub: bool) -> dict:
    """
    The licence of a base, as fields of a card; empty where nobody says it.

    Args:
        base (`Base`, *optional*): The base.
        ask_hub (`bool`): Whether to ask the Hub, once, where the card of the base is not on this machine.
    """
    if base is None:
        return {}
    card = base.folder / REPOCARD_NAME if base.folder is not None else None
    if card is None and base.name is not None:
        cached = try_to_load_from_cache(base.name, REPOCARD_NAME, revision=base.commit)
        card = Path(cached) if isinstance(cached, str) else None
    if card is None or not card.is_file():
        return dict(_licence_on_hub(base.name, base.commit)) if ask_hub and base.name is not None else {}
    try:
        return _licence_of(ModelCard.load(card, ignore_metadata_errors=True).data)
    except Exception:  # a card that a person broke shows as almost any error of YAML and of the card
        return {}


@functools.cache
def _licence_on_hub(name, commit):
    try:
        data = HfApi().model_info(name, revision=commit, timeout=_PATIENCE).card_data
    except (OSError, ValueError, _NO_ANSWER):
        # No network, no access, no such repository: the card does not need to name a licence.
        return {}
    return {} if data is None else _licence_of(data)


def _licence_of(data):
    names = ("license", "license_name", "license_link")
    found = {name: data.get(name) for name in names if isinstance(data.get(name), str)}
    return found if "license" in found else {}


def describe_conversion(record: dict, base: Base | None = None) -> list[str]:
    """
    How a source became this model, and how exact that is, as paragraphs in Markdown.

    Args:
        record (`dict`): The record of the conversion.
        base (`Base`, *optional*): The source, as the publisher names it. A local folder gets its name on the Hub.
    """
    source = record["source"]
    name = _link(source["name_or_path"]) if source["commit"] else _local(source["name_or_path"])
    if not source["commit"] and base is not None and base.name:
        name = base.shown
    revision = f" at commit {code(source['commit'][:12])}" if source["commit"] else ""
    described = f"{name}{revision} ({code(source['model_type'])}, {counted(source['num_layers'], 'layer')})"
    if record["kind"] == "published_loop":
        return [f"Read from {described}, a published {plain(record['family'])} model. The weights are its weights."]
    if record["kind"] == "unrolling":
        times = record["num_recurrences"]
        first = f"Written out from {described} as a plain decoder, with the layers of the loop {times} times."
    else:
        first = f"Converted from {described}. {_layers(record['layers'])}"
    return [first, describe_exactness(record["exactness"])]


def _layers(layers):
    parts = [
        f"{_span(layers[name])} {place}"
        for name, place in (
            ("prelude", "before the loop"),
            ("loop", "in the loop"),
            ("coda", "after the loop"),
            ("dropped", "left out"),
        )
        if layers[name]
    ]
    return f"Where its layers are now, counted from 0: {', '.join(parts)}."


def _span(indices):
    if indices == list(range(indices[0], indices[-1] + 1)):
        return str(indices[0]) if len(indices) == 1 else f"{indices[0]} to {indices[-1]}"
    return ", ".join(map(str, indices))


def describe_exactness(exactness: dict) -> str:
    """What a conversion has changed, as one paragraph in Markdown."""
    where = (
        f"Measured in float32 with {counted(exactness['num_recurrences'], 'recurrence')} on {exactness['num_rows']} "
        f"random rows of {exactness['num_tokens']} tokens, against the {plain(exactness['reference'])}:"
    )
    if exactness["is_exact"]:
        return f"{where} all logits are the same, bit for bit."
    differences = [
        f"{_CASES.get(name, plain(name))} {'not finite' if value is None else number(value)}"
        for name, value in exactness["differences"].items()
    ]
    expected = "" if exactness["is_expected"] else " The model is not exact by its construction: it was changed."
    return (
        f"{where} the largest differences of logits are {', '.join(differences)}; the largest logit is "
        f"{number(exactness['largest_logit'])}.{expected}"
    )


def describe_adapter(folder: ModelFolder) -> list[tuple[str, str]]:
    """What an adapter trains, as names and values in Markdown."""
    adapter, note = folder.adapter, folder.note
    lines = []
    mode = note.get("mode")
    if mode:
        what = {
            "lora": "low-rank updates; the rows of new tokens are stored, but were not trained",
            "tokens": "the embedding rows of new tokens",
            "lora+tokens": "low-rank updates and the embedding rows of new tokens",
            "prompt": "virtual tokens in front of every text",
        }.get(mode)
        lines.append(("Mode", f"{code(mode)}" + (f": {what}" if what else "")))
    if adapter.get("r"):
        scale = adapter["lora_alpha"] / (adapter["r"] ** (0.5 if adapter.get("use_rslora") else 1))
        kind = ", as DoRA" if adapter.get("use_dora") else ""
        lines.append(("Rank", f"{number(adapter['r'])}, times {number(scale)}{kind}"))
        targets = adapter.get("target_modules")
        if isinstance(targets, list) and targets:
            names = sorted({str(name).rpartition(".")[2] for name in targets})
            lines.append(("Updated layers", f"{', '.join(map(code, names))} ({number(len(targets))} in all)"))
    if adapter.get("num_virtual_tokens"):
        lines.append(("Virtual tokens", number(adapter["num_virtual_tokens"])))
    described = note.get("base", {})
    if described.get("new_rows"):
        lines.append(("New tokens", number(len(described["new_rows"]))))
    if folder.num_parameters:
        lines.append(("Stored parameters", number(folder.num_parameters)))
    if described.get("dtype"):
        lines.append(("Trained on a base in", f"{code(described['dtype'])}"))
    return lines
