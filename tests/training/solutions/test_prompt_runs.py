"""Fine-tuning virtual prompt tokens: the loss is that of ordinary tokens in front, and runs resume exactly."""

import copy

import pytest
import torch
from small_adapters import save_base
from small_finetunes import ITEMS, SCHEME, small_finetune, small_tokenizer
from small_runs import assert_same_weights, weights
from small_tokenizers import MODELS
from transformers import AutoModelForCausalLM

from memreason_hf.adapters.modes import AdapterArguments, add_adapter, load_adapter
from memreason_hf.data.questions.encoding import encode_solutions
from memreason_hf.steps.tokenization import extend_tokenizer


TEXT = "the first step is a memory"


def prompted(base):
    tokenizer = small_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(base)
    extend_tokenizer(tokenizer, SCHEME, model)
    return add_adapter(model, tokenizer, AdapterArguments("prompt", prompt_init_text=TEXT))


def loss_with_real_tokens(model):
    """The mean loss over all solutions, row by row, where the virtual tokens are rows of the vocabulary."""
    base = copy.deepcopy(model.get_base_model()).eval()
    rows, count = base.get_input_embeddings().weight.shape[0], model.num_virtual_tokens
    base.resize_token_embeddings(rows + count, mean_resizing=False)
    total, labels = 0.0, 0
    with torch.no_grad():
        base.get_input_embeddings().weight[rows:] = model.prompt_encoder["default"].embedding.weight
        for row in encode_solutions(small_tokenizer(), ITEMS)[0]:
            ids = torch.tensor([[*range(rows, rows + count), *row["input_ids"]]])
            logits = base(ids).logits[0, count:, :rows]
            wanted = torch.tensor(row["label_ids"])
            total += float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum"))
            labels += int(wanted.ne(-100).sum())
    return total / labels


@pytest.mark.parametrize("family", MODELS)
def test_a_run(family, tmp_path):
    base = save_base(tmp_path / "base", family)
    model = prompted(base)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = loss_with_real_tokens(model)
    arguments = {"per_device_train_batch_size": len(ITEMS), "num_train_epochs": 4, "length_pool": 1}
    trainer = small_finetune(tmp_path / "run", model=model, learning_rate=0.05, **arguments)
    before = weights(model)
    trainer.train()
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, rel=1e-4) and losses[-1] < losses[0]
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"prompt_encoder.default.embedding.weight"}
    assert [entry["eval_num_test"] for entry in history if "eval_acc" in entry] == [len(ITEMS)] * 4

    again = small_finetune(tmp_path / "run", model=prompted(base), learning_rate=0.05, **arguments)
    for module in again.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert_same_weights(weights(again.model), weights(model))
    trainer.save_model()
    loaded, _ = load_adapter(tmp_path / "run")
    assert torch.equal(loaded.stored_weights()["prompt_embeddings"], model.stored_weights()["prompt_embeddings"])
