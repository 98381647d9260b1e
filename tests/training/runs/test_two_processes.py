"""Two processes train as one does. A launch that starts another number of processes is refused."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from processes import load_result, run_ranks, save_result
from small_runs import assert_same_weights, small_chains, small_model, small_trainer, weights
from torch import distributed
from torch.distributed.fsdp import fully_shard
from transformers import TrainerCallback

from memreason_hf.training import ChainCollator
from memreason_hf.training.runs import checkpoints
from memreason_hf.training.runs.errors import NonFiniteLossError


ARGUMENTS = {
    "curriculum": {"threshold": 1e-9, "eval_steps": 5, "gate": "train", "optimizer": "restart", "final_steps": 3},
    "max_steps": 30,
    "warmup_steps": 2,
    "logging_steps": 1,
    "per_device_eval_batch_size": 5,
    "eval_strategy": "steps",
    "eval_steps": 6,
}


def train(folder, result, world_size, arguments, resume=False):
    """Trains with a global batch of 16 rows on any number of processes."""
    model = small_model(**arguments.pop("model", {"residual_dropout": 0.0}))
    trainer = small_trainer(
        folder,
        model=model,
        expected_world_size=world_size,
        **{"per_device_train_batch_size": 16 // world_size, **ARGUMENTS, **arguments},
    )
    assert trainer.args.world_size == world_size
    trainer.train(resume_from_checkpoint=resume or None)
    rank = trainer.args.process_index
    save_result(
        f"{result}-{rank}", (trainer.state.log_history, weights(trainer.model), trainer.curriculum.stage_starts)
    )


@pytest.mark.parametrize(
    "arguments",
    [{}, {"supervision": "prefix", "recurrence_loss": "uniform"}, {"curriculum": {"threshold": 0.1, "eval_steps": 5}}],
    ids=["answer", "prefix-uniform", "heldout"],
)
def test_two_processes_have_the_losses_of_one(tmp_path, arguments):
    run_ranks(train, tmp_path / "one", tmp_path / "single", 1, dict(arguments), world_size=1)
    run_ranks(train, tmp_path / "two", tmp_path / "double", 2, dict(arguments))
    single = load_result(tmp_path / "single-0")
    # One of them could be resumed by the other.
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "two")]
    assert runs[0]["fingerprint"] == runs[1]["fingerprint"]
    ranks = [load_result(tmp_path / f"double-{rank}") for rank in range(2)]
    assert_same_weights(ranks[0][1], ranks[1][1])
    for history, parameters, stage_starts in ranks:
        assert stage_starts == single[2]
        assert [entry["step"] for entry in history] == [entry["step"] for entry in single[0]]
        for name in ("loss", "grad_norm", "accuracy", "num_recurrences", "stage_accuracy", "eval_accuracy_3"):
            found, expected = ([entry[name] for entry in log if name in entry] for log in (history, single[0]))
            assert expected
            # Where the gradient norm is large, it amplifies the differences of another order of summation.
            assert found == pytest.approx(expected, rel=1e-3 if name == "grad_norm" else 1e-5), name
        for name, value in single[1].items():
            found = parameters[name]
            if name.endswith("qkv_proj.bias"):
                # A bias of the keys shifts all scores of a query by the same value, so its gradient is only rounding.
                found, value = (torch.cat((biases.chunk(3)[0], biases.chunk(3)[2])) for biases in (found, value))
            assert torch.allclose(found, value, rtol=1e-3, atol=1e-5), name


def train_until_killed(folder, result, world_size, arguments):
    def kill(*args):
        os.kill(os.getpid(), signal.SIGKILL)

    commit = checkpoints.commit
    checkpoints.commit = lambda staged, final, run: (
        kill() if final.name == "checkpoint-12" else commit(staged, final, run)
    )
    os.environ["TORCH_DISTRIBUTED_DEBUG"] = "OFF"
    train(folder, result, world_size, arguments)


def test_killed_and_resumed_on_two_processes(tmp_path):
    dropout = {"model": {"residual_dropout": 0.1}}
    run_ranks(train, tmp_path / "whole", tmp_path / "expected", 2, dict(dropout))
    with pytest.raises(AssertionError):
        run_ranks(train_until_killed, tmp_path / "parts", tmp_path / "none", 2, dict(dropout))
    assert (tmp_path / "parts" / "checkpoint-8").is_dir()
    assert not (tmp_path / "parts" / "checkpoint-12").exists()
    run_ranks(train, tmp_path / "parts", tmp_path / "found", 2, dict(dropout), True)
    assert_same_weights(load_result(tmp_path / "found-0")[1], load_result(tmp_path / "expected-0")[1])
    assert_same_weights(load_result(tmp_path / "found-1")[1], load_result(tmp_path / "expected-0")[1])


def one_rank_goes_wrong(folder, result, what):
    trainer = small_trainer(folder, per_device_train_batch_size=8, max_steps=12)
    rank = trainer.args.process_index
    if what == "nan":
        compute_loss = trainer.compute_loss

        def poisoned(model, inputs, **kwargs):
            loss = compute_loss(model, inputs, **kwargs)
            return loss * float("nan") if rank == 1 and trainer.state.global_step == 5 else loss

        trainer.compute_loss = poisoned
        try:
            trainer.train()
        except NonFiniteLossError as error:
            save_result(f"{result}-{rank}", str(error))
    else:

        class Interrupt(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if rank == 1 and state.global_step == 5:
                    os.kill(os.getpid(), signal.SIGINT)

        trainer.add_callback(Interrupt())
        trainer.train()
        save_result(f"{result}-{rank}", (trainer.interrupted, trainer.state.global_step))


def test_nan_on_one_rank_stops_both(tmp_path):
    run_ranks(one_rank_goes_wrong, tmp_path / "run", tmp_path / "result", "nan")
    for rank in range(2):
        assert load_result(tmp_path / f"result-{rank}").startswith("Step 6: the loss is")


def test_ctrl_c_on_one_rank_stops_both_at_one_step(tmp_path):
    run_ranks(one_rank_goes_wrong, tmp_path / "run", tmp_path / "result", "interrupt")
    assert [load_result(tmp_path / f"result-{rank}") for rank in range(2)] == [(True, 6)] * 2
    assert (tmp_path / "run" / "checkpoint-6").is_dir()


def claim_twice(folder, result):
    small_trainer(folder, per_device_train_batch_size=8, max_steps=4).train()
    trainer = small_trainer(folder, per_device_train_batch_size=8, max_steps=4)
    try:
        trainer.train()
    except Exception as error:
        save_result(f"{result}-{trainer.args.process_index}", str(error))


def test_a_refusal_reaches_every_rank(tmp_path):
    run_ranks(claim_twice, tmp_path / "run", tmp_path / "result")
    assert all("holds checkpoint-4" in load_result(tmp_path / f"result-{rank}") for rank in range(2))


def sharded_step(result):
    """One step of SGD under `fully_shard` on half of a batch for each rank, and unsharded on the whole batch."""
    distributed.init_process_group("gloo")
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    overrides = {"residual_dropout": 0.0, "input_injection": "concat", "num_prelude_layers": 1}
    whole, model = small_model(**overrides), small_model(**overrides)
    for layer in (*model.model.prelude_layers, *model.model.recurrent_layers):
        fully_shard(layer)
    fully_shard(model)
    tokenizer, train, _ = small_chains()
    batch = ChainCollator(tokenizer.pad_token_id)([train[index] for index in range(0, 96, 6)])
    weights_of_losses = torch.tensor([0.25, 0.25, 0.5])
    for net, share, factor in ((whole, slice(None), 1), (model, slice(rank, None, world_size), world_size)):
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        inputs = {name: value[share] for name, value in batch.items()}
        outputs = net(
            **inputs,
            num_recurrences=3,
            recurrence_loss_weights=weights_of_losses,
            labelled_logits_only=True,
            num_items_in_batch=torch.tensor(16),
        )
        (outputs.loss * factor).backward()
        optimizer.step()
    full = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    if rank == 0:
        save_result(result, (world_size, local, weights(small_model(**overrides)), weights(whole), full))
    distributed.barrier()
    distributed.destroy_process_group()


def test_a_step_under_fully_shard_equals_the_unsharded_one(tmp_path):
    run_ranks(sharded_step, tmp_path / "result")
    world_size, local, before, whole, sharded = load_result(tmp_path / "result")
    assert world_size == 2
    assert local < 0.6 * sum(value.numel() for value in whole.values())
    assert whole.keys() == sharded.keys()
    for name, value in whole.items():
        assert not torch.equal(value, before[name]), f"{name} did not move"
        assert torch.allclose(sharded[name], value, rtol=1e-5, atol=1e-6), name


PROGRAM = """
import json, sys
sys.path.insert(0, {tests!r})
from small_runs import small_model, small_trainer
trainer = small_trainer(
    sys.argv[1], model=small_model(residual_dropout=0.0), per_device_train_batch_size=16 // int(sys.argv[2]),
    max_steps=6, logging_steps=1, save_strategy="no"
)
trainer.train()
if trainer.is_world_process_zero():
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    open(sys.argv[3], "w").write(json.dumps([trainer.args.world_size, losses]))
trainer.end()
"""


def launch(program, *arguments, flags, environment=None):
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(program), *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(environment or {})}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        variables.pop(name, None)
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=180)


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.format(tests=str(ROOT / "tests" / "helpers")))
    return path


def test_accelerate_launch_starts_two_processes_with_the_losses_of_one(tmp_path, program):
    recipes = ROOT / "memreason_hf" / "recipes" / "accelerate"
    flags = ["--config_file", recipes / "cpu_2.yaml", "--main_process_port", "0"]
    done = launch(program, tmp_path / "two", 2, tmp_path / "two.json", flags=map(str, flags))
    assert done.returncode == 0, done.stderr[-2000:]
    world_size, losses = json.loads((tmp_path / "two.json").read_text())
    assert world_size == 2
    trainer = small_trainer(
        tmp_path / "one",
        model=small_model(residual_dropout=0.0),
        max_steps=6,
        logging_steps=1,
        save_strategy="no",
    )
    trainer.train()
    expected = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_flags_that_start_one_process_are_refused(tmp_path, program):
    flags = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    done = launch(program, tmp_path / "run", 2, tmp_path / "result.json", flags=flags)
    assert done.returncode != 0
    assert "should have started several processes" in done.stderr
    assert not (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_fsdp_on_cpus_is_refused(tmp_path, program):
    recipes = ROOT / "memreason_hf" / "recipes" / "accelerate"
    flags = ["--config_file", recipes / "fsdp2.yaml", "--num_processes", "2", "--main_process_port", "0"]
    environment = {"ACCELERATE_USE_CPU": "true"}
    done = launch(
        program, tmp_path / "run", 2, tmp_path / "result.json", flags=map(str, flags), environment=environment
    )
    assert done.returncode != 0
    assert "requested FSDP" in done.stderr
    assert not (tmp_path / "result.json").exists()
