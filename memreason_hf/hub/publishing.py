"""Publishing a folder: what it holds, its card, a look for what must not leave, and one commit on the Hub."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, RepoCard

from memreason_hf.hub.client import HubClient, check_repo_id, with_retries
from memreason_hf.hub.contents import (
    CARD,
    DATASET,
    METRIC,
    SPACE,
    FolderContents,
    LeftOut,
    describe_folder,
    walk_files,
)
from memreason_hf.hub.upload import Commit, Target, Upload, open_target, send


@dataclass(frozen=True)
class Publication:
    """
    What is about to be published.

    Attributes:
        repo_id: the name of the repository, as it was given.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        kind: what the folder is; see `FolderContents`.
        uploads: the files.
        left: what stays.
        card: the text of `README.md`.
        made_card: whether the card was made now; otherwise the folder has one.
    """

    repo_id: str
    repo_type: str
    kind: str
    uploads: tuple[Upload, ...]
    left: tuple[LeftOut, ...]
    card: str
    made_card: bool

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(upload.size for upload in self.uploads)


@dataclass(frozen=True)
class Published:
    """
    What was published.

    Attributes:
        repo_id: `owner/name`.
        url: the page of the repository.
        commit: the commit with the files; None after a dry run.
        publication: the files and what stayed.
    """

    repo_id: str
    url: str
    commit: Commit | None
    publication: Publication
