"""
`conversion.json`: where the weights of a folder come from, and how far its logits are from those of its source.

The file is one JSON object with the entries of `Conversion`, `Unrolling` or `PublishedConversion`; `kind` says which.
Numbers that do not exist (the difference from a NaN) are `null`.
"""

import json
import os
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from memreason_hf.files import read_json, write_json


CONVERSION_FILE = "conversion.json"
SCHEMA_VERSION = 1
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelRecord(TypedDict):
    """A model."""

    name_or_path: str
    """Folder, or name on the Hub, as the command was given it; of an absolute path see `portable_path`."""
    revision: str | None
    """Branch, tag or commit on the Hub, as the command was given it."""
    commit: str | None
    """The commit on the Hub; null for a folder."""
    model_type: str
    num_layers: int
    """Layers with weights of their own."""
    num_parameters: int
    """Tied weights count once."""


class ResultRecord(TypedDict):
    """The model that was written."""

    model_type: str
    num_layers: int
    """Layers with weights of their own."""
    num_parameters: int
    """Tied weights count once."""
    dtype: str


class LayersRecord(TypedDict):
    """Indices of layers of the source, counted from 0."""

    prelude: list[int]
    loop: list[int]
    coda: list[int]
    dropped: list[int]
    """Not in the result."""


class ExactnessRecord(TypedDict):
    """What was measured in float32, on the saved folder loaded again."""

    reference: str
    """What the logits were compared with."""
    num_recurrences: int
    """The depth of the recurrent model."""
    differences: dict[str, float | None]
    """Largest absolute difference of logits by case; null where one of them is not finite."""
    largest_logit: float
    is_exact: bool
    """Whether all differences are 0.0."""
    is_expected: bool
    """Whether the model should be exact by its construction."""
    num_rows: int
    num_tokens: int
    """Tokens of a row."""


class Versions(TypedDict):
    """Versions of the libraries; null where one is not installed as a package."""

    memreason_hf: str | None
    transformers: str | None
    torch: str | None


class _Record(TypedDict):
    schema_version: Annotated[Literal[1], Field(description="Version of the schema.")]
    created: Annotated[str, Field(description="UTC time, ISO 8601.")]
    versions: Versions
    source: ModelRecord
    result: ResultRecord


class Conversion(_Record):
    """A decoder that became recurrent."""

    kind: Literal["conversion"]
    layers: LayersRecord
    recurrence: dict[str, int | float | str | None]
    """Fields of the config that say how the loop runs."""
    exactness: ExactnessRecord


class Unrolling(_Record):
    """A loop that was written out as a plain decoder."""

    kind: Literal["unrolling"]
    num_recurrences: int
    """How often the looped layers were written out."""
    exactness: ExactnessRecord


class PublishedConversion(_Record):
    """A published loop that was read as a model of this package."""

    kind: Literal["published_loop"]
    family: str
    """For example `Huginn`."""


_KINDS = {
    "conversion": TypeAdapter(with_config(_STRICT)(Conversion)),
    "unrolling": TypeAdapter(with_config(_STRICT)(Unrolling)),
    "published_loop": TypeAdapter(with_config(_STRICT)(PublishedConversion)),
}


def conversion_schema(kind: str) -> dict:
    """
    The JSON schema of one kind of record, with a description of every entry.

    Example:

        >>> conversion_schema("conversion")["properties"]["kind"]["const"]
        'conversion'
    """
    return _KINDS[kind].json_schema()


def write_record(folder: str | os.PathLike, kind: str, **entries) -> dict:
    """
    Writes `conversion.json` into a folder, and returns its content.

    Raises:
        ValueError: the entries do not fit the schema of the kind.
    """
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in Versions.__annotations__},
        **entries,
    }
    _check(record)
    write_json(Path(folder) / CONVERSION_FILE, record)
    return record


def read_record(folder: str | os.PathLike) -> dict:
    """
    The content of `conversion.json` in a folder.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: the file is not JSON, or breaks its schema.
    """
    path = Path(folder) / CONVERSION_FILE
    record = read_json(path)
    try:
        _check(record)
    except ValueError as error:
        raise ValueError(f"{path} is not a record of a conversion: {error}") from error
    return record


def _check(record):
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind not in _KINDS:
        raise ValueError(f"kind={json.dumps(kind)} must be one of {', '.join(_KINDS)}.")
    try:
        _KINDS[kind].validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(key) for key in first["loc"])
        raise ValueError(f"{place}: {first['msg']}.") from None


def _version(name):
    try:
        return version(name.replace("_", "-"))
    except PackageNotFoundError:
        return None
