"""The folder of a data set of chains: its files, what it may replace, its manifest, saving and loading."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from memreason_hf.checks import check_path
from memreason_hf.data.chains.items import ITEM_KEYS, write_items
from memreason_hf.data.chains.tables import CHAIN_SCHEMA
from memreason_hf.data.chains.tokenizer import TOKENIZER_FILE, VOCABULARY_FILE, build_tokenizer, write_vocabulary
from memreason_hf.data.saved_folders import ARROW_MARK, check_replaceable, is_saved, is_saved_split, load_saved
from memreason_hf.files import clear_killed_builds, read_json, whole_folder
from memreason_hf.locks import clear_free_lock, locked
from memreason_hf.messages import first_few


MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class ChainFolder:
    """
    A kind of folder: JSON files in a study's schema, the Arrow form, the tokenizer and the manifest of one data set.

    Attributes:
        contents: what the folder holds, for messages: `"a multi-hop data set"`.
        builder: the script that builds one.
        split_files: the JSON file of every split.
        item_keys: the keys of an item, for splits whose items hold others than `ITEM_KEYS`.
    """

    contents: str
    builder: str
    split_files: Mapping[str, str]
    item_keys: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def json_files(self) -> tuple[str, ...]:
        return (*self.split_files.values(), VOCABULARY_FILE)

    def check_output(self, folder: Path, overwrite: bool) -> None:
        """
        Checks that a data set may be written to `folder`, which it replaces as a whole.

        Raises:
            NotADirectoryError: `folder` is a file.
            FileExistsError: `folder` holds anything foreign, or it holds a data set and `overwrite` is false.
        """
        names = (*self.json_files, TOKENIZER_FILE, "tokenizer_config.json", ARROW_MARK, MANIFEST_FILE)
        check_replaceable(
            folder,
            contents=self.contents,
            required=(self.split_files["train"], VOCABULARY_FILE),
            is_part=lambda path: path.name in names or (path.name in self.split_files and is_saved_split(path)),
            overwrite=overwrite,
        )

    def save(
        self, dataset: DatasetDict, vocabulary: Sequence[str], config, output_dir: str | Path, *, overwrite: bool
    ) -> dict:
        """
        Writes a data set with the columns of `CHAIN_SCHEMA` into one folder, which appears whole or not at all.

        Args:
            config: the dataclass of sizes that the data set was built with, or None.

        Returns:
            The manifest: the sizes, the rows by split, and bytes by file.

        Raises:
            FileExistsError: as from `check_output`.
        """
        check_path("output_dir", output_dir)
        self.check_output(Path(output_dir), overwrite)
        with whole_folder(output_dir, overwrite=overwrite, durable=False) as folder:
            for split, name in self.split_files.items():
                write_items(dataset[split].data.table, folder / name, self.item_keys.get(split, ITEM_KEYS))
            write_vocabulary(vocabulary, folder)
            build_tokenizer(vocabulary).save_pretrained(folder)
            dataset.save_to_disk(folder)
            sizes = None if config is None else asdict(config)
            write_manifest(folder, {"config": sizes, "numpy": np.__version__, "rows": dataset.num_rows})
        return read_manifest(Path(output_dir))

    def prepare(self, config, save: Callable[[], dict], output_dir: str | Path, *, overwrite: bool) -> dict:
        """
        Calls `save`, unless the folder already holds the data set of exactly these sizes. If another process is
        building it, waits for that.

        Returns:
            The manifest.

        Raises:
            FileExistsError: as from `check_output`, before anything is built.
        """
        check_path("output_dir", output_dir)
        folder = Path(output_dir)
        clear_killed_builds(folder)

        def existing():
            manifest = None if overwrite else read_manifest(folder)
            return manifest if manifest is not None and manifest.get("config") == asdict(config) else None

        if (manifest := existing()) is not None:
            clear_free_lock(folder)
            return manifest
        self.check_output(folder, overwrite)
        # Of several processes that need the data set one builds it, and the others wait for it.
        with locked(folder, wait=float("inf")):
            if (manifest := existing()) is not None:
                return manifest
            return save()

    def load(self, path: str | Path, read_json_files: Callable[[Path], DatasetDict]) -> DatasetDict:
        """
        The Arrow form, memory-mapped, or what `read_json_files` makes of the JSON files if there is no other form.

        Raises:
            FileNotFoundError: the folder holds no data set.
            ValueError: the data set is damaged, or of another kind.
        """
        check_path("path", path)
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}. {self.builder} builds a data set.")
        if not is_saved(folder):
            return read_json_files(folder)
        read_manifest(folder, suffix=".arrow")
        return load_saved(folder, contents=self.contents, columns=CHAIN_SCHEMA.names, splits=self.split_files)


def write_manifest(folder: Path, contents: dict):
    """
    Writes `contents`, and the size in bytes of every file of the folder, which `read_manifest` checks. The folder is
    being staged: syncing this file to the disk would wait for all others.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    text = json.dumps({**contents, "files": sizes}, indent=2)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path, suffix: str = "") -> dict | None:
    """
    The manifest of a folder; None if it has none.

    Args:
        suffix: check only files whose names end with it.

    Raises:
        ValueError: the manifest is damaged, or a file that it lists is missing or has another size.
    """
    path = Path(folder, MANIFEST_FILE)
    if not path.is_file():
        return None
    try:
        manifest = read_json(path)
        sizes = manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged. Build the data set again with overwrite.") from None
    damaged = [name for name, size in sizes if name.endswith(suffix) and not _has_size(Path(folder, name), size)]
    if damaged:
        raise ValueError(
            f"{folder}: {first_few(damaged)} is missing or not of the size that {MANIFEST_FILE} lists. Build the data "
            "set again with overwrite."
        )
    return manifest


def describe_manifest(folder: str | Path, manifest: dict) -> str:
    """One line for a terminal: the folder, the rows by split, and the size."""
    rows = ", ".join(f"{split} {count:,}" for split, count in manifest["rows"].items())
    return f"{folder}: {rows} rows, {sum(manifest['files'].values()) / 1e6:,.1f} MB"


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
