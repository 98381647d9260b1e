"""`memreason publish`: what it prints, and the one line of every refusal."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from hub_folders import add_run_files
from huggingface_hub import constants
from local_hub import READER, STRANGER, Fault, hub_fixture, this_process_fixture  # noqa: F401  (fixtures)
from refusals import refused

import memreason_hf
from memreason_hf.commands import publish


NAME = "user/model"


def run(*arguments):
    return publish.main([str(argument) for argument in arguments])


def test_a_publish_prints_where_it_went_and_what(this_process, model_folder, capsys):
    add_run_files(model_folder)
    assert run(model_folder, NAME, "--license", "apache-2.0", "--message", "First") == 0
    printed = capsys.readouterr().out
    repo = this_process.repositories.get(NAME)
    assert f"{this_process.url}/{NAME}" in printed and repo.branches["main"] in printed
    lines = printed.splitlines()
    for path in set(repo.files()) - {".gitattributes"}:
        assert sum(line.split()[:1] == [path] and "stays" not in line for line in lines) == 1, path
    assert any(line.split()[:1] == ["run.json"] and "--include_run" in line for line in lines)
    assert repo.history()[0].title == "First"
    assert run(model_folder, NAME, "--license", "apache-2.0") == 0
    assert "holds all this already" in capsys.readouterr().out
    assert len(repo.history()) == 2


def test_a_dry_run_lists_sizes_and_sends_nothing(this_process, model_folder, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    add_run_files(model_folder)
    assert run(model_folder, NAME, "--dry_run") == 0
    printed = capsys.readouterr().out
    assert not this_process.requests and "Nothing was sent" in printed
    shown = {line.split()[0]: " ".join(line.split()[1:3]) for line in printed.splitlines()[1:-1]}
    assert set(shown) == {path.name for path in model_folder.iterdir()} | {"README.md"}
    size = (model_folder / "model.safetensors").stat().st_size
    assert shown["model.safetensors"] == f"{size / 1000:,.1f} kB"


def test_flags_of_the_repository(this_process, model_folder, capsys):
    assert run(model_folder, NAME, "--private", "--revision", "v2") == 0
    repo = this_process.repositories.get(NAME)
    assert repo.private and set(repo.branches) == {"main", "v2"} and set(repo.files()) == {".gitattributes"}
    assert run(model_folder, NAME, "--create_pr") == 0
    assert f"{this_process.url}/{NAME}/discussions/1" in capsys.readouterr().out
    this_process.repositories.put_files(repo, {"old.txt": b"old"})
    assert run(model_folder, NAME, "--delete_others", "--no_progress") == 0
    assert "old.txt" not in repo.files()


def test_bad_input_is_one_line_before_anything_is_sent(this_process, model_folder, tmp_path, capsys, monkeypatch):
    empty, two, damaged = tmp_path / "empty", tmp_path / "two", tmp_path / "damaged"
    empty.mkdir()
    for folder in (two, damaged):
        shutil.copytree(model_folder, folder)
    (two / "adapter_config.json").write_text("{}")
    (damaged / "model.safetensors").write_bytes(b"\xff" * 100)
    (model_folder / "LICENSE").write_text(f"see {tmp_path}\n")
    assert "nothing to publish" in refused(capsys, run, empty, NAME)
    assert "does not exist" in refused(capsys, run, tmp_path / "missing", NAME)
    assert "holds two models" in refused(capsys, run, two, NAME)
    assert "model.safetensors is damaged" in refused(capsys, run, damaged, NAME)
    assert "is not the name of a repository" in refused(capsys, run, model_folder, "no name")
    assert "LICENSE, line 1" in refused(capsys, run, model_folder, NAME)
    assert "--repo" in refused(capsys, run, model_folder)
    (model_folder / "LICENSE").unlink()
    monkeypatch.delenv("HF_TOKEN")
    text = refused(capsys, run, model_folder, NAME)
    assert "hf auth login" in text and "HF_TOKEN" in text
    assert not this_process.requests


def refused_with(capsys, monkeypatch, token, *arguments):
    """The refusal of a run with a token; the whole output is searched for it."""
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    output = capsys.readouterr()
    assert stopped.value.code == 2 and token not in output.out + output.err
    (line,) = [line for line in output.err.splitlines() if "error:" in line]
    return line


def test_tokens_and_rights(this_process, model_folder, capsys, monkeypatch):
    repo = this_process.repositories.create("team/gated", gated="auto")
    assert "(401)" in refused_with(capsys, monkeypatch, "unknown-token", model_folder, NAME)
    assert "may only read" in refused_with(capsys, monkeypatch, READER, model_folder, NAME)
    assert "(403" in refused_with(capsys, monkeypatch, STRANGER, model_folder, NAME)
    assert "(403" in refused_with(capsys, monkeypatch, STRANGER, model_folder, "nowhere/model")
    line = refused_with(capsys, monkeypatch, STRANGER, model_folder, "team/missing", "--create_pr")
    assert "team/missing does not exist" in line
    assert "is gated" in refused_with(capsys, monkeypatch, STRANGER, model_folder, "team/gated", "--create_pr")
    assert this_process.repositories.all() == [repo] and len(repo.commits) == 1


def test_no_network_is_one_line(this_process, model_folder, capfd, monkeypatch):
    """All of standard error, with what the library logs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        with pytest.raises(SystemExit) as stopped:
            run(model_folder, NAME)
    assert stopped.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("memreason publish: error: ") and f"{endpoint} cannot be reached" in line


