"""Ready recipes: YAML files that `memreason train`, `finetune` and `quickstart` take by name."""

import difflib
from collections.abc import Hashable
from pathlib import Path

import yaml


RECIPES_FOLDER = Path(__file__).parent
# What the names of recipes for other commands than `train` begin with, which there may be left out.
FINETUNE = "finetune_"
_PREFIXES = (FINETUNE,)


def recipe_names(prefix: str = "") -> list[str]:
    """The names of the package's recipes that begin with `prefix`; those for `memreason train` have none."""
    names = sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))
    return [name for name in names if (name.startswith(prefix) if prefix else not name.startswith(_PREFIXES))]


def find_recipe(recipe: str | Path, prefix: str = "") -> Path:
    """
    The file of a recipe given by its path or, for those of the package, by its name, `prefix` being optional.

    Raises:
        FileNotFoundError: there is neither such a file nor a recipe of that name.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    for name in (f"{prefix}{recipe}", str(recipe)):
        packaged = RECIPES_FOLDER / f"{name}.yaml"
        if packaged.parent == RECIPES_FOLDER and packaged.is_file():
            return packaged
    names = [name.removeprefix(prefix) for name in recipe_names(prefix)]
    close = difflib.get_close_matches(str(recipe).removeprefix(prefix), names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise FileNotFoundError(
        f"No recipe {str(recipe)!r}: neither a file nor one of the package's ({', '.join(names)}).{hint}"
    )


def load_recipe(recipe: str | Path) -> dict[str, dict]:
    """
    Reads a recipe: a mapping from sections to mappings of keys.

    Raises:
        FileNotFoundError: see `find_recipe`.
        ValueError: no YAML, not of that shape, or a key that appears twice.
    """
    path = find_recipe(recipe)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections such as 'training:', not a {type(content).__name__}.")
    for section, values in content.items():
        if values is not None and not isinstance(values, dict):
            raise ValueError(f"{path}, section {section!r} must hold keys and values, not {values!r}.")
    return {section: values or {} for section, values in content.items()}


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that appears twice; YAML itself takes the last one silently."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
