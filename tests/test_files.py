import errno
import os
import subprocess
import sys

import pytest
from paths import ROOT

from memreason_hf.files import (
    check_places,
    check_regular,
    clear_leftovers,
    move_files,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    scratch_folder,
    whole_file,
    whole_folder,
    write_json,
)


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
# Repeatedly builds a folder of 30 files, which all hold the id of the process.
BUILDER = """
import os, sys
from memreason_hf.files import whole_folder
for _ in range(25):
    with whole_folder(sys.argv[1], overwrite=True) as staged:
        for name in range(30):
            (staged / str(name)).write_text(str(os.getpid()))
"""
# Stays inside the block until its input ends, and prints the name of its staging folder. A second argument replaces
# the id of the process.
SLEEPER = """
import os, sys
if len(sys.argv) > 2:
    os.getpid = lambda: int(sys.argv[2])
from memreason_hf.files import whole_folder
with whole_folder(sys.argv[1], overwrite=True) as staged:
    (staged / "mine").touch()
    print(staged.name, flush=True)
    sys.stdin.read()
"""


def test_the_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "table.txt"
    with whole_file(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
        temporary.write_text("half", encoding="utf-8")
        assert not path.exists()
        temporary.write_text("whole", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), whole_file(path, overwrite=True) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_files_are_named(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError, match="a already exists"):
        check_places([tmp_path / "a", tmp_path / "b"], overwrite=False)
    check_places([tmp_path / "a"], overwrite=True)
    check_places([tmp_path / "b"], overwrite=False)


def test_places_where_no_file_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Pass the name of a file"):
        check_places([tmp_path / "new", tmp_path], overwrite=True)
    with pytest.raises(NotADirectoryError, match=r"table.json cannot be written: .*file is a file, not a folder"):
        check_places([tmp_path / "file" / "sub" / "table.json"], overwrite=True)
    check_places([tmp_path / "new" / "sub" / "table.json"], overwrite=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_places_where_nothing_may_be_written(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"the folder .*closed is read-only"):
        check_places([tmp_path / "closed" / "new" / "table.json"], overwrite=True)


def test_a_folder_appears_whole(tmp_path):
    folder = tmp_path / "new" / "data"
    with whole_folder(folder) as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "file").write_text("whole", encoding="utf-8")
        assert not folder.exists()
    assert (folder / "sub" / "file").read_text(encoding="utf-8") == "whole"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_leaves_the_folder_that_was_there(tmp_path, overwrite):
    folder = tmp_path / "data"
    folder.mkdir()
    if overwrite:
        (folder / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(folder, overwrite=overwrite) as staged:
        (staged / "new").touch()
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [folder, *([folder / "old"] if overwrite else [])]


def test_a_folder_is_replaced_only_where_that_is_wanted(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(FileExistsError, match="data is not empty"), whole_folder(folder):
        pytest.fail("the block ran")
    with whole_folder(folder, overwrite=True) as staged:
        (staged / "new").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "new"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    killed = tmp_path / f".data.{gone_pid()}-0a1b2c3d.partial"
    killed.mkdir()
    with whole_folder(tmp_path / "data") as staged:
        (staged / "file").touch()
    # Without a lock nothing tells whether the process runs elsewhere, so its folder stays.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([killed.name, "data"])


def test_a_folder_that_another_process_made_meanwhile_is_kept(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(FileExistsError), whole_folder(folder) as staged:
        (staged / "slow").touch()
        folder.mkdir()
        (folder / "fast").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / "fast"]


def test_builders_of_one_folder_at_the_same_time_leave_the_folder_of_one_of_them(tmp_path):
    folder = tmp_path / "data"
    command = [sys.executable, "-c", BUILDER, str(folder)]
    builders = [subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [builder.communicate()[1] for builder in builders]
    assert errors == [""] * 4 and [builder.returncode for builder in builders] == [0] * 4
    assert sorted(path.name for path in folder.iterdir()) == sorted(map(str, range(30)))
    contents = {path.read_text() for path in folder.iterdir()}
    assert len(contents) == 1 and contents <= {str(builder.pid) for builder in builders}
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_builder_may_finish_between_the_last_check_and_the_renaming(tmp_path, monkeypatch, overwrite):
    folder, rename = tmp_path / "data", os.rename

    def late(source, target):
        if target == folder:
            monkeypatch.undo()
            folder.mkdir()
            (folder / "theirs").touch()
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    if overwrite:
        with whole_folder(folder, overwrite=True) as staged:
            (staged / "mine").touch()
    else:
        with pytest.raises(FileExistsError, match="not empty: another process"), whole_folder(folder) as staged:
            (staged / "mine").touch()
    assert list(tmp_path.rglob("*")) == [folder, folder / ("mine" if overwrite else "theirs")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_of_the_disk_is_not_taken_for_another_builder(tmp_path, monkeypatch, overwrite):
    folder, rename = tmp_path / "data", os.rename

    def fail(source, target):
        if target == folder:
            raise OSError(errno.ENOSPC, "no space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no space left"), whole_folder(folder, overwrite=overwrite):
        pass
    assert not list(tmp_path.iterdir())


@pytest.fixture
def start_builder():
    running = []

    def start(*arguments):
        command = [sys.executable, "-c", SLEEPER, *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, env=ENVIRONMENT, **pipes))
        return running[-1], running[-1].stdout.readline().strip()

    yield start
    for builder in running:
        builder.kill()
        builder.communicate()


def gone_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_builders_with_one_process_id(tmp_path, start_builder):
    """Two containers that share a disk, or two threads."""
    folder, pid = tmp_path / "data", os.getpid()
    first, staged = start_builder(folder, pid)
    with whole_folder(folder, overwrite=True) as own:
        assert own.name != staged and (tmp_path / staged / "mine").exists()
        (own / "other").touch()
    first.communicate("")
    assert first.returncode == 0
    assert list(tmp_path.rglob("*")) == [folder, folder / "mine"]


def test_a_folder_is_synced_unless_it_can_be_built_again(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("memreason_hf.files.sync", lambda path: synced.append(path.name))
    for name, durable in (("kept", True), ("rebuilt", False)):
        with whole_folder(tmp_path / name, durable=durable) as staged:
            (staged / f"{name}.txt").touch()
    assert "kept.txt" in synced and "rebuilt.txt" not in synced


def test_a_file_that_another_process_made_meanwhile_is_kept(tmp_path):
    path = tmp_path / "table.txt"
    with pytest.raises(FileExistsError), whole_file(path) as temporary:
        temporary.write_text("mine", encoding="utf-8")
        path.write_text("theirs", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "theirs" and list(tmp_path.iterdir()) == [path]


def test_the_next_build_removes_what_a_killed_one_left(tmp_path, start_builder):
    folder = tmp_path / "data"
    builder, staged = start_builder(folder)
    assert staged.startswith(f".data.{builder.pid}-") and (tmp_path / staged / "mine").exists()
    builder.kill()
    builder.wait()
    owner = f"{builder.pid}-0a1b2c3d"
    others = [f".other.{owner}.partial", f".data.{owner}.zip", ".data.partial", ".data.x.partial"]
    for name in (f".data.{owner}.deleted", *others):
        (tmp_path / name).mkdir()
    with whole_folder(folder):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "data"])


@pytest.mark.parametrize("is_seen", [True, False], ids=["by its process id", "by its lock alone"])
def test_the_next_build_leaves_a_living_one_alone(tmp_path, start_builder, is_seen):
    """The id of a process of another container may not exist here."""
    folder = tmp_path / "data"
    builder, staged = start_builder(folder) if is_seen else start_builder(folder, gone_pid())
    with whole_folder(folder, overwrite=True) as own:
        (own / "other").touch()
    assert (tmp_path / staged / "mine").exists() and list(folder.iterdir()) == [folder / "other"]
    builder.communicate("")
    assert builder.returncode == 0
    assert list(tmp_path.rglob("*")) == [folder, folder / "mine"]


def test_a_scratch_folder_is_for_this_user_and_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, other = (tmp_path / f".{name}.{gone_pid()}-0a1b2c3d.partial" for name in ("work", "another"))
    for folder in (killed, other):
        folder.mkdir()
    with pytest.raises(KeyError), scratch_folder("work") as first, scratch_folder("work") as second:
        assert first != second and first.stat().st_mode & 0o777 == 0o700 and not killed.exists()
        (first / "a").write_text("1")
        raise KeyError
    assert list(tmp_path.iterdir()) == [other]


def test_leftovers_of_killed_processes_are_cleared_and_nothing_else(tmp_path):
    gone, alive = f"{gone_pid()}-0a1b2c3d", f"{os.getpid()}-0a1b2c3d"
    left = [f".{name}.partial" for name in ("checkpoint-5", "model", "adapter", "push-7", "push-checkpoint-7")]
    left += [".checkpoint-5.deleted", f".data.{gone}.partial", f".old.{gone}.deleted", f".old.{alive}.deleted"]
    kept = [".git", "data.partial", ".mine.partial", ".old.deleted", ".checkpoint-x.partial", f".data.{alive}.partial"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".checkpoint-9.partial").symlink_to(tmp_path / ".git")
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".checkpoint-9.partial"])
    assert all((tmp_path / name / "file").exists() for name in kept)


def test_a_living_build_inside_an_output_folder_is_left_alone(tmp_path, start_builder):
    """Also that of another container, whose process cannot be seen here but holds the lock of its folder."""
    builder, staged = start_builder(tmp_path / "data", gone_pid())
    clear_leftovers(tmp_path)
    assert (tmp_path / staged / "mine").exists()
    builder.communicate("")
    assert builder.returncode == 0 and (tmp_path / "data" / "mine").exists()


def test_a_full_disk_names_the_file(tmp_path):
    """Python names the file of an error only where it is opened."""
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "a.json") as temporary:
        assert temporary.parent == tmp_path
        with open("/dev/full", "w") as file:
            file.write("x")
    assert caught.value.filename == str(tmp_path / "a.json") and caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_files_move_into_a_folder_with_its_config_last(tmp_path, monkeypatch):
    staged, folder = tmp_path / "staged", tmp_path / "model"
    (staged / "sub").mkdir(parents=True)
    folder.mkdir()
    for name in ("config.json", "a.json", "sub/weights"):
        (staged / name).write_text(name)
    (folder / "a.json").write_text("old")
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (moved.append(target.name), replace(source, target)))
    assert move_files(staged, folder, last=("config.json",)) == ["a.json", "sub/weights", "config.json"]
    assert moved == ["a.json", "weights", "config.json"]
    assert (folder / "a.json").read_text() == "a.json" and not staged.exists()


