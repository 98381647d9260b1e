import pytest
import torch

from memreason_hf.evaluation import predict_answers
from memreason_hf.evaluation.chains.predictions import sorted_groups


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_answers_come_back_in_the_order_of_the_data(scripted_model, scripted_rows, collator, batch_size):
    answers = predict_answers(scripted_model, scripted_rows, collator, batch_size=batch_size)
    hops = scripted_rows["hops"][:]
    assert answers.groups == hops
    assert answers.references == [row["label_ids"][-1] for row in scripted_rows]
    assert answers.predictions == answers.references  # it halts after h + 1 recurrences, where it is right
    assert answers.num_recurrences == [count + 1 for count in hops]
    assert answers.accuracy == 1.0
    assert len(answers) == len(scripted_rows)
    assert answers.seconds > 0


def test_rows_of_similar_length_share_a_batch(scripted_model, scripted_rows, collator):
    predict_answers(scripted_model, scripted_rows, collator, batch_size=5)
    widths = [width for _, width in scripted_model.batches]
    assert widths == sorted(widths, reverse=True)
    padded = sum(rows * width for rows, width in scripted_model.batches)
    assert padded <= 1.2 * sum(map(len, scripted_rows["input_ids"]))
    assert sum(rows for rows, _ in scripted_model.batches) == len(scripted_rows)


def test_arguments_reach_the_model(scripted_model, scripted_rows, collator):
    answers = predict_answers(scripted_model, scripted_rows, collator, batch_size=4, max_recurrences=5)
    assert answers.num_recurrences == [min(hops + 1, 5) for hops in scripted_rows["hops"]]
    assert all((p == r) == (h <= 5) for p, r, h in zip(answers.predictions, answers.references, answers.groups))
    fixed = predict_answers(scripted_model, scripted_rows, collator, batch_size=4, num_recurrences=3)
    assert set(fixed.num_recurrences) == {3}


def test_count_per_token_is_that_of_the_answer(scripted_model, scripted_rows, collator):
    answers = predict_answers(scripted_model, scripted_rows, collator, batch_size=4, per_token=True)
    assert answers.num_recurrences == [hops + 1 for hops in scripted_rows["hops"]]


def test_groups_by_another_column(scripted_model, scripted_rows, collator):
    answers = predict_answers(scripted_model, scripted_rows, collator, batch_size=4, group_column="type")
    assert answers.groups == [f"{hops}hop_test" for hops in scripted_rows["hops"]]


def test_modes_are_put_back_even_after_an_error(scripted_model, scripted_rows, collator):
    scripted_model.train()
    scripted_model.dropout.eval()
    predict_answers(scripted_model, scripted_rows, collator, batch_size=4)
    assert scripted_model.training and not scripted_model.dropout.training
    with pytest.raises(TypeError):
        predict_answers(scripted_model, scripted_rows, collator, batch_size=4, no_such_argument=1)
    assert scripted_model.training and not scripted_model.dropout.training
    assert torch.is_grad_enabled()


def test_real_model_agrees_with_one_row_at_a_time(real_model, real_rows, collator):
    halting = {"halting_criterion": "kl", "kl_threshold": 0.02, "halting_granularity": "sequence"}
    answers = predict_answers(real_model, real_rows, collator, batch_size=7, **halting)
    assert len(set(answers.num_recurrences)) >= 4
    for row, prediction, count in zip(real_rows, answers.predictions, answers.num_recurrences):
        with torch.no_grad():
            alone = real_model(torch.tensor([row["input_ids"]]), **halting)
        assert int(alone.num_recurrences) == count
        assert int(alone.logits[0, -1].argmax()) == prediction


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: {"dataset": rows.select([])}, "empty"),
        (lambda rows: {"group_column": "hop"}, r"group_column='hop'.*'hops'"),
        (lambda rows: {"batch_size": 0}, "batch_size=0"),
        (lambda rows: {"collator": lambda batch: {"input_ids": torch.ones(1, 2)}}, "shift_labels"),
    ],
)
def test_bad_input_is_refused(scripted_model, scripted_rows, collator, change, message):
    arguments = {"dataset": scripted_rows, "collator": collator, "batch_size": 4, **change(scripted_rows)}
    with pytest.raises(ValueError, match=message):
        predict_answers(scripted_model, **arguments)
    assert scripted_model.batches == []


@pytest.mark.parametrize("column", ["input_ids", "label_ids"])
def test_ids_outside_the_vocabulary_are_refused(scripted_model, scripted_rows, collator, column):
    rows = scripted_rows.to_list()
    rows[3][column][-1] = 11
    with pytest.raises(ValueError, match=r"token id 11.*vocab_size is 11.*vocabulary does not match"):
        predict_answers(scripted_model, type(scripted_rows).from_list(rows), collator, batch_size=100)


def test_labels_that_do_not_end_at_the_answer_are_refused(scripted_model, scripted_rows):
    def right_padded(rows):
        width = max(len(row["input_ids"]) for row in rows)
        labels = [row["label_ids"] + [-100] * (width - len(row["label_ids"])) for row in rows]
        return {"input_ids": torch.ones(len(rows), width).long(), "shift_labels": torch.tensor(labels)}

    with pytest.raises(ValueError, match="pad on the left"):
        predict_answers(scripted_model, scripted_rows, right_padded, batch_size=100)


def test_natural_order_of_groups():
    assert sorted_groups([12, 2, 40, 2]) == [2, 12, 40]
    assert sorted_groups(["12hop_test", "2hop_train", "atomic_facts", "2hop_test"]) == [
        "2hop_test",
        "2hop_train",
        "12hop_test",
        "atomic_facts",
    ]
