"""
`memreason publish`: sends a model, an adapter, a data set, a metric or a page to the Hub.

    memreason publish runs/quickstart user/quickstart --dry_run
    memreason publish runs/quickstart user/quickstart
"""

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
from huggingface_hub.utils import disable_progress_bars

from memreason_hf.command_line.errors import user_errors
from memreason_hf.command_line.parser import CommandParser, Section
from memreason_hf.files import read_json, scratch_folder
from memreason_hf.hub.cards.markdown import is_hub_name
from memreason_hf.hub.contents import ADAPTER, CARD, MODEL
from memreason_hf.hub.publishing import Publication, Published, publish_folder
from memreason_hf.hub.weights import ADAPTER_CONFIG
from memreason_hf.metrics import metric_names, metric_path
from memreason_hf.serving.demo.page import check_gradio
from memreason_hf.serving.demo.space import stage_space


PROG = "memreason publish"
DESCRIPTION = """\
Sends a folder to the Hub as one commit: all files or none. It may hold a model, an adapter, a data set, a metric or a
Space; the name of a metric of this package will do for its folder.

Of a model or an adapter go the weights (safetensors only), the configs, the model's own code, the tokenizer, results,
pictures, licence and card. Optimiser states, checkpoints, pickles, run.json and hidden files stay. Without a README.md
that a person wrote, the card is made from the files. Nothing is sent if a file holds a token, an absolute path or the
name of the user or the machine; the file and the line are named.

A publish that was killed goes on where it stopped: run the same command again. Files that the repository has and the
folder does not are kept, as by push_to_hub; --delete_others removes them in the same commit.

The token is that of `hf auth login` or of HF_TOKEN. HF_ENDPOINT chooses another Hub.
"""
EPILOG = """\
examples:
  memreason publish runs/quickstart user/quickstart --dry_run    # what would go, what stays and why; needs no token
  memreason publish runs/quickstart user/quickstart --license apache-2.0
  memreason publish runs/lora user/lora --private
  memreason publish runs/quickstart user/quickstart --space      # and a page to try it
  memreason publish runs/quickstart user/quickstart --revision v2   # a branch
  memreason publish runs/quickstart team/model --create_pr --message "Longer training"
  memreason publish data/multi_hop user/multi-hop                # a data set, as parquet
  memreason publish step_attribution user/step_attribution       # a metric, as a Space for evaluate.load
"""


_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


