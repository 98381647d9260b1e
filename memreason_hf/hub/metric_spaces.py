"""
`evaluate` modules as Spaces of the Hub.

    stage_metric("step_attribution", "staged", repo_id="user/step_attribution")

After the upload, `evaluate.load("user/step_attribution")` finds the module wherever `evaluate` is installed. What it
needs of this package is beside it, so the package need not be installed.
"""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import SpaceCard
from huggingface_hub.constants import REPOCARD_NAME

from memreason_hf.hub.cards import make_card
from memreason_hf.hub.code_bundle import bundle_script
from memreason_hf.metrics import metric_names, metric_path


# A release whose names `app.py` uses.
GRADIO_VERSION = "6.0.0"
_MODULE_NAME = re.compile(r"[A-Za-z_][\w-]*")
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"}
# The widget of evaluate 0.4.6 needs Gradio 3, which does not run on today's Python.
_APP = '''\
"""The page of the metric: arguments of `compute` as JSON, and what it returns."""

import json
from pathlib import Path

import evaluate
import gradio as gr


metric = evaluate.load(str(Path(__file__).parent / "{name}.py"), keep_in_memory=True)
EXAMPLE = json.dumps({{name: [] for name in metric.features}}, indent=2)


def compute(arguments):
    try:
        return metric.compute(**json.loads(arguments))
    except Exception as error:  # whatever is wrong with the arguments, a person should read it
        raise gr.Error(f"{{type(error).__name__}}: {{error}}") from error


page = gr.Interface(
    compute,
    inputs=gr.Textbox(EXAMPLE, lines=12, label="Arguments of compute, as JSON"),
    outputs=gr.JSON(label="Results"),
    title="{title}",
    description="`evaluate.load(\\"{repo_id}\\")`",
)

if __name__ == "__main__":
    page.launch()
'''

# What the cards of this package's metrics say about their folder, and what holds for the Space.
_LOCAL_NOTE = "The folder is an `evaluate` module and needs no network."
_HUB_NOTE = "The Space is an `evaluate` module: `pip install evaluate` is enough to use it."
_LOCAL_CITATION = re.compile(
    r"See (?:`CONTRIBUTING\.md` and )?the README of the repository that this folder is\s+part of\."
)
_HUB_CITATION = "Recurrent depth: arXiv 2604.07822. Memory and reason steps: arXiv 2411.13504."
_PACKAGE_NOTE = " What is imported from `memreason_hf` below needs this package, too."


def stage_metric(name_or_folder: str | Path, staged: str | Path, *, repo_id: str | None = None, **facts) -> None:
    """
    Writes what a metric's Space holds: the script under the name of the Space, as `evaluate.load` looks for it, the
    parts of this package that it needs, the page (`app.py`, `requirements.txt`) and the card.

    Args:
        name_or_folder: The name of a metric of this package, or the folder of any `evaluate` module, with a script of
            its name. Other files of a folder go, too.
        staged: An existing folder, for the result.
        repo_id: The name of the Space. Default: the name of the metric.
        facts: `license`, `tags` and `sdk_version` (the release of Gradio), for the card.

    Raises:
        ValueError: There is no such metric, the name of the Space cannot be that of a module, or the script imports
            what cannot be bundled.
        FileNotFoundError: The folder has no script of its name.

    Example:

    ```python
    >>> stage_metric("grouped_accuracy", "staged", repo_id="user/grouped_accuracy")  # doctest: +SKIP
    ```
    """
    folder, staged = _find_folder(name_or_folder), Path(staged)
    script = folder / f"{folder.resolve().name}.py"
    if not script.is_file():
        raise FileNotFoundError(f"{folder} has no {script.name}, so it is not a module of evaluate.")
    repo_id = repo_id or script.stem
    name = repo_id.rpartition("/")[2]
    if not _MODULE_NAME.fullmatch(name):
        raise ValueError(
            f"repo_id={repo_id!r}: evaluate imports the metric by the name of its Space, which must begin with a "
            "letter and consist of letters, digits, _ and -."
        )
    if (folder / "app.py").is_file():
        raise ValueError(f"{folder} has an app.py, so it is a Space already. Publish it as a Space (repo_type).")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != script and "__pycache__" not in path.parts:
            target = staged / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    files = bundle_script(script)
    if f"{name}.py" in files.keys() - {script.name}:
        raise ValueError(f"repo_id={repo_id!r}: a part of the metric has this name. Choose another one.")
    files[f"{name}.py"] = files.pop(script.name)
    for file, text in files.items():
        (staged / file).write_text(_as_published(text, script.stem, repo_id), encoding="utf-8")
    _write_page(staged, script.stem, name, repo_id, files)
    _write_card(staged, script.stem, repo_id, facts)


def _find_folder(name_or_folder):
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    if str(name_or_folder) in metric_names():
        return Path(metric_path(str(name_or_folder)))
    raise ValueError(
        f"{str(name_or_folder)!r} is neither a folder nor a metric of this package ({', '.join(metric_names())})."
    )


def _as_published(text, metric, repo_id):
    """The text of a script or card, whose examples load the metric from the Hub."""
    text = text.replace(f'evaluate.load(metric_path("{metric}")', f'evaluate.load("{repo_id}"')
    if "metric_path(" not in text:
        text = re.sub(r"^ *>>> from memreason_hf\.metrics import metric_path\n", "", text, flags=re.MULTILINE)
    needs = _PACKAGE_NOTE if ">>> from memreason_hf" in text else ""
    return _LOCAL_CITATION.sub(_HUB_CITATION, text.replace(_LOCAL_NOTE, _HUB_NOTE + needs))


def _write_page(staged, metric, name, repo_id, files):
    title = metric.replace("_", " ").capitalize()
    (staged / "app.py").write_text(_APP.format(name=name, title=title, repo_id=repo_id), encoding="utf-8")
    imported = {
        match[1]
        for text in files.values()
        for match in re.finditer(r"^(?:import|from) ([A-Za-z_]\w*)", text, flags=re.MULTILINE)
    }
    requirements = sorted(_DISTRIBUTIONS.get(module, module) for module in imported if _is_installed(module))
    path = staged / "requirements.txt"
    if not path.is_file():
        path.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")


def _is_installed(module):
    """Whether a module comes from a package, not with Python."""
    spec = find_spec(module)
    return spec is None or "site-packages" in (spec.origin or "")


def _write_card(staged, metric, repo_id, facts):
    path = staged / REPOCARD_NAME
    if path.is_file():
        path.write_text(_as_published(path.read_text(encoding="utf-8"), metric, repo_id), encoding="utf-8")
    licence = facts.pop("license", None)
    facts = {"sdk_version": GRADIO_VERSION, **{name: value for name, value in facts.items() if value is not None}}
    card = make_card(staged, repo_id if "/" in repo_id else None, kind="metric", **facts)
    if licence is not None:
        card.data["license"] = licence
    if path.is_file():
        # What a person wrote into the metadata stays.
        for key, value in SpaceCard.load(path, ignore_metadata_errors=True).data.to_dict().items():
            if key in ("title", "emoji", "colorFrom", "colorTo", "license") and value is not None:
                card.data[key] = value
    path.write_text(str(card), encoding="utf-8")
