"""
The published loops against the code of their authors, on tiny random weights that this code saves.

The original code runs in a process of its own, under the release of transformers that it pins. It is not part of this
repository; two variables say where it is, for example

    MEMREASON_HUGINN_PYTHON=/envs/huginn/bin/python MEMREASON_HUGINN_SOURCE=/src/recurrent-pretraining \\
        pytest tests/integration/test_published_loops_originals.py -n0 -s

| variable | source | transformers |
|---|---|---|
| `MEMREASON_HUGINN` | github.com/seal-rg/recurrent-pretraining | 4.47.1 |
| `MEMREASON_RETROFIT` | github.com/LoopedLMs/retrofitting-recurrence | 4.51.0 |
| `MEMREASON_OURO` | github.com/LoopedLMs/ouro_rl, which holds `modeling_ouro.py` of ByteDance/Ouro-1.4B | 4.57.6 |
| `MEMREASON_STUDY` | github.com/OSU-NLP-Group/Loop-Think-Generalize | 4.51.0 |

The study pins no release. Its blocks must mask the future by themselves, which those of transformers 5 do not.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from published_loops import Ouro, Raven, Study
from recurrent_models import relative_error
from safetensors.torch import load_file

from memreason_hf.models.published import convert_published


TOLERANCE = 1e-5
HEADS = {"num_attention_heads": 4}
# The variable, and what only the caller of `convert_published` knows.
FAMILIES = {
    "huginn": ("HUGINN", {}),
    "retrofit_llama": ("RETROFIT", {}),
    "retrofit_olmo": ("RETROFIT", {}),
    "ouro": ("OURO", {}),
    "study": ("STUDY", HEADS),
    "study_learned": ("STUDY", HEADS),
    "study_sinusoidal": ("STUDY", {**HEADS, "input_injection": True}),
}
NORMS = {"huginn": "residual", "retrofit_llama": "pre", "retrofit_olmo": "post"}


@pytest.fixture(params=FAMILIES)
def original(request, tmp_path):
    """The family, the folder that the original code saved, and what it computed."""
    variable, _ = FAMILIES[request.param]
    names = [f"MEMREASON_{variable}_{part}" for part in ("PYTHON", "SOURCE")]
    places = [os.environ.get(name) for name in names]
    if None in places:
        pytest.skip(f"needs the original code: set {' and '.join(names)}, see the docstring of this file")
    script = Path(__file__).with_name("published_reference.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [places[0], str(script), request.param, places[1], str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return request.param, tmp_path / "model", torch.load(tmp_path / "reference.pt", weights_only=True)


def our_logits(family, model, reference, recurrences):
    call = {"initial_state": reference["state"]} if "state" in reference else {}
    if family.startswith("study"):
        # The study counts padding as positions.
        ids = reference["input_ids"]
        call = {
            "attention_mask": reference["attention_mask"],
            "position_ids": torch.arange(ids.shape[1]).expand(len(ids), -1),
        }
    with torch.no_grad():
        return model(reference["input_ids"], num_recurrences=recurrences, **call).logits


def test_logits_after_every_recurrence(original):
    family, folder, reference = original
    model, _ = convert_published(folder, **FAMILIES[family][1])
    errors = [
        relative_error(our_logits(family, model, reference, recurrence), expected)
        for recurrence, expected in enumerate(reference["logits"], start=1)
    ]
    print(f"{family} {reference['versions']}: {' '.join(f'{error:.1e}' for error in errors)}")
    assert len(errors) == 8 and max(errors) < TOLERANCE
    # The control: the logits of the recurrence before.
    shifted = [relative_error(a, b) for a, b in zip(reference["logits"][1:], reference["logits"])]
    assert min(shifted) > 1e-2
    if "state" in reference:
        states = model(torch.ones(64, 64, dtype=torch.long), num_recurrences=1, output_hidden_states=True)
        assert abs(states.hidden_states[0][0].std() / reference["state_std"] - 1) < 0.03
        assert abs(states.hidden_states[0][0].abs().max() / reference["state_max"] - 1) < 0.03


def test_the_restatements_of_the_default_tests(original):
    family, folder, reference = original
    if family.startswith("study"):
        learned = {"study_learned": {"positions": "learned"}}
        sinusoidal = {"study_sinusoidal": {"positions": "sinusoidal", "input_injection": True}}
        module = Study(**(learned | sinusoidal).get(family, {}))
        weights = torch.load(next(folder.glob("*.pt")), weights_only=True)["model_state_dict"]
        weights = {name.removeprefix("_orig_mod."): value for name, value in weights.items()}
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        module = Ouro(config) if family == "ouro" else Raven(config | {"norms": NORMS[family]})
        weights = load_file(folder / "model.safetensors")
        weights.pop("freqs_cis", None)
    missing, unexpected = module.eval().load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    ids = reference["input_ids"]
    with torch.no_grad():
        for recurrence, expected in enumerate(reference["logits"], start=1):
            if family == "ouro":
                logits, exits = module(ids, recurrence)
                assert relative_error(exits, reference["gates"][:recurrence].sigmoid()) < TOLERANCE
            elif family.startswith("study"):
                logits = module(ids, reference["attention_mask"], recurrence)
            else:
                logits = module(ids, reference["state"], recurrence)
            assert relative_error(logits, expected) < TOLERANCE


def test_rows_halt_where_the_original_reads_its_logits(original):
    family, folder, reference = original
    if family != "ouro":
        pytest.skip("only Ouro has a gate")
    model, _ = convert_published(folder)
    counts = set()
    for threshold, expected in reference["halted"].items():
        with torch.no_grad():
            output = model(
                reference["input_ids"],
                halting_criterion="exit_gate",
                halting_granularity="sequence",
                exit_gate_threshold=float(threshold),
            )
        assert relative_error(output.logits[:, -1], expected[:, -1]) < TOLERANCE
        print(f"ouro, threshold {threshold}: recurrences {output.num_recurrences.tolist()}")
        counts |= set(output.num_recurrences.tolist())
    assert len(counts) >= 4
