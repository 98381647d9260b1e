"""SIGKILL before an operation on a file: the same command then ends as an undisturbed one, without leftovers."""

import dataclasses
import json
import random
import shutil
import socket

import pytest
import torch
from kill_points import COMMANDS, contents, run_to_the_end, run_until
from small_finetunes import small_model as small_solver
from small_finetunes import small_tokenizer
from small_runs import small_model
from transformers import AutoModelForCausalLM

from memreason_hf.adapters.modes import AdapterArguments, add_adapter, save_adapter
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.multi_hop import build_multi_hop, save_multi_hop
from memreason_hf.data.chains.tokenizer import build_tokenizer
from memreason_hf.experiments.testbed.rows import WrittenRows


CONFIG = MultiHopConfig(
    num_entities=6,
    num_relations=3,
    train_hops="2-4",
    test_hops="2-4",
    num_train_chains=20,
    num_test_chains=8,
    num_atomic_probes=4,
    cap_to_available=True,
)
# How many points of each command the default tests try, besides the first and the last operation.
FEW = 2
# Where a run takes long: its children import everything anew. Their own operations are those of `testbed_model`
# and `compared_scheme`.
STRIDES = {"testbed": 5, "comparison": 9}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """What the commands read: chains, questions, two models, and the task of a model of the test bed."""
    folder = tmp_path_factory.mktemp("inputs")
    data = build_multi_hop(CONFIG)
    save_multi_hop(data, folder / "world")
    model, tokenizer = small_model(), build_tokenizer(data.vocabulary)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    small_solver().save_pretrained(folder / "solver")
    small_tokenizer().save_pretrained(folder / "solver")
    solver = AutoModelForCausalLM.from_pretrained(folder / "solver")
    save_adapter(add_adapter(solver, small_tokenizer(), AdapterArguments()), small_tokenizer(), folder / "adapter")
    (folder / "questions").mkdir()
    rows = [
        {"question": f"Is {i} a step?", "answer": "True", "cot_steps": [f"[rag]: the {i}", "[reason]: it is"]}
        for i in range(5)
    ]
    for split in ("train", "test"):
        path = folder / "questions" / f"StrategyQA_{split}_clean.json"
        path.write_text(json.dumps([{**row, "question": f"{split}: {row['question']}"} for row in rows]))
    texts = [
        {"question": f"Is it {i}?", "text": f"<memory> {i}\n<answer> The answer is: True", "reference": "True"}
        for i in range(4)
    ]
    texts[0]["text"] += " enough"
    texts = [{**text, "answer_type": "text"} for text in texts]
    with socket.create_server(("127.0.0.1", 0)) as free:
        (folder / "port.txt").write_text(str(free.getsockname()[1]))
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    settings = {"model": "steps_fixed", "seed": 1, "seconds": 600.0, "max_steps": 2, "batch_size": 4}
    task = {
        "data": "world",
        "config": dataclasses.asdict(CONFIG),
        "rows": dataclasses.asdict(WrittenRows(num_rows=20, max_distractors=1, disorder=0.0, seed=1)),
        "settings": settings,
    }
    (folder / "task.json").write_text(json.dumps(task))
    return folder


@pytest.fixture
def world(inputs, tmp_path):
    return shutil.copytree(inputs, tmp_path / "world")


def try_points(name, world, tmp_path, choose):
    operations = run_to_the_end(name, world, tmp_path / "result")
    expected = contents(world / "out")
    assert len(operations) > 3, "a command that writes nothing shows nothing"
    for number in choose(len(operations)):
        shutil.rmtree(world / "out", ignore_errors=True)
        where = f"{name}, killed before operation {number} of {len(operations)}"
        if number <= len(operations):
            where += f", {operations[number - 1]}"
            assert run_until(name, world, number, tmp_path / "result"), where
        run_to_the_end(name, world, tmp_path / "result")
        found = contents(world / "out")
        assert sorted(found) == sorted(expected), where
        assert [path for path, content in found.items() if content != expected[path]] == [], where


def few(count):
    middle = sorted(random.SystemRandom().sample(range(2, count), min(FEW, count - 2)))
    return [1, *middle, count]


@pytest.mark.parametrize("name", ["train", "build_chains", "evaluate_chains"])
def test_killed_at_some_operations(name, world, tmp_path):
    torch.set_num_threads(1)
    try_points(name, world, tmp_path, few)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_operation(name, world, tmp_path):
    try_points(name, world, tmp_path, lambda count: range(1, count + 1, STRIDES.get(name, 1)))
