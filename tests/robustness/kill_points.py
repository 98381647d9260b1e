"""
Commands that are killed before an operation that changes a file, and what they then leave.

A command runs in a child that counts the operations on files in the current folder (Python's audit events see them,
whoever asks for them) and sends itself SIGKILL before the one with a given number.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
from chat_servers import chat_server
from processes import load_result, preload, run_child, save_result
from small_finetunes import small_finetune
from small_runs import small_trainer

from memreason_hf.annotation.annotator import call_seed
from memreason_hf.command_line.training_runs import run_training
from memreason_hf.commands import annotate, calibrate, evaluate, evaluate_steps, merge, score
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.multi_hop import prepare_multi_hop
from memreason_hf.data.questions.memory_reason import build_memory_reason, save_memory_reason
from memreason_hf.experiments.scheme_comparison import process as scheme_process
from memreason_hf.experiments.scheme_comparison.run import ComparisonArguments, run_comparison
from memreason_hf.experiments.testbed import process
from memreason_hf.experiments.testbed.run import TestbedArguments, run_testbed


preload("kill_points")
# With these the first value is the path, except for renames, where either path counts.
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link", "os.symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Entries of JSON files that differ between two undisturbed runs: times, and what follows from them.
VOLATILE = (
    "created",
    "seconds",
    "runtime",
    "per_second",
    "samples_per",
    "digest",
    "sha256",
    "since",
    "gpu_memory",
    "max_steps_",
)


def train(folder):
    arguments = {"max_steps": 6, "save_steps": 2, "save_total_limit": 2, "save_strategy": "steps"}
    run_training(
        small_trainer(folder, curriculum={"threshold": 1e-9, "eval_steps": 2, "gate": "train"}, **arguments), "train"
    )


def finetune(folder):
    run_training(small_finetune(folder, num_train_epochs=2, save_total_limit=2), "finetune")


def build_chains(folder):
    config = MultiHopConfig(
        num_entities=6,
        num_relations=3,
        train_hops="2-3",
        test_hops="2-3",
        num_train_chains=20,
        num_test_chains=8,
        cap_to_available=True,
    )
    prepare_multi_hop(config, Path(folder) / "data" / "world")


def build_questions(folder):
    save_memory_reason(build_memory_reason("strategy_qa", "questions"), Path(folder) / "data" / "questions")


def evaluate_chains(folder):
    evaluate.main(
        [
            "model",
            "--data",
            "world",
            "--output_dir",
            folder,
            "--batch_size",
            "64",
            "--no_progress",
            "--max_recurrences",
            "4",
        ]
    )


_CALIBRATION = ["--data", "world", "--risk", "0.5", "--halting_criterion", "margin", "--no_progress"]


def calibrate_copy(folder):
    saving = ["--save_to", f"{folder}/calibrated", "--output_dir", folder, "--overwrite"]
    calibrate.main(["model", *_CALIBRATION, "--max_recurrences", "4", *saving])


def calibrate_in_place(folder):
    model = Path(folder, "model")
    if not model.is_dir():
        # The copy is not what is killed.
        shutil.copytree("model", "model.copy", dirs_exist_ok=True)
        model.parent.mkdir(exist_ok=True)
        os.rename("model.copy", model)
    calibrate.main([str(model), *_CALIBRATION, "--max_recurrences", "4", "--in_place"])


def evaluate_solutions(folder):
    evaluate_steps.main(
        [
            "solver",
            "--data",
            "questions",
            "--name",
            "strategy_qa",
            "--max_new_tokens",
            "4",
            "--batch_size",
            "2",
            "--output_file",
            f"{folder}/texts.jsonl",
            "--no_progress",
        ]
    )


def score_texts(folder):
    """A language model judges steps and answers; replies that a killed command has kept are not asked for again."""

    def agrees(call):
        if "Given answer: " in call.prompt:
            return "yes"
        return json.dumps(dict.fromkeys(re.findall(r"^(\d+)\. \[", call.prompt, re.MULTILINE), "agrees"))

    # Replies belong to an address, so it must be the same in every run.
    with chat_server(agrees, port=int(Path("port.txt").read_text())) as server:
        llm = [
            "--judge",
            "llm",
            "--answer_judge",
            "llm",
            "--llm",
            "scripted",
            "--endpoint",
            server.url,
            "--agreement",
            "0",
        ]
        score.main(["texts.jsonl", *llm, "--output_file", f"{folder}/scores.jsonl", "--no_progress"])


def annotate_questions(folder):
    """The second question is answered wrongly at its first try, and the third always."""

    def answer(request):
        if request.prompt.startswith("Answer the numbered questions"):
            return "1. It is a fact."
        is_wrong = "Is 2 a" in request.prompt or request.body["seed"] == call_seed(0, 1, 1, "plan")
        return "[reason] So it is." if is_wrong else "[memory] What is it?\n[reason] So it is."

    with chat_server(answer) as server:
        annotate.main(
            [
                "--data",
                "questions",
                "--name",
                "strategy_qa",
                "--llm",
                "m",
                "--endpoint",
                server.url,
                "--max_tries",
                "2",
                "--concurrency",
                "1",
                "--output_file",
                f"{folder}/annotated.jsonl",
                "--no_progress",
            ]
        )


def merge_adapter(folder):
    merge.main(["adapter", f"{folder}/merged"])


def testbed_model(folder):
    Path(folder, "steps_fixed").mkdir(parents=True, exist_ok=True)
    task = json.loads(Path("task.json").read_text())
    Path("task.now.json").write_text(json.dumps({**task, "folder": f"{folder}/steps_fixed"}))
    process.main(["steps_fixed", "task.now.json"])


def testbed(folder):
    """The whole test bed: its children are processes of their own, which end when it is killed."""
    sizes = {"num_test_chains": 2, "num_judged": 3, "max_steps": 2, "batch_size": 4, "num_rows": 20}
    run_testbed(TestbedArguments(output_dir=f"{folder}/testbed", models="answer_fixed", **sizes))


_FEW_STEPS = {"max_steps": 2, "per_device_train_batch_size": 4, "max_new_tokens": 4, "use_cpu": True}
_SCHEME = {
    "new_model": {"architecture": "llama", "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2},
    "adapter": {"mode": "full"},
    "training": {**_FEW_STEPS, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True},
}


def compared_scheme(folder):
    Path(folder, "plain").mkdir(parents=True, exist_ok=True)
    sections = {**_SCHEME, "data": {"path": "questions", "name": "strategy_qa"}, "steps": {"marks": "none"}}
    task = {"folder": f"{folder}/plain", "sections": sections, "num_items": 2, "threads": 1}
    Path("scheme.json").write_text(json.dumps(task))
    scheme_process.main(["scheme.json"])


def comparison(folder):
    """The whole comparison: its children are processes of their own, which end when it is killed."""
    sizes = {"schemes": "plain", "token_counts": "1", "num_items": 2, "num_world_items": 8}
    run_comparison(ComparisonArguments(output_dir=f"{folder}/schemes", **sizes), _SCHEME)


COMMANDS: dict[str, Callable[[str], None]] = {
    "train": train,
    "finetune": finetune,
    "build_chains": build_chains,
    "build_questions": build_questions,
    "evaluate_chains": evaluate_chains,
    "calibrate_copy": calibrate_copy,
    "calibrate_in_place": calibrate_in_place,
    "evaluate_solutions": evaluate_solutions,
    "score_texts": score_texts,
    "annotate_questions": annotate_questions,
    "merge": merge_adapter,
    "testbed_model": testbed_model,
    "testbed": testbed,
    "compared_scheme": compared_scheme,
    "comparison": comparison,
}


class KillPoint:
    """Counts the operations that change something below `root`, and kills the process before number `number`."""

    def __init__(self, root: Path, number: int | None):
        self.root, self.number = str(root), number
        self.operations: list[str] = []
        self._pid = os.getpid()

    def __call__(self, event, values):
        if event != "open" and event not in _CHANGES:
            return
        if event == "open" and not (isinstance(values[2], int) and values[2] & _WRITING):
            return
        paths = [value for value in values[:2] if isinstance(value, str | os.PathLike)]
        paths = paths if event == "os.rename" else paths[:1]
        inside = [path for path in map(os.path.abspath, paths) if path.startswith(self.root + os.sep)]
        if not inside or os.getpid() != self._pid:
            return
        self.operations.append(f"{event} {os.path.relpath(inside[-1], self.root)}")
        if len(self.operations) == self.number:
            os.kill(self._pid, signal.SIGKILL)


def _command(name, world, number, result):
    os.chdir(world)
    matplotlib.use("agg")
    # A killed process loses nothing that it has written.
    os.fsync = lambda handle: None
    point = KillPoint(Path(world, "out"), number)
    sys.addaudithook(point)
    try:
        COMMANDS[name]("out")
    finally:
        operations = list(point.operations)
    save_result(result, operations)


def run_to_the_end(name: str, world: Path, result: Path) -> list[str]:
    """Runs a command in `world`; returns its operations below `world/out`."""
    code = run_child(_command, name, str(world), None, str(result))
    assert code == 0, f"{name} ended with code {code}"
    return load_result(result)


def run_until(name: str, world: Path, number: int, result: Path) -> bool:
    """Runs a command until its operation `number`; returns whether it was killed there."""
    code = run_child(_command, name, str(world), number, str(result))
    assert code in (0, -signal.SIGKILL), f"{name} ended with code {code}"
    return code != 0


def contents(folder: Path) -> dict[str, str]:
    """What a folder holds by path: a digest of every file; JSON without what differs between any two runs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif path.suffix in (".json", ".jsonl"):
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = sorted(json.dumps(_stable(json.loads(line)), sort_keys=True) for line in lines)
        elif path.suffix in (".pdf", ".txt"):
            found[name] = "written at another time"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _stable(value):
    if isinstance(value, dict):
        return {
            key: _stable(item)
            for key, item in value.items()
            if key != "size" and not any(part in key for part in VOLATILE)
        }
    return [_stable(item) for item in value] if isinstance(value, list) else value
