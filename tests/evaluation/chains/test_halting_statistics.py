import statistics

import pytest

from memreason_hf.evaluation import AnswerPredictions, halting_statistics


def test_hand_made_groups():
    predictions = AnswerPredictions(
        predictions=[1, 2, 3, 4, 5, 6],
        references=[1, 2, 0, 4, 0, 0],
        groups=[12, 2, 12, 2, 12, 12],
        num_recurrences=[10, 3, 14, 4, 12, 20],
    )
    result = halting_statistics(predictions)
    assert list(result.by_group) == [2, 12]
    two, twelve = result.by_group[2], result.by_group[12]
    assert (two.count, two.accuracy, two.mean, two.median, two.standard_deviation) == (2, 1.0, 3.5, 3.5, 0.5)
    assert (two.minimum, two.maximum) == (3, 4)
    assert (twelve.count, twelve.accuracy, twelve.mean, twelve.median) == (4, 0.25, 14.0, 13.0)
    assert twelve.standard_deviation == pytest.approx(statistics.pstdev([10, 14, 12, 20]))
    assert (twelve.minimum, twelve.maximum) == (10, 20)
    overall = result.overall
    assert (overall.count, overall.accuracy, overall.median) == (6, 0.5, 11.0)
    assert overall.mean == pytest.approx(63 / 6)
    assert (overall.minimum, overall.maximum) == (3, 20)


def test_one_row_has_no_spread():
    result = halting_statistics(AnswerPredictions([1], [1], ["a"], [7]))
    assert result.overall == result.by_group["a"]
    assert result.overall.standard_deviation == 0.0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        halting_statistics(AnswerPredictions([], [], [], []))
    with pytest.raises(ValueError, match=r"differ in length.*'num_recurrences': 1"):
        halting_statistics(AnswerPredictions([1, 2], [1, 2], ["a", "a"], [7]))
