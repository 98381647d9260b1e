"""Converted decoders train on packed text: rows are exact, the loop alone moves, one recurrence can be kept."""

import pytest
import torch
from family_models import VOCAB_SIZE, tiny_source
from recurrent_models import relative_error
from small_runs import assert_same_weights, weights
from small_texts import small_rows, small_stream, small_text_model, small_text_trainer
from transformers import AutoModelForCausalLM

from memreason_hf.data.text.collator import TextCollator
from memreason_hf.data.text.packing import pack_documents
from memreason_hf.models.conversion.decoder import convert_decoder
from memreason_hf.training.text.parts import PartArguments, choose_parts


FAMILIES = ("llama", "gpt2", "qwen3", "gemma3_text")


def converted(family, **fields):
    source = tiny_source(family, vocab_size=fields.pop("vocab_size", VOCAB_SIZE))
    depths = {"num_recurrences": 2, "recurrence_sampling": "uniform", "recurrence_min": 1, "recurrence_max": 3}
    return convert_decoder(source, prelude=2, loop=2, coda=2, injection_gate_init=0.5, **{**depths, **fields})


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_is_unpacked(family):
    model = converted(family).double()
    documents = [torch.randint(3, VOCAB_SIZE, (length,)).tolist() for length in (2, 9, 14, 6, 3, 30, 17, 2)]
    rows, _ = pack_documents(documents, 20)
    batch = TextCollator(0)(rows)
    labelled = batch["shift_labels"] != -100
    found = model(batch["input_ids"], position_ids=batch["position_ids"], num_recurrences=3).logits[labelled]
    pieces = [ids for row in rows for ids in torch.split(torch.tensor(row["input_ids"]), row["seq_lengths"].tolist())]
    expected = torch.cat([model(ids[None].long(), num_recurrences=3).logits[0] for ids in pieces])
    assert relative_error(found, expected) < 1e-6
    # The control: positions that go on.
    assert relative_error(model(batch["input_ids"], num_recurrences=3).logits[labelled], expected) > 1e-3


@pytest.mark.parametrize("part", ["loop", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loop_alone_moves(tmp_path, family, part):
    model = converted(family, vocab_size=300, recurrence_min=2)
    start = weights(model)
    decoder = model.model
    looped = {id(p) for layer in decoder.recurrent_layers for p in layer.parameters()}
    looped |= {id(p) for p in decoder.injection.parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in looped}
    choose_parts(model, PartArguments(train=part, lora_r=2))
    trainer = small_text_trainer(tmp_path, model=model, max_steps=4, save_strategy="no")
    trainer.train()
    trainer.save_model()
    after = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    moved = {name for name, value in start.items() if not torch.equal(after[name], value)}
    assert moved and moved <= names
    assert moved == names or part == "lora"
    assert "model.injection.weight" in moved


LOSSES = {
    "keep_weight": 1.0,
    "consistency_weight": 0.5,
    "first_weight": 0.3,
    "recurrence_growth": "1-sqrt",
    "recurrence_loss": "uniform",
}


@pytest.mark.parametrize("part", ["all", "lora"])
def test_losses_over_recurrences_resume_in_a_stream(tmp_path, part):
    def trainer(name):
        model = small_text_model(recurrence_min=1)
        choose_parts(model, PartArguments(train=part, lora_r=4))
        return small_text_trainer(tmp_path / name, small_stream(tmp_path / "texts"), model=model, **LOSSES)

    whole = trainer("run")
    whole.train()
    assert any("keep_loss" in entry for entry in whole.state.log_history), whole.state.log_history[0]
    resumed = trainer("run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert resumed.resumed_from.endswith("checkpoint-6")
    assert_same_weights(weights(resumed.model), weights(whole.model))


def test_keep_holds_the_first_recurrence(tmp_path):
    """With the weight, one recurrence stays nearer to where it was, on padded rows of several documents."""
    batch = TextCollator(0)([small_rows()[index] for index in range(8)])
    distances = {}
    for weight in (0.0, 30.0):
        model = small_text_model(recurrence_min=1, residual_dropout=0.0)
        with torch.no_grad():
            before = model.eval()(batch["input_ids"], position_ids=batch["position_ids"], num_recurrences=1).logits
        small_text_trainer(tmp_path / str(weight), model=model, keep_weight=weight, max_steps=20).train()
        with torch.no_grad():
            after = model.eval()(batch["input_ids"], position_ids=batch["position_ids"], num_recurrences=1).logits
        distances[weight] = (after - before).abs().mean().item()
    assert distances[30.0] < distances[0.0] / 2
