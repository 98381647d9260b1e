"""Refuses to train when accelerate set up something else than what was asked for, which it does silently."""

import os
from collections.abc import Mapping

from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from memreason_hf.training.runs.errors import LaunchError


def check_launch(args: TrainingArguments, accelerator: Accelerator, environment: Mapping[str, str] = os.environ):
    """
    Compares what the launcher asked for (its environment variables, `expected_world_size`) with what is in effect.

    Raises:
        LaunchError: says what was asked for, what is there, and how to get it.
    """
    world_size = accelerator.num_processes
    _check_processes(world_size, getattr(args, "expected_world_size", None), environment)
    if args.n_gpu > 1:
        raise LaunchError(
            f"{args.n_gpu} GPUs are visible to one process. Start one process a GPU (accelerate launch --config_file "
            "gpu_multi.yaml), or make one visible (CUDA_VISIBLE_DEVICES=0)."
        )
    sharded = accelerator.distributed_type == DistributedType.FSDP and accelerator.device.type != "cpu"
    if _is_true(environment.get("ACCELERATE_USE_FSDP")) and not sharded:
        raise LaunchError(
            f"FSDP was asked for, but accelerate set up {accelerator.distributed_type.value} on "
            f"{accelerator.device.type} with {world_size} process(es). FSDP needs several processes on GPUs."
        )
    if _is_true(environment.get("ACCELERATE_USE_DEEPSPEED")) or args.deepspeed:
        raise LaunchError("DeepSpeed is not supported: use FSDP2 (recipes/accelerate/fsdp2.yaml).")
    _check_precision(args, accelerator, environment)


def _check_processes(world_size, expected, environment):
    if expected is not None:
        if world_size != expected:
            raise LaunchError(
                f"expected_world_size={expected}, but {world_size} process(es) run. On CPUs neither --cpu nor "
                "MULTI_CPU starts several: use distributed_type MULTI_GPU with use_cpu "
                "(recipes/accelerate/cpu_2.yaml)."
            )
        return
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != world_size:
        raise LaunchError(
            f"The launcher started {started} processes, but accelerate sees {world_size}: they would train apart. "
            "Use one of the configurations in recipes/accelerate."
        )
    # The launcher gives an address to meet at only if it was asked for several processes, and a size only if it
    # started them.
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment
    if world_size == 1 and launched and "WORLD_SIZE" not in environment:
        raise LaunchError(
            "accelerate launch was asked for several processes and started one. On CPUs neither --cpu nor MULTI_CPU "
            "starts several: use distributed_type MULTI_GPU with use_cpu (recipes/accelerate/cpu_2.yaml). If one "
            "process is what you want, say expected_world_size=1."
        )


def _check_precision(args, accelerator, environment):
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "no" and accelerator.mixed_precision != asked:
        raise LaunchError(
            f"accelerate was asked for mixed_precision={asked}, but {accelerator.mixed_precision} is in effect: the "
            f"training arguments say bf16={args.bf16}, fp16={args.fp16}. Make them agree."
        )


def _is_true(value):
    return (value or "").lower() in ("1", "true", "yes", "on")
