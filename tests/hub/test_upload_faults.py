"""A publish that the Hub, the network, another program or a kill disturbs: all of it arrives, or nothing does."""

import contextlib
import os
import random
import signal
import socket
import threading
import time

import pytest
from hub_folders import save_model
from huggingface_hub import constants
from local_hub import WRITER, Fault, local_hub
from processes import child_process
from small_publishes import publish_as_client

from memreason_hf.hub.client import HubError
from memreason_hf.hub.publishing import publish_folder
from memreason_hf.hub.upload import Upload


NAME = "user/model"
UPLOADS = "^/uploads/"


@pytest.fixture
def sharded_folder(tmp_path):
    """Weights in several files of different sizes."""
    save_model(tmp_path / "sharded", max_shard_size="30KB", num_prelude_layers=1)
    return tmp_path / "sharded"


def is_untouched(hub):
    """Whether a repository is as the Hub made it, if it was made."""
    return all(set(repo.files()) == {".gitattributes"} and len(repo.commits) == 1 for repo in hub.repositories.all())


def state(hub):
    """What two repositories must have in common."""
    repo = hub.repositories.get(NAME)
    return repo.files(), [commit.title for commit in repo.history()], set(repo.branches), repo.discussions


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """`undisturbed(folder)`: the state of a repository after a publish of a folder that nothing disturbed."""

    def publish(folder, monkeypatch):
        with local_hub(tmp_path_factory.mktemp("undisturbed")) as hub:
            hub.patch(monkeypatch)
            publish_folder(folder, NAME)
            return state(hub)

    return publish


def sent(hub):
    """Hashes of the large files that arrived, in the order of their arrival."""
    return [item.path.removeprefix("/uploads/") for item in hub.matching("PUT", UPLOADS) if item.status == 200]


