"""
What the checksums of a checkpoint cost: saving a checkpoint without and with them, and verifying it.

    python tests/benchmarks/bench_checkpoint_hashes.py --megabytes 2000

Both sides run in turns on the same files: weights and the optimizer's two moments, three files of equal size, written
with safetensors and synced, as a run does. "sizes" stands for a manifest with sizes alone.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from memreason_hf import files
from memreason_hf.training.runs import checkpoints


def write(folder, tensors):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")


def seconds(act, *arguments):
    started = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - started


def measure(folder, tensors):
    staged, final = folder / ".checkpoint-1.partial", folder / "checkpoint-1"
    times = {"write": seconds(write, staged, tensors)}
    times["sync and rename (sizes)"] = seconds(files.commit_folder, staged, final)
    write(staged, tensors)
    times["hash, sync and rename"] = seconds(checkpoints.commit, staged, final)
    times["verify"] = seconds(checkpoints.verify, final)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=600, help="Size of the checkpoint.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="Where to write. Default: the system's temporary folder.")
    arguments = parser.parse_args()
    size = arguments.megabytes * 10**6 // 12
    tensors = {name: torch.randn(size) for name in ("model", "first_moments", "second_moments")}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rounds = [measure(Path(folder), tensors) for _ in range(arguments.repeats)]
    medians = {name: median(times[name] for times in rounds) for name in rounds[0]}
    print(f"{arguments.megabytes:,} MB, {arguments.repeats} rounds, medians")
    for name, value in medians.items():
        print(f"  {name:<26} {value:8.3f} s   {arguments.megabytes / 1000 / value:6.2f} GB/s")
    plain = medians["write"] + medians["sync and rename (sizes)"]
    hashed = medians["write"] + medians["hash, sync and rename"]
    print(f"  saving with checksums takes {hashed / plain:.2f} times as long")


if __name__ == "__main__":
    main()
