"""Losses after several recurrences of one forward pass: the field of the config, an object, and who bypasses them."""

import pytest
import torch
from recurrent_models import random_ids, relative_error, tiny_model
from transformers.utils import logging

from modeling_recurrent.losses_recurrent import recurrence_loss_weights


FIELDS = {"input_injection": "concat", "num_prelude_layers": 1, "num_coda_layers": 1, "state_norm": "layernorm"}


def batch():
    torch.manual_seed(3)
    ids = random_ids(3, 7)
    labels = ids.clone()
    labels[0, :4] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(left, right, tolerance=2e-5):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert relative_error(value, right[name]) < tolerance, name


class Chosen:
    """A loss of the recurrences `weights`, which notes what it reads."""

    def __init__(self, weights, starts=()):
        self.weights, self.starts, self.calls = weights, starts, []

    def recurrences(self, num_recurrences):
        return set(self.weights)

    def backprop_from(self, num_recurrences):
        return self.starts

    def __call__(self, recurrence, logits, loss_of):
        self.calls.append((recurrence, logits.shape))
        return self.weights[recurrence] * loss_of(logits) if recurrence in self.weights else None


@pytest.mark.parametrize("name", ["uniform", "geometric"])
def test_the_config_chooses_the_losses_of_any_trainer(name):
    """In training, whatever depth was drawn."""
    drawn = {"recurrence_sampling": "uniform", "recurrence_min": 2, "recurrence_max": 6}
    model = tiny_model(seed=0, recurrence_loss=name, recurrence_loss_decay=0.3, **FIELDS, **drawn).train()
    depths, inputs = set(), batch() | {"num_items_in_batch": 5}
    for seed in range(5):
        torch.manual_seed(seed)
        output = model(**inputs)
        depth = int(output.num_recurrences[0])
        depths.add(depth)
        weights = recurrence_loss_weights(name, depth, 0.3)
        expected = sum(
            weight * model(**inputs, num_recurrences=r, recurrence_loss="last").loss
            for r, weight in enumerate(weights, 1)
        )
        assert_same(gradients(model, output.loss), gradients(model, expected))
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
        last = model(**inputs, num_recurrences=depth, recurrence_loss="last").loss
        assert output.loss.item() != pytest.approx(last.item(), rel=1e-4)
    assert len(depths) >= 3
    # In evaluation the loss is that of the last recurrence, so that depths can be compared.
    model.eval()
    plain = tiny_model(seed=0, **FIELDS).eval()
    assert torch.equal(model(**batch(), num_recurrences=3).loss, plain(**batch(), num_recurrences=3).loss)


def test_an_object_reads_only_the_recurrences_that_it_chooses():
    model = tiny_model(seed=0, **FIELDS).train()
    coda_calls = []
    layer = model.model.coda_layers[0]
    layer.register_forward_hook(lambda *_: coda_calls.append(1))
    loss = Chosen({1: 0.5, 3: 2.0})
    output = model(**batch(), num_recurrences=5, recurrence_loss=loss, labelled_logits_only=True)
    labels = int((batch()["labels"][:, 1:] != -100).sum())
    assert loss.calls == [(r, (labels, model.config.vocab_size)) for r in (1, 3, 5)]
    assert len(coda_calls) == 3
    expected = 0.5 * model(**batch(), num_recurrences=1).loss + 2.0 * model(**batch(), num_recurrences=3).loss
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_same(gradients(model, output.loss), gradients(model, expected))
    # The control: other weights have another loss.
    other = model(**batch(), num_recurrences=5, recurrence_loss=Chosen({1: 0.4, 3: 2.0})).loss
    assert other.item() != pytest.approx(output.loss.item(), rel=1e-3)


def test_gradients_also_flow_from_the_chosen_recurrences_of_a_truncated_run():
    """The loss after recurrence 1 trains recurrence 1, although the last recurrences alone are propagated through."""
    model = tiny_model(seed=0, input_injection="add", state_norm="layernorm").train()
    weights = {1: 0.5, 5: 1.0}
    first = gradients(model, 0.5 * model(**batch(), num_recurrences=1).loss)
    model.config.backprop_recurrences = 2
    last = gradients(model, model(**batch(), num_recurrences=5).loss)
    found = model(**batch(), num_recurrences=5, recurrence_loss=Chosen(weights, starts=[1])).loss
    found = gradients(model, found)
    assert_same(found, {name: value + first.get(name, 0) for name, value in last.items()})
    # The control: without it, recurrence 1 only trains what stands after the loop.
    cut = gradients(model, model(**batch(), num_recurrences=5, recurrence_loss=Chosen(weights)).loss)
    name = next(n for n in found if "layers" in n and "mlp" in n and n.endswith("weight"))
    assert relative_error(cut[name], last[name]) < 1e-5 < relative_error(found[name], last[name])


def test_what_a_loss_cannot_be_combined_with():
    model = tiny_model(seed=0).train()
    ids = batch()["input_ids"]
    with pytest.raises(ValueError, match="needs labels"):
        model(ids, recurrence_loss="uniform")
    with pytest.raises(ValueError, match="on_recurrence"):
        model(**batch(), recurrence_loss="uniform", on_recurrence=print)
    with pytest.raises(ValueError, match="must be one of last, uniform, geometric"):
        model(**batch(), recurrence_loss="all")
    with pytest.raises(ValueError, match="int num_recurrences, got None"):
        model(**batch(), recurrence_loss=Chosen({1: 1.0}))
    with pytest.raises(ValueError, match="same depth for all rows"):
        model(**batch(), recurrence_loss="uniform", num_recurrences=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="Chosen gave no term at any recurrence"):
        model(**batch(), recurrence_loss=Chosen({}), num_recurrences=3)


@pytest.mark.parametrize("shown", [None, [1, 4], []])
def test_on_recurrence_is_called_after_the_chosen_recurrences(shown):
    model = tiny_model(seed=0, **FIELDS).eval()
    seen = {}

    def note(recurrence, rows, logits):
        seen[recurrence] = logits

    model(batch()["input_ids"], num_recurrences=4, on_recurrence=note, recurrences_to_show=shown)
    assert list(seen) == (list(range(1, 5)) if shown is None else shown)
    for recurrence, logits in seen.items():
        assert relative_error(logits, model(batch()["input_ids"], num_recurrences=recurrence).logits) < 1e-5


def bypass(model, how):
    """Training calls whose loss is not the model's."""
    ids = batch()["input_ids"]
    return model.model(ids) if how == "decoder" else model(ids)


@pytest.mark.parametrize("how", ["decoder", "logits"])
def test_a_loss_that_is_computed_outside_is_warned_about(how, capture_warnings):
    def text(**fields):
        model = tiny_model(seed=0, **fields)
        with capture_warnings() as warned:
            bypass(model.train(), how)
        return warned()

    logging.warning_once.cache_clear()
    warned = text(recurrence_loss="uniform")
    assert "recurrence_loss='uniform'" in warned and "SFTTrainer" in warned
    # Once; and the controls: another config, evaluation, no gradients, and the model's own loss say nothing.
    assert text(recurrence_loss="uniform") == ""
    logging.warning_once.cache_clear()
    assert text() == ""
    model = tiny_model(seed=0, recurrence_loss="uniform")
    with capture_warnings() as warned:
        bypass(model.eval(), how)
        with torch.no_grad():
            bypass(model.train(), how)
        model.train()(**batch()).loss.backward()
    assert warned() == ""
