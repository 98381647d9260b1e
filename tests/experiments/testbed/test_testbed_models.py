from dataclasses import replace

import pytest
import torch

from memreason_hf.data.chains.multi_hop import MultiHopConfig, build_multi_hop
from memreason_hf.experiments.testbed.models import MODELS
from memreason_hf.experiments.testbed.rows import WrittenRows, WrittenWorld
from memreason_hf.experiments.testbed.training import TimeLimit, prepare_testbed_run


@pytest.fixture(scope="module")
def world():
    config = MultiHopConfig(
        num_entities=6,
        num_relations=3,
        train_hops="2-6",
        test_hops="2-6",
        num_train_chains=20,
        num_test_chains=4,
        cap_to_available=True,
    )
    return WrittenWorld.open(build_multi_hop(config).dataset, config, WrittenRows(num_rows=40))


@pytest.mark.parametrize("name", MODELS)
def test_training_changes_every_parameter(name, world, tmp_path):
    trainer = prepare_testbed_run(name, str(tmp_path / "run"), world, max_steps=3, batch_size=4)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.global_step == 3
    unchanged = [key for key, value in trainer.model.state_dict().items() if torch.equal(value, before[key])]
    assert not unchanged
    limit = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TimeLimit))
    assert not limit.is_reached and limit.seconds_taken > 0
    model = MODELS[name]
    assert limit.seconds == (240 if model.is_recurrent else 90) == model.seconds
    hops = trainer.train_dataset["hops"]
    assert set(hops) == {1, 2, 3, 4, 5, 6}
    marks = trainer.processing_class.convert_tokens_to_ids(["<memory>", "<reason>", "<answer>"])
    row = trainer.train_dataset[hops.index(6)]
    assert [mark in row["input_ids"] for mark in marks] == [model.writes_steps] * 3
    if not model.writes_steps:
        # A label after every relation.
        assert row["label_ids"][0] == -100 and len(row["label_ids"]) == 7 and min(row["label_ids"][1:]) >= 0


def test_time_ends_training(world, tmp_path):
    trainer = prepare_testbed_run(
        "answer_fixed", str(tmp_path / "run"), world, max_steps=50, batch_size=4, seconds=1e-9
    )
    trainer.train()
    limit = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TimeLimit))
    assert limit.is_reached and trainer.state.global_step == 1


def test_stages_of_a_fixed_length_and_then_all_hop_counts(world, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "answer_fixed", replace(MODELS["answer_fixed"], stage_steps=2))
    trainer = prepare_testbed_run("answer_fixed", str(tmp_path / "run"), world, max_steps=20, batch_size=4)
    hops = []
    trainer.model.register_forward_pre_hook(
        lambda model, args, kwargs: hops.append(kwargs["input_ids"].shape[1] - 1), with_kwargs=True
    )
    trainer.train()
    # A stage for each hop count, and all hop counts to the end of the training.
    assert trainer.state.global_step == len(hops) == 20
    assert [max(hops[step : step + 2]) for step in range(0, 6, 2)] <= [1, 2, 3] and hops[:2] == [1, 1]
    assert max(hops[12:]) == 6
    assert MODELS["steps_fixed"].stage_steps == 0


def test_an_unknown_model_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="model='steps' must be one of answer_fixed, answer_recurrent"):
        prepare_testbed_run("steps", str(tmp_path), world)
