"""
Measures the two studies' data sets at full size: seconds and peak memory of the commands that a user runs, and of
reading what they write.

    python tests/benchmarks/bench_chain_data.py            # about a minute, 2 GB of temporary files

Ends with an error if a build takes too long or too much memory: 15 s and 2 GB for the chains, 30 s and 3 GB for the
compositions.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


ROOT = Path(__file__).parents[2]
# (script, arguments, most seconds, most GB)
BUILDS = (
    ("build_multi_hop.py", [], 15, 2),
    ("build_composition.py", [], 30, 3),
    ("build_composition.py", ["--ratio", "18"], 30, 3),
)
LOAD = """
import sys, time
from memreason_hf.data import encode_chains, load_multi_hop, load_multi_hop_tokenizer
start = time.perf_counter()
dataset = load_multi_hop(sys.argv[1])
print("load the Arrow form", time.perf_counter() - start, sep="\t")
tokenizer = load_multi_hop_tokenizer(sys.argv[1])
start = time.perf_counter()
encode_chains(dataset["train"], tokenizer)
print(f"encode_chains, {len(dataset['train']):,} rows", time.perf_counter() - start, sep="\t")
rows = list(dataset["train"][::50]["input_text"])
start = time.perf_counter()
tokenizer(rows)
print(f"(the tokenizer itself, {len(rows):,} rows)", time.perf_counter() - start, sep="\t")
"""
READ = """
import sys, time
from memreason_hf.data import read_multi_hop_json
start = time.perf_counter()
read_multi_hop_json(sys.argv[1])
print("read and check the JSON files", time.perf_counter() - start, sep="\t")
"""


def run(command: list) -> tuple[str, float, float]:
    """The output of a process, its seconds and its peak memory in GB."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=output, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{command} failed with status {process.returncode}")
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return text, time.perf_counter() - start, usage.ru_maxrss * bytes_per_unit / 1e9


def describe_machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pyarrow", "datasets", "transformers"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.platform()}, {platform.machine()}, {cores} cores, Python {platform.python_version()}, {libraries}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="builds; the slowest counts (default: 3)")
    repeats = parser.parse_args().repeats
    print(describe_machine())
    failed = []
    for script, arguments, most_seconds, most_gigabytes in BUILDS:
        with tempfile.TemporaryDirectory() as folder:
            builds = []
            for repeat in range(repeats):
                target = Path(folder, f"data-{repeat}")
                text, *cost = run([ROOT / "data_scripts" / script, "--output_dir", target, *arguments])
                builds.append(cost)
                shown = " ".join([script, *arguments])
                print(f"{shown}, imports included: {cost[0]:.1f} s, {cost[1]:.2f} GB  {text.strip()}")
            if script == "build_multi_hop.py":
                _measure_reading(target)
            elif not arguments:
                _measure_conversion(target, Path(folder, "converted"))
        seconds, gigabytes = (max(values) for values in zip(*builds))
        if seconds > most_seconds or gigabytes > most_gigabytes:
            failed.append(f"{shown}: at most {most_seconds} s and {most_gigabytes} GB are allowed")
    if failed:
        raise SystemExit(f"Too slow or too large: {'; '.join(failed)}.")


def _measure_reading(folder):
    for code in (LOAD, READ):
        text, _, gigabytes = run(["-c", code, folder])
        for line in text.splitlines():
            name, seconds = line.split("\t")
            print(f"{name}: {float(seconds):.2f} s")
        print(f"    memory of that process: {gigabytes:.2f} GB")


def _measure_conversion(folder, converted):
    """From the JSON files of the study back to the Arrow form."""
    script = ROOT / "data_scripts" / "build_composition.py"
    _, seconds, gigabytes = run([script, "--input_dir", folder, "--output_dir", converted])
    print(f"build_composition.py --input_dir: {seconds:.1f} s, {gigabytes:.2f} GB")


if __name__ == "__main__":
    main()
