"""The study's files: read, written, and refused if they are damaged."""

import json
import re

import pytest

from memreason_hf.data import (
    MultiHopConfig,
    build_multi_hop,
    convert_multi_hop,
    load_multi_hop,
    read_multi_hop_json,
    save_multi_hop,
)


NAMES = ("train", "valid", "test", "test_small")


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def change(folder, name, edit):
    items = read(folder, name)
    items = edit(items) or items
    (folder / f"{name}.json").write_text(json.dumps(items))


def test_their_files_are_read(study_folder):
    """Hops and labels come from the number of relations, entities from the atomic facts."""
    dataset = load_multi_hop(study_folder)
    assert list(dataset) == ["train", "validation", "test", "test_small"]
    facts = {}
    for item in read(study_folder, "train"):
        if item["type"] == "atomic":
            head, relation, tail, _ = re.findall("<[^>]+>", item["target_text"])
            facts[head, relation] = tail
    for split, name in zip(dataset, NAMES):
        items = read(study_folder, name)
        assert dataset[split].num_rows == len(items)
        for row, item in zip(dataset[split], items):
            assert (row["input_text"], row["target_text"]) == (item["input_text"], item["target_text"])
            entity, *relations = re.findall("<[^>]+>", item["input_text"])
            walked = []
            for relation in relations:
                entity = facts[entity, relation]
                walked.append(entity)
            assert row["entities"] == walked and row["hops"] == len(relations)
            is_chain, kind = item["type"].partition("hop_")[1:]
            label = f"{len(relations)}hop_{kind}" if is_chain else item["type"]
            assert row["type"] == label
    labels = [read(study_folder, "train")[i]["type"] for i in (30, 50, 80)]
    assert labels == ["0hop_train", "1hop_train", "3hop_train"]
    assert [dataset["train"][i]["type"] for i in (30, 50, 80)] == ["2hop_train", "3hop_train", "5hop_train"]


def test_theirs_to_ours_and_back(study_folder, tmp_path):
    """Only the wrong labels of the training chains differ in the end."""
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert_multi_hop(study_folder, ours)
    convert_multi_hop(ours, back)
    assert (ours / "vocab.json").read_text() == (study_folder / "vocab.json").read_text()
    for name in ("valid", "test", "test_small"):
        assert (ours / f"{name}.json").read_text() == (study_folder / f"{name}.json").read_text()
    corrected = [
        {**item, "type": re.sub(r"^\d+(?=hop_train)", str(item["input_text"].count("<r_")), item["type"])}
        for item in read(study_folder, "train")
    ]
    assert read(ours, "train") == corrected != read(study_folder, "train")
    for name in (*NAMES, "vocab"):
        assert (back / f"{name}.json").read_bytes() == (ours / f"{name}.json").read_bytes()
    assert load_multi_hop(ours)["train"].to_dict() == load_multi_hop(study_folder)["train"].to_dict()


def test_the_json_files_alone_give_what_was_built(tmp_path):
    data = build_multi_hop(
        MultiHopConfig(num_entities=30, out_degree=7, train_hops="2-9", num_train_chains=40, num_test_chains=9, seed=8)
    )
    save_multi_hop(data, tmp_path / "data")
    (tmp_path / "json").mkdir()
    for name in (*NAMES, "vocab"):
        (tmp_path / "data" / f"{name}.json").rename(tmp_path / "json" / f"{name}.json")
    read_back = read_multi_hop_json(tmp_path / "json")
    assert read_back.vocabulary == data.vocabulary and read_back.config is None
    for split, rows in data.dataset.items():
        assert read_back.dataset[split].to_dict() == rows.to_dict()
        assert read_back.dataset[split].features == rows.features


def test_our_files_are_read_by_a_loader_like_theirs(tmp_path):
    """
    What their training reads: ids by the place in vocab.json with <pad> put first, words by a pattern, hops counted,
    test items by label, the answer as the last word before </a>.
    """
    config = MultiHopConfig(
        num_entities=40, train_hops="2-5", test_hops="2-5", num_train_chains=50, num_test_chains=20
    )
    save_multi_hop(build_multi_hop(config), tmp_path)
    vocabulary = read(tmp_path, "vocab")
    assert "<pad>" not in vocabulary
    ids = {token: place + 1 for place, token in enumerate(vocabulary)}
    assert (ids["<e_0>"], ids["<r_0>"], ids["</q>"]) == (1, 41, 56)
    for stage in range(2, 6):
        train = [i for i in read(tmp_path, "train") if len(re.findall("<[^>]+>", i["input_text"])) - 1 <= stage]
        assert len(train) == 400 + 50 * (stage - 1)
        test = [i for i in read(tmp_path, "test") if i["type"] == f"{stage}hop_test"]
        assert len(test) == 20
        for item in train + test:
            *_, answer, end = (ids[token] for token in re.findall("<[^>]+>", item["target_text"]))
            assert 1 <= answer <= 40 and end == ids["</a>"]


