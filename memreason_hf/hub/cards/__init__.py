"""
Cards: what an artifact on the Hub says about itself, made from its files.

    card = make_card("runs/quickstart", "user/quickstart")
    card.save("runs/quickstart/README.md")

A card holds what the files say and nothing else: a section without facts is left out.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from huggingface_hub.constants import REPOCARD_NAME

# Imported for the sections that they register.
import memreason_hf.hub.cards.calibration
import memreason_hf.hub.cards.exit_gate  # noqa: F401
from memreason_hf.data.chains.folder import MANIFEST_FILE
from memreason_hf.data.questions.memory_reason import REPORT_FILE
from memreason_hf.data.saved_folders import ARROW_MARK
from memreason_hf.files import final_name, whole_file
from memreason_hf.hub.cards.datasets import make_dataset_card
from memreason_hf.hub.cards.folders import ADAPTER_CONFIG
from memreason_hf.hub.cards.markdown import is_hub_name
from memreason_hf.hub.cards.models import make_model_card
from memreason_hf.hub.cards.results import ResultsSection, register_section, result_files
from memreason_hf.hub.cards.spaces import make_metric_card, make_space_card
from modeling_recurrent.card_recurrent import is_generated, read_card


__all__ = [
    "KINDS",
    "ResultsSection",
    "is_generated",
    "make_card",
    "register_section",
    "result_files",
    "write_card",
]

KINDS = ("model", "adapter", "dataset", "metric", "space")
_MAKERS: dict[str, Callable[..., ModelCard | DatasetCard | SpaceCard]] = {
    "model": make_model_card,
    "adapter": make_model_card,
    "dataset": make_dataset_card,
    "metric": make_metric_card,
    "space": make_space_card,
}


def make_card(
    folder: str | Path, repo_id: str | None = None, *, kind: str | None = None, **facts
) -> ModelCard | DatasetCard | SpaceCard:
    """
    The card of a folder, from its files: config, weights, record of a conversion, run, results.

    Paths, users and machines are not named: of a local path the card shows the last part.

    Args:
        folder (`str` or `Path`): What is published.
        repo_id (`str`, *optional*): Its name on the Hub. Default: the name of the folder.
        kind (`str`, *optional*): One of `KINDS`. Default: what the folder holds.
        facts:
            What the files do not say. `license` (an identifier of the Hub), `license_name` and `license_link` for
            `license="other"`, `language` (ISO 639 codes), `tags`. For models and adapters also `base_model` and
            `datasets` (names on the Hub), for data sets `configs`, for metrics and Spaces `sdk_version`, for Spaces
            `models`. `None` counts as not given.

    Returns:
        A card with its metadata in `data`. Without a known licence it names none: that of a base is taken from the
        base's own card, for which the Hub is asked if `repo_id` is given.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds nothing that a card could describe, a file in it is damaged, or a fact has the
            wrong form.

    Example:

    ```python
    >>> from memreason_hf import make_card

    >>> card = make_card("runs/quickstart", "user/quickstart", license="apache-2.0")  # doctest: +SKIP
    >>> card.data.library_name  # doctest: +SKIP
    'transformers'
    ```
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if repo_id is not None and not is_hub_name(repo_id):
        raise ValueError(f"repo_id={repo_id!r} is not the name of a repository. Pass owner/name.")
    kind = kind_of(folder) if kind is None else kind
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}.")
    given = {key: value for key, value in facts.items() if value is not None}
    if isinstance(given.get("tags"), str):
        given["tags"] = [given["tags"]]
    known = inspect.signature(_MAKERS[kind]).parameters
    for key, value in given.items():
        if key not in known or key == "is_published":
            raise ValueError(f"{key}={value!r} is no fact of the card of a {kind}. Leave it out.")
    if kind in ("model", "adapter"):
        given["is_published"] = repo_id is not None
    return _MAKERS[kind](folder, repo_id or final_name(folder), **given)


def kind_of(folder: Path) -> str:
    """
    What a folder holds, one of `KINDS`.

    Raises:
        ValueError: nothing that a card could describe.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    if (folder / "config.json").is_file():
        return "model"
    if any((folder / name).is_file() for name in (ARROW_MARK, MANIFEST_FILE, REPORT_FILE)):
        return "dataset"
    if (folder / f"{folder.absolute().name}.py").is_file():
        return "metric"
    if (folder / "app.py").is_file():
        return "space"
    if any(folder.rglob("*.parquet")):
        return "dataset"
    raise ValueError(
        f"{folder} holds neither a model (config.json), an adapter ({ADAPTER_CONFIG}), a data set, a metric nor a "
        "page (app.py)."
    )


def write_card(
    folder: str | Path, repo_id: str | None = None, *, described: str | Path | None = None, **facts
) -> bool:
    """
    Writes the card of a folder into it, as `README.md`, unless it has one that a person wrote.

    Args:
        folder (`str` or `Path`): Where the card goes.
        repo_id (`str`, *optional*): As for `make_card`.
        described (`str` or `Path`, *optional*): The folder that it describes. Default: `folder`.
        facts: As for `make_card`.

    Returns:
        Whether it was written.

    Raises:
        As `make_card`.
    """
    written = read_card(folder)
    if written is not None and not is_generated(written):
        return False
    card = make_card(described or folder, repo_id, **facts)
    with whole_file(Path(folder) / REPOCARD_NAME, overwrite=True) as temporary:
        temporary.write_text(str(card), encoding="utf-8")
    return True
