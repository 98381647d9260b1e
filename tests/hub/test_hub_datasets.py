"""What a data folder holds comes back from the Hub bit for bit: its rows by `load_dataset`, the folder by a script."""

import datetime
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    List,
    Sequence,
    Value,
    load_from_disk,
)
from huggingface_hub import DatasetCard, HfApi, constants
from local_hub import WRITER
from PIL import Image as PillowImage

from data_scripts import fetch_data
from memreason_hf.data.chains.multi_hop import MultiHopConfig, build_multi_hop, load_multi_hop, save_multi_hop
from memreason_hf.data.questions.memory_reason import build_memory_reason, load_memory_reason, save_memory_reason
from memreason_hf.data.saved_folders import is_saved
from memreason_hf.hub.dataset_files import dataset_card_data
from memreason_hf.hub.datasets import fetch_dataset, stage_dataset
from memreason_hf.hub.inspection import inspect_files


SIZES = {
    "num_train_chains": 20,
    "num_test_chains": 12,
    "num_small_test_chains": 4,
    "num_atomic_probes": 5,
    "num_train_probes": 5,
    "cap_to_available": True,
}
# Loads a data set of the Hub and saves it, so that the test can compare it with the folder.
LOAD = "import sys; from datasets import load_dataset; load_dataset(sys.argv[1]).save_to_disk(sys.argv[2])"


@pytest.fixture
def world(tmp_path):
    """A random small world."""
    seed = random.randrange(10**6)
    config = MultiHopConfig(num_entities=6, num_relations=3, train_hops="2-3", test_hops="1-4", seed=seed, **SIZES)
    save_multi_hop(build_multi_hop(config), tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture
def study_world(world):
    """The same as the study's JSON files alone."""
    for path in world.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("train.json", "valid.json", "test.json", "test_small.json", "vocab.json"):
            path.unlink()
    return world


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"question": f"Is it {index}?", "answer": "True", "cot_steps": [f"[rag]: a {index}", "[reason]: b"]}
        for index in range(random.randrange(3, 9))
    ]
    (tmp_path / "json").mkdir()
    for split in ("train", "test"):
        content = json.dumps([{**row, "question": f"{split} {row['question']}", "split": split} for row in rows])
        (tmp_path / "json" / f"StrategyQA_{split}_clean.json").write_text(content)
    data = build_memory_reason("strategy_qa", str(tmp_path / "json"))
    return save_memory_reason(data, tmp_path / "questions")


def random_rows(count):
    """Rows of many types, with what is easily lost: NaN, None, empty lists, time zones, large numbers, odd texts."""
    rng = np.random.default_rng()
    texts = ["", "a\0b", "\r\n", "ä€😀", "\u202e", "'\"\\", "NaN", "null", " " * 3]
    return {
        "text": [random.choice([*texts, None]) for _ in range(count)],
        "large": [random.choice(texts) for _ in range(count)],
        "label": rng.integers(-1, 3, count).tolist(),
        "ids": [rng.integers(-(2**31), 2**31, random.randrange(4)).tolist() for _ in range(count)],
        "wide": rng.integers(-(2**63), 2**63 - 1, count).tolist(),
        "float": [
            random.choice([float("nan"), float("inf"), -0.0, None, rng.standard_normal()]) for _ in range(count)
        ],
        "half": rng.standard_normal(count).astype(np.float16),
        "flag": [random.choice([True, False, None]) for _ in range(count)],
        "nested": [[{"kind": "a", "n": [1, None]}] * random.randrange(3) for _ in range(count)],
        "matrix": rng.standard_normal((count, 2, 3)).astype(np.float32).tolist(),
        "when": [datetime.datetime(2024, 1, 2, 3, 4, 5, index) for index in range(count)],
        "raw": [bytes(rng.integers(0, 256, random.randrange(5)).tolist()) for _ in range(count)],
    }


FEATURES = Features(
    {
        "text": Value("string"),
        "large": Value("large_string"),
        "label": ClassLabel(names=["no", "yes", "may be: 'x'"]),
        "ids": Sequence(Value("int32")),
        "wide": Value("int64"),
        "float": Value("float64"),
        "half": Value("float16"),
        "flag": Value("bool"),
        "nested": List({"kind": Value("string"), "n": List(Value("int8"))}),
        "matrix": Array2D((2, 3), "float32"),
        "when": Value("timestamp[us]"),
        "raw": Value("binary"),
    }
)


@pytest.fixture
def saved(tmp_path):
    """A data set of many types, with splits in another order than that of their names."""
    splits = {name: Dataset.from_dict(random_rows(count), FEATURES) for name, count in (("z", 7), ("a.b", 30))}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def staged_copy(folder, tmp_path, **kwargs):
    staged = tmp_path / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    stage_dataset(folder, staged, **kwargs)
    return staged


