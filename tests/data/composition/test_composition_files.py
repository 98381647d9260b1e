"""The folder of a composition data set: the study's files in both directions, damage, the script, the Hub."""

import importlib.util
import json
import random
import re
import sys

import pytest
from datasets import load_from_disk
from paths import ROOT
from refusals import refused
from transformers import AutoTokenizer

from memreason_hf.data.composition.compositions import (
    build_compositions,
    convert_compositions,
    load_compositions,
    prepare_compositions,
    read_composition_json,
    save_compositions,
)
from memreason_hf.data.composition.config import CompositionConfig
from memreason_hf.files import whole_folder
from memreason_hf.hub.cards import make_card
from memreason_hf.hub.datasets import fetch_dataset, stage_dataset


SIZES = {"num_entities": 100, "num_relations": 16, "out_degree": 10, "ratio": 5.5, "num_probes": 30}
NAMES = ("train", "valid", "test", "vocab")


@pytest.fixture(scope="module")
def data():
    return build_compositions(CompositionConfig(**SIZES, seed=11))


@pytest.fixture
def theirs(data, tmp_path):
    """A folder as the study's script writes it: in-distribution facts, then OOD facts, each in any order."""
    folder = tmp_path / "theirs"
    save_compositions(data, tmp_path / "saved")
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.json").write_bytes((tmp_path / "saved" / f"{name}.json").read_bytes())
    items = read(folder, "train")
    sorts = {row["input_text"]: row["type"] for row in data.dataset["train"]}
    random.Random(3).shuffle(items)
    order = {"id_atomic": 0, "ood_atomic": 1, "train_inferred": 2}
    items.sort(key=lambda item: order[sorts[item["input_text"]]])
    (folder / "train.json").write_text(json.dumps(items))
    return folder


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def change(folder, name, edit):
    items = read(folder, name)
    items = edit(items) or items
    (folder / f"{name}.json").write_text(json.dumps(items))


def test_files_have_the_schema_of_the_study(data, tmp_path):
    save_compositions(data, tmp_path / "ours")
    train, valid, test = (read(tmp_path / "ours", name) for name in ("train", "valid", "test"))
    assert {tuple(item) for item in train + valid} == {("input_text", "target_text")}
    assert {tuple(item) for item in test} == {("input_text", "target_text", "type")}
    vocabulary = read(tmp_path / "ours", "vocab")
    assert vocabulary[:2] == ["<e_0>", "<e_1>"] and vocabulary[100] == "<r_0>" and "<pad>" not in vocabulary
    # As json.dump writes it.
    text = (tmp_path / "ours" / "train.json").read_text()
    assert text == json.dumps(train)
    assert [item["input_text"] for item in train] == data.dataset["train"]["input_text"][:]
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("<e_0><r_0>")["input_ids"] == [1, 101]
    arrow = load_from_disk(tmp_path / "ours")
    assert {k: v.to_dict() for k, v in arrow.items()} == {k: v.to_dict() for k, v in data.dataset.items()}


def test_their_files_are_read_with_the_sort_of_every_fact(data, theirs):
    sorts = {row["input_text"]: row["type"] for row in data.dataset["train"]}
    rows = {row["input_text"]: row for row in load_compositions(theirs)["train"]}
    assert {text: row["type"] for text, row in rows.items()} == sorts
    # Some facts are in no composition and in no probe: only their place says what they are.
    used = {fact for row in data.dataset["test"] for fact in parts(row)} | {
        fact for row in data.dataset["train"] if row["hops"] == 2 for fact in parts(row)
    }
    assert set(sorts) - used
    assert [row["entities"] for row in load_compositions(theirs)["test"]] == [
        row["entities"] for row in data.dataset["test"]
    ]


def parts(row):
    head, *relations = re.findall("<[^>]+>", row["input_text"])
    starts = [head, *row["entities"]]
    return [f"{start}{relation}" for start, relation in zip(starts, relations)]


def test_theirs_to_ours_and_back(theirs, tmp_path):
    convert_compositions(theirs, tmp_path / "ours")
    for name in NAMES:
        assert (tmp_path / "ours" / f"{name}.json").read_bytes() == (theirs / f"{name}.json").read_bytes()
    assert read_composition_json(tmp_path / "ours").dataset["train"].to_dict() == (
        load_compositions(tmp_path / "ours")["train"].to_dict()
    )


def test_facts_that_nothing_tells_apart_are_refused(theirs):
    """With as many probes of both sorts, some OOD facts are in train.json only."""
    change(theirs, "train", lambda items: items[::-1])
    with pytest.raises(ValueError, match=r"facts are in distribution cannot be known .* does not say it"):
        load_compositions(theirs)


