"""The repositories of the local Hub: files by their hash on the disk, commits, branches, tags and pull requests."""

import fnmatch
import hashlib
import itertools
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path


REPO_TYPES = ("model", "dataset", "space")
# What the Hub writes into a new repository, shortened to what a test may upload.
GIT_ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.parquet", "*.arrow", "*.zip", "*.gz", "*.tflite", "*.onnx")
)
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_OID = re.compile(r"[0-9a-f]{7,40}")


class HubError(Exception):
    """An answer with an error: the status, the text and the code that huggingface_hub turns into its own errors."""

    def __init__(self, status: int, message: str, code: str | None = None, **extra):
        super().__init__(message)
        self.status, self.message, self.code, self.extra = status, message, code, extra


@dataclass(frozen=True)
class Token:
    """
    Who a token belongs to and what it may do.

    Attributes:
        user: the namespace of its owner.
        write: whether it may write.
        organizations: further namespaces that it may write to.
    """

    user: str
    write: bool = True
    organizations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A file in a commit: the hash of its content, its size, git's hash of it, and whether it is a large file."""

    sha256: str
    size: int
    oid: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A commit: its hash, its parent's, its title, text, author and date, and every file of its tree."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


@dataclass
class PullRequest:
    """A discussion, or a pull request with the branch that it goes to."""

    num: int
    title: str
    author: str
    date: str
    base: str = "main"
    is_pull_request: bool = True
    status: str = "open"

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass
class Repo:
    """A repository. `gated` lets only its owner and the users in `granted` read its files."""

    name: str
    type: str
    private: bool = False
    gated: str | bool = False
    sdk: str | None = None
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_refs: dict[str, str] = field(default_factory=dict)
    discussions: dict[int, PullRequest] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.name.split("/")[0]

    def find_commit(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or hash."""
        for refs in (self.branches, self.tags, self.pull_refs):
            for name in (revision, revision.removeprefix("refs/heads/"), revision.removeprefix("refs/tags/")):
                if name in refs:
                    return self.commits[refs[name]]
        if _OID.fullmatch(revision):
            for oid, commit in self.commits.items():
                if oid.startswith(revision):
                    return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str = "main") -> list[Commit]:
        """The commits of a revision, the newest first."""
        found = [self.find_commit(revision)]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found

    def files(self, revision: str = "main") -> dict[str, str]:
        """`{path: sha256}` of a revision."""
        return {path: entry.sha256 for path, entry in sorted(self.find_commit(revision).files.items())}


class Repositories:
    """All repositories, and the contents of their files in a folder. Commits are made one after the other."""

    def __init__(self, folder: Path, tokens: dict[str, Token]):
        self.folder, self.tokens = folder, tokens
        self.lock = threading.RLock()
        self._repos: dict[tuple[str, str], Repo] = {}
        self._serial = itertools.count()
        folder.mkdir(parents=True, exist_ok=True)

    # Contents.

    def blob(self, sha256: str) -> Path:
        """The file that holds the content of a hash."""
        return self.folder / sha256

    def add_blob(self, content: bytes) -> str:
        """Keeps a content; returns its hash."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.blob(sha256).write_bytes(content)
        return sha256

    def make_entry(self, content: bytes, *, lfs: bool = False) -> Entry:
        """Keeps the content of a file and returns its entry."""
        git = hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
        return Entry(self.add_blob(content), len(content), git, lfs)

    def make_lfs_entry(self, sha256: str) -> Entry:
        """The entry of a large file that was uploaded before."""
        if not self.blob(sha256).exists():
            raise HubError(
                400,
                "Your push was rejected because an LFS pointer pointed to a file that does not exist.",
                path=sha256,
            )
        size = self.blob(sha256).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return Entry(sha256, size, hashlib.sha1(b"blob %d\0%s" % (len(pointer), pointer)).hexdigest(), True)

    # Repositories.

    def create(self, name: str, type: str = "model", *, user: str | None = None, **options) -> Repo:
        """A new repository with one commit, as the Hub makes it."""
        namespace, _, short = name.partition("/")
        if type not in REPO_TYPES or not all(_NAME.fullmatch(part) for part in (namespace, short)):
            raise HubError(400, f"Invalid repo name: {name}")
        with self.lock:
            if (type, name) in self._repos:
                raise HubError(409, f"You already created this {type} repo: {name}")
            repo = self._repos[type, name] = Repo(name, type, **options)
            files = {".gitattributes": self.make_entry(GIT_ATTRIBUTES.encode())}
            repo.branches["main"] = self.add_commit(repo, None, "initial commit", "", user or namespace, files).oid
            return repo

    def get(self, name: str, type: str = "model") -> Repo:
        """The repository, for a test. KeyError: there is none."""
        return self._repos[type, name]

    def all(self) -> list[Repo]:
        return list(self._repos.values())

    def delete(self, repo: Repo) -> None:
        with self.lock:
            del self._repos[repo.type, repo.name]

    def find(self, name: str, type: str, token: Token | None, *, write: bool = False) -> Repo:
        """The repository for a request: one that the token may not see does not exist."""
        repo = self._repos.get((type, name))
        if repo is None or (repo.private and not self._owns(token, repo.namespace)):
            raise HubError(404 if token else 401, "Repository not found", "RepoNotFound")
        if write:
            self.check_writing(token, repo.namespace)
        return repo

    def check_writing(self, token: Token | None, namespace: str) -> None:
        """Refuses a token that may not write to a namespace."""
        if token is None:
            raise HubError(401, "Invalid username or password.")
        if not token.write:
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if not self._owns(token, namespace):
            raise HubError(403, f'You don\'t have the rights to write to the namespace "{namespace}".')

    def check_files(self, repo: Repo, token: Token | None) -> None:
        """Refuses to give the files of a gated repository to those whom nobody let in."""
        if repo.gated and not self._owns(token, repo.namespace) and (token is None or token.user not in repo.granted):
            status, who = (401, "be authenticated to") if token is None else (403, "ask for")
            text = f"Access to {repo.type} {repo.name} is restricted. You must have access to it and {who} access it."
            raise HubError(status, text, "GatedRepo")

    def _owns(self, token, namespace):
        return token is not None and namespace in (token.user, *token.organizations)

    # Commits.

    def is_lfs(self, commit: Commit, path: str, size: int, sample: bytes, largest: int) -> bool:
        """Whether a file is kept as a large file: by its name, its size, or because it is no text."""
        attributes = commit.files.get(".gitattributes")
        lines = self.blob(attributes.sha256).read_text().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        name = path.rsplit("/", 1)[-1]
        return size > largest or b"\0" in sample or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    def add_commit(self, repo, parent: str | None, title: str, message: str, author: str, files: dict) -> Commit:
        """Adds a commit to a repository, without moving a branch to it."""
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        tree = "".join(f"{path} {entry.oid}\n" for path, entry in sorted(files.items()))
        text = f"{parent}\n{title}\n{message}\n{author}\n{date}\n{next(self._serial)}\n{tree}"
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, message, author, date, dict(files))
        repo.commits[commit.oid] = commit
        return commit

    def put_files(self, repo: Repo, files: dict[str, bytes], title: str = "A commit", revision: str = "main") -> str:
        """Commits files for a test, past all rights; returns the hash of the commit."""
        with self.lock:
            parent = repo.find_commit(revision)
            entries = dict(parent.files)
            for path, content in files.items():
                large = self.is_lfs(parent, path, len(content), content[:512], 10_000_000)
                entries[path] = self.make_lfs_entry(self.add_blob(content)) if large else self.make_entry(content)
            commit = self.add_commit(repo, parent.oid, title, "", repo.namespace, entries)
            repo.branches[revision] = commit.oid
            return commit.oid
