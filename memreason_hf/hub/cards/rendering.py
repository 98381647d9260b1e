"""Templates and metadata of cards."""

import re
from pathlib import Path
from typing import TypeVar

import jinja2
from huggingface_hub import CardData, RepoCard

from memreason_hf.hub.cards.markdown import code, plain


Card = TypeVar("Card", bound=RepoCard)
_TEMPLATES = Path(__file__).parent / "templates"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")


def render(card_class: type[Card], metadata: CardData, template: str, /, **facts) -> Card:
    """
    A card from one of the templates of this folder.

    Args:
        card_class (`type`): `ModelCard`, `DatasetCard` or `SpaceCard`.
        metadata (`CardData`): What stands between the two lines of dashes.
        template (`str`): Name of the template, without `.md`.
        facts: What the template shows, as Markdown.
    """
    text = (_TEMPLATES / f"{template}.md").read_text(encoding="utf-8")
    # Blocks take whole lines, which would otherwise be empty lines inside lists and tables.
    made = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined).render(
        card_data=metadata.to_yaml(), **facts
    )
    return card_class(re.sub(r"\n{3,}", "\n\n", made).rstrip() + "\n")


def check_licence(name: str | None) -> str | None:
    """
    The Hub's identifier of a licence.

    Raises:
        ValueError: it does not have that form.
    """
    if name is not None and not _LICENCE.fullmatch(name):
        raise ValueError(
            f"license={name!r} is not an identifier of a licence. Use one of the Hub's, such as apache-2.0, mit or "
            "llama3.2; for another licence, other."
        )
    return name


def check_languages(names: str | list[str] | None) -> list[str] | None:
    """
    Codes of languages, as a list.

    Raises:
        ValueError: one of them is not an ISO 639 code.
    """
    names = [names] if isinstance(names, str) else names
    for name in names or ():
        if not isinstance(name, str) or not _LANGUAGE.fullmatch(name):
            raise ValueError(f"language={name!r} is not a code of ISO 639. Use en, de or zh, for example.")
    return list(names) if names else None


def licence_sentence(fields: dict, of_base: bool) -> str | None:
    """What a card says about the licence, in Markdown; `None` if it is not known."""
    if "license" not in fields:
        return None
    if fields["license"] == "other":
        name = fields.get("license_name")
        shown = "another licence than the usual ones" if name is None else plain(name)
    else:
        # The identifier: it is no word that could begin a sentence.
        shown = code(fields["license"])
    return f"That of the base: {shown}." if of_base else f"{shown[0].upper()}{shown[1:]}."
