"""Heads for classification, rewards and questions: they read the decoder at the depth that a call asks for."""

import pytest
import torch
from recurrent_models import pad, random_ids, relative_error, tiny_config
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from modeling_recurrent import (
    RecurrentDepthForCausalLM,
    RecurrentDepthForQuestionAnswering,
    RecurrentDepthForSequenceClassification,
    RecurrentDepthForTokenClassification,
)


HEADS = [
    (AutoModelForSequenceClassification, RecurrentDepthForSequenceClassification),
    (AutoModelForTokenClassification, RecurrentDepthForTokenClassification),
    (AutoModelForQuestionAnswering, RecurrentDepthForQuestionAnswering),
]


def head_model(model_class, **kwargs):
    return model_class(tiny_config("llama", input_injection="add", num_labels=3, **kwargs)).eval()


@pytest.mark.parametrize(("auto_class", "model_class"), HEADS)
def test_saved_and_loaded_by_its_auto_class(auto_class, model_class, tmp_path, poisoned_memory):
    model = head_model(model_class)
    ids = random_ids(2, 5)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path).eval()
    assert type(loaded) is model_class
    left, right = model(ids), loaded(ids)
    assert all(torch.equal(left[name], right[name]) for name in left if isinstance(left[name], torch.Tensor))
    assert loaded.config.auto_map[auto_class.__name__] == f"modeling_recurrent.{model_class.__name__}"
    assert {path.name for path in tmp_path.glob("*.py")} >= {"modeling_recurrent.py", "loop_recurrent.py"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_score_is_that_of_the_last_token_at_the_depth_of_the_call(side):
    model = head_model(RecurrentDepthForSequenceClassification)
    rows = [random_ids(n) for n in (6, 3, 5)]
    ids, mask = pad(rows, side)
    for call in ({}, {"num_recurrences": 6}, {"halting_criterion": "state_difference"}):
        scores = model(ids, attention_mask=mask, **call).logits
        for row, score in zip(rows, scores, strict=True):
            hidden = model.model(row[None], **call).last_hidden_state[0, -1]
            assert relative_error(score, model.score(hidden)) < 1e-5
    shallow, deep = (model(ids, attention_mask=mask, num_recurrences=n).logits for n in (1, 6))
    assert relative_error(shallow, deep) > 0.01


@pytest.mark.parametrize("model_class", [model_class for _, model_class in HEADS])
def test_every_parameter_gets_a_gradient(model_class):
    model = head_model(model_class, num_prelude_layers=1).train()
    ids = random_ids(4, 5)
    labels = {
        RecurrentDepthForSequenceClassification: {"labels": torch.tensor([0, 1, 2, 1])},
        RecurrentDepthForTokenClassification: {"labels": torch.randint(3, (4, 5))},
        RecurrentDepthForQuestionAnswering: {
            "start_positions": torch.tensor([0, 1, 2, 3]),
            "end_positions": torch.tensor([1, 2, 3, 4]),
        },
    }[model_class]
    model(ids, **labels).loss.backward()
    # A softmax over positions does not change when every position moves by the same bias, so the gradient of this bias
    # is zero but for rounding.
    without = {"qa_outputs.bias"} if model_class is RecurrentDepthForQuestionAnswering else set()
    parameters = [(name, p) for name, p in model.named_parameters() if name not in without]
    assert [name for name, p in parameters if p.grad is None or p.grad.abs().max() == 0] == []
    for name in without:
        assert model.get_parameter(name).grad.abs().max() < 1e-6


def test_the_decoder_of_a_language_model_goes_on_under_a_head(tmp_path, capture_warnings):
    model = RecurrentDepthForCausalLM(tiny_config("llama", input_injection="add")).eval()
    model.save_pretrained(tmp_path)
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1)
    ids = random_ids(2, 4)
    assert torch.equal(scorer.model(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_criteria_that_read_logits_are_refused():
    with pytest.raises(ValueError, match="use RecurrentDepthForCausalLM, or a criterion on the state"):
        head_model(RecurrentDepthForSequenceClassification)(random_ids(1, 4), halting_criterion="kl")
