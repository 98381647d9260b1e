"""
Runs the cases of an area in a child process, so that a hang or a crash costs one case.

    python tests/robustness/malformed_runner.py AREA SEED WORLD RECORD [FIRST]
"""

import contextlib
import gc
import importlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


HERE = Path(__file__).parent
AREAS = (
    "configs",
    "calls",
    "functions",
    "models",
    "evaluations",
    "training_values",
    "files",
    "flags",
    "recipes",
    "metrics",
)
# Seconds that one input may take, and that a process may be silent, on a machine that does other things too.
TIMEOUT = 30
SILENCE = 90
# Bytes that a case may allocate beyond what is imported.
MEMORY = 6 << 30


class Hang(BaseException):
    """A case took too long. No `except Exception` catches it."""


@dataclass(frozen=True)
class Ending:
    """How a case ended."""

    area: str
    index: int
    entrance: str
    label: str
    outcome: str
    message: str
    seconds: float


def cases_of(area: str, seed: int, world: Path) -> list:
    module = importlib.import_module(f"malformed_{area}")
    return module.cases(random.Random(f"{area} {seed}"), world)


def run_area(area: str, seed: int, world: Path, scratch: Path, chosen=None) -> list[Ending]:
    """
    Runs the cases of an area, each in a child process that is started anew after a hang or a crash.

    Args:
        world: the folder of `malformed_world.build_world`.
        chosen: the indices of the cases to run; all by default.
    """
    record = scratch / f"{area}.jsonl"
    record.write_text("")
    if chosen is not None:
        (scratch / f"{area}.chosen").write_text(json.dumps(sorted(chosen)))
    first = 0
    while first is not None:
        first = _run_child(area, seed, world, record, first)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [Ending(**line) for line in lines if "outcome" in line]


def _run_child(area, seed, world, record, first):
    """Runs from case `first`; the case to go on with after a hang or crash, or None."""
    command = [sys.executable, str(HERE / "malformed_runner.py"), area, str(seed), str(world), str(record), str(first)]
    with open(record.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment(record), start_new_session=True)
        try:
            is_silent = _wait(process, record)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    started = [json.loads(line) for line in record.read_text().splitlines()]
    if not is_silent and process.returncode == 0:
        return None
    last = started[-1] if started else None
    if last is None or "outcome" in last:
        raise RuntimeError(f"{area} ended with {process.returncode}: {record.with_suffix('.log').read_text()[-3000:]}")
    outcome = "hang" if is_silent else "crash"
    reason = f"no end within {SILENCE} s" if is_silent else f"the process ended with {process.returncode}"
    with open(record, "a") as file:
        file.write(json.dumps({**last, "outcome": outcome, "message": reason, "seconds": 0.0}) + "\n")
    return last["index"] + 1


def _environment(record):
    paths = [HERE, HERE.parent / "helpers", HERE.parent.parent]
    private = record.parent / "home"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(private),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def _wait(process, record):
    """Whether the process fell silent before it ended."""
    size, since = -1, time.monotonic()
    while process.poll() is None:
        time.sleep(0.05)
        now = record.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > SILENCE:
            return True
    return False


def run_case(case, scratch: Path) -> tuple[str, str]:
    """The class and message of a case, run in this process with a time limit."""
    from malformed_judgement import HANG, judge

    scratch.mkdir()
    before = Path.cwd()
    os.chdir(scratch)
    previous = signal.signal(signal.SIGALRM, _give_up)
    # Again every second: the first exception may be raised where nothing lets it through.
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT, 1)
    quiet = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            result, error = case.run(scratch), None
    except Hang:
        return HANG, f"no end within {TIMEOUT} s"
    except BaseException as raised:
        if os.environ.get("MALFORMED_TRACEBACKS"):
            traceback.print_exc()
        result, error = None, raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        os.chdir(before)
        shutil.rmtree(scratch, ignore_errors=True)
    return judge(case, result, error)


def _give_up(signum, frame):
    raise Hang


def _run_here(area, seed, world, record, first):
    """What the child process does: a line before and after each case."""
    listed = record.with_suffix(".chosen")
    cases = cases_of(area, seed, world)
    chosen = json.loads(listed.read_text()) if listed.exists() else range(len(cases))
    gc.collect()
    gc.freeze()
    logging.disable(logging.CRITICAL)
    # Nothing of a case needs the disk to be safe from a power cut.
    os.fsync = lambda handle: None
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    with open(record, "a", buffering=1) as file:
        for index in chosen:
            if index < first:
                continue
            case = cases[index]
            line = {"area": area, "index": index, "entrance": case.entrance, "label": case.label}
            file.write(json.dumps(line) + "\n")
            start = time.perf_counter()
            outcome, message = run_case(case, record.parent / f"{area}-{index}")
            line |= {"outcome": outcome, "message": message, "seconds": time.perf_counter() - start}
            file.write(json.dumps(line) + "\n")


def table(endings: list[Ending], classes, worst: int = 30) -> str:
    """The number of endings by area and class, and the worst of them."""
    from memreason_hf.tables import format_table

    areas = [area for area in AREAS if any(ending.area == area for ending in endings)]
    counts = Counter((ending.area, ending.outcome) for ending in endings)
    rows = [[area, sum(counts[area, c] for c in classes), *(counts[area, c] for c in classes)] for area in areas]
    rows.append(["all", len(endings), *(sum(counts[area, c] for area in areas) for c in classes)])
    text = format_table(["area", "inputs", *classes], rows)
    bad = [ending for ending in endings if ending.outcome not in classes[:2]]
    bad.sort(key=lambda ending: -classes.index(ending.outcome))
    lines = [f"{e.outcome}: {e.area} {e.index}: {e.entrance}: {e.label}\n    {e.message[:400]}" for e in bad[:worst]]
    seconds = sum(ending.seconds for ending in endings)
    return "\n".join([text, "", *lines, f"{len(bad)} bad; {seconds:.0f} s in all"])


if __name__ == "__main__":
    _area, _seed, _world, _record, _first = sys.argv[1:]
    _run_here(_area, int(_seed), Path(_world), Path(_record), int(_first))
