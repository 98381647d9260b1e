"""Every kind of source gives the same documents; bad input is refused with the field, the value and a remedy."""

import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from small_texts import small_text_tokenizer, small_texts, write_jsonl
from transformers import AutoTokenizer

from memreason_hf.data.text.arguments import TextArguments
from memreason_hf.data.text.encoding import DocumentTokenizer, encode_texts
from memreason_hf.data.text.packing import DocumentTooLongError, pack_documents
from memreason_hf.data.text.sources import open_texts


TEXTS = small_texts(30)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder, kind):
    """The texts as files of a kind; returns the arguments that read them."""
    if kind == "txt":
        (folder / "in").mkdir()
        for index, text in enumerate(TEXTS):
            (folder / "in" / f"{index:03}.txt").write_text(text)
        return {"files": str(folder / "in" / "*.txt")}
    if kind in ("line", "paragraph"):
        (folder / "all.txt").write_text(("\n" if kind == "line" else "\n\n").join(TEXTS))
        return {"files": str(folder / "all.txt"), "sample_by": kind}
    if kind == "jsonl":
        return {"files": str(write_jsonl(folder / "a.jsonl", TEXTS, "body")), "column": "body"}
    if kind == "jsonl list":
        return {"files": [str(write_jsonl(folder / f"{i}.jsonl", TEXTS[i : i + 10])) for i in (0, 10, 20)]}
    data = Dataset.from_dict({"text": TEXTS, "n": range(30)})
    if kind == "parquet":
        data.to_parquet(folder / "a.parquet")
        return {"files": str(folder)}
    if kind == "folder of parquet":
        data.to_parquet(folder / "hub" / "data" / "train-00000-of-00001.parquet")
        return {"dataset": str(folder / "hub")}
    if kind == "saved":
        DatasetDict({"train": data, "validation": data.select(range(3))}).save_to_disk(folder / "saved")
        return {"dataset": str(folder / "saved")}
    data.save_to_disk(folder / "saved")
    return {"dataset": str(folder / "saved")}


