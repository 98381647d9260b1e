"""The data scripts as a user runs them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from datasets import load_from_disk
from paths import ROOT
from refusals import refused
from transformers import AutoTokenizer

from memreason_hf.data import MultiHopConfig, build_multi_hop


SIZES = ["--num_entities", "9", "--num_relations", "3", "--train_hops", "2-3", "--test_hops", "1-3,7"]
COUNTS = ["--num_train_chains", "30", "--num_test_chains", "6", "--num_small_test_chains", "2", "--seed", "5"]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "data_scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build():
    yield script("build_multi_hop").main
    del sys.modules["build_multi_hop"]


@pytest.fixture
def convert():
    yield script("convert_multi_hop").main
    del sys.modules["convert_multi_hop"]


def refusal(main, arguments, capsys):
    return refused(capsys, main, [str(argument) for argument in arguments])


def test_the_command_of_the_readme_from_another_folder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "data_scripts" / "build_multi_hop.py", "--output_dir", "data", *SIZES, *COUNTS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: train 87, validation 105, test 105, test_small 8 rows")
    config = MultiHopConfig(
        num_entities=9,
        num_relations=3,
        train_hops="2-3",
        test_hops="1-3,7",
        num_train_chains=30,
        num_test_chains=6,
        num_small_test_chains=2,
        seed=5,
    )
    dataset = load_from_disk(tmp_path / "data")
    assert {k: v.to_dict() for k, v in dataset.items()} == {
        k: v.to_dict() for k, v in build_multi_hop(config).dataset.items()
    }
    row = dataset["train"][0]
    ids = AutoTokenizer.from_pretrained(tmp_path / "data")(row["target_text"])["input_ids"]
    assert len(ids) == 4


def test_help_teaches(build, capsys):
    with pytest.raises(SystemExit) as stopped:
        build(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "python data_scripts/build_multi_hop.py --output_dir",
        "atomic fact",
        "cap_to_available",
        "default: 200",
    ):
        assert words in text


def test_a_second_run_finds_the_data_set(build, tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path / "data"), *SIZES, *COUNTS]
    build(arguments)
    first, stamp = capsys.readouterr().out, (tmp_path / "data" / "train.json").stat().st_mtime_ns
    build(arguments)
    assert capsys.readouterr().out == first
    assert (tmp_path / "data" / "train.json").stat().st_mtime_ns == stamp


def test_another_data_set_needs_overwrite(build, tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path), *SIZES, *COUNTS]
    build(arguments)
    assert "already holds another data set" in refusal(build, [*arguments, "--seed", "6"], capsys)
    build([*arguments, "--seed", "6", "--overwrite"])
    assert json.loads((tmp_path / "manifest.json").read_text())["config"]["seed"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out_degree", "4"], "out_degree=4 is above num_relations=3"),
        (["--num_train_chains", "76"], "2 hops: 76 training + 6 test requested, 81 exist"),
        (["--num_entities", "0"], "num_entities=0 is too small"),
        (["--num_entities", "many"], "num_entities='many' must be a whole number"),
        (["--train_hops", "3-2"], "write 2-3"),
        (["--num_entites", "9"], "unknown flag '--num_entites 9'. Did you mean --num_entities?"),
        (["9"], "'9': the command takes flags only"),
    ],
)
def test_bad_requests_say_why_and_leave_nothing(build, tmp_path, capsys, arguments, message):
    assert message in refusal(build, ["--output_dir", tmp_path / "data", *SIZES, *COUNTS, *arguments], capsys)
    assert not (tmp_path / "data").exists()


def test_the_output_folder_is_required(build, capsys):
    assert refusal(build, [], capsys).endswith("error: output_dir is not given. Pass --output_dir.")


def test_both_spellings_of_a_flag(build, tmp_path, capsys):
    build(["--output_dir", str(tmp_path / "one"), *SIZES, *COUNTS])
    dashes = [flag.replace("_", "-") if flag.startswith("--") else flag for flag in (*SIZES, *COUNTS)]
    assert "--num-entities" in dashes
    build(["--output-dir", str(tmp_path / "two"), *dashes])
    build(["--output-dir", str(tmp_path / "three"), *dashes, "--seed", "6"])
    one, two, three = ((tmp_path / name / "train.json").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_converting_adds_the_other_forms(build, convert, tmp_path, capsys):
    build(["--output_dir", str(tmp_path / "built"), *SIZES, *COUNTS])
    (tmp_path / "json").mkdir()
    for name in ("train", "valid", "test", "test_small", "vocab"):
        (tmp_path / "built" / f"{name}.json").rename(tmp_path / "json" / f"{name}.json")
    convert(["--input_dir", str(tmp_path / "json"), "--output_dir", str(tmp_path / "data")])
    built, converted = load_from_disk(tmp_path / "built"), load_from_disk(tmp_path / "data")
    assert {k: v.to_dict() for k, v in built.items()} == {k: v.to_dict() for k, v in converted.items()}

    (tmp_path / "json" / "test.json").write_text("[")
    message = refusal(convert, ["--input_dir", tmp_path / "json", "--output_dir", tmp_path / "new"], capsys)
    assert "test.json" in message and not (tmp_path / "new").exists()
    arguments = ["--input_dir", tmp_path / "json", "--output_dir", tmp_path / "data"]
    assert "already holds" in refusal(convert, arguments, capsys)
