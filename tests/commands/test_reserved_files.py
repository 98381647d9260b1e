"""Commands that compute for long take the lock of their files first, before anything is loaded."""

import threading
from contextlib import contextmanager

import pytest

from memreason_hf.commands import (
    attention,
    calibrate,
    evaluate,
    generate,
    lens,
    lm_eval,
    patch,
    perplexity,
    sweep,
    trajectories,
)
from memreason_hf.locks import locked


COMMANDS = {
    "evaluate": (evaluate, ["--data", "nowhere", "--output_dir", "out"], "evaluation.json"),
    "sweep": (sweep, ["--data", "nowhere", "--output_dir", "out"], "depth_sweep.json"),
    "calibrate": (calibrate, ["--data", ".", "--risk", "0.1", "--output_dir", "out"], "calibration.json"),
    "perplexity": (perplexity, ["--data", "nowhere", "--output_dir", "out"], "perplexity.json"),
    "lm-eval": (lm_eval, ["--tasks", "nothing", "--num_recurrences", "1", "--output_dir", "out"], "task_scores.json"),
    "attention": (attention, ["--text", "<memory> a", "--output_dir", "out"], "attention.json"),
    "lens": (lens, ["--text", "a", "--output_dir", "out"], "lens.json"),
    "trajectories": (trajectories, ["--text", "a", "--output_dir", "out"], "trajectories.json"),
    "patch": (patch, ["--first", "a", "--second", "b", "--output_dir", "out"], "patch.json"),
    "generate": (generate, ["--prompt", "a", "--json", "out/texts.json"], "texts.json"),
}


@contextmanager
def held_by_another(path):
    held, done = threading.Event(), threading.Event()

    def hold():
        with locked(path):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("name", COMMANDS)
def test_another_process_is_refused_before_it_computes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module, flags, file = COMMANDS[name]
    with held_by_another(tmp_path / "out" / file):
        with pytest.raises(SystemExit) as stop:
            module.main(["no-model-is-here", *flags])
        assert stop.value.code == 2 and f"{file} is in use by" in capsys.readouterr().err
    # A control: the model is what is missing otherwise.
    with pytest.raises(SystemExit) as stop:
        module.main(["no-model-is-here", *flags])
    assert stop.value.code == 2 and "in use" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
