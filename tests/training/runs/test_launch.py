import contextlib
import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser, prepare_multi_gpu_env
from accelerate.utils import DistributedType
from datasets import Dataset, DatasetDict

from memreason_hf.recipes import RECIPES_FOLDER
from memreason_hf.training.runs import launch
from memreason_hf.training.runs.arguments import ResumableArguments
from memreason_hf.training.runs.errors import LaunchError
from memreason_hf.training.runs.launch import check_launch, on_main_process
from modeling_recurrent import RecurrentDepthForCausalLM


def check(environment=None, world_size=1, kind="NO", device="cpu", precision="no", **arguments):
    defaults = {"expected_world_size": None, "n_gpu": 0, "deepspeed": None, "bf16": False, "fp16": False}
    accelerator = SimpleNamespace(
        num_processes=world_size,
        distributed_type=DistributedType(kind),
        device=torch.device(device),
        mixed_precision=precision,
    )
    check_launch(SimpleNamespace(**{**defaults, **arguments}), accelerator, environment or {})


LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}


def test_what_was_requested_passes():
    check()
    check(world_size=2, kind="MULTI_CPU", expected_world_size=2, environment={"WORLD_SIZE": "2"})
    check(world_size=2, kind="MULTI_CPU", environment={**LAUNCHED, "WORLD_SIZE": "2"})
    check(environment={"ACCELERATE_MIXED_PRECISION": "no"})
    check(environment={"ACCELERATE_MIXED_PRECISION": "no"}, precision="bf16", bf16=True)
    check(environment={"ACCELERATE_MIXED_PRECISION": "bf16"}, precision="bf16")
    check(world_size=2, kind="FSDP", device="cuda", environment={"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    "situation, message",
    [
        ({"expected_world_size": 2}, "expected_world_size=2, but 1"),
        ({"environment": LAUNCHED}, "should have started several processes, but only one is running"),
        ({"environment": {"WORLD_SIZE": "2"}}, "started 2 processes, but accelerate sees 1"),
        ({"n_gpu": 4}, "One process sees 4 GPUs"),
        (
            {"environment": {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, "world_size": 2, "kind": "MULTI_CPU"},
            "requested FSDP, but accelerate set up MULTI_CPU",
        ),
        ({"environment": {"ACCELERATE_USE_FSDP": "true"}}, "requested FSDP"),
        ({"environment": {"ACCELERATE_USE_FSDP": "true"}, "device": "cuda"}, "requested FSDP, but .* NO on cuda"),
        ({"environment": {"ACCELERATE_USE_FSDP": "true"}, "kind": "FSDP"}, "requested FSDP, but .* FSDP on cpu"),
        ({"deepspeed": "config.json"}, "DeepSpeed is not supported"),
        ({"environment": {"ACCELERATE_USE_DEEPSPEED": "true"}}, "DeepSpeed"),
        ({"environment": {"ACCELERATE_MIXED_PRECISION": "fp16"}, "precision": "bf16", "bf16": True}, "bf16=True"),
    ],
)
def test_what_differs_from_the_request_is_refused(situation, message):
    with pytest.raises(LaunchError, match=message):
        check(**situation)


@pytest.mark.parametrize(
    "value, refused", [("1", 1), ("True", 1), ("yes", 1), ("on", 1), ("0", 0), ("no", 0), ("", 0)]
)
def test_flags_of_the_environment(value, refused):
    with pytest.raises(LaunchError) if refused else contextlib.nullcontext():
        check(environment={"ACCELERATE_USE_DEEPSPEED": value})


class Broadcast:
    """Stands for the other processes: rank 0 sends what it has, and the others receive it."""

    def __init__(self, monkeypatch):
        self.sent = None
        monkeypatch.setattr(launch, "broadcast_object_list", self)

    def __call__(self, values):
        if self.sent is None:
            self.sent = list(values)
        values[:] = self.sent

    def run(self, rank, action, world_size=2):
        return on_main_process(SimpleNamespace(process_index=rank, world_size=world_size), action)


def test_an_action_runs_on_one_process_and_all_have_its_result(monkeypatch):
    processes, calls = Broadcast(monkeypatch), []

    def action():
        calls.append(1)
        return "result"

    assert [processes.run(rank, action) for rank in range(3)] == ["result"] * 3
    assert calls == [1]
    # Alone, nothing is sent.
    processes.sent = ["another", None]
    assert processes.run(0, action, world_size=1) == "result"


def test_an_error_on_one_process_is_raised_on_all(monkeypatch):
    processes = Broadcast(monkeypatch)

    def action():
        raise KeyError("missing")

    for rank in range(3):
        with pytest.raises(KeyError, match="missing"):
            processes.run(rank, action)


def test_one_process_can_be_requested():
    check(environment=LAUNCHED, expected_world_size=1)


@pytest.mark.parametrize(
    "name, processes, flags",
    [
        ("cpu_2", 2, {"multi_gpu": True, "use_cpu": True, "cpu": False, "use_fsdp": False}),
        ("gpu_1", 1, {"multi_gpu": False, "use_cpu": False, "use_fsdp": False}),
        ("gpu_multi", 8, {"multi_gpu": True, "use_cpu": False, "use_fsdp": False}),
        ("fsdp2", 8, {"use_fsdp": True, "use_cpu": False}),
    ],
)
def test_configurations_start_what_they_say(name, processes, flags):
    path = RECIPES_FOLDER / "accelerate" / f"{name}.yaml"
    args = launch_command_parser().parse_args(["--config_file", str(path), "program.py"])
    args, _, _ = _validate_launch_command(args)
    assert args.num_processes == processes
    assert {flag: getattr(args, flag) for flag in flags} == flags
    # The recipe decides the precision.
    assert args.mixed_precision == "no"
    if args.use_fsdp:
        environment = prepare_multi_gpu_env(args)
        assert environment["FSDP_VERSION"] == "2"
        wrapped = environment["FSDP_TRANSFORMER_CLS_TO_WRAP"].split(",")
        assert wrapped == list(RecurrentDepthForCausalLM._no_split_modules)
        # The trained model is saved whole.
        assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


def test_without_an_accelerator_the_arguments_say_so(tmp_path):
    """Otherwise accelerate, launched with `cpu_2.yaml`, sets up one process of one rank in each of the two."""
    expected = not torch.accelerator.is_available()
    assert ResumableArguments(output_dir=str(tmp_path)).use_cpu == expected
    assert ResumableArguments(output_dir=str(tmp_path), use_cpu=True).use_cpu


def write_recipe(folder):
    """A recipe with a new small model and 12 questions."""
    steps = [{"kind": "memory", "text": "Even numbers end in 0, 2, 4, 6 or 8."}, {"kind": "reason", "text": "Look."}]
    options = [{"label": label, "text": label} for label in ("True", "False")]
    rows = Dataset.from_list(
        [
            {"question": f"Is {n} even?", "options": options, "answer": str(n % 2 == 0), "steps": steps}
            for n in range(12)
        ]
    )
    DatasetDict({"train": rows, "test": rows}).save_to_disk(folder / "data")
    recipe = {
        "data": {"path": str(folder / "data")},
        "new_model": {"architecture": "llama", "vocab_size": 300, "hidden_size": 16, "num_attention_heads": 2},
        "adapter": {"mode": "full"},
        "training": {
            "output_dir": str(folder / "run"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 3,
            "num_test": 2,
            "max_new_tokens": 4,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--expected_world_size", "2"]], ids=["unchecked", "expected"])
def test_the_launch_command_of_the_help_trains_on_two_processes(flags, tmp_path):
    """The real launcher and the real command. Two ranks take the 12 rows in 2 steps of 6 rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", port]
    launcher += ["--config_file", str(RECIPES_FOLDER / "accelerate" / "cpu_2.yaml"), "-m"]
    command = ["memreason_hf.commands.finetune", str(write_recipe(tmp_path)), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == 2 and "Trained for 2 steps" in done.stdout
    # One process alone would be refused.
    alone = subprocess.run(
        [sys.executable, "-m", *command, "--expected_world_size", "2", "--restart", "true"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert alone.returncode == 2 and "expected_world_size=2, but 1" in alone.stderr