def upload(staged, name="user/data"):
    api = HfApi(token=WRITER)
    api.create_repo(name, repo_type="dataset", exist_ok=True)
    api.upload_folder(repo_id=name, repo_type="dataset", folder_path=staged)


def loaded_elsewhere(hub, tmp_path, name="user/data"):
    """What a fresh process, in which this package cannot be imported, gets from the Hub."""
    folder = tmp_path / "loaded"
    shutil.rmtree(folder, ignore_errors=True)
    environment = hub.environment(token=None)
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", LOAD, name, str(folder)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, timeout=100)
    return load_from_disk(str(folder))


def as_splits(folder):
    if (folder / "vocab.json").is_file():
        return load_multi_hop(folder)
    return load_from_disk(str(folder))


def differences(expected, found):
    """The names of what differs: splits in order, features, or the columns of a split, bit for bit."""
    if list(expected) != list(found):
        return [f"splits {list(expected)} and {list(found)}"]
    names = []
    for split, part in expected.items():
        names += ["features"] if part.features != found[split].features else []
        names += ["split"] if found[split].split != split else []
        left, right = (side.with_format("arrow")[:] for side in (part, found[split]))
        # Not `equals`, for which a NaN is not itself.
        names += [name for name in part.column_names if bits(left[name]) != bits(right[name])]
    return names


def bits(column):
    return repr(column.to_pylist())


@pytest.mark.parametrize("kind", ["world", "study_world", "questions", "saved"])
def test_what_the_hub_gives_is_what_the_folder_gave(hub, this_process, request, tmp_path, kind):
    folder = request.getfixturevalue(kind)
    expected = as_splits(folder)
    upload(staged_copy(folder, tmp_path))
    found = loaded_elsewhere(hub, tmp_path)
    assert differences(expected, found) == []
    # The control: a single changed value is seen.
    split = next(iter(expected))
    column = random.choice([name for name in expected[split].column_names if name in ("text", "hops", "answer")])
    row = random.randrange(len(expected[split]))
    rows = expected[split].to_list()
    rows[row][column] = 77 if column == "hops" else "changed"
    changed = Dataset.from_list(rows, features=expected[split].features, split=split)
    assert differences(DatasetDict({**expected, split: changed}), found) == [column]


@pytest.mark.parametrize("kind", ["world", "study_world", "questions"])
def test_the_folder_comes_back(request, tmp_path, kind):
    folder = request.getfixturevalue(kind)
    is_whole = is_saved(folder)
    expected = as_splits(folder)
    back = fetch_dataset(staged_copy(folder, tmp_path), tmp_path / "back")
    assert differences(expected, as_splits(back)) == []
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for name in names:
        same = (back / name).read_bytes() == (folder / name).read_bytes()
        # The identity that `datasets` gives to rows depends on how they were made.
        assert same or (name.name == "state.json" and kind == "questions"), name
    if kind != "study_world":
        assert is_whole and names == sorted(path.relative_to(back) for path in back.rglob("*") if path.is_file())
    if kind == "questions":
        assert load_memory_reason(back)["train"].num_rows == expected["train"].num_rows


def test_the_script_fetches_from_the_hub(this_process, world, tmp_path, capsys, monkeypatch):
    # Made when the client is imported.
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", this_process.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    upload(staged_copy(world, tmp_path))
    back = tmp_path / "back"
    assert fetch_data.main(["user/data", "--output_dir", str(back)]) == 0
    assert (back / "manifest.json").read_bytes() == (world / "manifest.json").read_bytes()
    for name, folder, message in (("user/missing", "other", "user/missing"), ("user/data", "back", "not empty")):
        with pytest.raises(SystemExit) as ended:
            fetch_data.main([name, "--output_dir", str(tmp_path / folder)])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and message in error and "Traceback" not in error
    assert not (tmp_path / "other").exists()


def test_large_splits_have_several_shards(saved, tmp_path):
    staged = staged_copy(saved, tmp_path, max_shard_size=500)
    names = sorted(path.name for path in (staged / "data").iterdir())
    count = len([name for name in names if name.startswith("a.b-")])
    assert count > 2
    assert [name for name in names if name.startswith("a.b-")] == [
        f"a.b-{index:05d}-of-{count:05d}.parquet" for index in range(count)
    ]
    assert differences(as_splits(saved), load_from_disk(str(fetch_dataset(staged, tmp_path / "back")))) == []


