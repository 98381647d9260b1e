"""
One commit with all files, or none: uploads that go on where a killed one stopped.

Large files are stored under their SHA-256 as they arrive, but belong to the repository only with the commit at the
end. A second try sends those that have not arrived.
"""

import dataclasses
import hashlib
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from memreason_hf.hub.client import HubClient, HubError, is_passing, with_retries
from memreason_hf.messages import first_few


_MAIN = "main"
_PATHS_AT_ONCE = 500
# Smaller files are read once, so that what was checked is what is sent.
_LARGEST_IN_MEMORY = 1_000_000
_ALWAYS_KEPT = (".gitattributes", ".gitignore")


class Upload:
    """
    A file on its way: its content as it was when the upload was prepared.

    Args:
        name (`str`): Its path in the repository.
        path (`Path`, *optional*): Where it is.
        content (`bytes`, *optional*): What it holds, in place of a path.

    Attributes:
        size (`int`): In bytes.
    """

    def __init__(self, name: str, path: Path | None = None, content: bytes | None = None):
        self.name, self.path = name, path
        self._state = self._stat()
        if content is None and self._state[0] <= _LARGEST_IN_MEMORY:
            content = path.read_bytes()
        self._content = content
        self.size = self._state[0] if content is None else len(content)

    def has_changed(self) -> bool:
        """Whether the file is not what it was: also one that was written again in the same size."""
        try:
            return self._stat() != self._state
        except OSError:
            return True

    def operation(self) -> CommitOperationAdd:
        """A new operation for a commit."""
        return CommitOperationAdd(self.name, self._content if self._content is not None else str(self.path))

    def is_same(self, remote: RepoFile) -> bool:
        """Whether a file of the Hub holds the same: its hash is compared, which reads the file."""
        if remote.size != self.size:
            return False
        if remote.lfs is not None:
            return self.operation().upload_info.sha256.hex() == remote.lfs.sha256
        content = self.path.read_bytes() if self._content is None else self._content
        # The hash that git gives a file.
        return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest() == remote.blob_id

    def _stat(self):
        if self.path is None:
            return None
        found = os.stat(self.path)
        # The time of the last change of the inode cannot be set back.
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclass(frozen=True)
class Commit:
    """
    The commit that holds the files.

    Attributes:
        oid: its hash.
        url: its page.
        pr_url: the page of the pull request, if it is in one.
        is_new: whether this upload made it; otherwise the repository held all files already.
    """

    oid: str
    url: str
    pr_url: str | None = None
    is_new: bool = True


