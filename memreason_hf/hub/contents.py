"""What a folder is, and which of its files go to the Hub: a list of what belongs there, never of what does not."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from memreason_hf.adapters.base_place import LOCAL_BASE_FILE
from memreason_hf.adapters.model import ADAPTER_FILE
from memreason_hf.data.chains.json_files import SPLIT_FILES, VOCABULARY_FILE
from memreason_hf.data.saved_folders import is_saved, is_saved_split
from memreason_hf.files import read_json
from memreason_hf.hub.weights import ADAPTER_CONFIG, MODEL_CONFIG, check_weights, weight_names
from memreason_hf.imports import imports_of
from memreason_hf.messages import first_few
from memreason_hf.models.conversion.record import CONVERSION_FILE
from memreason_hf.steps.attention import STEP_ATTENTION_FILE
from memreason_hf.training.runs.output_folder import RUN_FILE


MODEL, ADAPTER, DATASET, METRIC, SPACE = "model", "adapter", "dataset", "metric", "space"
REPO_TYPES = {MODEL: "model", ADAPTER: "model", DATASET: "dataset", METRIC: "space", SPACE: "space"}
CARD = "README.md"

_CONFIGS = (MODEL_CONFIG, ADAPTER_CONFIG, ADAPTER_FILE, STEP_ATTENTION_FILE, CONVERSION_FILE, "generation_config.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_CHAT_TEMPLATES = "additional_chat_templates/*.jinja"
_DOCUMENTS = (CARD, "LICENSE*", "NOTICE*", "CITATION.*", "USE_POLICY.md")
_PICTURES = (".png", ".svg", ".jpg", ".jpeg", ".webp", ".gif", ".pdf")
# What `Trainer.save_metrics` writes.
_TRAINER_RESULTS = ("all_results.json", "train_results.json", "eval_results.json", "test_results.json")
_STATE = (
    "training_args.bin",
    "trainer_state.json",
    "optimizer*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*",
    "callbacks.json",
    "*.distcp",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack")
_SKIPPED_FOLDERS = ("__pycache__", "node_modules")


@dataclass(frozen=True)
class ContentFile:
    """
    A file that goes.

    Attributes:
        name: its path in the repository, with `/`.
        path: where it is.
        size: in bytes.
    """

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class LeftOut:
    """A file, or a folder with all its files, that stays, its size and the reason."""

    name: str
    size: int
    reason: str


@dataclass(frozen=True)
class FolderContents:
    """
    What a folder is, and what of it goes to the Hub.

    Attributes:
        folder: the folder.
        kind: `"model"`, `"adapter"`, `"dataset"`, `"metric"` or `"space"`.
        files: what goes, by name. For a data set and a metric, the files that the repository is made from.
        left: what stays.
    """

    folder: Path
    kind: str
    files: tuple[ContentFile, ...]
    left: tuple[LeftOut, ...]

    @property
    def repo_type(self) -> str:
        """The type of the repository: `"model"`, `"dataset"` or `"space"`."""
        return REPO_TYPES[self.kind]

    @property
    def size(self) -> int:
        """The bytes of all files that go."""
        return sum(file.size for file in self.files)


def describe_folder(
    folder: str | Path, *, repo_type: str | None = None, include_run: bool = False, include: Iterable[str] = ()
) -> FolderContents:
    """
    Finds out what a folder holds, and checks that it is whole.

    Of a model or an adapter go: weights in safetensors, configs, the model's own code, tokenizer, results, pictures,
    licence and card. Optimiser states, checkpoints, pickles, hidden files and files that no one asked for stay.

    Args:
        folder (`str` or `Path`): The folder.
        repo_type (`str`, *optional*):
            Chooses where a folder holds two things, for example a data set beside a model.
        include_run (`bool`): Whether the record of the training run, `run.json`, goes as well.
        include (`str`, *optional*): Patterns of further files that go, for example `"notes/*.md"`.

    Returns:
        [`FolderContents`]

    Raises:
        FileNotFoundError, NotADirectoryError: `folder` is no folder.
        ValueError: it holds nothing that can be published, no weights, two models, or damaged weights.

    Example:

    ```python
    >>> from memreason_hf.hub.contents import describe_folder

    >>> describe_folder("runs/quickstart").kind  # doctest: +SKIP
    'model'
    ```
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"folder={str(folder)!r} does not exist.")
    if not folder.is_dir():
        raise NotADirectoryError(f"folder={str(folder)!r} is a file. Pass the folder that holds it.")
    kind = _find_kind(folder, repo_type)
    if kind in (MODEL, ADAPTER):
        check_weights(folder)
        wanted = _ModelFiles(folder, include_run, tuple(include))
        found, left = _sort_out(folder, wanted.reason_to_stay)
    else:
        found, left = _sort_out(folder, lambda name, path: None)
    return FolderContents(folder, kind, tuple(found), tuple(left))