def test_a_metric_is_found_by_its_name(tmp_path, monkeypatch):
    metric = Path(memreason_hf.__file__).parent / "metrics" / "step_attribution"
    assert publish._find_folder("step_attribution") == metric
    monkeypatch.chdir(tmp_path)
    (tmp_path / "step_attribution").mkdir()
    assert publish._find_folder("step_attribution") == Path("step_attribution"), "a folder goes before a metric"


def test_a_space_with_the_page_of_the_model(this_process, model_folder, capsys):
    pytest.importorskip("gradio")
    assert run(model_folder, NAME, "--space", "--dry_run") == 0
    assert not this_process.requests
    assert run(model_folder, NAME, "--space", "--private") == 0
    printed = capsys.readouterr().out
    space = this_process.repositories.get(NAME, "space")
    assert {"app.py", "requirements.txt", "README.md"} <= set(space.files())
    assert (space.sdk, space.private) == ("gradio", True)
    app = this_process.repositories.blob(space.files()["app.py"]).read_text()
    assert repr(NAME) in app and f"{this_process.url}/spaces/{NAME}" in printed
    assert "model.safetensors" in this_process.repositories.get(NAME).files()
    assert run(model_folder, NAME, "--space") == 0
    assert capsys.readouterr().out.count("holds all this already") == 2


def test_what_no_space_is_made_for(this_process, model_folder, tmp_path, capsys):
    assert "space and create_pr=True exclude" in refused(capsys, run, model_folder, NAME, "--space", "--create_pr")
    pytest.importorskip("gradio")
    space = tmp_path / "space"
    space.mkdir()
    (space / "app.py").write_text("import gradio\n")
    (space / "README.md").write_text("---\nsdk: gradio\n---\n# A page\n")
    assert "--space shows a model" in refused(capsys, run, space, "user/page", "--space")
    assert not this_process.requests


LOAD = """
import sys
from datasets import disable_progress_bars, load_dataset, load_from_disk

disable_progress_bars()
loaded, local = load_dataset("user/world"), load_from_disk(sys.argv[1])
assert {split: part.num_rows for split, part in loaded.items()} == local.num_rows
assert all(loaded[split][column][:] == local[split][column][:] for split in local for column in local["test"].features)

import evaluate

metric = evaluate.load("user/grouped")
print(metric.compute(predictions=[1, 2], references=[1, 3], groups=["2", "2"])["accuracy"])
"""


def test_a_data_set_and_a_metric_load_by_their_names(this_process, world_folder, tmp_path, capsys):
    assert run(world_folder, "user/world", "--license", "mit") == 0
    assert run("grouped_accuracy", "user/grouped", "--license", "apache-2.0") == 0
    printed = capsys.readouterr().out
    assert (
        f"{this_process.url}/datasets/user/world" in printed and f"{this_process.url}/spaces/user/grouped" in printed
    )
    files = this_process.repositories.get("user/world", "dataset").files()
    assert any(name.endswith(".parquet") for name in files) and not any(name.endswith(".arrow") for name in files)
    assert this_process.repositories.get("user/grouped", "space").sdk == "gradio"
    # The same bytes are made again: a publish that was killed does not send them twice.
    this_process.requests.clear()
    assert run(world_folder, "user/world", "--license", "mit") == 0
    assert not this_process.matching("PUT") and "holds all this already" in capsys.readouterr().out
    command = [sys.executable, "-c", LOAD, str(world_folder)]
    done = subprocess.run(command, env=this_process.environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout == "0.5\n", done.stderr[-3000:]


def test_progress_bars_can_be_hidden(world_folder, capfd):
    datasets.enable_progress_bars()
    assert run(world_folder, "user/world", "--dry_run") == 0
    assert "%|" in capfd.readouterr().err
    assert run(world_folder, "user/world", "--dry_run", "--no_progress") == 0
    assert capfd.readouterr().err == ""
    datasets.enable_progress_bars()


def test_ctrl_c_commits_nothing(this_process, model_folder, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", interrupt)
    with pytest.raises(SystemExit) as stopped:
        run(model_folder, NAME)
    assert stopped.value.code == 130
    assert "run it again to go on" in capsys.readouterr().err
    assert set(this_process.repositories.get(NAME).files()) == {".gitattributes"}


def test_a_hub_that_is_busy_is_asked_again(this_process, model_folder, capsys):
    this_process.faults.append(Fault("GET", "whoami", status=503))
    assert run(model_folder, NAME) == 0
    assert len(this_process.matching("GET", "whoami")) == 2


def test_offline_mode_says_so(this_process, model_folder, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=1" in refused(capsys, run, model_folder, NAME)
    assert run(model_folder, NAME, "--dry_run") == 0
