"""A stream stopped anywhere goes on with the rows of an undisturbed one."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from small_texts import small_text_tokenizer, small_texts, write_jsonl

from memreason_hf.data.text.encoding import DocumentTokenizer
from memreason_hf.data.text.packing import DocumentTooLongError
from memreason_hf.data.text.stream import StreamError, TextStream


TEXTS = small_texts(47)


def files(folder, count):
    paths = [folder / f"part-{index}.jsonl" for index in range(count)]
    for index, path in enumerate(paths):
        write_jsonl(path, TEXTS[index::count])
    return load_dataset("json", data_files=list(map(str, paths)), split="train", streaming=True).select_columns(
        ["text"]
    )


def make_stream(texts, **kwargs):
    defaults = {"source": {}, "sequence_length": 32, "shuffle_buffer": 8, "seed": 5}
    return TextStream(texts, DocumentTokenizer(small_text_tokenizer()), **{**defaults, **kwargs})


def same(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in zip(left, right)
    )


@pytest.mark.parametrize("num_files", [1, 4])
@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_goes_on_where_it_was_stopped(tmp_path, num_files, num_streams):
    """Stopped at every one of its first rows, over the end of two passes."""
    texts = files(tmp_path, num_files)
    whole = make_stream(texts, num_streams=num_streams)
    rows, states = [], [whole.state()]
    for _ in range(60):
        rows.append(whole.take(1))
        states.append(whole.state())
    assert all(share.epoch >= 1 for share in whole.shares.values())
    counts = whole.counts()
    for stop in (0, 1, 2, 5, 6, 7, 13, 29, 41, 59):
        resumed = make_stream(files(tmp_path, num_files), num_streams=num_streams)
        resumed.load(json.loads(json.dumps(states[stop])))
        for step in range(stop, 60):
            assert same(resumed.take(1), rows[step]), (stop, step)
        assert resumed.counts() == counts
        # The control: the place matters.
        if stop:
            assert not same(make_stream(texts, num_streams=num_streams).take(1), rows[stop])
        resumed.close()
    whole.reset()
    assert same(whole.take(1), rows[0])
    whole.close()


def documents_of(rows, tokenizer):
    texts = []
    for row in rows:
        ends = np.cumsum(row["seq_lengths"])
        for end, length, following in zip(ends, row["seq_lengths"], row["next_ids"]):
            texts.append(tokenizer.decode([*row["input_ids"][end - length : end], following]))
    return texts


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_a_pass_has_every_document_once(tmp_path, num_streams):
    tokenizer = small_text_tokenizer()
    stream = make_stream(files(tmp_path, 4), num_streams=num_streams, sequence_length=400)
    seen = []
    for share in stream.shares.values():
        while True:
            row = share.take()
            if share.epoch:
                break
            seen += documents_of([row], tokenizer)
    assert sorted(seen) == sorted(text + tokenizer.eos_token for text in TEXTS)
    assert seen != [text + tokenizer.eos_token for text in TEXTS]
    assert stream.counts().documents == len(TEXTS)
    stream.close()


def test_ranks_read_their_own_shares(tmp_path):
    texts = files(tmp_path, 4)
    whole = make_stream(texts, num_streams=4)
    ranks = [make_stream(texts, num_streams=4, rank=rank, world_size=2) for rank in range(2)]
    assert [list(rank.shares) for rank in ranks] == [[0, 2], [1, 3]]
    for _ in range(5):
        together, apart = whole.take(2), [rank.take(2) for rank in ranks]
        assert same(together[0:2] + together[4:6], apart[0])
        assert same(together[2:4] + together[6:8], apart[1])
    # The states of all ranks, as a checkpoint holds them, are those of one process.
    merged = {**ranks[0].state(), **ranks[1].state()}
    assert merged == whole.state()
    for stream in (whole, *ranks):
        stream.close()
    with pytest.raises(ValueError, match=r"data\.num_streams=3 must be a multiple of the 2 processes"):
        make_stream(texts, num_streams=3, world_size=2)


def test_a_stream_that_cannot_be_read_on(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"text": "a loop"}\n{"text": [}\n')
    texts = load_dataset("json", data_files=[str(path), str(bad)], split="train", streaming=True)
    stream = make_stream(texts, shuffle_buffer=47)
    stream.take(1)
    with pytest.raises(StreamError, match=r"The stream cannot be read on \(.+\)"):
        stream.take(1000)
    empty = Dataset.from_dict({"text": ["", "a loop that ends"]}).to_iterable_dataset()
    with pytest.raises(StreamError, match=r"Share 0 of the stream holds no document .* smaller data\.num_streams"):
        make_stream(empty, num_streams=2).take(1)
    with pytest.raises(DocumentTooLongError):
        make_stream(files(tmp_path, 1), too_long="error").take(100)


def test_a_full_buffer_mixes_documents(tmp_path):
    """Rows of one block come in another order than those of another seed."""
    texts = files(tmp_path, 1)
    rows = [make_stream(texts, seed=seed, shuffle_buffer=47).take(12) for seed in (1, 1, 2)]
    assert same(rows[0], rows[1])
    assert not same(rows[0], rows[2])
    everything = [sorted(tuple(row["input_ids"].tolist()) for row in part) for part in rows]
    assert set(everything[0]) & set(everything[2])


@pytest.mark.parametrize("num_files", [1, 4])
def test_documents_that_are_held_out_stay_out(tmp_path, num_files):
    texts, tokenizer = files(tmp_path, num_files), small_text_tokenizer()
    heldout, rest = [row["text"] for row in texts.take(9)], texts.skip(9)

    def seen(**kwargs):
        stream = make_stream(rest, num_streams=2, sequence_length=400, **kwargs)
        found = []
        for share in stream.shares.values():
            while True:
                row = share.take()
                if share.epoch:
                    break
                found += documents_of([row], tokenizer)
        stream.close()
        return found

    expected = [text + tokenizer.eos_token for text in TEXTS if text not in heldout]
    assert sorted(seen(by_document=True)) == sorted(expected)
    # The control: `datasets` skips documents in each of its parts.
    if num_files == 4:
        assert sorted(seen()) != sorted(expected)
    whole = make_stream(rest, num_streams=2, by_document=True)
    rows = [whole.take(1) for _ in range(20)]
    for stop in (1, 7, 13):
        first = make_stream(rest, num_streams=2, by_document=True)
        for _ in range(stop):
            first.take(1)
        resumed = make_stream(files(tmp_path, num_files).skip(9), num_streams=2, by_document=True)
        resumed.load(first.state())
        assert all(same(resumed.take(1), row) for row in rows[stop:])
