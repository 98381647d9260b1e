"""Invariant 5 and what else holds in training: truncation, drawn depths, losses, checkpointing."""

import copy
from functools import partial

import pytest
import torch
from recurrent_models import random_ids, relative_error, tiny_config, tiny_model
from torch.utils.checkpoint import checkpoint

from modeling_recurrent import sampling_recurrent
from modeling_recurrent.sampling_recurrent import sample_num_recurrences


def gradients(model, **kwargs):
    model.zero_grad()
    torch.manual_seed(0)
    ids = random_ids(3, 7)
    model(ids, labels=ids, **kwargs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(left, right, tolerance=0.0):
    return left.keys() == right.keys() and all(relative_error(left[n], right[n]) <= tolerance for n in left)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_truncation_is_only_truncation(style):
    model = tiny_model(style, input_injection="add", state_norm="layernorm", num_recurrences=4).train()
    full = gradients(model)
    for reach, equal in ((4, True), (9, True), (3, False), (1, False)):
        model.config.backprop_recurrences = reach
        assert same(gradients(model), full) == equal
    assert set(full) == {name for name, _ in model.named_parameters()}
    assert all(g.abs().max() > 0 for g in full.values())


def test_truncated_gradient_is_that_of_a_detached_state():
    model = tiny_model(num_recurrences=5).train()
    model.config.backprop_recurrences = 2
    actual = gradients(model)

    model.config.backprop_recurrences = None
    model.zero_grad()
    torch.manual_seed(0)
    ids = random_ids(3, 7)
    with torch.no_grad():
        state = model.model(ids, num_recurrences=3, output_hidden_states=True).hidden_states[-1]
    for _ in range(2):
        mask = torch.full((7, 7), float("-inf")).triu(1)
        for layer in model.model.recurrent_layers:
            state, _ = layer(state, mask)
    logits = model.lm_head(model.model.norm(state))
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, gradient in actual.items():
        if "embed" not in name:
            assert relative_error(gradient, model.get_parameter(name).grad) < 1e-5


@pytest.mark.parametrize("count", [2, torch.tensor(2), torch.tensor([1, 2, 3])])
def test_a_given_count_still_trains_the_core(count):
    model = tiny_model(num_recurrences=4, num_prelude_layers=1, num_coda_layers=1, input_injection="concat").train()
    found = gradients(model, num_recurrences=count)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert all(g.abs().max() > 0 for g in found.values())


@pytest.mark.parametrize("backprop_recurrences", [None, 2])
def test_gradient_checkpointing_changes_nothing(backprop_recurrences):
    model = tiny_model(
        "llama",
        input_injection="add",
        num_prelude_layers=1,
        residual_dropout=0.2,
        recurrence_sampling="uniform",
        recurrence_min=3,
        recurrence_max=7,
        backprop_recurrences=backprop_recurrences,
    ).train()
    calls = []
    for layer in (*model.model.prelude_layers, *model.model.recurrent_layers):
        layer.mlp.register_forward_hook(lambda module, args, output: calls.append(torch.is_grad_enabled()))
    plain = gradients(model)
    recorded = calls.count(True)
    model.gradient_checkpointing_enable()
    calls.clear()
    assert same(gradients(model), plain, 1e-6)
    # Every layer whose gradient is recorded runs a second time.
    assert calls.count(True) == 2 * recorded


@pytest.mark.parametrize("name", ["attention_dropout", "residual_dropout", "embedding_dropout"])
def test_dropout_is_for_training_alone(name):
    model = tiny_model("llama", input_injection="add", **{name: 0.3})
    ids = random_ids(2, 6)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("reach", [1, 2, 20])
def test_truncation_counts_from_the_last_recurrence_of_each_row(reach):
    """Rows of different depth have the gradients that they have alone."""
    model = tiny_model("llama", input_injection="add", state_norm="rmsnorm", num_prelude_layers=1).double().train()
    model.config.backprop_recurrences = reach
    ids, counts = random_ids(3, 6), torch.tensor([2, 8, 5])

    def gradients_of(rows):
        model.zero_grad()
        model(ids[rows], num_recurrences=counts[rows]).logits.square().sum().backward()
        # Rows whose recurrences are all cut off give some parameters no gradient.
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}

    together = gradients_of(slice(None))
    alone = [gradients_of(slice(row, row + 1)) for row in range(3)]
    summed = {name: sum(part[name] for part in alone) for name in together}
    assert same(together, summed, 1e-12)
    assert all(part["model.layers.1.mlp.down_proj.weight"].abs().max() > 0 for part in alone)


