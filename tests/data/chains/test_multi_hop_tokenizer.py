import json

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from memreason_hf.data import MultiHopConfig, build_multi_hop, load_multi_hop_tokenizer, save_multi_hop
from memreason_hf.data.chains.tokenizer import build_tokenizer, build_vocabulary


VOCABULARY = build_vocabulary(20, 4)


@pytest.fixture(params=["built", "auto", "loaded", "json only"])
def tokenizer(request, tmp_path):
    if request.param == "built":
        return build_tokenizer(VOCABULARY)
    config = MultiHopConfig(num_entities=20, num_relations=4, train_hops="5", test_hops="5", num_train_chains=20)
    save_multi_hop(build_multi_hop(config), tmp_path)
    if request.param == "json only":
        (tmp_path / "tokenizer.json").unlink()
    return AutoTokenizer.from_pretrained(tmp_path) if request.param == "auto" else load_multi_hop_tokenizer(tmp_path)


def test_the_order_of_the_vocabulary_gives_the_ids(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert len(tokenizer) == tokenizer.vocab_size == 31
    assert tokenizer.convert_ids_to_tokens(range(31)) == [
        "<pad>",
        *(f"<e_{i}>" for i in range(20)),
        *(f"<r_{i}>" for i in range(4)),
        *("<mask>", "<sep>", "<a>", "</a>", "<q>", "</q>"),
    ]
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 0)
    assert tokenizer.unk_token is None and tokenizer.eos_token is None


@pytest.mark.parametrize("text", ["<e_3><r_1>", "<e_19><r_0><r_3><r_3><e_7></a>", "<q><e_1></q><a><mask><sep>", ""])
def test_decoding_gives_the_glued_text_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == text.count(">")
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer(text.replace("><", "> <"))["input_ids"]) == text


def test_words_are_whole(tokenizer):
    assert tokenizer("<e_1><e_10><e_11>")["input_ids"] == [2, 11, 12]
    assert tokenizer.tokenize("<e_1><r_1>") == ["<e_1>", "<r_1>"]


def test_rows_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["<e_3><r_1>", "<e_3><r_1><r_2>"], padding=True)
    assert dict(batch) == {"input_ids": [[0, 4, 22], [4, 22, 23]], "attention_mask": [[0, 1, 1], [1, 1, 1]]}
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "<e_3><r_1>"


@pytest.mark.parametrize("text", ["<e_20><r_1>", "<e_1><r_4>", "<e_1>and<r_1>", "<e_1><r_1", "hello", "<e_1><r_1>>"])
def test_unknown_words_raise_and_do_not_vanish(tokenizer, text):
    with pytest.raises(Exception, match="UNK"):
        tokenizer(text)


def test_a_folder_whose_vocabularies_differ_is_refused(tmp_path):
    build_tokenizer(VOCABULARY).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(build_vocabulary(21, 4)))
    with pytest.raises(ValueError, match=r"tokenizer.json \(31 tokens\) and vocab.json \(32 tokens\) differ"):
        load_multi_hop_tokenizer(tmp_path)


def test_an_extended_tokenizer_is_still_the_data_sets(tmp_path):
    tokenizer = build_tokenizer(VOCABULARY)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<memory>"]})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(VOCABULARY))
    loaded = load_multi_hop_tokenizer(tmp_path)
    assert loaded("<memory><e_0>")["input_ids"] == [31, 1]


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer.json nor vocab.json"):
        load_multi_hop_tokenizer(tmp_path)
