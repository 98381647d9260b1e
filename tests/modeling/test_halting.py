"""Invariant 3: the reported count is the first recurrence at which the criterion holds; halted rows cost nothing."""

import pytest
import torch
from recurrent_models import lively_model, pad, random_ids, relative_error, tiny_model
from reference_decoding import reference

from modeling_recurrent import RecurrentDepthCache
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA, HaltingRule, resolve_depth


MOST = 12
# The learned gate is tested in test_exit_gate.py.
WITHOUT_GATE = [name for name in HALTING_CRITERIA if name != "exit_gate"]
LENGTHS = (6, 9, 2, 7, 4, 9, 3, 8, 5, 1, 6, 7) * 2


def settling_model(**kwargs):
    """
    A model whose rows settle at visibly different recurrences: the state is normed and fed its input again.

    Where counts are compared it runs in double precision: weights this large amplify the rounding of float32.
    """
    return tiny_model(state_norm="layernorm", input_injection="add", max_recurrences=MOST, **kwargs)


def probe(model, ids, mask):
    """Log-probabilities and states of every token after every recurrence, from separate fixed-depth runs."""
    with torch.no_grad():
        outputs = [
            model(ids, attention_mask=mask, num_recurrences=t, output_hidden_states=True) for t in range(1, MOST + 1)
        ]
    return torch.stack([o.logits.log_softmax(-1) for o in outputs]), torch.stack(
        [o.hidden_states[-1] for o in outputs]
    )


# Criteria that halt when a value is high enough.
AT_LEAST = ("confidence", "margin")


def naive_scores(log_probs, states):
    """Score of each criterion at each recurrence (index 0 is recurrence 1), written out; lower halts."""
    p = log_probs.exp()
    kl = (p[1:] * (log_probs[1:] - log_probs[:-1])).sum(-1)
    entropy = -(p * log_probs).sum(-1)
    step = states[1:] - states[:-1]
    size = states.norm(dim=-1)
    return {
        "kl": kl,
        "entropy": entropy,
        "confidence": -p.amax(-1),
        "margin": -log_probs.sort(-1).values[..., -2:].diff(dim=-1)[..., 0],
        "state_difference": step.norm(dim=-1) / size[1:],
        "acceleration": (step[1:] - step[:-1]).norm(dim=-1) / size[2:],
    }


def first_true(holds, offset, least):
    """First recurrence (from 1) at which `holds` (its first row belongs to recurrence `1 + offset`), or MOST."""
    counts = torch.full(holds.shape[1:], MOST)
    for row in reversed(range(len(holds))):
        recurrence = row + 1 + offset
        if least <= recurrence <= MOST:
            counts[holds[row]] = recurrence
    return counts


def naive_counts(name, log_probs, states, threshold, least):
    if name == "argmax_stability":
        top = log_probs.argmax(-1)
        holds = torch.stack(
            [
                torch.stack([top[t - k] == top[t] for k in range(threshold)]).all(0)
                if t + 1 >= threshold
                else torch.zeros_like(top[0], dtype=torch.bool)
                for t in range(len(top))
            ]
        )
        return first_true(holds, 0, least)
    scores = naive_scores(log_probs, states)
    if name == "kl_entropy":
        holds = (scores["kl"] < threshold[0]) & (scores["entropy"][1:] < threshold[1])
        return first_true(holds, 1, least)
    score = scores[name]
    return first_true(score <= threshold if name in AT_LEAST else score < threshold, MOST - len(score), least)


def pick_threshold(name, log_probs, states, at, least):
    """A threshold that lets units halt at many different recurrences, found among the scores that occur."""
    if name == "argmax_stability":
        return 3
    scores = naive_scores(log_probs, states)
    score = scores["kl" if name == "kl_entropy" else name]
    best = (0, None)
    for quantile in torch.linspace(0.02, 0.98, 60, dtype=score.dtype):
        low = torch.quantile(score.flatten(), quantile).item()
        threshold = (low, scores["entropy"].quantile(0.9).item()) if name == "kl_entropy" else low
        variety = len(at(naive_counts(name, log_probs, states, threshold, least)).unique())
        best = max(best, (variety, threshold), key=lambda pair: pair[0])
    return best[1]


def arguments(name, threshold):
    if name == "kl_entropy":
        return {"kl_threshold": threshold[0], "entropy_threshold": threshold[1]}
    if name == "argmax_stability":
        return {"argmax_patience": threshold}
    return {f"{name}_threshold": -threshold if name in AT_LEAST else threshold}


