"""Repositories of a local Hub made of folders, for the tests of loading."""

from pathlib import Path


def put_folder(hub, folder, name="user/model", **options):
    """Makes a repository of a folder's files; returns it."""
    repo = hub.repositories.create(name, **options)
    hub.repositories.put_files(repo, files_of(folder))
    return repo


def files_of(folder) -> dict[str, bytes]:
    """The contents of a folder's files by their paths in it."""
    folder = Path(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