def test_every_parameter_moves():
    model = tiny_model(
        "llama", state_norm="rmsnorm", input_injection="concat", num_prelude_layers=1, num_coda_layers=1
    ).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    ids = random_ids(8, 12)
    losses = []
    for _ in range(5):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("weights", ["uniform", "geometric"])
@pytest.mark.parametrize("labelled_only", [False, True])
def test_loss_over_recurrences_is_the_weighted_sum_of_runs(weights, labelled_only):
    model = tiny_model(num_coda_layers=1).train()
    ids = random_ids(3, 6)
    labels = torch.where(torch.rand(3, 6) < 0.5, -100, ids)
    weights = torch.full((4,), 0.25) if weights == "uniform" else 0.5 ** torch.arange(4, 0, -1)
    output = model(
        ids, labels=labels, num_recurrences=4, recurrence_loss_weights=weights, labelled_logits_only=labelled_only
    )
    expected = sum(w * model(ids, labels=labels, num_recurrences=t + 1).loss for t, w in enumerate(weights))
    assert relative_error(output.loss, expected) < 1e-5
    with pytest.raises(ValueError, match="recurrence_loss_weights holds 4"):
        model(ids, labels=labels, num_recurrences=5, recurrence_loss_weights=weights)
    with pytest.raises(ValueError, match="recurrence_loss_weights holds 4"):
        model(ids, labels=labels, num_recurrences=3, recurrence_loss_weights=weights)
    with pytest.raises(ValueError, match="labels"):
        model(ids, num_recurrences=4, recurrence_loss_weights=weights)


def test_logits_only_where_there_are_labels():
    model = tiny_model()
    ids = random_ids(3, 6)
    labels = torch.where(torch.rand(3, 6) < 0.5, -100, ids)
    labels[0, 1] = ids[0, 1]
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    full = model(ids, labels=labels)
    for call in ({"labels": labels}, {"shift_labels": shifted}):
        part = model(ids, labelled_logits_only=True, **call)
        assert torch.equal(part.logits, full.logits[shifted != -100])
        assert relative_error(part.loss, full.loss) < 1e-6
        items = model(ids, labelled_logits_only=True, num_items_in_batch=50, **call)
        assert relative_error(items.loss, full.loss * (shifted != -100).sum() / 50) < 1e-6
    assert relative_error(model(ids, shift_labels=shifted).loss, full.loss) < 1e-6
    with pytest.raises(ValueError, match="labels"):
        model(ids, labelled_logits_only=True)