def walk_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path in the repository, path) of every file of a folder that is not hidden, by name."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in _SKIPPED_FOLDERS:
            continue
        if path.is_dir():
            yield from ((f"{path.name}/{name}", inner) for name, inner in walk_files(path))
        elif path.is_file():
            yield path.name, path


# What a folder is.


def _find_kind(folder, repo_type):
    found = [kind for kind, holds in _KINDS if holds(folder)]
    if repo_type is not None:
        fitting = [kind for kind in found if REPO_TYPES[kind] == repo_type]
        if found and not fitting:
            raise ValueError(f"repo_type={repo_type!r}, but {folder} holds a {found[0]}.")
        found = fitting
    if len(found) > 1:
        names = " and ".join(f"a {kind}" for kind in found)
        raise ValueError(f"{folder} holds {names}. Pass repo_type (--repo_type) to choose one of them.")
    if found:
        return found[0]
    nested = sorted(folder.glob("checkpoint-*/*config.json"), key=lambda path: path.stat().st_mtime)
    hint = f" Did you mean {nested[-1].parent}?" if nested else ""
    raise ValueError(
        f"{folder} holds nothing to publish: neither a model ({MODEL_CONFIG} and weights), an adapter "
        f"({ADAPTER_CONFIG} and weights), a data set, a metric nor a Space.{hint}"
    )


def _holds_model(folder):
    return (folder / MODEL_CONFIG).is_file() or (bool(weight_names(folder)) and not _holds_adapter(folder))


def _holds_adapter(folder):
    # A folder with both configs is refused when its weights are checked.
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / MODEL_CONFIG).is_file()


def holds_data_set(folder: Path) -> bool:
    """Whether a folder holds a data set as this package or `save_to_disk` writes it."""
    holds_chains = (folder / SPLIT_FILES["train"]).is_file() and (folder / VOCABULARY_FILE).is_file()
    return is_saved(folder) or is_saved_split(folder) or holds_chains


def holds_metric(folder: Path) -> bool:
    """Whether a folder holds a module of `evaluate`: a script of the folder's name that imports it, and a card."""
    path = folder / f"{folder.resolve().name}.py"
    try:
        imported = [entry for entry in imports_of(path) if not entry.is_inside and entry.name is None]
    except (OSError, ValueError, SyntaxError):
        return False
    return "evaluate" in [entry.module for entry in imported] and (folder / CARD).is_file()


def _holds_space(folder):
    return (folder / "app.py").is_file() and (folder / CARD).is_file() and not holds_metric(folder)


_KINDS = (
    (MODEL, _holds_model),
    (ADAPTER, _holds_adapter),
    (DATASET, holds_data_set),
    (METRIC, holds_metric),
    (SPACE, _holds_space),
)


# Which files go.


