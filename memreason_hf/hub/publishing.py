"""Publishing a folder: what it holds, its card, a look for what must not leave, and one commit on the Hub."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import RepoCard

from memreason_hf.files import scratch_folder
from memreason_hf.hub.adapter_config import stage_adapter_config
from memreason_hf.hub.cards import is_generated, make_card
from memreason_hf.hub.client import HubClient, check_repo_id
from memreason_hf.hub.contents import (
    ADAPTER,
    CARD,
    DATASET,
    METRIC,
    MODEL,
    FolderContents,
    LeftOut,
    describe_folder,
    walk_files,
)
from memreason_hf.hub.datasets import stage_dataset
from memreason_hf.hub.inspection import refuse_private
from memreason_hf.hub.metric_spaces import stage_metric
from memreason_hf.hub.upload import Commit, Target, Upload, open_target, send
from memreason_hf.hub.weights import ADAPTER_CONFIG
from memreason_hf.training.runs.output_folder import RUN_FILE


# How the repository of a data set or a metric is made from its folder, with its card.
_STAGERS = {DATASET: stage_dataset, METRIC: stage_metric}
_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True)
class Publication:
    """
    What is about to be published.

    Attributes:
        folder: where it comes from.
        repo_id: the name of the repository.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        kind: what the folder is; see `FolderContents`.
        uploads: the files.
        left: what stays.
        card: the text of `README.md`.
        made_card: whether the card is made now; otherwise it is one that a person wrote.
        staged: where the files are that are made now.
    """

    folder: Path
    repo_id: str
    repo_type: str
    kind: str
    uploads: tuple[Upload, ...]
    left: tuple[LeftOut, ...]
    card: str
    made_card: bool
    staged: Path

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(upload.size for upload in self.uploads)


@dataclass(frozen=True)
class Published:
    """
    What was published.

    Attributes:
        url: the page of the repository.
        commit: the commit with the files; None after a dry run.
        publication: the files, and what stayed.
        is_private: whether the repository is private.
    """

    url: str
    commit: Commit | None
    publication: Publication
    is_private: bool


def publish_folder(
    folder: str | Path,
    repo_id: str,
    *,
    repo_type: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    include_run: bool = False,
    include: Iterable[str] = (),
    allow: Iterable[str] = (),
    delete_others: bool = False,
    report: Callable[[Publication], None] | None = None,
    **facts,
) -> Published:
    """
    Publishes a model, an adapter, a data set, a metric or a Space: all files in one commit, or none.

    The folder is checked, its card is made if no person wrote one, and nothing is sent if a file holds what must not
    leave. A publish that was killed goes on where it stopped when it is called again. Files of the repository that
    the folder does not have are kept, as by `push_to_hub`.

    Args:
        folder (`str` or `Path`): What is published. See `describe_folder`.
        repo_id (`str`): `owner/name`; without an owner, that of the token. Created where it is missing.
        repo_type (`str`, *optional*): `"model"`, `"dataset"` or `"space"`. Default: what the folder holds.
        private (`bool`): Whether a new repository is private.
        revision (`str`, *optional*): The branch, created where it is missing. Default: `main`.
        create_pr (`bool`): Whether a pull request is opened in place of a commit to the branch.
        dry_run (`bool`): Whether everything is checked and nothing sent. Needs no token.
        commit_message (`str`, *optional*): Default: "Upload" and what the folder is.
        token (`str`, *optional*): Default: `HF_TOKEN` or that of `hf auth login`.
        include_run (`bool`): Whether `run.json` goes as well.
        include (`str`, *optional*): Patterns of further files of a model that go.
        allow (`str`, *optional*): What the inspection accepts; see `inspect_files`.
        delete_others (`bool`): Whether the commit removes all other files of the repository.
        report (*optional*): Called with the [`Publication`] before it is inspected and sent.
        facts:
            For the card, such as `license="apache-2.0"`; see `make_card`. `base_model` also replaces the name of a
            local base in the config of an adapter.

    Returns:
        [`Published`]

    Raises:
        ValueError: the folder holds nothing to publish, or what must not leave; the name is none; there is no token.
        OSError: the folder does not exist, the Hub refuses something or cannot be reached.

    Example:

    ```python
    >>> from memreason_hf.hub.publishing import publish_folder

    >>> publish_folder("runs/quickstart", "user/quickstart", dry_run=True).publication.kind  # doctest: +SKIP
    'model'
    ```
    """
    check_repo_id(repo_id)
    contents = describe_folder(folder, repo_type=repo_type, include_run=include_run, include=include)
    client = None if dry_run else HubClient(token)
    if client is not None and "/" not in repo_id:
        repo_id = f"{client.user['name']}/{repo_id}"
    with _prepare(contents, repo_id, facts) as publication:
        if report is not None:
            report(publication)
        allowed = [*allow, *([RUN_FILE] if include_run else [])]
        _refuse_private(publication, allowed, [token] if token else [])
        card, commit = _read_card(publication), None
        if client is not None:
            sdk = card.data.to_dict().get("sdk") if contents.repo_type == "space" else None
            target = Target(repo_id, contents.repo_type, revision, create_pr, private, sdk)
            _ = client.user  # a token that is wrong or may only read is refused here
            client.check_card(card, contents.repo_type)
            private = open_target(client, target)
            message = commit_message or f"Upload {contents.kind}"
            commit = send(client, target, publication.uploads, message=message, delete_others=delete_others)
        endpoint = HubClient.find_endpoint()
        return Published(f"{endpoint}/{_PREFIXES[contents.repo_type]}{repo_id}", commit, publication, private)


@contextmanager
def _prepare(contents: FolderContents, repo_id: str, facts: dict) -> Iterator[Publication]:
    """The files of the repository, with its card, as long as the block runs."""
    with scratch_folder("memreason-publish") as scratch:
        staged = scratch / "repository"
        staged.mkdir()
        base = facts.get("base_model")
        if base is not None and contents.kind not in (MODEL, ADAPTER):
            raise ValueError(f"base_model={base!r} is for models and adapters, not for a {contents.kind}.")
        makes_card = _makes_card(contents, facts)
        if contents.kind in _STAGERS:
            _STAGERS[contents.kind](contents.folder, staged, repo_id=repo_id, **facts)
            sources = dict(walk_files(staged))
        else:
            sources = {file.name: file.path for file in contents.files}
        if contents.kind == ADAPTER:
            sources[ADAPTER_CONFIG] = stage_adapter_config(contents.folder, staged, base)
        if makes_card and contents.kind not in _STAGERS:
            sources[CARD] = staged / CARD
            card = make_card(contents.folder, repo_id, kind=contents.kind, **facts)
            sources[CARD].write_text(str(card), encoding="utf-8")
        uploads = tuple(Upload(name, path) for name, path in sorted(sources.items()))
        card = _read_text(sources[CARD])
        names = (repo_id, contents.repo_type, contents.kind)
        yield Publication(contents.folder, *names, uploads, contents.left, card, makes_card, staged)


def _read_text(path):
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}).") from None


def _read_card(publication):
    try:
        return RepoCard(publication.card)
    except (ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{publication.folder / CARD}: its metadata cannot be read ({text}).") from None


def _makes_card(contents, facts):
    """Whether the card is made now, because no person wrote one. A fact that would not be in the card is refused."""
    path = contents.folder / CARD
    # The card of a metric is made from the text of its folder's.
    if contents.kind == METRIC or not path.is_file() or is_generated(_read_text(path)):
        return True
    for name, value in facts.items():
        if value is not None and not (name == "base_model" and contents.kind == ADAPTER):
            raise ValueError(
                f"{name}={value!r} would not be in the card: a person wrote {path}. Write it into its metadata."
            )
    return False


def _refuse_private(publication, allow, secrets):
    """Inspects every file under the name that it has in the repository."""
    made = [upload.path for upload in publication.uploads if upload.path.is_relative_to(publication.staged)]
    own = [upload.path for upload in publication.uploads if not upload.path.is_relative_to(publication.staged)]
    refuse_private(own, root=publication.folder, allow=allow, secrets=secrets)
    refuse_private(made, root=publication.staged, allow=allow, secrets=secrets)
