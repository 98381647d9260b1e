import pytest
import torch

from memreason_hf.training import ChainCollator


ROWS = [
    {"input_ids": [3, 9], "label_ids": [-100, 4], "hops": 1, "type": "atomic"},
    {"input_ids": [5, 8, 9, 8], "label_ids": [-100, 1, 2, 6], "hops": 3, "type": "3hop_train"},
]


def test_pads_on_the_left_and_labels_the_answer():
    batch = ChainCollator(0)(ROWS)
    assert batch["input_ids"].tolist() == [[0, 0, 3, 9], [5, 8, 9, 8]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch["shift_labels"].tolist() == [[-100, -100, -100, 4], [-100, -100, -100, 6]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_prefix_labels_every_relation():
    batch = ChainCollator(0, "prefix")(ROWS)
    assert batch["shift_labels"].tolist() == [[-100, -100, -100, 4], [-100, 1, 2, 6]]


def test_path_labels_the_start_as_well_and_no_padding():
    batch = ChainCollator(0, "path")(ROWS)
    assert batch["shift_labels"].tolist() == [[-100, -100, 3, 4], [5, 1, 2, 6]]
    assert ChainCollator(0, "path")(ROWS[1:])["shift_labels"].tolist() == [[5, 1, 2, 6]]


def test_no_mask_where_nothing_is_padded():
    assert set(ChainCollator(7)(ROWS[1:] * 3)) == {"input_ids", "shift_labels"}


def test_width_is_that_of_the_longest_row():
    assert ChainCollator(0)(ROWS[:1])["input_ids"].shape == (1, 2)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "at least one row"),
        ([{"input_ids": [], "label_ids": []}], "no tokens"),
        ([{"input_ids": [1, 2], "label_ids": [3]}], "2 input_ids and 1 label_ids"),
    ],
)
def test_refuses_rows_that_are_none(rows, message):
    with pytest.raises(ValueError, match=message):
        ChainCollator(0)(rows)


def test_refuses_wrong_arguments():
    with pytest.raises(ValueError, match="supervision='all'"):
        ChainCollator(0, "all")
    with pytest.raises(TypeError, match="pad_token_id=None"):
        ChainCollator(None)
