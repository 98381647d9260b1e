"""Cards of data sets, metrics and Spaces."""

import json
import shutil

import pytest
from card_checks import assert_is_true_card, empty_sections
from datasets import Dataset, DatasetDict, load_from_disk
from hub_metadata import check_metadata, read_metadata
from small_finetunes import ITEMS

from memreason_hf.data.chains.multi_hop import MultiHopConfig, prepare_multi_hop
from memreason_hf.data.questions.memory_reason import (
    MemoryReasonData,
    MemoryReasonReport,
    SplitReport,
    save_memory_reason,
)
from memreason_hf.data.questions.schema import fill_columns
from memreason_hf.hub.cards import make_card
from memreason_hf.metrics import metric_path


METRICS = ("answer_accuracy", "grouped_accuracy", "step_attribution", "step_distribution")
SIZES = {"num_entities": 6, "num_relations": 3, "train_hops": "2-3", "test_hops": "2-3", "num_train_chains": 9}


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small_world"
    prepare_multi_hop(MultiHopConfig(**SIZES, num_test_chains=4, seed=11), folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "strategy"
    dataset = fill_columns(DatasetDict({"train": Dataset.from_list(ITEMS)}))
    report = MemoryReasonReport("strategy_qa", "/home/somebody/source", {"train": SplitReport(7, 6, 10)})
    return save_memory_reason(MemoryReasonData(dataset, report), folder)


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "texts"
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", 7), ("test", 3)):
        rows = Dataset.from_dict({"text": [f"text {index}" for index in range(count)]})
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_cards_of_data_sets_are_valid(chains, questions, text, this_process):
    for folder in (chains, questions, text):
        for repo_id in (None, "user/data"):
            card = make_card(folder, repo_id, kind="dataset", license="cc-by-4.0", language="en")
            assert_is_true_card(card, "dataset")
            card.validate()
            assert f'load_dataset("{repo_id or folder.name}")' in card.text


def test_splits_and_columns_are_those_of_the_data(chains, text):
    dataset = load_from_disk(chains)
    card = make_card(chains)
    for split, rows in dataset.items():
        assert f"| {split} | {len(rows):,} |".replace("_", "\\_") in card.text
    for column in dataset["train"].column_names:
        assert f"| {column} |".replace("_", "\\_") in card.text
    assert "| train | 7 |" in make_card(text).text and "| test | 3 |" in make_card(text).text
    assert make_card(text).text.index("| train | 7 |") < make_card(text).text.index("| test | 3 |")
    assert "| entities | `list` | the entity reached after every hop |" in card.text
    files = make_card(text).data.to_dict()["configs"][0]["data_files"]
    assert files == [{"split": "test", "path": "data/test-*"}, {"split": "train", "path": "data/train-*"}]


def test_how_chains_were_made_makes_them_again(chains, tmp_path):
    """The flags that the card names give the same data."""
    from data_scripts.build_multi_hop import main

    line = next(line for line in make_card(chains).text.splitlines() if line.startswith("python data_scripts/"))
    flags = line.split()[2:]
    flags[flags.index("DIR")] = str(tmp_path / "again")
    assert not main(flags)
    for split, rows in load_from_disk(chains).items():
        assert load_from_disk(tmp_path / "again")[split].to_list() == rows.to_list()


def test_a_source_on_this_machine_is_not_named(questions):
    text = make_card(questions).text
    assert "strategy\\_qa from source." in text and "somebody" not in text


def test_of_other_data_nothing_is_claimed(tmp_path):
    DatasetDict({"train": Dataset.from_dict({"pixels": [[1, 2]], "label": [3]})}).save_to_disk(tmp_path / "pictures")
    card = make_card(tmp_path / "pictures")
    assert_is_true_card(card, "dataset")
    assert "Rows with 2 columns." in card.text and "task_categories" not in card.data.to_dict()
    assert "## How it was made" not in card.text and "## Citation" not in card.text


def test_a_damaged_parquet_file_is_named(text):
    path = text / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet cannot be read"):
        make_card(text)


@pytest.mark.parametrize("name", METRICS)
def test_cards_of_metrics(name, tmp_path):
    folder = tmp_path / name
    shutil.copytree(metric_path(name), folder, ignore=shutil.ignore_patterns("__pycache__"))
    card = make_card(folder, "user/metric", sdk_version="5.0.0")
    metadata = read_metadata(str(card))
    assert check_metadata(metadata, "space") == [] and metadata["sdk"] == "gradio"
    assert {"evaluate", "metric"} <= set(metadata["tags"]) and empty_sections(card.text) == []
    assert 'evaluate.load("user/metric"' in card.text and "## Limitations" in card.text
    code = (folder / f"{name}.py").read_text()
    assert ("pip install memreason-hf" in card.text) == (
        "memreason_hf" in code.replace("from memreason_hf.metrics", "")
    )


def test_the_card_of_a_page(tmp_path):
    (tmp_path / "app.py").write_text("")
    card = make_card(tmp_path, "user/page", kind="space", models=["user/model"], license="mit", sdk_version="5.0.0")
    assert_is_true_card(card, "space")
    assert card.data.to_dict()["models"] == ["user/model"] and "huggingface.co/user/model" in card.text


def test_a_fact_of_another_kind_is_refused(chains):
    with pytest.raises(ValueError, match="base_model='a/b' is no fact of the card of a dataset"):
        make_card(chains, base_model="a/b")


def test_hostile_sizes_stay_text(chains, tmp_path):
    folder = tmp_path / "world"
    shutil.copytree(chains, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] |= {"train_hops": "2-3 $(reboot) `id` | <script>", "more": "x\n```\n# Heading"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    card = make_card(folder)
    assert_is_true_card(card, "dataset")
    assert "<script" not in str(card) and "$(" not in str(card) and "\n# Heading" not in str(card)
