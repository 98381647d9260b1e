"""What is trained moves, everything else stays bit for bit; LoRA is saved merged, and resumes unmerged."""

import pytest
import torch
from small_runs import assert_same_weights, weights
from small_texts import small_rows, small_text_model, small_text_trainer
from transformers import AutoModelForCausalLM

from memreason_hf.training.text.parts import PartArguments, choose_parts, merged_state_dict
from memreason_hf.training.text.trainer import TRAINED_FILE


MODELS = [{}, {"input_injection": "concat", "num_recurrent_layers": 2, "tie_word_embeddings": True}]


def in_loop(model, name):
    parameter = model.get_parameter(name)
    decoder = model.model
    modules = [*decoder.recurrent_layers, decoder.injection, decoder.state_norm]
    return any(parameter is other for module in modules if module is not None for other in module.parameters())


def in_layers(model, name):
    parameter = model.get_parameter(name)
    return any(parameter is other for layer in model.model.recurrent_layers for other in layer.parameters())


@pytest.mark.parametrize("extra", MODELS, ids=str)
@pytest.mark.parametrize("train", ["all", "loop"])
def test_what_is_trained_moves_and_nothing_else(tmp_path, train, extra):
    model = small_text_model(**extra)
    choose_parts(model, PartArguments(train=train))
    start, looped = weights(model), {name for name, _ in model.named_parameters() if in_loop(model, name)}
    assert 0 < len(looped) < len(start)
    trainer = small_text_trainer(tmp_path, model=model, weight_decay=0.1)
    trainer.train()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, start[name])}
    assert moved == (set(start) if train == "all" else looped)


@pytest.mark.parametrize("extra", MODELS, ids=str)
@pytest.mark.parametrize("targets", ["all", "mlp"])
def test_lora_in_the_loop(tmp_path, targets, extra):
    model = small_text_model(**extra)
    start = weights(model)
    looped = {name for name in start if in_layers(model, name)}
    re_entry = {name for name in start if in_loop(model, name)} - looped
    ids = torch.arange(2, 12)[None]
    before = model.eval()(ids).logits
    choose_parts(model, PartArguments(train="lora", lora_r=4, lora_targets=targets, lora_dropout=0.1))
    assert torch.equal(model.eval()(ids).logits, before)
    updated = {name for name in weights(model) if "lora_" in name}
    assert updated and all(in_layers(model, name) for name in updated)
    assert any("qkv" in name or "q_proj" in name for name in updated) == (targets == "all")
    begin = weights(model)
    trainer = small_text_trainer(tmp_path, model=model)
    trainer.train()
    moved = {name for name, value in weights(model).items() if not torch.equal(value, begin[name])}
    assert moved == updated | re_entry
    # Saved merged: an ordinary model with the same logits.
    trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert weights(loaded).keys() == start.keys()
    with torch.no_grad():
        expected = model.eval()(ids).logits
        assert torch.allclose(loaded(ids).logits, expected, atol=1e-5)
        assert not torch.allclose(expected, before, atol=1e-3)
    # So are checkpoints.
    checkpoint = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-10")
    assert_same_weights(weights(checkpoint), weights(loaded))
    changed = {name for name, value in weights(loaded).items() if not torch.equal(value, start[name])}
    assert re_entry < changed < looped | re_entry
    assert (tmp_path / "checkpoint-10" / TRAINED_FILE).is_file() and not (tmp_path / TRAINED_FILE).exists()


def test_lora_resumes_bit_for_bit(tmp_path):
    def trainer(folder):
        model = small_text_model(input_injection="concat")
        choose_parts(model, PartArguments(train="lora", lora_r=4))
        # As a new process would start: other updates, until those of the checkpoint are loaded.
        return small_text_trainer(folder, model=model)

    whole = trainer(tmp_path / "whole")
    whole.train()
    parts = trainer(tmp_path / "parts")
    parts.args.max_steps = 10
    parts.train()
    resumed = trainer(tmp_path / "parts")
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-6"))
    assert resumed.resumed_from.endswith("checkpoint-6")
    assert_same_weights(weights(resumed.model), weights(whole.model))


def test_merging_is_what_peft_computes():
    model = small_text_model()
    choose_parts(model, PartArguments(train="lora", lora_r=4, lora_alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.arange(2, 12)[None]
    plain = small_text_model().eval()
    missing = plain.load_state_dict(merged_state_dict(model))
    assert not missing.missing_keys and not missing.unexpected_keys
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, model.eval()(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"train": "head"}, "model.train='head' must be one of all, loop, lora"),
        ({"train": "lora", "lora_r": 0}, "model.lora_r=0 must be at least 1"),
        ({"train": "lora", "lora_alpha": 0}, "model.lora_alpha=0 must be above 0"),
        ({"train": "lora", "lora_dropout": 1}, "model.lora_dropout=1 must be at least 0 and below 1"),
        ({"lora_targets": "head"}, "model.lora_targets='head' must be one of"),
    ],
)
def test_impossible_parts(values, message):
    with pytest.raises(ValueError, match=message):
        PartArguments(**values)


def test_the_best_model_of_a_lora_run_is_refused(tmp_path):
    model = small_text_model()
    choose_parts(model, PartArguments(train="lora"))
    with pytest.raises(ValueError, match="load_best_model_at_end and FSDP are not supported with low-rank updates"):
        small_text_trainer(
            tmp_path,
            model=model,
            eval_dataset=small_rows(count=20, seed=9),
            load_best_model_at_end=True,
            eval_strategy="steps",
            save_steps=2,
            eval_steps=2,
        )


@pytest.mark.parametrize("train", ["loop", "lora"])
def test_gradient_checkpointing_with_frozen_layers(tmp_path, train):
    """Nothing before the loop has a gradient, so checkpointing must not wait for one at its input."""

    def trained(name, **arguments):
        torch.manual_seed(0)
        model = small_text_model(residual_dropout=0.0)
        choose_parts(model, PartArguments(train=train, lora_r=4))
        small_text_trainer(tmp_path / name, model=model, max_steps=3, **arguments).train()
        return weights(model)

    plain, checkpointed = trained("plain"), trained("checkpointed", gradient_checkpointing=True)
    for name, value in plain.items():
        assert torch.allclose(value, checkpointed[name], rtol=1e-4, atol=1e-6), name