@dataclass(frozen=True)
class Target:
    """
    Where files go.

    Attributes:
        repo_id: `owner/name`.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        revision: the branch; None for `main`.
        create_pr: whether a pull request is opened against the branch, in place of a commit to it.
        private: whether a new repository is private.
        space_sdk: of a new Space.
    """

    repo_id: str
    repo_type: str = "model"
    revision: str | None = None
    create_pr: bool = False
    private: bool = False
    space_sdk: str | None = None

    @property
    def repo(self) -> dict[str, str]:
        """What names the repository in calls of the client."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


def open_target(client: HubClient, target: Target) -> bool:
    """
    Creates the repository and the branch where they are missing.

    Returns:
        Whether the repository is private.

    Raises:
        HubError: the token may not write there, a pull request is to be opened in a repository that is missing.
        ValueError: a private repository is asked for, and it exists and is public; the revision is no branch.
    """
    api, repo = client.api, target.repo
    with client.errors(target.repo_id):
        try:
            found = with_retries(lambda: api.repo_info(**repo))
        except RepositoryNotFoundError:
            if target.create_pr:
                raise
            found = None
        if found is None:
            options = {"private": target.private, "space_sdk": target.space_sdk}
            with_retries(lambda: api.create_repo(**repo, exist_ok=True, **options))
        elif target.private and not found.private:
            raise ValueError(
                f"{target.repo_id} exists and is public: --private is for new repositories. Change its visibility on "
                f"{client.endpoint}, or leave the flag out."
            )
        is_private = target.private if found is None else bool(found.private)
        if target.revision in (None, _MAIN) or target.revision.startswith("refs/pr/"):
            return is_private
        refs = with_retries(lambda: api.list_repo_refs(**repo))
        if target.revision in {tag.name for tag in refs.tags}:
            raise ValueError(f"revision={target.revision!r} is a tag of {target.repo_id}. Pass the name of a branch.")
        if target.revision not in {branch.name for branch in refs.branches}:
            if target.create_pr:
                raise ValueError(f"revision={target.revision!r} is no branch of {target.repo_id} for a pull request.")
            with_retries(lambda: api.create_branch(**repo, branch=target.revision, exist_ok=True))
    return is_private


def send(
    client: HubClient,
    target: Target,
    uploads: Sequence[Upload],
    *,
    message: str,
    delete_others: bool = False,
    num_threads: int = 5,
) -> Commit:
    """
    Uploads files and commits them at once.

    Args:
        client ([`HubClient`]): The client.
        target ([`Target`]): Where they go; see `open_target`.
        uploads: The files.
        message (`str`): Of the commit.
        delete_others (`bool`): Whether the commit removes all other files of the repository.
        num_threads (`int`): How many files are sent at a time.

    Returns:
        [`Commit`]

    Raises:
        HubError: the Hub refused something or could not be reached. The repository is as it was.
        ValueError: a file changed meanwhile. The repository is as it was.
    """
    sender = _Sender(client, target, uploads, message)
    with client.errors(target.repo_id):
        try:
            return sender.send(delete_others, num_threads)
        except Exception:
            # A file that changed shows as a wrong checksum, a wrong size or a broken connection.
            sender.check_unchanged()
            raise


class _Sender:
    def __init__(self, client, target, uploads, message):
        self.client, self.target, self.uploads, self.message = client, target, uploads, message
        self.branch = target.revision or _MAIN

    def send(self, delete_others, num_threads):
        head = with_retries(lambda: self.client.api.repo_info(**self.target.repo, revision=self.branch)).sha
        commit = self._same_pull_request() or self._commit(delete_others, num_threads)
        if commit.oid == head:
            return dataclasses.replace(commit, is_new=False)
        if commit.is_new:
            self._check_arrived(commit.oid)
        return commit

    def check_unchanged(self):
        changed = [upload.name for upload in self.uploads if upload.has_changed()]
        if changed:
            raise ValueError(
                f"{first_few(changed)} changed while the upload ran. Nothing was committed. Wait until no program "
                "writes there, and run the command again."
            )

    def _commit(self, delete_others, num_threads):
        """The commit, tried again where the answer got lost: a commit that was made is found and not made twice."""
        wait = 1.0
        for left in reversed(range(5)):
            try:
                return self._commit_once(delete_others, num_threads)
            except Exception as error:
                if not left or not is_passing(error):
                    raise
                time.sleep(wait)
                wait *= 2
                if (same := self._same_pull_request()) is not None:
                    return same
        raise AssertionError("unreachable")

    def _commit_once(self, delete_others, num_threads):
        api, repo = self.client.api, self.target.repo
        # The client marks operations as done: a new try needs new ones.
        operations = [upload.operation() for upload in self.uploads]
        options = {"revision": self.target.revision, "create_pr": self.target.create_pr, "num_threads": num_threads}
        with self.client.storage_errors(self.target.repo_id):
            api.preupload_lfs_files(**repo, additions=operations, free_memory=False, **options)
        self.check_unchanged()
        if delete_others:
            kept = {*_ALWAYS_KEPT, *(upload.name for upload in self.uploads)}
            operations += [CommitOperationDelete(name) for name in self._remote_files() if name not in kept]
        with warnings.catch_warnings():
            # The client warns of parquet files in a repository of models, which only --include sends there.
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            info = api.create_commit(**repo, operations=operations, commit_message=self.message, **options)
        return Commit(info.oid, info.commit_url, info.pr_url)

    def _remote_files(self):
        tree = self.client.api.list_repo_tree(**self.target.repo, revision=self.branch, recursive=True)
        return [item.path for item in tree if isinstance(item, RepoFile)]

    def _same_pull_request(self):
        """The open pull request of this user with this title and these files, if there is one."""
        if not self.target.create_pr:
            return None
        api, repo = self.client.api, self.target.repo
        user = with_retries(api.whoami)["name"]
        kind = {"discussion_type": "pull_request", "discussion_status": "open", "author": user}
        for item in with_retries(lambda: list(api.get_repo_discussions(**repo, **kind))):
            if item.title == self.message and self._holds_all(item.git_reference):
                oid = with_retries(lambda item=item: api.repo_info(**repo, revision=item.git_reference)).sha
                url = f"{item.url.split('/discussions/')[0]}/commit/{oid}"
                return Commit(oid, url, item.url, is_new=False)
        return None

    def _holds_all(self, revision):
        found = self._find(revision)
        return all(upload.name in found and upload.is_same(found[upload.name]) for upload in self.uploads)

    def _check_arrived(self, oid):
        """A .gitignore of the repository keeps files back without a word."""
        found = self._find(oid)
        names = [item.name for item in self.uploads if item.name not in found or found[item.name].size != item.size]
        if names:
            raise HubError(
                f"{self.target.repo_id} did not take {first_few(names)}: see its .gitignore. The other files were "
                "committed."
            )

    def _find(self, revision):
        names, found = [upload.name for upload in self.uploads], []
        for start in range(0, len(names), _PATHS_AT_ONCE):
            given = {**self.target.repo, "revision": revision, "paths": names[start : start + _PATHS_AT_ONCE]}
            found += with_retries(lambda given=given: self.client.api.get_paths_info(**given))
        return {item.path: item for item in found if isinstance(item, RepoFile)}
