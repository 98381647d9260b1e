"""
The texts of a file that is about to be published, whatever its format: lines, rows of tables, headers and metadata.

Large files are read in blocks, and of weights only the header.
"""

import bz2
import gzip
import json
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from memreason_hf.hub.private_text import Style


# A tokenizer's pieces of words.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")
_SETTINGS = (".json", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".conf")
# A larger JSON file holds data, whose values need not be settings.
_LARGEST_SETTINGS = 1 << 20
_BLOCK = 1 << 20
# A line longer than a block is read in pieces that share so many bytes, so that nothing is cut at their ends.
_OVERLAP = 1 << 12
_COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ROWS = 4096


class Part(NamedTuple):
    """
    A piece of the text of a file.

    Attributes:
        line: the number of its first line, from 1, or of the first row of a table, each row being one line of the
            text; None where the file has no lines.
        text, style: for `PrivateText.find`.
        place: what its lines are; for a file without lines, where the text stands in it.
    """

    line: int | None
    text: bytes
    style: Style
    place: str = "line"


def read_parts(path: Path) -> Iterator[Part]:
    """
    The texts of a file. A file whose suffix promises another format than it has is read as bytes.

    Raises:
        OSError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix)
    if reader is not None:
        try:
            yield from reader(path)
            return
        except (ValueError, KeyError, EOFError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile):
            # Damaged, or of another format. pyarrow's errors are ValueErrors.
            pass
    if suffix in _COMPRESSED:
        with _COMPRESSED[suffix](path) as file:
            yield from _read_blocks(file, _style(path.with_suffix(""), None))
        return
    with path.open("rb") as file:
        beginning = file.read(8192)
        if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
            text = (beginning + file.read()).decode("utf-16", errors="replace").encode()
            yield Part(1, text, _style(path, len(text)))
            return
        file.seek(0)
        if b"\0" in beginning:
            for part in _read_blocks(file, "binary"):
                yield part._replace(line=None, place="bytes")
        else:
            yield from _read_blocks(file, _style(path, path.stat().st_size))


def _style(path, size) -> Style:
    if path.name in _VOCABULARIES:
        return "vocabulary"
    return "settings" if path.suffix.lower() in _SETTINGS and size and size <= _LARGEST_SETTINGS else "text"


def _read_blocks(file, style):
    """Whole lines, about `_BLOCK` bytes at a time; longer lines in overlapping pieces."""
    line, rest = 1, b""
    while block := file.read(_BLOCK):
        text = rest + block
        end = text.rfind(b"\n") + 1
        if end == 0 and len(text) < _BLOCK:
            rest = text
            continue
        if end == 0:
            yield Part(line, text, style)
            rest = text[-_OVERLAP:]
            continue
        yield Part(line, text[:end], style)
        line += text.count(b"\n", 0, end)
        rest = text[end:]
    if rest:
        yield Part(line, rest, style)


def _read_safetensors(path):
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    yield Part(None, _json_lines(metadata), "settings", "metadata")
    yield Part(None, "\n".join(header).encode(), "text", "names of tensors")


def _read_parquet(path):
    with pq.ParquetFile(path) as file:
        yield from _read_metadata({**(file.metadata.metadata or {}), **(file.schema_arrow.metadata or {})})
        yield from _read_rows(file.iter_batches(batch_size=_ROWS))


def _read_arrow(path):
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
            yield from _read_metadata(reader.schema.metadata)
            yield from _read_rows(reader)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(source)
            yield from _read_metadata(reader.schema.metadata)
            yield from _read_rows(reader.get_batch(index) for index in range(reader.num_record_batches))


def _read_metadata(metadata):
    # Arrow's own copy of the schema is base64, and says what the other keys say.
    values = {key.decode(errors="replace"): value for key, value in (metadata or {}).items() if key != b"ARROW:schema"}
    texts = {key: value.decode(errors="replace") for key, value in values.items()}
    yield Part(None, _json_lines(texts), "settings", "metadata")


def _read_rows(batches):
    """The strings of every row. Rows are numbered from 1."""
    first = 1
    for batch in batches:
        for column in batch.columns:
            yield from _strings(column, first)
        first += batch.num_rows


def _strings(column, first):
    """The strings anywhere in a column, one line for each row."""
    if not _holds_strings(column.type):
        return
    values = column.to_pylist()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        values = [json.dumps(value, default=_decoded, ensure_ascii=False) for value in values]
    lines = (value.replace("\n", " ") if value else "" for value in values)
    yield Part(first, "\n".join(lines).encode(errors="replace"), "text", "row")


def _decoded(value):
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _holds_strings(type_):
    if isinstance(type_, pa.ExtensionType):
        type_ = type_.storage_type
    if pa.types.is_nested(type_):
        return any(_holds_strings(type_.field(index).type) for index in range(type_.num_fields))
    if pa.types.is_dictionary(type_):
        return _holds_strings(type_.value_type)
    return any(
        check(type_)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    )


def _read_png(path):
    """The chunks of text of a PNG file."""
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("not a PNG file")
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        place += length + 12
        if kind == b"zTXt":
            keyword, _, packed = content.partition(b"\0")
            content = keyword + b" " + zlib.decompress(packed[1:])
        elif kind == b"iTXt":
            keyword, _, rest = content.partition(b"\0")
            is_packed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[2]
            content = keyword + b" " + (zlib.decompress(text) if is_packed else text)
        elif kind not in (b"tEXt", b"eXIf"):
            continue
        yield Part(None, content.replace(b"\0", b" "), "text", f"{kind.decode()} chunk")


def _read_pdf(path):
    """The bytes of a PDF file, and what its streams hold unpacked."""
    data = path.read_bytes()
    if not data.startswith(b"%PDF"):
        raise ValueError("not a PDF file")
    yield Part(None, data, "binary", "document")
    for match in re.finditer(rb"stream\r?\n(.*?)\r?\n?endstream", data, re.DOTALL):
        try:
            text = zlib.decompress(match[1])
        except zlib.error:
            continue
        yield Part(None, text, "binary", "stream")


def _read_npz(path):
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield Part(None, name.encode(), "text", "name of an array")


def _json_lines(values):
    """`{key: text}` as JSON, one pair a line; a value that is JSON itself is written out, so that its paths show."""
    lines = []
    for key, value in values.items():
        try:
            content = json.loads(value)
        except (TypeError, ValueError):
            content = value
        lines.append(json.dumps({key: content}, ensure_ascii=False, indent=0))
    return "\n".join(lines).encode()


_READERS = {
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".png": _read_png,
    ".pdf": _read_pdf,
    ".npz": _read_npz,
}
