from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from memreason_hf.data.chains.tables import UnknownTokens, content_fingerprint, look_up, split_tokens


TEXTS = ["<z>", "<a><bb>", "<c>", "<d><e><f>", "<g>"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize(("start", "stop"), [(0, 5), (1, 3), (3, 5), (4, 5), (2, 2)])
def test_tokens_are_cut_in_any_slice(kind, start, stop):
    whole = pa.array(TEXTS, kind)
    for texts in (whole[start:stop], pa.chunked_array([whole[start:stop]]), pa.chunked_array([whole])[start:stop]):
        tokens, offsets = split_tokens(texts)
        rows = [tokens[a:b].to_pylist() for a, b in pairwise(offsets)]
        assert ["".join(row) for row in rows] == TEXTS[start:stop]
        assert len(tokens) == sum(text.count(">") for text in TEXTS[start:stop])


@pytest.mark.parametrize("bad", ["", "<a", "<a><b", "<a>b", "a"])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_texts_of_other_things_are_named_by_row(bad, row):
    texts = ["<a>", "<b><c>"]
    texts.insert(row, bad)
    with pytest.raises(ValueError, match=f"row {row} .*{bad!r}"):
        split_tokens(pa.array(texts))
    with pytest.raises(ValueError, match=f"Row {row} has no text"):
        split_tokens(pa.array([*texts[:row], None, *texts[row + 1 :]]))


def test_unknown_tokens_are_listed_once():
    with pytest.raises(UnknownTokens, match="2 tokens are not in the vocabulary: <x>, <y>") as raised:
        look_up(pa.array(["<y>", "<a>", "<x>", "<y>"]), pa.array(["<a>", "<b>"]))
    assert raised.value.tokens == ["<x>", "<y>"]
    assert np.array_equal(look_up(pa.array(["<b>", "<a>"]), pa.array(["<a>", "<b>"])), [1, 0])


def test_the_fingerprint_follows_names_and_values():
    table = pa.table({"a": [1, 2], "b": [3, 4]})
    assert content_fingerprint(table) == content_fingerprint(pa.table({"a": [1, 2], "b": [3, 4]}))
    others = [{"a": [1, 2], "b": [3, 5]}, {"a": [1, 2], "c": [3, 4]}, {"a": [1], "b": [3]}]
    assert content_fingerprint(table) not in {content_fingerprint(pa.table(other)) for other in others}
