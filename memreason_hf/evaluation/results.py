"""
Results files: JSON documents of several kinds, each checked against its schema when it is written and read.

A document is one JSON object, UTF-8. Numbers that do not exist (NaN) are `null`. Accuracies are in 0..1, times in
seconds. It holds no absolute paths, so that it can be published. Every kind of document has a schema, a `TypedDict` in
the module that makes such documents and registers it (`register_kind`). The same schema as JSON schema, with a
description of every entry:

    results_schema("evaluation")
"""

import json
import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from memreason_hf.checks import check_has, check_int, check_path, check_type, shortened
from memreason_hf.files import portable_path, read_json, whole_file


SCHEMA_VERSION = 1
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
_TYPE_NAMES = {"integer": "an integer", "number": "a number", "string": "a string", "boolean": "true or false"}
_TYPE_NAMES |= {"array": "a list", "object": "an object", "null": "null"}
_LONGEST_VALUE = 80


class ModelDescription(TypedDict):
    """What was evaluated."""

    name_or_path: str
    """Folder, or name on the Hub; see `portable_path`."""
    model_type: str
    num_parameters: int
    """Tied weights count once."""
    dtype: str


class DataDescription(TypedDict):
    """The rows that were evaluated."""

    path: str
    """Folder of the data set; see `portable_path`."""
    split: str
    kind: str
    """Which rows of the split: `test`, `train`, `atomic` or `all`."""
    group_column: str
    num_rows: int


class Environment(TypedDict):
    """Versions, machine and device; no host or user names."""

    python: str
    libraries: dict[str, str | None]
    """Versions by library; null where a library is not installed."""
    platform: str
    machine: str
    num_threads: int
    device: str
    device_name: str
    num_processes: int


class Document(TypedDict):
    """The entries that documents of all kinds share."""

    schema_version: Annotated[Literal[1], Field(description="Version of the schema.")]
    created: Annotated[str, Field(description="UTC time, ISO 8601.")]
    environment: Environment


@dataclass(frozen=True)
class ResultsHeader:
    """
    The parts of a document that the evaluation itself does not know.

    Attributes:
        model: from `describe_model`.
        data: from `describe_data`.
        environment: from `describe_environment`.
    """

    model: dict
    data: DataDescription
    environment: Environment


@dataclass(frozen=True)
class _Kind:
    adapter: TypeAdapter
    check: Callable[[dict], None] | None


_KINDS: dict[str, _Kind] = {}


def register_kind(kind: str, schema: type, *, check: Callable[[dict], None] | None = None) -> None:
    """
    Registers a kind of document. The module that makes such documents calls it once, when it is imported.

    Args:
        kind: value of the entry `kind`.
        schema: a `TypedDict` with the entries of `Document` and a `kind: Literal[...]`. It is made strict: values of
            another type and unknown keys are refused, also in the `TypedDict`s inside it.
        check: called with a document of the right types; raises ValueError for what a type cannot say.

    Raises:
        ValueError: the kind is registered already.

    Example:

        >>> from typing import Literal
        >>> class Timing(Document):
        ...     kind: Literal["timing"]
        ...     seconds: float
        >>> register_kind("timing", Timing)
        >>> validate_results(new_document("timing", environment=describe_environment("cpu"), seconds=1.5))
    """
    if kind in _KINDS:
        raise ValueError(f"kind={kind!r} is already registered.")
    _KINDS[kind] = _Kind(TypeAdapter(with_config(_STRICT)(schema)), check)


def results_schema(kind: str) -> dict:
    """
    The JSON schema of documents of one kind.

    Raises:
        ValueError: no such kind is registered.

    Example:

        >>> schema = results_schema("depth_sweep")
        >>> schema["properties"]["kind"]["const"], schema["additionalProperties"]
        ('depth_sweep', False)
    """
    return _registered(kind).adapter.json_schema()


