import random

import datasets
import pytest
from datasets import Dataset

from memreason_hf.data import MultiHopConfig, build_multi_hop, encode_chains, load_multi_hop, save_multi_hop
from memreason_hf.data.chains.tables import CHAIN_SCHEMA
from memreason_hf.data.chains.tokenizer import build_tokenizer, build_vocabulary


@pytest.fixture(scope="module")
def data():
    return build_multi_hop(
        MultiHopConfig(num_entities=50, train_hops="2-7,30", test_hops="2-12", num_train_chains=90, num_test_chains=40)
    )


@pytest.fixture(scope="module")
def tokenizer(data):
    return build_tokenizer(data.vocabulary)


@pytest.mark.parametrize("split", ["train", "test", "test_small"])
def test_ids_are_the_tokenizers_and_labels_the_entities(data, tokenizer, split):
    rows = data.dataset[split]
    encoded = encode_chains(rows, tokenizer)
    assert encoded.column_names == ["input_ids", "label_ids", "hops", "type"]
    assert list(encoded["input_ids"]) == tokenizer(list(rows["input_text"]))["input_ids"]
    assert list(encoded["label_ids"]) == [
        [-100, *tokenizer.convert_tokens_to_ids(entities)] for entities in rows["entities"]
    ]
    assert list(encoded["hops"]) == list(rows["hops"]) and list(encoded["type"]) == list(rows["type"])
    assert encoded.split == split


@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_the_batch_size_does_not_matter(data, tokenizer, batch_size):
    rows = data.dataset["test_small"]
    assert encode_chains(rows, tokenizer, batch_size=batch_size).to_dict() == encode_chains(rows, tokenizer).to_dict()


def test_any_view_of_a_data_set_is_encoded(data, tokenizer, tmp_path):
    """Selected, shuffled, sliced, mapped or memory-mapped rows keep their order."""
    whole = encode_chains(data.dataset["train"], tokenizer)
    order = random.sample(range(len(whole)), 60)
    assert encode_chains(data.dataset["train"].select(order), tokenizer).to_dict() == whole.select(order).to_dict()
    part = data.dataset["train"].select(range(701, 720))
    assert encode_chains(part, tokenizer).to_dict() == whole.select(range(701, 720)).to_dict()
    mapped = part.map(lambda row: {"more": len(row["input_text"])}, keep_in_memory=True)
    assert encode_chains(mapped, tokenizer).to_dict() == whole.select(range(701, 720)).to_dict()
    save_multi_hop(data, tmp_path)
    loaded = load_multi_hop(tmp_path)["train"].shuffle(seed=1, keep_in_memory=True)
    assert encode_chains(loaded, tokenizer)[:5]["input_ids"] == tokenizer(list(loaded[:5]["input_text"]))["input_ids"]


def test_a_longer_vocabulary_in_another_order_is_fine(data, tokenizer):
    shuffled = ["<pad>", *random.sample(data.vocabulary[1:], len(data.vocabulary) - 1), "<more>"]
    other = build_tokenizer(shuffled)
    rows = data.dataset["test_small"]
    encoded = encode_chains(rows, other)
    assert [other.decode(ids) for ids in encoded["input_ids"]] == list(rows["input_text"])
    assert encoded._fingerprint != encode_chains(rows, tokenizer)._fingerprint


def test_torch_rows_are_long(data, tokenizer):
    row = encode_chains(data.dataset["train"], tokenizer).with_format("torch")[3]
    assert str(row["input_ids"].dtype) == str(row["label_ids"].dtype) == "torch.int64"


def test_a_vocabulary_that_does_not_match_is_refused_with_names_and_sizes(data):
    with pytest.raises(ValueError) as raised:
        encode_chains(data.dataset["train"], build_tokenizer(build_vocabulary(49, 10)))
    assert "66 tokens" in str(raised.value) and "<e_49>" in str(raised.value)
    with pytest.raises(ValueError, match=r"lacks 1 of the data set's \(<r_9>\)"):
        encode_chains(data.dataset["train"], build_tokenizer(build_vocabulary(50, 9)))


def test_an_unknown_entity_on_the_way_is_refused_too(tokenizer):
    row = {"input_text": ["<e_1><r_1>"], "entities": [["<e_99>"]], "hops": [1], "type": ["atomic"]}
    with pytest.raises(ValueError, match="<e_99>"):
        encode_chains(Dataset.from_dict(row), tokenizer)


def test_an_empty_data_set_is_refused(data, tokenizer):
    with pytest.raises(ValueError, match="empty"):
        encode_chains(data.dataset["train"].select([]), tokenizer)


def test_missing_columns_are_named(data, tokenizer):
    with pytest.raises(ValueError, match="lacks the columns entities, hops; it has input_text"):
        encode_chains(data.dataset["train"].remove_columns(["entities", "hops"]), tokenizer)


def test_entities_must_be_as_many_as_relations(tokenizer):
    rows = {
        "input_text": ["<e_1><r_1>"] * 2,
        "entities": [["<e_1>"], ["<e_1>"] * 2],
        "hops": [1] * 2,
        "type": ["x"] * 2,
    }
    with pytest.raises(ValueError, match="'<e_1><r_1>' has 1 relations, but 2 entities"):
        encode_chains(Dataset.from_dict(rows), tokenizer)


@pytest.mark.parametrize("text", ["", "<e_1", "<e_1><r_1> ", None])
def test_malformed_texts_are_refused(tokenizer, text):
    features = datasets.Features.from_arrow_schema(CHAIN_SCHEMA)
    rows = {"input_text": ["<e_1><r_1>", text], "entities": [["<e_1>"]] * 2, "hops": [1, 1], "type": ["x", "x"]}
    rows["target_text"] = ["", ""]
    with pytest.raises(ValueError, match=r"[Rr]ow 1"):
        encode_chains(Dataset.from_dict(rows, features=features), tokenizer)