def test_the_order_does_not_matter_where_the_probes_hold_all_ood_facts(tmp_path):
    data = build_compositions(CompositionConfig(**{**SIZES, "num_probes": 60}, seed=random.randrange(2**31)))
    assert sum(row["type"] == "ood_atomic" for row in data.dataset["test"]) == 50
    save_compositions(data, tmp_path / "data")
    change(tmp_path / "data", "train", lambda items: random.sample(items, len(items)))
    sorts = {row["input_text"]: row["type"] for row in data.dataset["train"]}
    read_back = read_composition_json(tmp_path / "data").dataset
    assert {row["input_text"]: row["type"] for row in read_back["train"]} == sorts


def set_item(row, **changes):
    def edit(items):
        items[row].update(changes)

    return edit


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("train", lambda items: [*items[:-1], {"input_text": "<e_1>"}], "must hold the texts input_text, target_text"),
        ("test", lambda items: [{**items[0], "type": "atomic"}], "item 0 has the type 'atomic'"),
        ("test", set_item(0, type="ood_atomic"), "makes .* another item makes it id_atomic"),
        ("test", set_item(0, type="train_inferred"), "is labelled train_inferred, but has 1 relations"),
        ("test", set_item(0, input_text="<e_1><r_1><r_1><r_2>"), "has 3 relations, but a composition has 2"),
        ("train", set_item(0, target_text="<e_1></a>"), "item 0, an atomic fact, must have its answer"),
        ("train", lambda items: items[3:], "is not an atomic fact of train.json"),
        ("vocab", lambda words: words[1:], "not in the vocabulary: <e_0>"),
    ],
)
def test_damaged_files_are_refused(theirs, name, edit, message):
    change(theirs, name, edit)
    with pytest.raises(ValueError, match=message):
        load_compositions(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_or_cut_file_is_named(theirs, name):
    path = theirs / f"{name}.json"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(ValueError, match=f"{name}.json.*cut off"):
        load_compositions(theirs)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}.json"):
        load_compositions(theirs)


@pytest.fixture
def script():
    name = "build_composition"
    spec = importlib.util.spec_from_file_location(name, ROOT / "data_scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module.main
    del sys.modules[name]


FLAGS = [part for name, value in SIZES.items() for part in (f"--{name}", str(value))]


def test_the_script_builds_once_and_converts(script, data, theirs, tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path / "data"), *FLAGS, "--seed", "11"]
    assert script(arguments) == 0
    assert "train 6,225" in capsys.readouterr().out
    assert load_compositions(tmp_path / "data")["train"].to_dict() == data.dataset["train"].to_dict()
    stamp = (tmp_path / "data" / "train.json").stat().st_mtime_ns
    script(arguments)
    assert (tmp_path / "data" / "train.json").stat().st_mtime_ns == stamp
    assert "already holds another" in refused(capsys, script, [*arguments[:-1], "12"])
    assert script(["--input_dir", str(theirs), "--output_dir", str(tmp_path / "converted")]) == 0
    assert load_compositions(tmp_path / "converted")["test"].to_dict() == data.dataset["test"].to_dict()


def test_the_script_refuses_what_cannot_be(script, tmp_path, capsys):
    arguments = ["--output_dir", str(tmp_path / "data"), *FLAGS]
    assert "Lower ratio to at most" in refused(capsys, script, [*arguments, "--ratio", "100"])
    assert "has sizes of its own" in refused(capsys, script, [*arguments, "--input_dir", str(tmp_path)])
    assert not (tmp_path / "data").exists()


def test_the_hub_gives_the_folder_back(tmp_path):
    config = CompositionConfig(**SIZES, seed=1)
    prepare_compositions(config, tmp_path / "data")
    with whole_folder(tmp_path / "staged") as staged:
        stage_dataset(tmp_path / "data", staged, repo_id="user/compositions", license="apache-2.0")
    fetch_dataset(tmp_path / "staged", tmp_path / "back")
    for name in NAMES:
        assert (tmp_path / "back" / f"{name}.json").read_bytes() == (tmp_path / "data" / f"{name}.json").read_bytes()
    # The manifest brings the sizes: nothing is built again.
    stamp = (tmp_path / "back" / "train.json").stat().st_mtime_ns
    prepare_compositions(config, tmp_path / "back")
    assert (tmp_path / "back" / "train.json").stat().st_mtime_ns == stamp
    text = str(make_card(tmp_path / "data", "user/compositions", kind="dataset"))
    assert "out of distribution" in text and "build_composition.py --output_dir DIR" in text and "--seed 1" in text


def test_json_files_alone_are_published(theirs, tmp_path, data):
    with whole_folder(tmp_path / "staged") as staged:
        stage_dataset(theirs, staged, repo_id="user/compositions")
    fetch_dataset(tmp_path / "staged", tmp_path / "back")
    assert load_compositions(tmp_path / "back")["test"].to_dict() == data.dataset["test"].to_dict()