class TestSampling:
    DISTRIBUTIONS = [
        {"recurrence_sampling": "fixed", "num_recurrences": 5},
        {"recurrence_sampling": "uniform", "recurrence_min": 3, "recurrence_max": 9},
        {"recurrence_sampling": "poisson", "num_recurrences": 4, "recurrence_min": 2, "recurrence_max": 8},
        {"recurrence_sampling": "lognormal_poisson", "num_recurrences": 8},
    ]

    @pytest.mark.parametrize("fields", DISTRIBUTIONS)
    def test_draws(self, fields):
        config = tiny_config(**fields)
        draws = torch.tensor([sample_num_recurrences(config, 7, step) for step in range(4000)]).float()
        assert draws.tolist() == [sample_num_recurrences(config, 7, step) for step in range(4000)]
        other = [sample_num_recurrences(config, 8, step) for step in range(4000)]
        mean = {"fixed": 5, "uniform": 6, "poisson": 4.05, "lognormal_poisson": 8}[config.recurrence_sampling]
        assert abs(draws.mean().item() - mean) < 0.2
        if config.recurrence_sampling == "fixed":
            return
        assert draws.tolist() != other
        assert draws.min() >= (config.recurrence_min or 1) and draws.max() <= (config.recurrence_max or 1000)
        neighbours = torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1]
        assert abs(neighbours.item()) < 0.06
        if config.recurrence_sampling == "uniform":
            assert (torch.bincount(draws.long())[3:] - 4000 / 7).abs().max() < 120
        if config.recurrence_sampling == "poisson":
            # P(2 or fewer) = e^-4 (1 + 4 + 8)
            assert abs((draws == 2).float().mean().item() - 0.238) < 0.03

    def test_training_mode_draws_for_itself(self):
        fields = {"recurrence_sampling": "uniform", "recurrence_min": 2, "recurrence_max": 6}
        ids = random_ids(1, 3)

        def draws(calls=20, seed=None):
            model = tiny_model(**fields).train()
            torch.manual_seed(seed)
            return [int(model(ids).num_recurrences[0]) for _ in range(calls)]

        first = draws(seed=3)
        assert len(set(first)) >= 4 and set(first) <= set(range(2, 7))
        # As dropout: from the seed, or from the state of the generator, which a checkpoint of a trainer holds.
        assert first == draws(seed=3) and first != draws(seed=4)
        start = draws(calls=10, seed=3)
        state = torch.get_rng_state()
        model = tiny_model(**fields).train()
        torch.set_rng_state(state)
        assert first == [*start, *(int(model(ids).num_recurrences[0]) for _ in range(10))]
        assert tiny_model(**fields)(ids).num_recurrences.tolist() == [3]

    def test_several_processes_draw_from_the_seed_of_the_config(self, monkeypatch, caplog):
        """That they agree is tested in test_ranks.py."""
        fields = {"recurrence_sampling": "uniform", "recurrence_min": 2, "recurrence_max": 6}
        ids, warnings = random_ids(1, 3), []
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(sampling_recurrent.logger, "warning_once", warnings.append)

        def draws(**more):
            model = tiny_model(**fields, **more).train()
            before = torch.get_rng_state()
            drawn = [int(model(ids).num_recurrences[0]) for _ in range(20)]
            assert torch.equal(torch.get_rng_state(), before)
            return drawn

        first = draws()
        assert len(warnings) == 1 and "A resumed run starts with the first pass again" in warnings[0]
        assert first == draws() and first != draws(recurrence_seed=1)
        config = tiny_config(**fields)
        assert first == [sample_num_recurrences(config, 0, step) for step in range(20)]

    def test_a_pass_that_is_repeated_for_its_gradients_has_the_same_depth(self):
        """Checkpointing of the whole model."""
        fields = {"recurrence_sampling": "uniform", "recurrence_min": 1, "recurrence_max": 9, "residual_dropout": 0.2}
        model = tiny_model(state_init="normal", input_injection="add", **fields).train()
        embeds = model.get_input_embeddings()(random_ids(2, 5)).detach().requires_grad_()

        def losses(run):
            torch.manual_seed(7)
            depths = []

            def forward(values):
                output = model(inputs_embeds=values)
                depths.append(int(output.num_recurrences[0]))
                return output.logits.square().mean()

            found = []
            for _ in range(5):
                embeds.grad = None
                run(forward, embeds).backward()
                found.append(embeds.grad.clone())
            return depths, found

        depths, plain = losses(lambda forward, values: forward(values))
        again, checkpointed = losses(partial(checkpoint, use_reentrant=False))
        assert again == [depth for depth in depths for _ in range(2)] and len(set(depths)) > 1
        assert all(torch.equal(left, right) for left, right in zip(plain, checkpointed, strict=True))

    def test_replicas_that_share_a_model_draw_on(self):
        """`nn.DataParallel` copies the attributes of a module for every step; its draws must not restart."""
        model = tiny_model(recurrence_sampling="uniform", recurrence_min=1, recurrence_max=9).train()
        ids = random_ids(1, 3)
        drawn = []
        for _ in range(12):
            replica = copy.copy(model.model)
            drawn.append(int(replica(ids).num_recurrences[0]))
        assert len(set(drawn)) >= 4

    def test_a_fixed_depth_draws_nothing(self):
        model = tiny_model(input_injection="add").train()
        ids = random_ids(2, 3)
        before = torch.get_rng_state()
        model(ids, labels=ids).loss.backward()
        assert torch.equal(torch.get_rng_state(), before)

    def test_noise_is_new_at_every_training_forward(self):
        model = tiny_model(state_init="normal", input_injection="add", num_recurrences=1).train()
        ids = random_ids(1, 4)
        states = [model(ids, output_hidden_states=True).hidden_states[0] for _ in range(3)]
        assert not torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])
        fixed = [model(ids, output_hidden_states=True, state_seed=5).hidden_states[0] for _ in range(2)]
        assert torch.equal(*fixed)

    def test_without_gradients_the_depth_is_that_of_inference(self):
        """Scoring in training mode, as in reinforcement learning."""
        model = tiny_model(recurrence_sampling="uniform", recurrence_min=4, recurrence_max=9, num_recurrences=3)
        ids = random_ids(2, 5)
        expected = model(ids, halting_criterion="state_difference", state_difference_threshold=0.9)
        model.config.halting_criterion, model.config.state_difference_threshold = "state_difference", 0.9
        model.train()
        with torch.no_grad():
            output = model(ids)
        assert torch.equal(output.num_recurrences, expected.num_recurrences)
        assert int(model(ids).num_recurrences[0]) >= 4


