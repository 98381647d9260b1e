"""The learned exit gate: halting at the first recurrence by which the probability of having left is large enough."""

import pytest
import torch
from recurrent_models import lively_model, pad, random_ids, relative_error, tiny_model
from reference_decoding import left_by_gate, reference

from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


MOST = 9
LENGTHS = (6, 9, 2, 7, 4, 5, 3, 8)
CALL = {"halting_criterion": "exit_gate", "exit_gate_threshold": 0.8}
FIELDS = {"block_norm": "sandwich", "state_norm": "last", "exit_gate": True}
CODA = {
    "block_norm": "residual",
    "num_prelude_layers": 1,
    "num_coda_layers": 1,
    "coda_norm": True,
    "input_injection": "concat",
    "state_init": "zeros",
    "exit_gate": True,
}


def gated_model(extra):
    """A model whose gate gives visibly different probabilities, but lets most tokens stay for a while."""
    model = lively_model("llama", extra, seed=1)
    with torch.no_grad():
        model.model.exit_gate.bias.fill_(-1.0)
    return model


def leaving(model, ids, mask):
    """The probability of leaving at each recurrence if one stayed before, `(MOST, *ids.shape)`, at fixed depth."""
    runs = [model(ids, attention_mask=mask, num_recurrences=t, output_hidden_states=True) for t in range(1, MOST + 1)]
    states = torch.stack([run.hidden_states[-1] for run in runs])
    return model.model.exit_gate(model.model.norm(states))[..., 0].sigmoid()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [FIELDS, CODA], ids=["ouro", "coda"])
@torch.no_grad()
def test_a_row_halts_where_its_last_token_has_left(extra, side):
    model = gated_model(extra)
    ids, mask = pad([random_ids(length) for length in LENGTHS], side)
    last = torch.tensor([row.nonzero().max() for row in mask])
    left = 1 - (1 - leaving(model, ids, mask)).cumprod(0)[:, torch.arange(len(ids)), last]
    for least in (1, 3):
        reached = (left >= 0.8) & (torch.arange(1, MOST + 1) >= least)[:, None]
        expected = torch.where(reached.any(0), reached.int().argmax(0) + 1, MOST)
        call = {**CALL, "halting_granularity": "sequence", "min_recurrences": least}
        output = model(ids, attention_mask=mask, **call)
        assert torch.equal(output.num_recurrences, expected)
        again = model(ids, attention_mask=mask, num_recurrences=expected)
        assert relative_error(output.logits[mask.bool()], again.logits[mask.bool()]) < 1e-9
    counts = model(ids, attention_mask=mask, halting_granularity="sequence", **CALL).num_recurrences
    assert len(counts.unique()) >= 3
    # The control: the probability of leaving now, without that of having left before, is another rule.
    now = leaving(model, ids, mask)[:, torch.arange(len(ids)), last] >= 0.8
    assert not torch.equal(torch.where(now.any(0), now.int().argmax(0) + 1, MOST), counts)


@pytest.mark.parametrize("extra", [FIELDS, CODA], ids=["ouro", "coda"])
@torch.no_grad()
def test_tokens_halt_as_by_brute_force(extra):
    model = gated_model(extra)
    seen = set()
    for length in (8, 11):
        row = random_ids(length)
        logits, counts = reference(model, row, torch.zeros(length, dtype=torch.long), left_by_gate(model, 0.8))
        output = model(row[None], **CALL)
        assert torch.equal(output.num_recurrences[0], counts)
        assert relative_error(output.logits[0], logits) < 1e-5
        seen |= set(counts.tolist())
    assert len(seen) >= 4


@torch.no_grad()
def test_the_base_model_halts_without_a_head():
    model = gated_model(FIELDS)
    ids = random_ids(2, 7)
    assert torch.equal(model.model(ids, **CALL).num_recurrences, model(ids, **CALL).num_recurrences)


@torch.no_grad()
def test_halted_rows_are_not_computed():
    model = gated_model(FIELDS)
    ids = random_ids(12, 6)
    rows = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    output = model(ids, halting_granularity="sequence", **CALL)
    assert sum(rows) == int(output.num_recurrences.sum()) < MOST * len(ids)


@torch.no_grad()
def test_a_threshold_of_one_runs_to_the_end():
    model = gated_model(FIELDS).float()
    counts = model(random_ids(4, 6), halting_criterion="exit_gate", exit_gate_threshold=1.0).num_recurrences
    assert (counts == MOST).all()


def test_a_model_without_a_gate_refuses_the_criterion():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"exit_gate.*reads a learned gate, which this model does not have"):
        model(random_ids(2, 3), **CALL)
    with pytest.raises(Exception, match="exit_gate=True"):
        RecurrentDepthConfig.llama_style(halting_criterion="exit_gate")
    gated = tiny_model("llama", **FIELDS)
    with pytest.raises(ValueError, match=r"exit_gate_threshold=1.5 must be at most 1"):
        gated(random_ids(2, 3), halting_criterion="exit_gate", exit_gate_threshold=1.5)


def test_probabilities_add_up():
    criterion, memory = HALTING_CRITERIA["exit_gate"](0.9), {}
    verdicts = [criterion(torch.tensor([[0.5], [0.95]]), None, memory).tolist() for _ in range(4)]
    # 0.5, 0.75, 0.875, 0.9375 for the first.
    assert verdicts == [[False, True], [False, True], [False, True], [True, True]]
