"""Shared by the benchmarks: a description of the machine, medians of alternating runs, and resident memory."""

import platform
import statistics
import time

import torch
import transformers


def machine() -> str:
    """One line that describes the machine of the figures."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return (
        f"{name}, {device}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def in_turns(sides: dict, runs: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each side, all sides run in turns in this process: A B A B …"""
    times = {name: [] for name in sides}
    for turn in range(warmup + runs):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def resident_memory(key: str) -> float:
    """
    MiB from the kernel's account of this process (Linux only): `"VmRSS"` now, `"VmHWM"` at most so far. `getrusage`
    would start at the peak of the parent.
    """
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024
