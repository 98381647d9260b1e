"""Several processes: checks that the launcher started what was requested, and runs an action on one of them."""

import os
from collections.abc import Callable, Mapping

from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from transformers import TrainingArguments

from memreason_hf.training.runs.errors import LaunchError


def on_main_process(args: TrainingArguments, action: Callable):
    """
    Runs `action` on the first process. All processes return its result or raise its error.

    Args:
        args ([`~transformers.TrainingArguments`]): The arguments of the run. All processes must make the call.
        action (`Callable`): Its result must be picklable.
    """
    outcome = [None, None]
    if args.process_index == 0:
        try:
            outcome[0] = action()
        except Exception as error:
            outcome[1] = error
    if args.world_size > 1:
        broadcast_object_list(outcome)
    result, error = outcome
    if error is not None:
        raise error
    return result


def check_launch(args: TrainingArguments, accelerator: Accelerator, environment: Mapping[str, str] = os.environ):
    """
    Compares what the launcher requested with what accelerate set up, which can differ silently.

    Args:
        args ([`~transformers.TrainingArguments`]): The arguments of the run; `expected_world_size` among them is
            optional.
        accelerator ([`~accelerate.Accelerator`]): What is in effect.
        environment (`Mapping[str, str]`): The variables that the launcher set.

    Raises:
        LaunchError: another number of processes, several GPUs in one process, FSDP that is not in effect, DeepSpeed,
            or another precision. The message says how to get what was requested.
    """
    world_size = accelerator.num_processes
    _check_processes(world_size, getattr(args, "expected_world_size", None), environment)
    if args.n_gpu > 1:
        raise LaunchError(
            f"One process sees {args.n_gpu} GPUs. Start one process for each GPU (accelerate launch --config_file "
            "gpu_multi.yaml), or make only one GPU visible (CUDA_VISIBLE_DEVICES=0)."
        )
    sharded = accelerator.distributed_type == DistributedType.FSDP and accelerator.device.type != "cpu"
    if _is_true(environment.get("ACCELERATE_USE_FSDP")) and not sharded:
        raise LaunchError(
            f"The launcher requested FSDP, but accelerate set up {accelerator.distributed_type.value} on "
            f"{accelerator.device.type} with {world_size} process(es). FSDP needs several processes on GPUs."
        )
    if _is_true(environment.get("ACCELERATE_USE_DEEPSPEED")) or args.deepspeed:
        raise LaunchError("DeepSpeed is not supported. Use FSDP2 (recipes/accelerate/fsdp2.yaml).")
    _check_precision(args, accelerator, environment)


def _check_processes(world_size, expected, environment):
    if expected is not None:
        if world_size != expected:
            raise LaunchError(
                f"expected_world_size={expected}, but {world_size} process(es) are running. On CPUs, neither --cpu "
                "nor MULTI_CPU starts several processes: use distributed_type MULTI_GPU with use_cpu "
                "(recipes/accelerate/cpu_2.yaml)."
            )
        return
    started = int(environment.get("WORLD_SIZE", "1"))
    if started != world_size:
        raise LaunchError(
            f"The launcher started {started} processes, but accelerate sees {world_size}: each would train on its "
            "own. Use one of the configurations in recipes/accelerate."
        )
    # The launcher sets an address only when several processes were requested, and a size only when it started them.
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment
    if world_size == 1 and launched and "WORLD_SIZE" not in environment:
        raise LaunchError(
            "accelerate launch should have started several processes, but only one is running. On CPUs, neither --cpu "
            "nor MULTI_CPU starts several processes: use distributed_type MULTI_GPU with use_cpu "
            "(recipes/accelerate/cpu_2.yaml). If one process is what you want, set expected_world_size=1."
        )


def _check_precision(args, accelerator, environment):
    requested = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if requested != "no" and accelerator.mixed_precision != requested:
        raise LaunchError(
            f"The launcher requested mixed_precision={requested}, but {accelerator.mixed_precision} is in effect: the "
            f"training arguments are bf16={args.bf16}, fp16={args.fp16}. Make the two agree."
        )


def _is_true(value):
    return (value or "").lower() in ("1", "true", "yes", "on")