@pytest.mark.parametrize("place", [0, 4, None], ids=["pad first", "pad inside", "no pad"])
def test_the_vocabulary_may_hold_pad(study_folder, tmp_path, place):
    """As in the study's loader, <pad> becomes the first token if the list does not hold it."""
    plain = read(study_folder, "vocab")
    listed = plain if place is None else [*plain[:place], "<pad>", *plain[place:]]
    change(study_folder, "vocab", lambda _: listed)
    data = read_multi_hop_json(study_folder)
    assert data.vocabulary == (listed if place is not None else ["<pad>", *plain])
    save_multi_hop(data, tmp_path / "ours")
    assert read(tmp_path / "ours", "vocab") == (listed if place == 4 else plain)


def test_a_validation_file_of_its_own_is_kept(study_folder, tmp_path):
    change(study_folder, "valid", lambda items: items[:7])
    convert_multi_hop(study_folder, tmp_path / "ours")
    assert read(tmp_path / "ours", "valid") == read(study_folder, "test")[:7]
    assert load_multi_hop(tmp_path / "ours").num_rows["validation"] == 7


@pytest.mark.parametrize("name", [*NAMES, "vocab"])
def test_a_missing_file_is_named(study_folder, name):
    (study_folder / f"{name}.json").unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}.json"):
        load_multi_hop(study_folder)


@pytest.mark.parametrize("name", [*NAMES, "vocab"])
def test_a_file_that_is_cut_off_is_named(study_folder, name):
    path = study_folder / f"{name}.json"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{name}.json.*cut off"):
        load_multi_hop(study_folder)


def set_item(row, **changes):
    def edit(items):
        items[row].update(changes)

    return edit


def drop_facts(items):
    return [item for item in items if item["type"] != "atomic"]


def repeat_fact_with_another_answer(items):
    target = items[0]["target_text"]
    other = "<e_1>" if target.endswith("<e_0></a>") else "<e_0>"
    items.insert(40, {**items[0], "target_text": items[0]["input_text"] + other + "</a>"})


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("train", lambda items: {"data": items}, "train.json: holds a dict"),
        ("test", lambda items: items.clear(), "test.json: holds no items"),
        ("test", lambda items: items.insert(3, "<e_1>"), "test.json: item 3 must hold the texts"),
        ("test", lambda items: items[2].pop("type") and None, "test.json: item 2 must hold the texts"),
        ("test", set_item(1, target_text=None), "test.json: item 1 must hold the texts"),
        ("test", set_item(1, input_text="<e_1>"), "item 1 has no relation: '<e_1>'"),
        ("test", set_item(1, input_text=""), "row 1 is not made of whole"),
        ("test", set_item(1, input_text="<e_1>, <r_1"), "row 1 is not made of whole"),
        (
            "test",
            set_item(1, input_text="<e_1><r_77>"),
            "1 tokens are not in the vocabulary: <r_77>. vocab.json has 19",
        ),
        ("test", set_item(1, input_text="<e_1><r_1>x<r_1>"), "not in the vocabulary: x<r_1>"),
        (
            "test",
            set_item(1, input_text="<e_1><r_1><e_1>"),
            "item 1: hop 2 of '<e_1><r_1><e_1>' is not an atomic",
        ),
        ("test", set_item(1, input_text="<r_1><r_1>"), "item 1: hop 1 of '<r_1><r_1>' is not an atomic fact"),
        ("test", set_item(1, target_text="<e_1></a>"), "item 1: target_text is '<e_1></a>', but the atomic facts"),
        ("test", set_item(1, type="ood"), "item 1 has the type 'ood'"),
        ("test", set_item(1, type="atomic"), "item 1 is labelled atomic, but has 2 relations"),
        ("train", drop_facts, "train.json: holds no atomic facts"),
        ("train", lambda items: items[1:], "is not an atomic fact of train.json"),
        ("train", repeat_fact_with_another_answer, "has another answer elsewhere"),
        ("train", set_item(0, target_text="<e_1><r_1></a>"), "item 0, an atomic fact, must have its answer"),
        (
            "train",
            set_item(5, target_text="<e_1></a>"),
            "item 5, an atomic fact, must have its answer",
        ),
        ("vocab", lambda tokens: dict.fromkeys(tokens, 1), "vocab.json holds a dict"),
        ("vocab", lambda tokens: [*tokens, "<e_1>"], "<e_1> more than once"),
        ("vocab", lambda tokens: [*tokens, "e_1"], "'e_1' cannot be in the vocabulary"),
        ("vocab", lambda tokens: [*tokens, 7], "7 cannot be in the vocabulary"),
        ("vocab", lambda tokens: [*tokens, '<"q>'], "cannot be in the vocabulary"),
        ("vocab", lambda tokens: [token for token in tokens if token != "</a>"], "lacks </a>"),
        ("vocab", lambda tokens: tokens[1:], "1 tokens are not in the vocabulary: <e_0>. vocab.json has 18 tokens"),
    ],
)
def test_damaged_files_are_refused_by_item(study_folder, name, edit, message):
    change(study_folder, name, edit)
    with pytest.raises(ValueError) as raised:
        load_multi_hop(study_folder)
    assert message in str(raised.value) and str(study_folder) in str(raised.value)
