"""The terms of a training step, each against an independent computation from separate forward passes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from processes import load_result, run_ranks, save_result
from small_runs import assert_same_weights, small_chains, small_model, small_trainer, weights
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from memreason_hf.training import ChainCollator
from memreason_hf.training.runs.errors import OutputFolderError
from memreason_hf.training.scheduled.losses import LossWeights, StepLoss, relative_entropy
from memreason_hf.training.scheduled.source import FrozenSource
from memreason_hf.training.scheduled.trainer import may_leave_out_parameters


MODEL = {
    "residual_dropout": 0.0,
    "recurrence_min": 3,
    "recurrence_max": 3,
    "num_prelude_layers": 1,
    "num_coda_layers": 1,
    "input_injection": "concat",
    "initializer_range": 0.2,
}
TERMS = {
    "first": {"first_weight": 0.7},
    "keep": {"keep_weight": 1.3},
    "consistency": {"consistency_weight": 0.6, "consistency_recurrences": 2},
}
ALL = {name: value for term in TERMS.values() for name, value in term.items()}
RUN = {"supervision": "prefix", "max_steps": 4, "logging_steps": 1, "save_strategy": "no"}
DEPTH = 3


def model_with_history(**fields):
    """A model that is not where its source is: the copy is made before the weights change."""
    model = small_model(**{**MODEL, **fields})
    source = copy.deepcopy(model).eval()
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.train(), source


def inputs_and_labels(rows=12):
    tokenizer, train, _ = small_chains()
    batch = ChainCollator(tokenizer.pad_token_id, "prefix")([train[index] for index in range(0, 4 * rows, 4)])
    labels = batch.pop("shift_labels")
    return dict(batch), labels


def separate(model, source, arguments, state_seed=None, **model_arguments):
    """The weighted terms by separate forward passes, over all labels, divided by 50."""
    inputs, labels = inputs_and_labels()
    at = labels != -100
    inputs |= model_arguments | ({} if state_seed is None else {"state_seed": state_seed})

    def logits(network, depth):
        return network(**inputs, num_recurrences=depth).logits[at]

    def entropy(depth):
        return F.cross_entropy(logits(model, depth), labels[at], reduction="sum") / 50

    def distance(target, found):
        return F.kl_div(found.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="sum") / 50

    terms = {"main": (1.0, entropy(DEPTH))}
    if "first_weight" in arguments:
        terms["first"] = (arguments["first_weight"], entropy(1))
    if "keep_weight" in arguments:
        with torch.no_grad():
            target = logits(source, 1)
        terms["keep"] = (arguments["keep_weight"], distance(target, logits(model, 1)))
    if "consistency_weight" in arguments:
        with torch.no_grad():
            target = logits(model, DEPTH)
        deeper = logits(model, DEPTH + arguments["consistency_recurrences"])
        terms["consistency"] = (arguments["consistency_weight"], distance(target, deeper))
    return terms


def in_one_pass(model, source, arguments, main="last", **model_arguments):
    inputs, labels = inputs_and_labels()
    loss_weights = LossWeights(
        main=main,
        first=arguments.get("first_weight", 0.0),
        keep=arguments.get("keep_weight", 0.0),
        consistency=arguments.get("consistency_weight", 0.0),
        consistency_recurrences=arguments.get("consistency_recurrences", 1),
    )
    arguments = {**inputs, **model_arguments, "shift_labels": labels}
    source_logits = FrozenSource(source).logits(arguments) if loss_weights.keep else None
    loss = StepLoss(loss_weights, DEPTH, 50, source_logits)
    output = model(
        **arguments,
        num_recurrences=loss_weights.depth(DEPTH),
        recurrence_loss=loss,
        labelled_logits_only=True,
        num_items_in_batch=50,
    )
    return output.loss, loss.terms


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        scale = right[name].abs().max().item()
        assert torch.allclose(value, right[name], rtol=1e-4, atol=1e-5 * max(scale, 1e-3)), name


@pytest.mark.parametrize("kind", ["concat", "noise", "gate"])
@pytest.mark.parametrize("arguments", [*TERMS.values(), ALL], ids=[*TERMS, "all"])
def test_every_term_equals_separate_forward_passes(arguments, kind):
    fields = {"input_injection": "gate", "injection_gate_init": 0.6} if kind == "gate" else {}
    noise = kind == "noise"
    fields |= {"state_init": "normal"} if noise else {}
    model, source = model_with_history(**fields)
    extra = {"state_seed": 5} if noise else {}
    expected = separate(model, source, arguments, **extra)
    loss, terms = in_one_pass(model, source, arguments, **extra)
    assert terms.keys() == expected.keys()
    for name, (_, value) in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4) and value.item() > 1e-3, name
        assert not terms[name].requires_grad
    total = sum(weight * value for weight, value in expected.values())
    found = gradients(model, loss)
    assert_same_gradients(found, gradients(model, total))
    assert set(found) == {name for name, _ in model.named_parameters()}
    # The control: without the terms the gradient is another one.
    plain = gradients(model, separate(model, source, {}, **extra)["main"][1])
    assert any(not torch.allclose(found[name], plain[name], rtol=1e-2) for name in found)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_relative_entropy_in_parts(rows, monkeypatch):
    torch.manual_seed(0)
    target, logits = torch.randn(rows, 7) * 3, (torch.randn(rows, 7) * 3).requires_grad_()
    expected = F.kl_div(logits.log_softmax(-1), target.softmax(-1), reduction="sum")
    for at_once in (7, 20, 10**6):
        monkeypatch.setattr("memreason_hf.training.scheduled.losses._AT_ONCE", at_once)
        found = relative_entropy(target, logits)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(found, logits)
        assert gradient.shape == logits.shape
        if rows:
            (wanted,) = torch.autograd.grad(expected, logits, retain_graph=True)
            assert torch.allclose(gradient, wanted, atol=1e-6) and wanted.abs().max() > 1e-2
    # It is 0 where both agree, and not symmetric.
    assert relative_entropy(logits, logits).item() == pytest.approx(0, abs=1e-6)
    if rows:
        assert relative_entropy(logits, target).item() != pytest.approx(expected.item(), rel=1e-2)


def test_losses_at_all_recurrences_together_with_the_other_terms():
    model, source = model_with_history()
    loss, terms = in_one_pass(model, source, ALL, main="uniform")
    expected = separate(model, source, ALL)
    inputs, labels = inputs_and_labels()
    at = labels != -100
    each = [
        F.cross_entropy(model(**inputs, num_recurrences=r).logits[at], labels[at], reduction="sum")
        for r in range(1, DEPTH + 1)
    ]
    main = sum(each) / DEPTH / 50
    assert terms["main"].item() == pytest.approx(main.item(), rel=1e-5)
    assert terms["main"].item() != pytest.approx(expected["main"][1].item(), rel=1e-3)
    total = main + sum(weight * value for name, (weight, value) in expected.items() if name != "main")
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert_same_gradients(gradients(model, loss), gradients(model, total))


def test_depth_one_has_all_terms():
    """The drawn depth is then also the first recurrence."""
    model, source = model_with_history()
    inputs, labels = inputs_and_labels()
    loss_weights = LossWeights(first=0.7, keep=1.0, consistency=0.5, consistency_recurrences=1)
    source_logits = FrozenSource(source).logits({**inputs, "shift_labels": labels})
    loss = StepLoss(loss_weights, 1, 50, source_logits)
    model(**inputs, shift_labels=labels, num_recurrences=2, recurrence_loss=loss, labelled_logits_only=True)
    assert set(loss.terms) == {"main", "first", "keep", "consistency"}
    assert loss.terms["main"].item() == loss.terms["first"].item()


# ---- The trainer ----


def llama(vocab_size):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **sizes))


def step_gradients(trainer):
    """The gradients and logs of the first training step."""
    found = {}

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if not found:
                model = trainer.accelerator.unwrap_model(trainer.model)
                found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    trainer.add_callback(Note())
    trainer.train()
    return found, [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("arguments", [*TERMS.values(), ALL], ids=[*TERMS, "all"])
def test_terms_are_logged_apart_and_add_up(tmp_path, arguments):
    trainer = small_trainer(tmp_path, small_model(**MODEL), **RUN, **arguments)
    _, logs = step_gradients(trainer)
    names = {"first": "first_weight", "keep": "keep_weight", "consistency": "consistency_weight"}
    expected = {f"{name}_loss" for name, weight in names.items() if weight in arguments} | {"main_loss"}
    for entry in logs:
        assert {name for name in entry if name.endswith("_loss")} == expected
        total = entry["main_loss"] + sum(
            arguments[weight] * entry[f"{name}_loss"] for name, weight in names.items() if weight in arguments
        )
        assert entry["loss"] == pytest.approx(total, abs=2e-4)
        assert entry["num_recurrences"] == DEPTH
    if "keep_weight" in arguments:
        # At first the model is its source; later it is not.
        assert logs[0]["keep_loss"] == pytest.approx(0, abs=1e-6) and logs[-1]["keep_loss"] > 1e-5


def test_without_terms_nothing_changes(tmp_path):
    """The control of all others: weights of 0 train as before, bit for bit, and log no terms."""
    off = {"first_weight": 0.0, "keep_weight": 0.0, "consistency_weight": 0.0, "consistency_recurrences": 3}
    plain = small_trainer(tmp_path / "plain", small_model(**MODEL), **RUN)
    without = small_trainer(tmp_path / "off", small_model(**MODEL), **RUN, **off)
    logs = [step_gradients(trainer)[1] for trainer in (plain, without)]
    assert_same_weights(weights(plain.model), weights(without.model))
    assert not any(name.endswith("_loss") for name in logs[1][0])
    for name, arguments in TERMS.items():
        trainer = small_trainer(tmp_path / name, small_model(**MODEL), **RUN, **arguments)
        trainer.train()
        with pytest.raises(AssertionError):
            assert_same_weights(weights(plain.model), weights(trainer.model))


def test_keep_holds_one_recurrence_where_it_was(tmp_path):
    """What the term is for: the more it weighs, the less one recurrence moves."""
    inputs, labels = inputs_and_labels()

    def moved(**arguments):
        model = small_model(**MODEL)
        before = model.eval()(**inputs, num_recurrences=1).logits[labels != -100]
        run = {**RUN, "max_steps": 40}
        small_trainer(tmp_path / str(len(list(tmp_path.iterdir()))), model, **run, **arguments).train()
        with torch.no_grad():
            after = model.eval()(**inputs, num_recurrences=1).logits[labels != -100]
        return float(relative_entropy(before, after) / len(before))

    free, kept, held = moved(), moved(keep_weight=1.0), moved(keep_weight=30.0)
    assert free > 3 * kept > 3 * held


def test_consistency_keeps_deeper_recurrences_near_the_drawn_ones(tmp_path):
    """What the term is for, also far beyond the recurrences that it sees."""
    inputs, labels = inputs_and_labels()
    at = labels != -100

    def trained(name, **arguments):
        # Plain repetition, which has no fixed point by itself.
        model = small_model(**{**MODEL, "state_norm": "none", "input_injection": "none"})
        small_trainer(tmp_path / name, model, **{**RUN, "max_steps": 40}, **arguments).train()
        with torch.no_grad():
            some, many = (model.eval()(**inputs, num_recurrences=depth).logits[at] for depth in (DEPTH, 4 * DEPTH))
        return relative_entropy(some, many).item() / len(some)

    plain, consistent = trained("plain"), trained("consistency", consistency_weight=2.0, consistency_recurrences=3)
    assert consistent < 0.3 * plain


def test_the_source_is_another_model_if_one_is_named(tmp_path):
    torch.manual_seed(4)
    vocab_size = small_model().config.vocab_size
    plain = llama(vocab_size)
    recurrent = small_model(seed=9, **MODEL)
    for name, source in (("plain", plain), ("recurrent", recurrent)):
        source.save_pretrained(tmp_path / name)
        run = small_trainer(
            tmp_path / f"run-{name}", small_model(**MODEL), keep_weight=1.0, keep_model=str(tmp_path / name), **RUN
        )
        inputs, labels = inputs_and_labels()
        found = run.source.logits({**inputs, "shift_labels": labels})
        depth = {} if name == "plain" else {"num_recurrences": 1}
        with torch.no_grad():
            expected = source.eval()(**inputs, **depth).logits[labels != -100]
        assert torch.allclose(found, expected, atol=1e-6)
        _, logs = step_gradients(run)
        assert logs[0]["keep_loss"] > 1e-2
    other = small_model(vocab_size=vocab_size + 3, **MODEL)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size + 3}, but the model in training has {vocab_size}"):
        small_trainer(tmp_path / "run", small_model(), keep_weight=1.0, keep_model=str(tmp_path / "other"))


def test_a_copy_shares_what_is_frozen():
    model = small_model(**MODEL)
    model.model.embed_tokens.weight.requires_grad_(False)
    source = FrozenSource.copy_of(model)
    assert source.model.model.embed_tokens.weight is model.model.embed_tokens.weight
    own = dict(source.model.named_parameters())
    shared = {name for name, parameter in model.named_parameters() if own[name] is parameter}
    assert shared == {"model.embed_tokens.weight"}
    assert not any(parameter.requires_grad for parameter in own.values())
    assert model.model.norm.weight.requires_grad and model.training and not source.model.training


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= 5


RESUMED = {**RUN, "max_steps": 9, "save_strategy": "steps", "save_steps": 3}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, accumulation):
    fields = {**MODEL, "residual_dropout": 0.1, "recurrence_min": 1, "recurrence_max": 5, "backprop_recurrences": 2}
    arguments = {**RESUMED, **ALL, "recurrence_growth": "1-sqrt", "gradient_accumulation_steps": accumulation}
    whole = small_trainer(tmp_path / "whole", small_model(**fields), **arguments)
    whole.train()
    small_trainer(tmp_path / "parts", small_model(**fields), callbacks=[StopAt()], **arguments).train()
    again = small_trainer(tmp_path / "parts", small_model(**fields), **arguments)
    again.train(resume_from_checkpoint=True)
    assert again.resumed_from.endswith("checkpoint-3") or again.resumed_from.endswith("checkpoint-5")
    assert_same_weights(weights(again.model), weights(whole.model))


def test_a_run_cannot_be_resumed_with_another_source(tmp_path):
    arguments = {**RESUMED, **TERMS["keep"]}
    small_trainer(tmp_path, small_model(**MODEL), callbacks=[StopAt()], **arguments).train()
    with pytest.raises(OutputFolderError, match="keep_source"):
        small_trainer(tmp_path, small_model(seed=1, **MODEL), **arguments).train(resume_from_checkpoint=True)


def train(folder, result, world_size, accumulation, fields):
    trainer = small_trainer(
        folder,
        small_model(**MODEL, **fields),
        **{**RUN, "max_steps": 3, "max_grad_norm": 0.0},
        **ALL,
        per_device_train_batch_size=16 // world_size // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    found, logs = step_gradients(trainer)
    save_result(f"{result}-{trainer.args.process_index}", (found, logs))


@pytest.mark.parametrize(
    "world_size, accumulation, fields",
    # Truncated, the first recurrence has gradients from its own terms alone.
    [(1, 4, {}), (2, 1, {}), (2, 2, {}), (2, 1, {"backprop_recurrences": 1})],
    ids=["accumulation", "ranks", "both", "truncated"],
)
def test_accumulation_and_ranks_change_no_gradient(tmp_path, world_size, accumulation, fields):
    run_ranks(train, tmp_path / "one", tmp_path / "whole", 1, 1, fields, world_size=1)
    run_ranks(train, tmp_path / "parts", tmp_path / "part", world_size, accumulation, fields, world_size=world_size)
    expected, expected_logs = load_result(tmp_path / "whole-0")
    for rank in range(world_size):
        found, logs = load_result(tmp_path / f"part-{rank}")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name.endswith("qkv_proj.bias"):
                continue  # the gradient of a key's bias is only rounding
            assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-6), name
            assert value.abs().max() > 0, name
        for entry, wanted in zip(logs, expected_logs, strict=True):
            for name in ("main_loss", "first_loss", "keep_loss", "consistency_loss", "num_recurrences"):
                assert entry[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-5), name


def test_parameters_that_a_step_may_leave_out(tmp_path):
    fields = {"recurrence_min": 2, "recurrence_max": 4}
    config = small_model(**fields).config

    def of(config, **arguments):
        return may_leave_out_parameters(config, small_trainer(tmp_path, small_model(**fields), **arguments).args)

    assert not of(config)
    # A depth that grows from 1 is bounded by recurrence_min alone.
    assert not of(config, recurrence_growth="linear")
    # What stands between two recurrences: here a norm, elsewhere an adapter or a gate.
    fixed = {"recurrence_sampling": "fixed", "num_recurrences": 3, "recurrence_min": None, "recurrence_max": None}
    for injection in ("none", "concat", "gate"):
        other = small_model(state_norm="none", input_injection=injection, **fixed).config
        assert not of(other)
        assert of(other, recurrence_growth="linear") == (injection != "none")
    shallow = small_model(recurrence_min=1).config
    assert of(shallow)
    # The extra recurrence always uses what stands between two of them.
    assert not of(shallow, consistency_weight=0.1)


def test_other_models_are_refused(tmp_path):
    vocab_size = small_model().config.vocab_size
    model = llama(vocab_size)
    for arguments in ({"keep_weight": 1.0}, {"recurrence_growth": "linear"}, {"recurrence_loss": "uniform"}):
        with pytest.raises(ValueError, match="for recurrent-depth models, but the model is a LlamaForCausalLM"):
            small_trainer(tmp_path, model, **arguments)


def test_gradient_checkpointing_changes_no_gradient(tmp_path):
    fields = {**MODEL, "residual_dropout": 0.1, "backprop_recurrences": 2}
    runs = [
        step_gradients(
            small_trainer(tmp_path / str(on), small_model(**fields), **RUN, **ALL, gradient_checkpointing=on)
        )
        for on in (False, True)
    ]
    assert_same_gradients(runs[1][0], runs[0][0])
    assert [e["loss"] for e in runs[0][1]] == pytest.approx([e["loss"] for e in runs[1][1]], rel=1e-5)


def test_the_source_computes_in_the_precision_of_the_run(tmp_path):
    """A source in float32 would take the time and memory that bf16 saves."""
    for bf16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        trainer = small_trainer(tmp_path / str(bf16), small_model(**MODEL), **RUN, **TERMS["keep"], bf16=bf16)
        dtypes = set()
        trainer.source.model.lm_head.register_forward_hook(lambda _, args, logits, into=dtypes: into.add(logits.dtype))
        _, logs = step_gradients(trainer)
        assert dtypes == {expected}
        # At first the model is its source, but for rounding.
        assert logs[0]["keep_loss"] < 1e-4 < logs[-1]["keep_loss"]
