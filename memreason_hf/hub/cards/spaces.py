"""Cards of metrics and of Spaces."""

from pathlib import Path

from huggingface_hub import ModelCard, SpaceCard, SpaceCardData
from huggingface_hub.constants import REPOCARD_NAME

from memreason_hf.hub.cards.markdown import plain
from memreason_hf.hub.cards.rendering import check_licence, render
from memreason_hf.imports import imports_of
from modeling_recurrent.card_recurrent import CARD_MARK


_APP = "app.py"


def make_metric_card(
    folder: Path, name: str, *, tags: list[str] | None = None, sdk_version: str | None = None
) -> SpaceCard:
    """
    The card of an `evaluate` module, with the text of the module's own README.

    Args:
        folder (`Path`): The folder of the module.
        name (`str`): Its name on the Hub, or that of its folder.
        sdk_version (`str`, *optional*): The release of Gradio that the page needs.
    """
    title, summary, text = _own_text(folder, name)
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=sdk_version,
        app_file=_APP,
        pinned=False,
        tags=list(dict.fromkeys(["evaluate", "metric", *(tags or ())])),
        short_description=summary if summary and len(summary) <= 60 else None,
    )
    code = f'import evaluate\nmetric = evaluate.load("{name}", keep_in_memory=True)'
    requirement = ""
    if _needs_package(folder):
        requirement = "The module needs the package: `pip install memreason-hf`."
    return render(
        SpaceCard,
        data,
        "space",
        mark=CARD_MARK,
        title=plain(title),
        summary=plain(summary or title),
        code=code,
        requirement=requirement,
        text=text,
    )


def make_space_card(
    folder: Path,
    name: str,
    *,
    models: list[str] | None = None,
    license: str | None = None,
    tags: list[str] | None = None,
    sdk_version: str | None = None,
) -> SpaceCard:
    """
    The card of the page on which a model can be tried.

    Args:
        folder (`Path`): The folder of the page.
        name (`str`): Its name on the Hub, or that of its folder.
        models (`list[str]`, *optional*): The models that it shows.
        sdk_version (`str`, *optional*): The release of Gradio that it needs.
    """
    title = name.rpartition("/")[2]
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=sdk_version,
        app_file=_APP,
        license=check_licence(license),
        models=list(models) if models else None,
        pinned=False,
        tags=list(dict.fromkeys(["recurrent-depth", *(tags or ())])),
    )
    shown = "".join(f" [{plain(model)}](https://huggingface.co/{model})" for model in models or ())
    return render(
        SpaceCard,
        data,
        "space",
        mark=CARD_MARK,
        title=plain(title),
        summary=f"A page to try a recurrent-depth model:{shown}."
        if shown
        else "A page to try a recurrent-depth model.",
        code="",
        requirement="",
        text="",
    )


def _own_text(folder, name):
    """Title, description and text of the README of a module."""
    path = folder / REPOCARD_NAME
    if not path.is_file():
        return name.rpartition("/")[2].replace("_", " ").capitalize(), "", ""
    card = ModelCard.load(path, ignore_metadata_errors=True)
    title = card.data.get("title") or name.rpartition("/")[2]
    lines = card.text.replace(CARD_MARK, "").strip().splitlines()
    # Its title is that of the card.
    text = "\n".join(lines[1:] if lines and lines[0].startswith("# ") else lines).strip()
    return str(title), str(card.data.get("description") or ""), text


def _needs_package(folder):
    return any(imported.is_own for path in sorted(folder.glob("*.py")) for imported in imports_of(path))