def skip_rounding(name, log_probs, states, threshold):
    """True where a score lies so near the threshold that rounding may decide."""
    if name == "argmax_stability":
        return torch.zeros(log_probs.shape[1:-1], dtype=torch.bool)
    scores = naive_scores(log_probs, states)
    pairs = zip(("kl", "entropy"), threshold) if name == "kl_entropy" else [(name, threshold)]
    return torch.stack([((scores[key] - value).abs() < 1e-4 * abs(value) + 1e-6).any(0) for key, value in pairs]).any(
        0
    )


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", WITHOUT_GATE)
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_sequence_counts_are_the_first_recurrence_that_holds(style, name, side, least):
    wanted = 4 if name != "argmax_stability" else 2
    for _ in range(30):  # a random model now and then halts nearly everywhere at once: draw another
        model = settling_model(style=style, initializer_range=0.25).double()
        ids, mask = pad([random_ids(n) for n in LENGTHS], side)
        last = torch.tensor([row.nonzero().max() for row in mask])
        rows = torch.arange(len(ids))
        log_probs, states = (values[:, rows, last] for values in probe(model, ids, mask))
        threshold = pick_threshold(name, log_probs, states, lambda counts: counts, least)
        expected = naive_counts(name, log_probs, states, threshold, least)
        if len(expected.unique()) >= wanted:
            break
    assert len(expected.unique()) >= wanted
    sure = ~skip_rounding(name, log_probs, states, threshold)

    with torch.no_grad():
        output = model(
            ids,
            attention_mask=mask,
            halting_criterion=name,
            halting_granularity="sequence",
            min_recurrences=least,
            **arguments(name, threshold),
        )
        again = model(ids, attention_mask=mask, num_recurrences=output.num_recurrences)
    assert torch.equal(output.num_recurrences[sure], expected[sure])
    assert relative_error(output.logits[mask.bool()], again.logits[mask.bool()]) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", WITHOUT_GATE)
def test_token_counts_stand_alone_and_repeat(name, side):
    model = settling_model(style="llama", initializer_range=0.25).double()
    rows = [random_ids(n) for n in LENGTHS]
    ids, mask = pad(rows, side)
    real = mask.bool()
    log_probs, states = (values[:, real] for values in probe(model, ids, mask))
    threshold = pick_threshold(name, log_probs, states, lambda counts: counts, 2)
    call = {"halting_criterion": name, "min_recurrences": 2, **arguments(name, threshold)}
    with torch.no_grad():
        output = model(ids, attention_mask=mask, **call)
        again = model(ids, attention_mask=mask, num_recurrences=output.num_recurrences)
        assert len(output.num_recurrences[real].unique()) >= (4 if name != "argmax_stability" else 2)
        assert (output.num_recurrences[~real] == 0).all()
        assert torch.equal(again.num_recurrences, output.num_recurrences)
        assert relative_error(again.logits[real], output.logits[real]) < 1e-5
        for i, row in enumerate(rows):
            alone = model(row[None], **call)
            agree = alone.num_recurrences[0] == output.num_recurrences[i][real[i]]
            # A count within rounding of the threshold may differ, and what follows it with it.
            settled = len(agree) if agree.all() else int((~agree).nonzero()[0])
            assert settled >= len(agree) - 1
            assert relative_error(alone.logits[0][:settled], output.logits[i][real[i]][:settled]) < 1e-5


def test_coda_is_run_at_every_recurrence_for_a_row():
    model = settling_model(num_coda_layers=1, num_prelude_layers=1, initializer_range=0.25).double()
    ids, mask = pad([random_ids(n) for n in LENGTHS], "left")
    log_probs, states = probe(model, ids, mask)
    threshold = pick_threshold("kl", log_probs[:, :, -1], states[:, :, -1], lambda counts: counts, 1)
    expected = naive_counts("kl", log_probs[:, :, -1], states[:, :, -1], threshold, 1)
    output = model(
        ids, attention_mask=mask, halting_criterion="kl", halting_granularity="sequence", kl_threshold=threshold
    )
    sure = ~skip_rounding("kl", log_probs[:, :, -1], states[:, :, -1], threshold)
    assert len(expected.unique()) >= 4
    assert torch.equal(output.num_recurrences[sure], expected[sure])


