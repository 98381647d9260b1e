"""The models of the experiment, after a few training steps."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from memreason_hf.experiments.retrofit.evaluation import evaluate_chains
from memreason_hf.experiments.retrofit.training import (
    Recipe,
    convert_source,
    train_looped,
    train_source,
    train_static,
)
from memreason_hf.experiments.retrofit.world import draw_data
from modeling_recurrent.sampling_recurrent import sample_num_recurrences


# Depths beyond `backprop_recurrences`, so that gradients are cut off.
RECIPE = Recipe(source_steps=10, further_steps=4, batch_size=8, mean_recurrences=16, most_recurrences=18)


@pytest.fixture(scope="module")
def data():
    return draw_data(seed=0, num_test=6, num_source=80, num_further=32)


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrofit") / "source"
    training = train_source(folder, data[0], data[2], RECIPE, seed=0)
    assert training["steps"] == 10 and training["tokens"] == 10 * 8 * 17
    return folder


@pytest.fixture(scope="module")
def static(data, source):
    train_static(source.parent / "static", source, data[3], RECIPE, seed=0)
    return LlamaForCausalLM.from_pretrained(source.parent / "static")


def looped(data, source, recipe, folder):
    assert convert_source(folder / "converted", source, recipe, data[1], seed=0) == 0.0
    train_looped(folder / "looped", folder / "converted", data[3], recipe, seed=0)
    return AutoModelForCausalLM.from_pretrained(folder / "looped")


def test_the_source_is_a_llama_that_was_trained(source):
    model = LlamaForCausalLM.from_pretrained(source)
    assert model.config.num_hidden_layers == 4 and model.config.vocab_size == 15


def test_one_recurrence_takes_the_steps_of_the_static_model_bit_for_bit(data, source, static, tmp_path):
    model = looped(data, source, RECIPE, tmp_path)
    before = LlamaForCausalLM.from_pretrained(source)
    for name, weight in static.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name
        assert not torch.equal(before.get_parameter(name), weight), name
    # What deeper recurrences have in addition has learned, too.
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    added = [name for name, _ in model.named_parameters() if "lora" in name or "injection" in name]
    assert added and all(not torch.equal(model.get_parameter(name), start.get_parameter(name)) for name in added)
    # Gradients were cut off in some steps, but not those of the first recurrence.
    assert model.config.recurrence_gradients == "separate" and model.config.backprop_recurrences == 8
    assert max(sample_num_recurrences(model.config, 0, step) for step in range(RECIPE.further_steps)) > 9


def test_with_shared_gradients_it_does_not(data, source, static, tmp_path):
    model = looped(data, source, dataclasses.replace(RECIPE, gradients="shared"), tmp_path)
    assert not torch.equal(model.lm_head.weight, static.lm_head.weight)


def test_loss_and_accuracy_after_every_recurrence_are_those_of_separate_runs(data, source, tmp_path):
    convert_source(tmp_path / "converted", source, dataclasses.replace(RECIPE, gate=1.0), data[1], seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "converted").eval()
    measures = evaluate_chains(model, data[1], 3, batch_size=4)
    assert len(measures["losses"]) == len(measures["accuracies"]) == 3
    labels = torch.from_numpy(data[1].labels[:, 1:])
    for recurrence in (1, 2, 3):
        with torch.no_grad():
            logits = model(torch.from_numpy(data[1].input_ids), num_recurrences=recurrence).logits[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        assert measures["losses"][recurrence - 1] == pytest.approx(float(loss), rel=1e-5)
        right = (logits.argmax(-1) == labels).float()
        assert measures["accuracies"][recurrence - 1] == pytest.approx(float(right.mean()))
        if recurrence < 3:
            by_hop = measures["accuracies_by_hop"][str(recurrence)]
            assert by_hop == pytest.approx(right.mean(0).tolist())
    assert len(set(measures["losses"])) == 3


def test_a_model_without_recurrences_is_read_once(data, source):
    llama = LlamaForCausalLM.from_pretrained(source)
    measures = evaluate_chains(llama, data[1], 3)
    assert len(measures["losses"]) == 1 and list(measures["accuracies_by_hop"]) == ["1"]