@pytest.mark.parametrize("kind", ["world", "questions", "saved"])
def test_the_card_says_what_is_in_it(request, tmp_path, kind):
    folder = request.getfixturevalue(kind)
    expected = as_splits(folder)
    staged = staged_copy(folder, tmp_path, repo_id="user/data", license="cc-by-4.0")
    card = DatasetCard.load(staged / "README.md")
    assert card.data.license == "cc-by-4.0"
    (config,) = card.data.configs
    assert [entry["split"] for entry in config["data_files"]] == list(expected)
    info = card.data.dataset_info
    assert [(split["name"], split["num_examples"]) for split in info["splits"]] == [
        (split, part.num_rows) for split, part in expected.items()
    ]
    assert Features._from_yaml_list(info["features"]) == next(iter(expected.values())).features
    assert info["download_size"] == sum(path.stat().st_size for path in (staged / "data").iterdir())
    for word in ("None", "null", "More Information Needed"):
        assert word not in card.text
    for split, part in expected.items():
        assert f"{part.num_rows:,}" in card.text and split.replace("_", "\\_") in card.text
    if kind == "world":
        seed = json.loads((folder / "manifest.json").read_text())["config"]["seed"]
        assert f"--seed {seed} " in card.text


def test_a_card_that_a_person_wrote_keeps_its_text(world, tmp_path):
    (world / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\n---\n\n# My world\n\nMine.\n")
    (world / "LICENSE").write_text("mine")
    staged = staged_copy(world, tmp_path, license="apache-2.0")
    card = DatasetCard.load(staged / "README.md")
    assert card.text.strip() == "# My world\n\nMine." and card.data.license == "mit"
    assert card.data.dataset_info["splits"] and (staged / "LICENSE").read_text() == "mine"
    (world / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(ValueError, match=r"README.md has metadata that cannot be read"):
        staged_copy(world, tmp_path)


def test_nothing_private_is_in_what_goes(tmp_path):
    """`datasets` records where rows came from: none of it goes."""
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "saved")
    path = tmp_path / "saved" / "dataset_info.json"
    checksums = {str(tmp_path / "rows.jsonl"): {"num_bytes": 30, "checksum": None}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"download_checksums": checksums}))
    # The control: the folder itself names the file.
    assert inspect_files([tmp_path / "saved"])
    assert inspect_files([staged_copy(tmp_path / "saved", tmp_path)]) == []


@pytest.mark.parametrize("kind", ["world", "questions"])
def test_folders_of_this_package_hold_nothing_private(request, tmp_path, kind):
    folder = request.getfixturevalue(kind)
    assert inspect_files([folder, staged_copy(folder, tmp_path)]) == []


def test_pictures_in_other_files_are_put_into_the_table(tmp_path):
    picture = tmp_path / "a.png"
    PillowImage.fromarray(np.random.default_rng().integers(0, 255, (4, 5, 3), dtype=np.uint8)).save(picture)
    dataset = Dataset.from_dict({"image": [str(picture)]}, Features({"image": Image()}))
    dataset.save_to_disk(tmp_path / "saved")
    staged = staged_copy(tmp_path / "saved", tmp_path)
    assert inspect_files([staged]) == []
    expected = np.asarray(PillowImage.open(picture))
    picture.unlink()
    back = load_from_disk(str(fetch_dataset(staged, tmp_path / "back")))
    np.testing.assert_array_equal(np.asarray(back["train"][0]["image"]), expected)


def test_a_single_split_keeps_its_name(tmp_path):
    Dataset.from_dict({"a": [1]}, split="test").save_to_disk(tmp_path / "saved")
    staged = staged_copy(tmp_path / "saved", tmp_path)
    assert [path.name for path in (staged / "data").iterdir()] == ["test-00000-of-00001.parquet"]


def test_bad_folders_are_refused_in_one_line(world, tmp_path):
    (tmp_path / "notes").mkdir()
    part = Dataset.from_dict({"a": [1]})
    DatasetDict({"x": part, "y": part.rename_column("a", "b")}).save_to_disk(tmp_path / "two")
    DatasetDict({"x": Dataset.from_dict({})}).save_to_disk(tmp_path / "bare")
    arrow = next((world / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-9])
    for name, message in (
        ("missing", r"folder=.* does not exist"),
        ("notes", "holds no data set"),
        ("two", r"splits x and y have different features .*two data sets"),
        ("bare", "bare/x holds no rows, and datasets cannot load"),
        ("world", "manifest.json lists"),
    ):
        with pytest.raises((ValueError, OSError), match=message) as refused:
            staged_copy(tmp_path / name, tmp_path)
        assert "\n" not in str(refused.value)
    with pytest.raises(FileNotFoundError, match="has no data/"):
        dataset_card_data(tmp_path / "notes")