@pytest.mark.parametrize("granularity", ["sequence", "token"])
def test_halted_rows_are_not_computed(granularity):
    model = tiny_model()
    seen = []
    model.model.recurrent_layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    counts = torch.tensor([1, 4, 2, 4, 7, 1])
    given = counts if granularity == "sequence" else counts[:, None].expand(6, 5)
    model(random_ids(6, 5), num_recurrences=given)
    assert seen == [int((counts >= t).sum()) for t in range(1, 8)]


def test_config_decides_and_a_call_wins():
    model = settling_model(halting_criterion="kl", kl_threshold=1e9, halting_granularity="sequence", num_recurrences=5)
    ids = random_ids(3, 6)
    assert model(ids).num_recurrences.tolist() == [2, 2, 2]
    assert model(ids, min_recurrences=4).num_recurrences.tolist() == [4, 4, 4]
    assert model(ids, kl_threshold=1e-12, max_recurrences=7).num_recurrences.tolist() == [7, 7, 7]
    assert model(ids, num_recurrences=3).num_recurrences.tolist() == [3, 3, 3]
    assert model(ids, halting_criterion="none").num_recurrences.tolist() == [5, 5, 5]
    assert model(ids, halting_granularity="token").num_recurrences.tolist() == [[2] * 6] * 3
    assert model(ids, num_recurrences=torch.tensor([0, 3, 0])).num_recurrences.tolist() == [2, 3, 2]
    assert model(ids, num_recurrences=torch.tensor(6)).num_recurrences.tolist() == [6, 6, 6]
    model.train()
    assert model(ids).num_recurrences.tolist() == [5, 5, 5]


def test_generate_takes_the_same_arguments():
    model = settling_model()
    ids, mask = pad([random_ids(5), random_ids(3)], "left")
    common = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "use_cache": False}
    deep = model.generate(ids, num_recurrences=9, **common)
    rows = model.generate(ids, num_recurrences=torch.tensor([9, 9]), **common)
    assert torch.equal(deep, rows)
    halted = model.generate(
        ids, halting_criterion="kl", kl_threshold=1e9, halting_granularity="sequence", max_recurrences=3, **common
    )
    assert torch.equal(halted, model.generate(ids, num_recurrences=2, **common))
    with pytest.raises(TypeError, match="recurence"):
        model.generate(ids, num_recurences=3, **common)
    assert model.generate(ids, attention_mask=mask, num_beams=2, max_new_tokens=3, num_recurrences=2).shape == (2, 8)


BAD_CALLS = [
    ({"num_recurrences": 0}, ValueError, "num_recurrences=0"),
    ({"num_recurrences": -2}, ValueError, "num_recurrences=-2"),
    ({"num_recurrences": True}, TypeError, "num_recurrences must be an int, got True"),
    ({"num_recurrences": 2.5}, TypeError, "2.5"),
    ({"num_recurrences": torch.tensor([1.0, 2.0])}, TypeError, "float32"),
    ({"num_recurrences": torch.tensor([True, True])}, TypeError, "bool"),
    ({"num_recurrences": torch.tensor([1, -1])}, ValueError, "-1"),
    ({"num_recurrences": torch.tensor([1, 2, 3])}, ValueError, r"\(3,\)"),
    ({"num_recurrences": torch.ones(2, 5, dtype=torch.long)}, ValueError, r"\(2, 5\)"),
    ({"num_recurrences": torch.tensor([0, 2])}, ValueError, "no halting_criterion"),
    ({"num_recurrences": 3, "halting_criterion": "kl"}, ValueError, "one of them"),
    ({"halting_criterion": "kll"}, ValueError, "kl_entropy"),
    ({"halting_criterion": "kl", "halting_granularity": "row"}, ValueError, "'row'"),
    ({"halting_criterion": "kl", "kl_threshold": -1.0}, ValueError, "kl_threshold"),
    ({"min_recurrences": 9, "max_recurrences": 3}, ValueError, "min_recurrences=9"),
    ({"max_recurrences": 0, "halting_criterion": "kl"}, ValueError, "max_recurrences=0"),
    ({"num_recurrences": 3, "max_recurrences": 2}, ValueError, "max_recurrences=2 .* num_recurrences=3 fixes"),
    ({"num_recurrences": 3, "kl_threshold": 0.1}, ValueError, "kl_threshold=0.1 .* num_recurrences=3 fixes"),
    ({"halting_granularity": "token"}, ValueError, "halting_granularity='token' .* none is set"),
    ({"halting_criterion": "none", "min_recurrences": 2}, ValueError, "min_recurrences=2 .* none is set"),
    ({"halting_criterion": "kl", "entropy_threshold": 1.0}, ValueError, "not a parameter of halting_criterion='kl'"),
    ({"halting_criterion": "confidence", "confidence_threshold": 1.5}, ValueError, "confidence_threshold=1.5"),
    (
        {"labelled_logits_only": True, "logits_to_keep": 1, "labels": torch.ones(2, 4, dtype=torch.long)},
        ValueError,
        "both choose positions",
    ),
    ({"attention_mask": torch.ones(2, 3)}, ValueError, "attention_mask"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS, ids=[message for _, _, message in BAD_CALLS])
def test_bad_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        tiny_model()(random_ids(2, 4), **call)


def test_the_spelling_of_calls_switches_a_configs_criterion_off(tmp_path):
    model = tiny_model(halting_criterion="kl")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, halting_criterion="none")
    assert loaded.config.halting_criterion is None
    model.config.halting_criterion = "none"
    assert model.config.halting_criterion is None


