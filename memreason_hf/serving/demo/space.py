"""
A Space of the demo page: a folder that runs as it is on the Hub.

    stage_space("user/model", "staged")

The Space brings the source files that the page needs, because this package is not on PyPI. `requirements.txt` pins the
libraries that they import to the versions installed here. Gradio comes with the SDK that `README.md` names.
"""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from memreason_hf.files import check_folder, write_json
from memreason_hf.imports import PACKAGES, imports_of
from memreason_hf.models.pretrained import first_line
from memreason_hf.serving.demo.page import check_gradio


APP_FILE, CARD_FILE, REQUIREMENTS_FILE, EXAMPLES_FILE = "app.py", "README.md", "requirements.txt", "examples.json"
_DISTRIBUTION = "memreason-hf"
_START = "memreason_hf.serving.demo.page"
# Installed by the SDK of a Space. A second pin could contradict it.
_OF_SDK = ("gradio", "gradio_client")
# Needed to load a model or to show it, but imported by a library and not by a file here.
_ALSO = ("accelerate", "safetensors")
_NAME = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")
_APP = '''\
"""The demo page of {model}, as a Space. Made by `memreason publish --space`."""

import json
from pathlib import Path

from memreason_hf.serving.demo.answers import DemoModel
from memreason_hf.serving.demo.page import build_page, launch_page


examples = json.loads(Path(__file__).with_name("{examples}").read_text(encoding="utf-8"))
model = DemoModel.load({model!r})
model.warm_up()
page = build_page(model, examples)

if __name__ == "__main__":
    launch_page(page)
'''
_CARD = """\
# {title}

The page of [{model}](https://huggingface.co/{model}): type a prompt, and see the answer appear token by token, each
token in the colour of the recurrences that it took. Sliders change the number of recurrences and the halting
threshold. Below the answer: what the model would say at one position after each recurrence. A second tab answers one
prompt at two depths.

The folders `memreason_hf` and `modeling_recurrent` hold the parts of the package memreason-hf (Apache-2.0) that the
page needs.
"""


def stage_space(
    model: str,
    staged: str | Path,
    *,
    title: str | None = None,
    license: str | None = None,
    base: str | None = None,
    examples: Sequence[str] | None = None,
) -> list[str]:
    """
    Writes the files of a Space.

    A private model needs a secret `HF_TOKEN` in the settings of the Space.

    Args:
        model: name of the model or adapter on the Hub, `owner/name`.
        staged: an empty folder, or one that does not exist.
        title: of the Space; by default the name of the model.
        license: of the Space, as an identifier of the Hub; left out if it is not known.
        base: name of an adapter's base on the Hub, to be named as a model of the Space.
        examples: prompts to click; by default some that the vocabulary allows.

    Returns:
        The names of the files, relative to `staged`.

    Raises:
        ImportError: Gradio, whose version the Space names, is not installed.
        ValueError: `model` is no name on the Hub.
        OSError: `staged` cannot be written, or is not empty.

    Example:
        >>> stage_space("user/model", "staged", license="apache-2.0")  # doctest: +SKIP
        ['README.md', 'app.py', 'examples.json', 'memreason_hf/__init__.py', ...]
    """
    check_gradio()
    for field, name in (("model", model), ("base", base)):
        _check_name(field, name)
    staged = Path(staged)
    check_folder(staged, overwrite=False)
    staged.mkdir(parents=True, exist_ok=True)
    title = f"{model.partition('/')[2]}: depth of every token" if title is None else title
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file=APP_FILE,
        models=[model, *([base] if base else [])],
        license=license,
        colorFrom="blue",
        colorTo="green",
        tags=["recurrent-depth"],
    )
    card = SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{_CARD.format(title=title, model=model)}")
    (staged / CARD_FILE).write_text(str(card), encoding="utf-8")
    (staged / APP_FILE).write_text(_APP.format(model=model, examples=EXAMPLES_FILE), encoding="utf-8")
    write_json(staged / EXAMPLES_FILE, None if examples is None else list(examples))
    modules = needed_modules()
    for name, path in modules.items():
        place = staged / _relative(name, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    if (license_file := _license_file()) is not None:
        shutil.copyfile(license_file, staged / PACKAGES[0] / license_file.name)
    lines = "".join(f"{line}\n" for line in requirements(modules))
    (staged / REQUIREMENTS_FILE).write_text(lines, encoding="utf-8")
    return sorted(str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file())


def _check_name(field, name):
    if name is None:
        return
    try:
        if not _NAME.fullmatch(name):
            raise HFValidationError("it is not owner/name")
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{field}={name!r} is no name on the Hub ({first_line(error)}). A Space finds its model there, as "
            "owner/name: publish it first."
        ) from None


def needed_modules(start: str = _START) -> dict[str, Path]:
    """
    The modules of this package that a module needs, with itself, and their files.

    Imports are read, not run: those at the top of a file and those inside functions.
    """
    found: dict[str, Path] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = _file_of(name)
        if path is None:
            continue
        found[name] = path
        # A module is imported after the packages around it.
        waiting += [name.rpartition(".")[0]] if "." in name else []
        for imported in imports_of(path, name):
            if imported.is_own:
                waiting += [imported.module, f"{imported.module}.{imported.name}"]
    return found


def requirements(modules: Mapping[str, Path]) -> list[str]:
    """
    The libraries that modules import at their top, pinned to the versions installed here.

    Raises:
        ValueError: one of them is not installed.
    """
    names = set(_ALSO)
    for module, path in modules.items():
        for imported in imports_of(path, module):
            top = imported.module.split(".")[0]
            if not (imported.is_inside or imported.is_own or top in sys.stdlib_module_names):
                names.add(top)
    distributions = packages_distributions()
    pinned = {}
    for name in names - set(_OF_SDK):
        project = next(iter(distributions.get(name, [name])))
        try:
            # A build for one kind of machine, such as 2.13.0+cpu, is not on PyPI.
            pinned[project] = version(project).partition("+")[0]
        except PackageNotFoundError:
            raise ValueError(f"{name} is not installed, so its version for the Space is not known.") from None
    return [f"{name}=={pinned[name]}" for name in sorted(pinned, key=str.lower)]


def _file_of(name):
    """The file of a module of this package; None for a name inside a module."""
    top, *parts = name.split(".")
    root = Path(find_spec(top).origin).parent
    module = root.joinpath(*parts)
    if (module / "__init__.py").is_file():
        return module / "__init__.py"
    file = module.with_suffix(".py") if parts else None
    return file if file is not None and file.is_file() else None


def _license_file():
    """The licence of this package, in its metadata or in a clone; None if it is in neither."""
    try:
        listed = [Path(file.locate()) for file in distribution(_DISTRIBUTION).files or () if file.name == "LICENSE"]
    except PackageNotFoundError:
        listed = []
    clone = Path(find_spec(PACKAGES[0]).origin).parent.parent / "LICENSE"
    return next((path for path in (*listed, clone) if path.is_file()), None)


def _relative(name, path):
    parts = name.split(".")
    return Path(*parts, "__init__.py") if path.name == "__init__.py" else Path(*parts[:-1], path.name)