@pytest.mark.parametrize("state_init", ["embedding", "normal"])
@pytest.mark.slow
def test_a_training_step_at_fixed_depth_compiles_whole(state_init):
    model = tiny_model("llama", input_injection="add", state_norm="rmsnorm", state_init=state_init).train()
    expected = gradients(model, state_seed=5)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert same(gradients(compiled, state_seed=5), {f"_orig_mod.{n}": g for n, g in expected.items()}, 1e-4)
    if state_init == "normal":
        ids = random_ids(2, 5)
        first, second = (compiled(ids).logits for _ in range(2))
        assert first.isfinite().all() and not torch.allclose(first, second)


class TestShortRows:
    """Training on a CPU uses the kernel that is faster for short rows, in every trainer."""

    def kernels(self, model, ids, monkeypatch, grad=True):
        seen = []
        attend = torch.nn.functional.scaled_dot_product_attention

        def watch(*args, **kwargs):
            seen.append((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
            return attend(*args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
        with torch.set_grad_enabled(grad):
            logits = model(ids).logits
        monkeypatch.undo()
        return set(seen), logits

    def test_which_kernel_runs(self, monkeypatch):
        model = tiny_model("llama", max_position_embeddings=256).train()
        plain, blocked = {(False, True)}, {(True, True)}
        assert self.kernels(model, random_ids(2, 128), monkeypatch)[0] == plain
        assert self.kernels(model, random_ids(2, 129), monkeypatch)[0] == blocked
        assert self.kernels(model, random_ids(2, 8), monkeypatch, grad=False)[0] == blocked
        # Nothing is left behind.
        assert torch.backends.cuda.flash_sdp_enabled()

    def test_it_is_the_same_arithmetic(self, monkeypatch):
        model = tiny_model("llama").double().train()
        ids = random_ids(2, 9)
        assert relative_error(model(ids).logits, self.kernels(model, ids, monkeypatch, grad=False)[1]) < 1e-12