def test_other_arguments_reach_the_attention():
    """A name that methods of the model use, too, is an argument like any other."""
    model, ids, seen = tiny_model(), random_ids(1, 3), []
    model.model.recurrent_layers[0].register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True
    )
    model(ids, depth=3, state=4, rows=5, head_mask=6)
    assert {"depth": 3, "state": 4, "rows": 5, "head_mask": 6}.items() <= seen[0].items()


def test_gradients_where_tokens_halt_are_those_of_brute_force():
    """Other tokens still attend to one that has halted, so their gradients reach it."""
    fields = {"input_injection": "add", "state_norm": "rmsnorm", "num_prelude_layers": 1, "num_key_value_heads": 2}
    model = lively_model("llama", fields)
    row, counts = random_ids(6), torch.tensor([1, 4, 1, 3, 2, 5])

    def gradients(run):
        model.zero_grad()
        run().square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    expected = gradients(lambda: reference(model, row, counts)[0])
    call = {"num_recurrences": counts[None]}
    cache = RecurrentDepthCache(model.config)
    for more in ({}, {"past_key_values": cache}):
        found = gradients(lambda more=more: model(row[None], **call, **more).logits[0])
        assert all(relative_error(found[name], expected[name]) < 1e-5 for name in expected)
    # Rows leave at different recurrences.
    rows = torch.stack((row, random_ids(6)))
    both = torch.stack((counts, torch.tensor([2, 1, 2, 2, 1, 2])))
    found = gradients(lambda: model(rows, num_recurrences=both).logits)
    apart = [gradients(lambda i=i: reference(model, rows[i], both[i])[0]) for i in range(2)]
    assert all(relative_error(found[name], apart[0][name] + apart[1][name]) < 1e-5 for name in expected)


def test_criteria_that_cannot_be_read_are_refused():
    ids = random_ids(2, 4)
    with pytest.raises(ValueError, match="num_coda_layers=1"):
        tiny_model(num_coda_layers=1)(ids, halting_criterion="kl", halting_granularity="token")
    with pytest.raises(ValueError, match="RecurrentDepthForCausalLM"):
        tiny_model().model(ids, halting_criterion="kl", halting_granularity="sequence")
    assert tiny_model().model(ids, halting_criterion="state_difference").num_recurrences.shape == (2, 4)
    training = tiny_model().train()
    with pytest.raises(ValueError, match="eval"):
        training(ids, halting_criterion="kl")
    with pytest.raises(ValueError, match="eval"):
        training(ids, num_recurrences=torch.ones_like(ids))


@pytest.mark.parametrize("name", ["state_difference", "acceleration"])
def test_a_state_of_zeros_that_stays_has_settled(name):
    criterion = HALTING_CRITERIA[name](1e-3)
    state, memory = torch.zeros(1, 4), {}
    opinions = [criterion(state, previous, memory) for previous in (None, state, state)]
    assert opinions[-1].tolist() == [True]


def test_a_rule_is_fresh_for_every_call():
    config = settling_model(halting_criterion="kl").config
    first = resolve_depth(config, (2, 3), "cpu")
    assert isinstance(first, HaltingRule) and first is not resolve_depth(config, (2, 3), "cpu")