def new_document(kind: str, **entries) -> dict:
    """
    A new document: `entries` after the version of the schema, the kind and the time.

    Raises:
        ValueError: no such kind is registered, or the entries do not fit its schema.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"schema_version": SCHEMA_VERSION, "kind": kind, "created": created, **entries}
    validate_results(document)
    return document


def validate_results(results: dict) -> None:
    """
    Checks a document of any kind against its schema.

    Raises:
        ValueError: in one line, the entry that is missing, unknown or of the wrong type, its value, and what it must
            be.
    """
    if not isinstance(results, dict):
        raise ValueError(f"results={shortened(results)} must be one JSON object, got {type(results).__name__}.")
    if "schema_version" not in results:
        raise ValueError(f"results={shortened(results)} lacks schema_version: it is not a document of this package.")
    if results["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version={results['schema_version']!r} must be {SCHEMA_VERSION}: this release of "
            f"memreason-hf reads {SCHEMA_VERSION}."
        )
    kind = _registered(results.get("kind"))
    try:
        kind.adapter.validate_python(results)
    except ValidationError as error:
        raise ValueError(_message(error.errors(), results, kind.adapter.json_schema())) from None
    if kind.check is not None:
        kind.check(results)


def write_results(path: str | os.PathLike, results: dict, *, overwrite: bool = False) -> None:
    """
    Writes a document of any kind as JSON. The file appears whole or not at all.

    Raises:
        ValueError: the document breaks its schema.
        FileExistsError: `path` exists and `overwrite` is false.
    """
    validate_results(results)
    text = json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character, as file names may hold: only an escape can be written
        text = json.dumps(results, indent=2, allow_nan=False)
    # A list of numbers takes one line. Strings cannot match, because JSON has no bare line breaks in them.
    text = re.sub(r"\[\n\s+([^\[\]{}\"]*?)\n\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    with whole_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_results(path: str | os.PathLike) -> dict:
    """
    Reads a document of any registered kind, and checks it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or breaks the schema; names the file and the entry.
    """
    check_path("path", path)
    try:
        results = read_json(path)
        validate_results(results)
    except ValueError as error:
        raise ValueError(f"{path} is not a results file: {error}") from error
    return results


def expect_kind(results: dict, kind: str) -> None:
    """Raises ValueError for a document of another kind."""
    if results["kind"] != kind:
        raise ValueError(f"kind={results['kind']!r}: the results must be of kind {kind!r}.")


def describe_model(model: torch.nn.Module, name_or_path: str, trained_hops: int | None = None) -> dict:
    """The entry `model` of a document about chains: a `ModelDescription`, and `trained_hops`."""
    check_has("model", model, "config", "a model of transformers")
    return {
        "name_or_path": portable_path(name_or_path),
        "model_type": model.config.model_type,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "trained_hops": trained_hops,
    }


def describe_data(
    path: str, split: str, num_rows: int, *, kind: str = "test", group_column: str = "hops"
) -> DataDescription:
    """The entry `data` of a document about chains."""
    check_int("num_rows", num_rows, least=0)
    return {
        "path": portable_path(path),
        "split": split,
        "kind": kind,
        "group_column": group_column,
        "num_rows": num_rows,
    }


def describe_environment(device: torch.device | str, num_processes: int = 1) -> Environment:
    """The entry `environment` of a document."""
    check_type("device", device, str | torch.device, "a device or its name")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r} is not a device. Pass cpu, cuda or cuda:1.") from None
    libraries = ("torch", "transformers", "datasets", "evaluate", "accelerate", "numpy", "memreason-hf")
    return {
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in libraries},
        "platform": platform.platform(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "num_threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name(),
        "num_processes": num_processes,
    }


def _registered(kind):
    if not isinstance(kind, str) or kind not in _KINDS:
        known = ", ".join(sorted(_KINDS))
        raise ValueError(
            f"kind={kind!r} must be one of {known}. Another kind is known once the module that makes it is imported."
        )
    return _KINDS[kind]


def _message(errors: Sequence[dict], document: dict, schema: dict) -> str:
    """The first error of pydantic in one line: the place, the value there, and what it must be."""
    first = errors[0]
    keys = {"missing": [], "extra_forbidden": []}
    if first["type"] in keys:
        parent = first["loc"][:-1]
        for error in errors:
            if error["type"] in keys and error["loc"][:-1] == parent:
                keys[error["type"]].append(str(error["loc"][-1]))
        place = _follow(parent, document, schema)[0] or "results"
        missing, unknown = sorted(keys["missing"]), sorted(keys["extra_forbidden"])
        return f"{place}: missing keys {missing}, unknown keys {unknown}. Add the former, and remove the latter."
    place, value, node = _follow(first["loc"], document, schema)
    shown = repr(value)
    if len(shown) > _LONGEST_VALUE:
        shown = f"{shown[:_LONGEST_VALUE]}…"
    wanted = "a finite number" if first["type"] == "finite_number" else _wanted(node, schema)
    return f"{place}={shown} must be {wanted}."


def _follow(location, document, schema):
    """The name of a place in a document, the value there, and the part of the JSON schema about it."""
    place, value, node = "", document, schema
    for key in location:
        is_index = isinstance(value, list) and isinstance(key, int)
        if not is_index and not (isinstance(value, dict) and key in value):
            # Pydantic adds the name of the type that was tried.
            break
        place += f"[{key}]" if is_index else f".{key}" if place else str(key)
        value, node = value[key], _child(node, key, schema)
    return place, value, node


def _child(node, key, schema):
    for option in _options(node, schema):
        if "properties" in option:
            return option["properties"].get(key, {})
        for name in ("items", "additionalProperties"):
            if isinstance(option.get(name), dict):
                return option[name]
    return {}


def _options(node, schema):
    """The alternatives that a part of a JSON schema allows, each without a reference."""
    if "$ref" in node:
        return _options(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    return [option for part in node["anyOf"] for option in _options(part, schema)] if "anyOf" in node else [node]


def _wanted(node, schema):
    names = []
    for option in _options(node, schema):
        values = [option["const"]] if "const" in option else option.get("enum")
        names += [repr(value) for value in values] if values else [_TYPE_NAMES.get(option.get("type"), "a JSON value")]
    return " or ".join(names)


def _processor_name():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