FAULTS = {
    "busy in mid-upload": Fault("PUT", UPLOADS, status=503, after_bytes=5_000, times=2),
    "busy before the commit": Fault("POST", "/commit/", status=503, times=1),
    "busy at the first question": Fault("GET", "whoami", status=503),
    "busy when the repository is made": Fault("POST", "repos/create", status=500),
    "dropped in mid-upload": Fault("PUT", UPLOADS, drop="before", after_bytes=5_000),
    "dropped after an upload": Fault("PUT", UPLOADS, drop="after"),
    "dropped after the repository was made": Fault("POST", "repos/create", drop="after"),
    "answer to the commit lost": Fault("POST", "/commit/", drop="after"),
    "dropped at the check of the result": Fault("POST", "paths-info", drop="before"),
    "busy before the uploads": Fault("POST", "info/lfs", status=502),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_nothing(this_process, sharded_folder, fault, undisturbed, monkeypatch):
    wanted = undisturbed(sharded_folder, monkeypatch)
    this_process.patch(monkeypatch)
    this_process.faults.append(FAULTS[fault])
    FAULTS[fault].hits = 0
    published = publish_folder(sharded_folder, NAME)
    assert FAULTS[fault].hits >= FAULTS[fault].times, "the control: the fault did happen"
    assert state(this_process) == wanted
    assert published.commit.oid == this_process.repositories.get(NAME).branches["main"]
    assert len(sent(this_process)) == len(set(sent(this_process))), "no file that arrived is sent again"


def test_a_pull_request_whose_answer_got_lost_is_found(this_process, sharded_folder):
    repo = this_process.repositories.create(NAME)
    this_process.faults.append(Fault("POST", "/commit/", drop="after"))
    published = publish_folder(sharded_folder, NAME, create_pr=True)
    assert len(repo.discussions) == 1 and published.commit.pr_url.endswith("/discussions/1")


def test_a_broken_upload_goes_on_where_it_stopped(this_process, sharded_folder, undisturbed, monkeypatch):
    wanted = undisturbed(sharded_folder, monkeypatch)
    this_process.patch(monkeypatch)
    shards = len(list(sharded_folder.glob("model-*.safetensors")))
    assert shards > 3
    this_process.faults.append(Fault("PUT", UPLOADS, status=410, skip=2, times=99))
    with pytest.raises(HubError, match="Error while uploading 'model-"):
        publish_folder(sharded_folder, NAME)
    arrived = sent(this_process)
    assert len(arrived) == 2 and is_untouched(this_process)
    this_process.faults.clear()
    this_process.requests.clear()
    publish_folder(sharded_folder, NAME)
    assert len(sent(this_process)) == shards - 2 and not set(arrived) & set(sent(this_process))
    assert state(this_process) == wanted


def test_a_file_that_was_damaged_on_the_way_is_not_committed(this_process, sharded_folder):
    this_process.faults.append(Fault("PUT", UPLOADS, corrupt=True))
    with pytest.raises(HubError, match="SHA-256"):
        publish_folder(sharded_folder, NAME)
    assert is_untouched(this_process)
    publish_folder(sharded_folder, NAME)
    assert not is_untouched(this_process)


@pytest.mark.parametrize("when", ["hashed", "sent"])
def test_a_file_that_changes_meanwhile_is_named(this_process, sharded_folder, when):
    """Another program writes into a file of the same size while it is sent, or after it was sent."""
    path = max(sharded_folder.glob("model-*.safetensors"), key=lambda item: item.stat().st_size)
    this_process.bandwidth = 60_000
    before = path.stat()

    def change():
        for _ in range(3_000):
            begun = this_process.matching("PUT", UPLOADS)
            if begun and (when == "hashed" or len(sent(this_process)) == len(list(sharded_folder.glob("model-*")))):
                break
            if this_process.matching("POST", "/verify/") and when == "sent":
                break
            time.sleep(0.002)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        with open(path, "r+b") as file:
            file.write(content)
        # As if nothing had happened.
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    writer = threading.Thread(target=change)
    writer.start()
    try:
        with pytest.raises(ValueError, match=f"{path.name} changed while the upload ran") as refused:
            publish_folder(sharded_folder, NAME)
    finally:
        writer.join()
    assert "\n" not in str(refused.value) and is_untouched(this_process)
    this_process.bandwidth = None
    publish_folder(sharded_folder, NAME)
    repo = this_process.repositories.get(NAME)
    assert this_process.repositories.blob(repo.files()[path.name]).read_bytes() == path.read_bytes()


def test_a_change_is_seen_whatever_the_times_say(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"1" * 2_000_000)
    upload, times = Upload("file", path), path.stat()
    assert not upload.has_changed()
    path.read_bytes()
    assert not upload.has_changed(), "reading is no change"
    time.sleep(0.02)
    with open(path, "r+b") as file:
        file.write(b"2")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert upload.has_changed()
    path.unlink()
    assert upload.has_changed()


def test_no_hub_at_all_is_one_line_at_once(this_process, sharded_folder, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(HubError, match="cannot be reached") as refused:
            publish_folder(sharded_folder, NAME)
    assert time.monotonic() - begun < 5 and "\n" not in str(refused.value)
    monkeypatch.setattr(constants, "ENDPOINT", "nonsense")
    with pytest.raises(ValueError, match="HF_ENDPOINT='nonsense'"):
        publish_folder(sharded_folder, NAME)
    monkeypatch.setattr(constants, "ENDPOINT", this_process.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE=1"):
        publish_folder(sharded_folder, NAME)


def test_a_hub_that_stays_busy_says_so(this_process, sharded_folder, monkeypatch):
    monkeypatch.setattr("memreason_hf.hub.client._FIRST_WAIT", 0.01)
    monkeypatch.setattr("memreason_hf.hub.client._LONGEST_WAIT", 0.01)
    this_process.faults.append(Fault("POST", "repos/create", status=503, times=99))
    with pytest.raises(HubError, match=r"did not answer in 6 tries \(503"):
        publish_folder(sharded_folder, NAME)
    assert len(this_process.matching("POST", "repos/create")) == 6


def test_an_upload_by_xet_that_fails_is_one_line(this_process, sharded_folder, monkeypatch):
    """The library for Xet raises errors of its own; this Hub has no service for it."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(HubError, match="could not be sent") as refused:
        publish_folder(sharded_folder, NAME)
    assert "\n" not in str(refused.value) and WRITER not in str(refused.value)
    assert is_untouched(this_process) and this_process.matching("GET", "xet-write-token")


# Kills.


def publish_and_kill(hub, folder, seconds):
    """A publish that is killed so long after its first request; what it was doing then, or None if it had ended."""
    hub.requests.clear()
    with child_process(publish_as_client, hub.url, WRITER, str(folder), NAME) as child:
        while not hub.requests and child.exitcode is None:
            time.sleep(0.005)
        child.join(seconds)
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
        child.join(60)
    hub.cut()
    while any(item.ended is None for item in hub.matching("PUT")):
        time.sleep(0.005)
    if child.exitcode == 0:
        return None
    assert child.exitcode == -signal.SIGKILL
    # An upload without an answer was cut off in the middle of a file.
    return "sending" if any(item.status is None for item in hub.matching("PUT", UPLOADS)) else "between"


def kill_and_compare(folder, tmp_path, monkeypatch, num_kills, num_while_sending, most_in_a_trial):
    """Kills publishes at random moments, some of them in the middle of a file, and lets the last try end."""
    seed = random.SystemRandom().randrange(2**31)
    draw, kills, number = random.Random(seed), [], 0
    with slow_hub(tmp_path / "undisturbed", monkeypatch) as hub:
        publish_folder(folder, NAME)
        wanted, duration = state(hub), hub.requests[-1].ended - hub.requests[0].begun
    assert duration > 0.5
    while len(kills) < num_kills or kills.count("sending") < num_while_sending:
        number += 1
        assert number <= num_kills + num_while_sending, (seed, kills)
        with slow_hub(tmp_path / f"trial{number}", monkeypatch) as hub:
            # One kill in each part of the time, so that every part of a publish is met.
            parts = max(1, min(most_in_a_trial, num_kills - len(kills)))
            fractions = [(part + draw.random()) / parts for part in range(parts)]
            draw.shuffle(fractions)
            moments = [publish_and_kill(hub, folder, fraction * duration) for fraction in fractions]
            kills += filter(None, moments)
            publish_folder(folder, NAME)
            assert state(hub) == wanted, (seed, number, fractions)
            assert not list(hub.repositories.folder.glob(".*")), "no half file is kept"


@contextlib.contextmanager
def slow_hub(folder, monkeypatch):
    with local_hub(folder) as hub:
        hub.bandwidth = 500_000
        hub.patch(monkeypatch)
        yield hub


@pytest.fixture
def large_folder(tmp_path):
    """Weights of some megabytes: more than the system keeps between a client and a server."""
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_prelude_layers": 2}
    save_model(tmp_path / "large", max_shard_size="900KB", **sizes)
    return tmp_path / "large"


@pytest.mark.slow
def test_a_killed_publish_ends_in_the_same_repository(this_process, large_folder, tmp_path, monkeypatch):
    kill_and_compare(large_folder, tmp_path, monkeypatch, 2, 1, most_in_a_trial=2)


@pytest.mark.slow
def test_twenty_kills_end_in_the_same_repository(this_process, large_folder, tmp_path, monkeypatch):
    kill_and_compare(large_folder, tmp_path, monkeypatch, 20, 8, most_in_a_trial=4)
