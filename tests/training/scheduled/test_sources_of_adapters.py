"""`keep_weight` where an adapter is trained: the source shares the frozen base, and a run resumes exactly."""

import torch
from small_finetunes import small_finetune, small_model, small_tokenizer
from small_runs import assert_same_weights, weights
from transformers import TrainerCallback

from memreason_hf.adapters.modes import AdapterArguments, add_adapter


RUN = {"keep_weight": 2.0, "consistency_weight": 0.5, "first_weight": 0.3, "eval_strategy": "no", "save_steps": 2}
RUN |= {"max_steps": 5, "save_strategy": "steps"}


def with_lora():
    model = small_model("recurrent")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = add_adapter(model, small_tokenizer(), AdapterArguments("lora", lora_dropout=0.2))
        # As after a training: an adapter that has an effect, which switching it off would lose.
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    return model


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= 3


def test_the_source_is_the_model_with_its_adapter(tmp_path):
    trainer = small_finetune(tmp_path, model=with_lora(), **RUN)
    own, source = dict(trainer.model.named_parameters()), dict(trainer.source.model.named_parameters())
    copied = {name for name in own if source[name] is not own[name]}
    assert copied == {name for name in own if "lora_" in name}
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Dropout keeps the first one above 0.
    assert 0 < logs[0]["keep_loss"] < logs[-1]["keep_loss"]
    assert {"main_loss", "first_loss", "keep_loss", "consistency_loss"} <= set(logs[0])
    before = with_lora()
    expected = dict(before.named_parameters())
    assert all(torch.equal(source[name], expected[name]) for name in copied)
    assert any(not torch.equal(own[name], expected[name]) for name in copied)


def test_a_run_with_an_adapter_and_a_source_resumes_exactly(tmp_path):
    whole = small_finetune(tmp_path / "whole", model=with_lora(), **RUN)
    whole.train()
    small_finetune(tmp_path / "parts", model=with_lora(), callbacks=[StopAt()], **RUN).train()
    again = small_finetune(tmp_path / "parts", model=with_lora(), **RUN)
    again.train(resume_from_checkpoint=True)
    assert again.resumed_from.endswith(("checkpoint-2", "checkpoint-3"))
    assert_same_weights(weights(again.model), weights(whole.model))