KINDS = ["txt", "line", "paragraph", "jsonl", "jsonl list", "parquet", "folder of parquet", "saved", "saved split"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_documents(tmp_path, kind, streaming):
    texts, heldout = open_texts(TextArguments(streaming=streaming, **write(tmp_path, kind)), seed=0)
    assert isinstance(texts, IterableDataset if streaming else Dataset)
    assert [row["text"].rstrip("\n") for row in texts] == TEXTS
    assert heldout is None
    assert list(next(iter(texts))) == ["text"]


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_documents(tmp_path, streaming):
    source = write(tmp_path, "jsonl list")
    texts, heldout = open_texts(TextArguments(streaming=streaming, eval_documents=4, **source), seed=3)
    train, test = ([row["text"] for row in part] for part in (texts, heldout))
    assert len(test) == 4
    assert sorted(train + test) == sorted(TEXTS)
    if streaming:
        assert test == TEXTS[:4]
    else:
        other = open_texts(TextArguments(eval_documents=4, **source), seed=4)[1]["text"]
        assert open_texts(TextArguments(eval_documents=4, **source), seed=3)[1]["text"] == test != other
    _, heldout = open_texts(TextArguments(streaming=streaming, eval_files=source["files"][1], **source), seed=0)
    assert heldout["text"] == TEXTS[10:20]
    _, heldout = open_texts(
        TextArguments(streaming=streaming, eval_split="validation", **write(tmp_path, "saved")), seed=0
    )
    assert heldout["text"] == TEXTS[:3]


def bad_files(folder):
    (folder / "latin1.txt").write_bytes(b"first line\n" * 3 + "caf\u00e9 noir\n".encode("latin1"))
    (folder / "cut.txt").write_bytes("ok \u20ac".encode()[:-1])
    (folder / "empty.txt").write_bytes(b"")
    (folder / "table.csv").write_text("text\na\n")
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (folder / "nothing").mkdir()
    write_jsonl(folder / "good.jsonl", TEXTS, "body")
    Dataset.from_dict({"text": [[1, 2]]}).to_parquet(folder / "lists.parquet")
    DatasetDict({"train": Dataset.from_dict({"text": TEXTS})}).save_to_disk(folder / "saved")


BAD = [
    ({}, r"data\.files is not given\. Pass --files"),
    ({"files": "a.txt", "dataset": "b/c"}, r"data\.files='a\.txt' and data\.dataset='b/c': leave one of them out"),
    ({"files": "no*.txt"}, r"data\.files='.*no\*\.txt' matches no file\. Check"),
    ({"files": "nothing"}, r"data\.files='.*nothing' holds no \.txt, .* file"),
    ({"files": "table.csv"}, r"table\.csv cannot be read: the suffix must be one of \.txt"),
    ({"files": ["good.jsonl", "latin1.txt"]}, r"files of several kinds, json \(.*\) and text \(.*\)"),
    ({"files": "latin1.txt"}, r"latin1\.txt is not UTF-8: byte 0xe9 at offset 36 \(line 4\)\. Convert .* iconv"),
    ({"files": "cut.txt"}, r"cut\.txt is not UTF-8: byte 0xe2 at offset 3 \(line 1\)"),
    ({"files": "empty.txt"}, r"empty\.txt is empty\. Leave out"),
    ({"files": "good.jsonl"}, r"data\.column='text': .* has the columns body, n\. Pass one of them with --column"),
    ({"files": "good.jsonl", "column": "n"}, r"data\.column='n': .* holds int64 there, not text"),
    ({"files": "lists.parquet"}, r"data\.column='text': .* holds List there, not text"),
    ({"files": "bad.jsonl"}, r"bad\.jsonl'.* cannot be read"),
    ({"dataset": "saved", "split": "dev"}, r"data\.split='dev': .* has the splits train\. Pass one"),
    ({"dataset": "saved", "column": "body"}, r"data\.column='body': .*has the columns text"),
    ({"files": "good.jsonl", "column": "body", "eval_files": "no.txt"}, r"data\.eval_files='.*no\.txt' matches no"),
    ({"files": "a.txt", "eval_split": "test"}, r"data\.eval_split='test' is for data\.dataset"),
    ({"files": "a.txt", "eval_documents": -1}, r"data\.eval_documents=-1 must be at least 0"),
    ({"files": "a.txt", "too_long": "drop"}, r"data\.too_long='drop' must be one of split, truncate, error"),
    ({"files": "a.txt", "sequence_length": 0}, r"data\.sequence_length=0 must be at least 1"),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("values, message", BAD, ids=[str(values) for values, _ in BAD])
def test_bad_input(tmp_path, values, message, streaming):
    bad_files(tmp_path)

    def here(value):
        return [str(tmp_path / item) for item in value] if isinstance(value, list) else str(tmp_path / value)

    places = {"files", "eval_files"} | ({"dataset"} if values.get("dataset") == "saved" else set())
    if "matches" in message or "files" not in values or (tmp_path / str(values["files"])).exists() or len(values) == 1:
        values = {name: here(value) if name in places else value for name, value in values.items()}
    with pytest.raises((ValueError, OSError), match=message):
        open_texts(TextArguments(streaming=streaming, **values), seed=0)


def test_a_bad_byte_behind_the_first_chunk(tmp_path, monkeypatch):
    """Also where a character of several bytes stands on the border of two chunks."""
    monkeypatch.setattr("memreason_hf.data.text.files._CHUNK", 7)
    (tmp_path / "a.txt").write_bytes("é€\n".encode() * 50 + b"\xff" + b"\n")
    with pytest.raises(ValueError, match=re.escape("byte 0xff at offset 300 (line 51)")):
        open_texts(TextArguments(files=str(tmp_path / "a.txt")), seed=0)
    (tmp_path / "a.txt").write_bytes("é€\n".encode() * 50)
    assert len(open_texts(TextArguments(files=str(tmp_path / "a.txt")), seed=0)[0]) == 1


def test_more_held_out_than_there_are(tmp_path):
    source = write(tmp_path, "jsonl")
    with pytest.raises(
        ValueError, match=r"data\.eval_documents=30 leaves nothing to train on: there are 30 documents"
    ):
        open_texts(TextArguments(eval_documents=30, **source), seed=0)


def test_documents_end_with_eos():
    tokenizer = small_text_tokenizer()
    documents = DocumentTokenizer(tokenizer)(["a loop", "", None, "again"])
    assert documents[0] == [*tokenizer("a loop")["input_ids"], tokenizer.eos_token_id]
    assert documents[1:3] == [[], []]
    assert tokenizer.decode(documents[3]) == "again" + tokenizer.eos_token


@pytest.mark.parametrize("too_long", ["split", "truncate"])
def test_rows_do_not_depend_on_the_processes(too_long):
    texts, tokenizer = Dataset.from_dict({"text": [*small_texts(4100), ""]}), small_text_tokenizer()
    rows, counts = encode_texts(texts, tokenizer, 50, too_long, num_proc=1)
    again, others = encode_texts(texts, tokenizer, 50, too_long, num_proc=2)
    assert rows[:] == again[:] and counts == others
    expected, alone = pack_documents(DocumentTokenizer(tokenizer)(texts["text"]), 50, too_long)
    assert counts == alone and counts.skipped == 1 and counts.too_long > 0
    assert [row["input_ids"].tolist() for row in expected] == rows["input_ids"]


def test_long_documents_are_refused_with_their_number():
    texts = Dataset.from_dict({"text": small_texts(50)})
    with pytest.raises(
        DocumentTooLongError, match=r"\d+ of 50 documents have more than data.sequence_length=20 tokens"
    ):
        encode_texts(texts, small_text_tokenizer(), 20, "error")
    assert encode_texts(texts, small_text_tokenizer(), 2000, "error")[1].too_long == 0
    with pytest.raises(ValueError, match="None of the 2 documents has two tokens"):
        encode_texts(Dataset.from_dict({"text": ["", ""]}), small_text_tokenizer(), 20)


def test_tokens_and_rows_are_cached(tmp_path):
    """A second run reads both from the cache of `datasets`; other rows, or another tokenizer, are made anew."""
    source = write(tmp_path, "jsonl")
    small_text_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def encode(sequence_length=30, vocab_size=None):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        if vocab_size:
            tokenizer = small_text_tokenizer(vocab_size)
        texts, _ = open_texts(TextArguments(**source), seed=0)
        rows, _ = encode_texts(texts, tokenizer, sequence_length)
        (file,) = rows.cache_files
        return file["filename"], Path(file["filename"]).stat().st_mtime_ns

    first = encode()
    assert encode() == first
    assert encode(sequence_length=31)[0] != first[0] != encode(vocab_size=290)[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_names_that_look_like_patterns(tmp_path, streaming):
    """`datasets` would read `aXb.txt` for `a*b.txt`, too, and find nothing for `c[1].txt`."""
    for name in ("a*b", "aXb", "c[1]"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}")
    for name in ("a*b", "c[1]"):
        arguments = TextArguments(files=str(tmp_path / f"{name}.txt"), streaming=streaming)
        assert [row["text"] for row in open_texts(arguments, 0)[0]] == [f"text of {name}"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_byte_order_mark_is_not_text(tmp_path, kind, streaming):
    text = "one\ntwo" if kind == "txt" else '{"text": "one\\ntwo"}'
    (tmp_path / f"a.{kind}").write_text(text, encoding="utf-8-sig")
    arguments = TextArguments(files=str(tmp_path / f"a.{kind}"), streaming=streaming)
    assert [row["text"] for row in open_texts(arguments, 0)[0]] == ["one\ntwo"]