@dataclass
class PublishArguments:
    """What is sent."""

    folder: str = field(
        metadata={"help": "Folder of a model, an adapter, a data set, a metric or a Space, or the name of a metric."}
    )
    repo: str = field(
        metadata={"help": "Name of the repository, owner/name; created where it is missing. Default owner: you."}
    )
    repo_type: Literal["model", "dataset", "space"] | None = field(
        default=None, metadata={"help": "Type of the repository. Default: what the folder holds."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence for the card, as the Hub names it, for example apache-2.0."}
    )
    base_model: str | None = field(
        default=None,
        metadata={"help": "Name on the Hub of the base, for an adapter that was trained on a local folder."},
    )
    include_run: bool = field(
        default=False, metadata={"help": "Send run.json as well: the settings of the run, with its paths."}
    )
    include: list[str] = field(
        default_factory=list, metadata={"help": 'Further files of a model to send, for example "notes/*.md".'}
    )
    allow: list[str] = field(
        default_factory=list,
        metadata={"help": "What may leave though it looks private: a file, or a line of one (README.md:12)."},
    )


@dataclass
class TargetArguments:
    """How it arrives."""

    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    revision: str | None = field(
        default=None, metadata={"help": "Branch to commit to; created where it is missing. Default: main."}
    )
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request in place of a commit."})
    message: str | None = field(
        default=None, metadata={"help": "Message of the commit, or title of the pull request."}
    )
    delete_others: bool = field(
        default=False, metadata={"help": "Remove files of the repository that the folder does not have."}
    )
    space: bool = field(
        default=False,
        metadata={"help": "Make a Space of the same name as well, with the demo page of the model. Needs Gradio."},
    )
    dry_run: bool = field(
        default=False, metadata={"help": "List what would go with its size, and what stays and why. Send nothing."}
    )
    no_progress: bool = field(default=False, metadata={"help": "Hide progress bars."})


SECTIONS = [Section("publish", PublishArguments, "contents"), Section("target", TargetArguments, "repository")]


def make_parser() -> CommandParser:
    return CommandParser(
        SECTIONS, recipe=None, places=("folder", "repo"), prog=PROG, description=DESCRIPTION, epilog=EPILOG
    )


def main(argv: list[str] | None = None) -> int:
    """Publishes a folder; returns the exit code. Expected errors end the program with code 2, Ctrl-C with 130."""
    with user_errors(PROG, stopped="run it again to go on"):
        return _publish(*make_parser().parse_sections(argv))


def _publish(arguments, target):
    _check_space(target)
    if target.no_progress:
        disable_progress_bars()
        # Parquet files are written with bars of their own.
        datasets.disable_progress_bars()
    published = publish_folder(
        _find_folder(arguments.folder),
        arguments.repo,
        repo_type=arguments.repo_type,
        private=target.private,
        revision=target.revision,
        create_pr=target.create_pr,
        dry_run=target.dry_run,
        commit_message=target.message,
        include_run=arguments.include_run,
        include=arguments.include,
        allow=arguments.allow,
        delete_others=target.delete_others,
        report=functools.partial(_print_files, space=target.space),
        license=arguments.license,
        base_model=arguments.base_model,
    )
    _print_result(published)
    if target.space:
        _publish_space(published, arguments, target)
    return 0


def _check_space(target):
    """Refuses what a Space cannot be made for before anything is sent."""
    if not target.space:
        return
    for name, value in (("create_pr", target.create_pr), ("revision", target.revision)):
        if value:
            raise ValueError(f"space and {name}={value!r} exclude each other: the page shows the model on main.")
    try:
        check_gradio()
    except ImportError as error:
        raise ValueError(str(error)) from None


def _publish_space(published, arguments, target):
    """Publishes the demo page of a model that is on the Hub as a Space of the same name, private if the model is."""
    model = published.publication
    base = arguments.base_model
    if base is None and model.kind == ADAPTER:
        base = read_json(model.folder / ADAPTER_CONFIG)["base_model_name_or_path"]
    with scratch_folder("memreason-space") as scratch:
        staged = scratch / "space"
        is_named = base is not None and base.count("/") == 1 and is_hub_name(base)
        stage_space(model.repo_id, staged, license=arguments.license, base=base if is_named else None)
        page = publish_folder(
            staged,
            model.repo_id,
            repo_type="space",
            private=published.is_private,
            dry_run=target.dry_run,
            commit_message=target.message,
            allow=arguments.allow,
            delete_others=target.delete_others,
            report=_print_files,
        )
    _print_result(page)


def _find_folder(name):
    """The folder of that name, or the package's metric of that name."""
    return Path(metric_path(name) if not Path(name).exists() and name in metric_names() else name)


def _print_files(publication: Publication, *, space: bool = False):
    if space and publication.kind not in (MODEL, ADAPTER):
        raise ValueError(f"{publication.folder} holds a {publication.kind}, but --space shows a model or an adapter.")
    print(f"{publication.repo_id} ({publication.kind}): {len(publication.uploads)} files, {_size(publication.size)}")
    notes = {CARD: "made from the files"} if publication.made_card else {}
    rows = [(upload.name, _size(upload.size), notes.get(upload.name, "")) for upload in publication.uploads]
    rows += [(item.name, _size(item.size), f"stays: {item.reason}") for item in publication.left]
    width = max(len(name) for name, *_ in rows)
    for name, size, note in rows:
        print(f"  {name:<{width}}  {size:>9}  {note}".rstrip())
    sys.stdout.flush()


def _print_result(published: Published):
    commit = published.commit
    if commit is None:
        print(f"Nothing was sent. Without --dry_run these files go to {published.url}.")
    elif not commit.is_new:
        print(f"{commit.pr_url or published.url} holds all this already (commit {commit.oid}).")
    else:
        size = _size(published.publication.size)
        print(f"Published {len(published.publication.uploads)} files, {size}: {commit.pr_url or published.url}")
        print(f"commit {commit.oid}")


def _size(number):
    unit, factor = next(((unit, factor) for unit, factor in _UNITS if number >= factor), ("B", 1))
    return f"{number / factor:,.{0 if factor == 1 else 1}f} {unit}"


if __name__ == "__main__":
    sys.exit(main())