def _sort_out(folder, reason_to_stay, beginning=""):
    found, left = [], []
    for path in sorted(folder.iterdir()):
        name = f"{beginning}{path.name}"
        if path.name.startswith("."):
            left.append(LeftOut(name, _size(path), "hidden"))
        elif path.name in _SKIPPED_FOLDERS:
            left.append(LeftOut(name, _size(path), "made by a program"))
        elif path.is_dir():
            reason = "a link to a folder" if path.is_symlink() else reason_to_stay(name, path)
            if reason:
                left.append(LeftOut(name, _size(path), reason))
                continue
            inner_found, inner_left = _sort_out(path, reason_to_stay, f"{name}/")
            found += inner_found
            left += inner_left
        elif not path.is_file():
            left.append(LeftOut(name, 0, "a broken link, or no regular file"))
        else:
            reason = reason_to_stay(name, path)
            size = path.stat().st_size
            if reason:
                left.append(LeftOut(name, size, reason))
            else:
                found.append(ContentFile(name, path, size))
    return found, left


def _size(path):
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(inner.lstat().st_size for inner in path.rglob("*") if not inner.is_dir())


class _ModelFiles:
    """The files of a model or an adapter that go."""

    def __init__(self, folder, include_run, include):
        self.include_run, self.include = include_run, include
        self.weights = weight_names(folder)
        self.code = _code_files(folder)

    def reason_to_stay(self, name: str, path: Path) -> str | None:
        """Why a file or folder stays; None for one that goes."""
        if path.is_dir():
            return _reason_of_folder(path)
        if any(fnmatch(path.name, pattern) for pattern in _STATE):
            return "the state of the training"
        if path.suffix in _PICKLES and name not in self.weights:
            return "a pickle or another format: only safetensors go"
        if name == LOCAL_BASE_FILE:
            return "where the base is on this machine"
        if name == RUN_FILE:
            return None if self.include_run else "the record of the run; --include_run sends it"
        if name in self.weights or name in self.code or name in _CONFIGS or name in _TOKENIZER:
            return None
        if any(fnmatch(name, pattern) for pattern in (*_DOCUMENTS, _CHAT_TEMPLATES, *self.include)):
            return None
        if path.suffix == ".safetensors":
            return "weights that the config does not load"
        if path.suffix == ".py":
            return "code that the config does not name"
        if path.suffix in _PICTURES or name in _TRAINER_RESULTS or _is_results_file(path):
            return None
        return "no part of a model; --include sends it"


def _reason_of_folder(path):
    if re.fullmatch(r"checkpoint-\d+", path.name):
        return "a checkpoint of the training"
    if (path / MODEL_CONFIG).is_file() or (path / ADAPTER_CONFIG).is_file() or weight_names(path):
        return "a model of its own"
    if holds_data_set(path):
        return f"a data set of its own: memreason publish {path} NAME"
    return None


def _is_results_file(path):
    """Whether a JSON file is a document of this package: every one names its version and where it was made."""
    if path.suffix != ".json":
        return False
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"schema_version", "environment"} <= content.keys()


def _code_files(folder):
    """Names of the code that the configs name in `auto_map`, with all that it imports from the same folder."""
    modules = set()
    for name in (MODEL_CONFIG, "tokenizer_config.json", ADAPTER_CONFIG):
        for reference in _auto_map(folder / name):
            # "owner/name--module.Class" is code of another repository.
            if "--" not in reference and "." in reference:
                modules.add(reference.rsplit(".", 1)[0])
    missing = sorted(f"{module}.py" for module in modules if not (folder / f"{module}.py").is_file())
    if missing:
        raise ValueError(
            f"{folder}: auto_map names {first_few(missing)}, which the folder lacks, so nobody could load the model "
            "without this package. Save it again with save_pretrained."
        )
    names = {f"{module}.py" for module in modules}
    for name in sorted(names):
        try:
            names |= {Path(path).name for path in get_relative_import_files(folder / name)}
        except FileNotFoundError as error:
            missing_name = Path(error.filename or str(error)).name
            raise ValueError(f"{folder}: {name} imports {missing_name}, which the folder lacks.") from None
    return names


def _auto_map(path):
    try:
        content = read_json(path)
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    values = (content.get("auto_map") or {}).values()
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [item for item in flat if isinstance(item, str)]
