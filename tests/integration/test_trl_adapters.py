"""TRL's SFTTrainer on adapters with trained rows: the loss and the gradients are those of the model itself."""

import pytest
import torch
from datasets import Dataset
from small_adapters import SCHEME, adapted, save_base

from memreason_hf.adapters.modes import load_adapter


trl = pytest.importorskip("trl", reason="trl is not installed")

TEXTS = [f"the first step {token} is a reason" for token in SCHEME.tokens]


def sft_trainer(folder, model, tokenizer, **arguments):
    config = trl.SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(TEXTS),
        max_length=64,
        report_to="none",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        max_grad_norm=0.0,
        weight_decay=0.0,
        **{"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "save_strategy": "no", **arguments},
    )
    rows = Dataset.from_dict({"text": TEXTS})
    return trl.SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ["lora", "lora+tokens"])
def test_sft_trains_what_the_model_computes(mode, tied, tmp_path):
    """A step of SGD with the rate 1 is the gradient. The control: without the rows the loss is another one."""
    model, tokenizer = adapted(save_base(tmp_path / "base", tied=tied), mode, lora_dropout=0.0, lora_targets="all")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "trainable_tokens_delta" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = tokenizer([text + tokenizer.eos_token for text in TEXTS], padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()))))
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    with torch.no_grad(), model.disable_adapter():
        other = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    trainer = sft_trainer(tmp_path / "run", model, tokenizer)
    trainer.train()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(float(loss), rel=1e-4) and abs(float(other - loss)) > 1e-2
    for name, parameter in trained.items():
        torch.testing.assert_close(before[name] - parameter.detach(), gradients[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_trained_adapter_is_saved_and_loaded(tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base", tied=True), "lora+tokens")
    trainer = sft_trainer(tmp_path / "run", model, tokenizer, save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    loaded, _ = load_adapter(tmp_path / "run" / "checkpoint-2")
    stored = model.stored_weights()
    assert all(torch.equal(value, stored[name]) for name, value in loaded.stored_weights().items())


def test_the_rows_alone_are_refused_by_trl(tmp_path):
    """In the mode `tokens` the head itself is an adapter layer. TRL's message says that it would not be trained."""
    model, tokenizer = adapted(save_base(tmp_path / "base", tied=True), "tokens")
    with pytest.raises(ValueError, match="Applying a PEFT adapter to `lm_head` is not supported"):
        sft_trainer(tmp_path / "run", model, tokenizer)
