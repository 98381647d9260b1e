"""Ready recipes: YAML files that `memreason train`, `finetune` and `quickstart` take by name."""

import difflib
from pathlib import Path

from memreason_hf.recipes.yaml_text import read_yaml


RECIPES_FOLDER = Path(__file__).parent
# Prefixes of the recipes for commands other than `train`. Users of these commands leave the prefix out.
FINETUNE = "finetune_"
_PREFIXES = (FINETUNE,)


def recipe_names(prefix: str = "") -> list[str]:
    """
    The names of the package's recipes that begin with `prefix`.

    Without a prefix, the recipes of `memreason train`, which have none.
    """
    names = sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))
    return [name for name in names if (name.startswith(prefix) if prefix else not name.startswith(_PREFIXES))]


def find_recipe(recipe: str | Path, prefix: str = "") -> Path:
    """
    The file of a recipe.

    Args:
        recipe: a path, or the name of a recipe of the package, with or without `prefix`.

    Raises:
        FileNotFoundError: `recipe` is neither a file nor the name of a recipe.
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
        f"No recipe {str(recipe)!r}: it is neither a file nor a recipe of the package ({', '.join(names)}).{hint}"
    )


def load_recipe(recipe: str | Path) -> dict[str, dict]:
    """
    Reads a recipe: a YAML 1.2 mapping from sections to mappings from keys to values.

    Raises:
        FileNotFoundError: see `find_recipe`.
        ValueError: the file is not YAML or not of this shape; see `read_yaml`.

    Example:
        >>> load_recipe("quickstart")["model"]["hidden_size"]
        64
    """
    path = find_recipe(recipe)
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections such as 'training:', got {type(content).__name__}.")
    for section, values in content.items():
        if values is not None and not isinstance(values, dict):
            raise ValueError(f"{path}: section {section!r} must hold keys and values, got {type(values).__name__}.")
    return {section: values or {} for section, values in content.items()}