def test_json_refuses_what_json_has_no_number_for(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_damaged_json_file_is_named(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    for damaged in (path.read_bytes()[:-4], b"", b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.json is not a JSON file \(damaged or cut off\?\)"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


def test_json_that_is_nested_too_deeply_is_a_value_error(tmp_path):
    for content in ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
        with pytest.raises(ValueError, match=r"nested too deeply to be read\.$"):
            parse_json(content)
        (tmp_path / "deep.json").write_text(content)
        with pytest.raises(ValueError, match=r"deep\.json is not a JSON file .*nested too deeply"):
            read_json(tmp_path / "deep.json")
    assert parse_json(b"[1, [2]]") == [1, [2]]


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json], ids=lambda function: function.__name__)
def test_a_pipe_or_device_is_refused_at_once(tmp_path, read):
    """To open a pipe would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="must be a file, but is a pipe, a socket or a device") as error:
            read(path)
        assert error.value.filename == str(path)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


def test_a_pipe_or_device_is_not_written_to(tmp_path):
    """It would be replaced, or would wait for a reader."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/null"):
        for overwrite in (False, True):
            with pytest.raises(OSError, match="must be a file, but is a pipe"):
                check_places([path], overwrite=overwrite)


def test_a_folder_of_regular_files(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text("")
    (tmp_path / "link").symlink_to("deep/file")
    (tmp_path / "loop").symlink_to("loop")
    check_regular(tmp_path)
    os.mkfifo(tmp_path / "deep" / "pipe")
    with pytest.raises(OSError, match="is a pipe"):
        check_regular(tmp_path)
