"""Loads models from a Hub in a new Python process, with this repository's packages importable there or not."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from paths import ROOT


PACKAGES = ("modeling_recurrent", "memreason_hf")
CHILD = """
import importlib.util, json, sys
folder, installed, *paths = sys.argv[1:]
sys.path[:0] = paths
for name in ("modeling_recurrent", "memreason_hf"):
    assert (importlib.util.find_spec(name) is not None) == (installed == "yes"), name
if installed == "yes":
    import modeling_recurrent  # the one line that registers the architecture
import torch
import transformers
torch.set_num_threads(1)
cases = json.load(open(folder + "/cases.json"))
ids = torch.load(folder + "/ids.pt", weights_only=True)
results = []
for index, case in enumerate(cases):
    if case.get("offline"):
        from huggingface_hub import constants
        constants.HF_HUB_OFFLINE = True
    kwargs = dict(case.get("kwargs", {}))
    if case.get("trust"):
        kwargs["trust_remote_code"] = True
    if kwargs.get("device_map") == "auto":
        kwargs |= {"max_memory": {"cpu": case["memory"]}, "offload_folder": f"{folder}/offload-{index}"}
    try:
        loaded = getattr(transformers, case["auto"]).from_pretrained(case["name"], **kwargs)
    except Exception as error:
        results.append({"error": f"{type(error).__name__}: {error}"})
        continue
    result = {"class": type(loaded).__name__, "module": type(loaded).__module__}
    if isinstance(loaded, torch.nn.Module):
        with torch.no_grad():
            output = loaded(ids[case.get("vocabulary", "small")], **case.get("call", {}))
        result["devices"] = sorted({str(parameter.device) for parameter in loaded.parameters()})
        torch.save(output[0].clone(), f"{folder}/{index}.pt")
    elif case["auto"] == "AutoTokenizer":
        result["ids"] = loaded("the cat sat")["input_ids"]
    results.append(result)
json.dump(results, open(folder + "/results.json", "w"))
"""


def load_afresh(folder: Path, environment: dict, cases: list[dict], ids: dict, *, installed: bool) -> list[dict]:
    """
    Loads each case in one new process.

    Args:
        folder: for the results.
        environment: of the process.
        cases: `auto` (the Auto class), `name`, and optionally `kwargs`, `trust`, `call` (arguments of the forward).
        ids: the inputs by the size of the vocabulary, "small" unless the case names another one.
        installed: whether the packages of this repository can be imported there.

    Returns:
        For each case its class, and `logits`, the first entry of its output; or `error`.
    """
    folder.mkdir(parents=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    torch.save(ids, folder / "ids.pt")
    # `-I -S`: without the folder of the test, PYTHONPATH and .pth files, by which an editable package is found.
    paths = [path for path in sys.path if "site-packages" in path] + ([str(ROOT)] if installed else [])
    command = [sys.executable, "-I", "-S", "-c", CHILD, str(folder), "yes" if installed else "no", *paths]
    done = subprocess.run(
        command, env=environment, input="y\ny\ny\n", capture_output=True, text=True, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    for index, result in enumerate(results):
        if (folder / f"{index}.pt").is_file():
            result["logits"] = torch.load(folder / f"{index}.pt", weights_only=True)
    return results
