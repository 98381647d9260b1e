"""
Repositories of the Hub: which names can be one, what an error of the Hub means, and downloads that are checked.

All requests go through huggingface_hub and transformers, which honour `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME`,
`HF_TOKEN` and the login of `hf auth login`.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    constants,
    get_token,
    hf_hub_download,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj

from memreason_hf.messages import first_few, first_line


CONFIG_NAME = "config.json"
# The client's words for a file whose length is not the one that was announced.
_CUT_OFF = "Consistency check failed"
_NO_CONNECTION = "cannot be reached"
# The name in the cache of a file that is kept by its hash, as all large files are.
_SHA256 = re.compile("[0-9a-f]{64}")


def check_source(name: str, field: str) -> None:
    """
    Refuses a name that can be neither a folder nor a repository of the Hub, before the library looks for it there.

    Raises:
        FileNotFoundError: with `field`, as the user knows it.
    """
    if not Path(name).is_dir() and not can_be_repository(name):
        raise FileNotFoundError(f"{field}={name!r}: no such folder. Pass a folder, or a name on the Hub (owner/name).")


def can_be_repository(name: str) -> bool:
    """Whether a name is looked for on the Hub: it has the form owner/name, and no folder `owner` exists here."""
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or Path(name).parent.exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_revision(name: str, field: str, revision: str | None) -> None:
    """
    Refuses a revision of a folder.

    Raises:
        ValueError: with `field`, as the user knows it.
    """
    if revision is not None and Path(name).is_dir():
        raise ValueError(f"revision={revision!r} is for a repository of the Hub, but {field}={name!r} is a folder.")


@contextmanager
def hub_errors(name: str, field: str, revision: str | None = None) -> Iterator[None]:
    """
    Turns an error of the Hub or of the way to it into one line that says what to do. Other errors pass.

    Args:
        name: the repository.
        field: what messages call it, for example `"model"`.
        revision: its branch, tag or commit.

    Raises:
        OSError: in place of the library's error.

    Example:
        >>> with hub_errors("owner/name", "model"):  # doctest: +SKIP
        ...     AutoConfig.from_pretrained("owner/name")
        OSError: model='owner/name': no such folder, and the Hub (https://huggingface.co) has no such model, ...
    """
    try:
        yield
    except (OSError, ValueError, HTTPError, EntryNotFoundError) as error:
        problem = None if Path(name).is_dir() else _describe(error, name, revision)
        if problem is None:
            raise
        raise OSError(f"{field}={name!r}: {problem}.") from error


def _describe(error, name, revision) -> str | None:
    """What an error of the Hub means; `None` for other errors. The library keeps the first cause in a chain."""
    hub, chain = constants.ENDPOINT, list(_causes(error))

    def caught(*kinds):
        return next((link for link in chain if isinstance(link, kinds)), None)

    if caught(GatedRepoError):
        return f"it is gated. Accept its conditions at {hub}/{name}, then {_login()}"
    if caught(RevisionNotFoundError):
        return f"it has no branch, tag or commit {revision or 'main'!r}"
    if caught(DisabledRepoError):
        return f"the Hub ({hub}) has disabled it"
    if caught(RepositoryNotFoundError):
        return (
            f"no such folder, and the Hub ({hub}) has no such model, or it is private. Check the name. If it is "
            f"private, {_login()}"
        )
    answers = [link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)]
    status = next((code for code in answers if code != 404), None)
    if status == 401:
        return f"the Hub ({hub}) does not accept the token. Log in again (`hf auth login`) or correct HF_TOKEN"
    if status is not None:
        return f"the Hub ({hub}) answered with status {status} ({first_line(caught(HfHubHTTPError))}). Try again later"
    if any(_CUT_OFF in str(link) for link in chain):
        return "a file was cut off on the way. Run the same command again, it downloads what is missing"
    if not caught(RemoteEntryNotFoundError) and caught(LocalEntryNotFoundError, HTTPError):
        if is_offline_mode():
            return "no such folder, and not in the cache of the Hub either. HF_HUB_OFFLINE=1 forbids to download it"
        return (
            f"no such folder or cached model, and the Hub ({hub}) {_NO_CONNECTION}. Check the network and HF_ENDPOINT"
        )
    return None


def _login():
    token = "use a token of that account" if get_token() else "log in"
    return f"{token} (`hf auth login`, or HF_TOKEN)"


def _causes(error):
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def remote_code_error(name: str, field: str) -> ValueError:
    """The error for a model or tokenizer that is Python code of its own, which only a flag lets run."""
    return ValueError(
        f"{field}={name!r} needs Python code that comes with it. Read that code, and pass --trust_remote_code only if "
        "you trust its authors."
    )


def find_file(name: str, filename: str, field: str, revision: str | None = None) -> Path | None:
    """
    A file of a repository, downloaded if it is not in the cache.

    Returns:
        Its path; `None` if the repository has no such file, or if that cannot be known without a network although the
        cache holds its `config.json`.

    Raises:
        OSError: the repository or revision does not exist, or the Hub refuses it or cannot be reached.
    """
    try:
        with hub_errors(name, field, revision):
            return Path(hf_hub_download(name, filename, revision=revision))
    except EntryNotFoundError:
        return None
    except OSError as error:
        unknown = is_offline_mode() or _NO_CONNECTION in str(error)
        if unknown and isinstance(try_to_load_from_cache(name, CONFIG_NAME, revision=revision), str):
            return None
        raise


def download_folder(name: str, patterns: list[str], field: str, revision: str | None = None) -> Path:
    """
    The folder with those files of a repository that match the patterns, downloaded if they are not in the cache.

    Raises:
        OSError: they cannot be downloaded, or arrived with another content.
    """
    begun = time.time()
    with hub_errors(name, field, revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    check_downloads(folder.rglob("*"), begun, f"{field}={name!r}")
    return folder


def check_downloads(paths: Iterable[Path], since: float, source: str) -> None:
    """
    Compares files that have just been downloaded with the hashes that the Hub announced.

    huggingface_hub compares their length alone, so a changed byte would give a model with other weights. The cache
    names large files by their hash. Files that were there before are not read again.

    Args:
        paths: files in the cache of the Hub. Other files are not looked at.
        since: the time before the download, as `time.time()` gives it.
        source: what messages call the repository.

    Raises:
        OSError: a file has another content. It is removed from the cache, so that it is downloaded again.
    """
    damaged = []
    for path in paths:
        # Unlike `Path.resolve`, this takes links that lead in a circle.
        blob = Path(os.path.realpath(path))
        # Some file systems keep the time with a precision of two seconds.
        if not _SHA256.fullmatch(blob.name) or not blob.is_file() or blob.stat().st_mtime < since - 2:
            continue
        with blob.open("rb") as file:
            is_intact = sha_fileobj(file).hex() == blob.name
        if not is_intact:
            blob.unlink()
            path.unlink(missing_ok=True)
            damaged.append(path.name)
    if damaged:
        raise OSError(
            f"{source}: {first_few(damaged, 3)} arrived with another content than the Hub announces, and was removed. "
            "Run the same command again."
        )
