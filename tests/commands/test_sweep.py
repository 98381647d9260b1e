import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from memreason_hf.commands.evaluate import main as evaluate
from memreason_hf.commands.sweep import main
from memreason_hf.evaluation import read_results


FILES = ["depth_margins.pdf", "depth_margins.png", "depth_sweep.json", "depth_sweep.pdf", "depth_sweep.png"]


@pytest.fixture
def flags(model_folder, world_folder):
    return [str(model_folder), "--data", str(world_folder), "--no_progress"]


def test_agrees_with_evaluations_at_fixed_depths(flags, tmp_path, capsys):
    assert main([*flags, "--max_recurrences", "4", "--output_dir", str(tmp_path / "sweep")]) == 0
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == FILES
    printed = capsys.readouterr().out
    assert "first correct" in printed and "48 rows in" in printed
    sweep = read_results(tmp_path / "sweep" / "depth_sweep.json")
    for recurrence in range(1, 5):
        out = tmp_path / str(recurrence)
        assert evaluate([*flags, "--num_recurrences", str(recurrence), "--output_dir", str(out)]) == 0
        fixed = read_results(out / "evaluation.json")
        for swept, evaluated in zip(sweep["groups"], fixed["groups"], strict=True):
            assert swept["group"] == evaluated["group"]
            assert swept["accuracy"][recurrence - 1] == pytest.approx(evaluated["accuracy"], abs=1e-12)


def test_depth_is_the_models_unless_asked_for(flags, capsys):
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "after 1 to 8 recurrences" in printed
    assert "Nothing was written" in printed


def test_halting_points_of_an_evaluation_are_drawn_in(flags, tmp_path, capsys):
    halting = str(tmp_path / "evaluation" / "evaluation.json")
    assert evaluate([*flags, "--halting_criterion", "kl", "--output_dir", str(tmp_path / "evaluation")]) == 0
    assert main([*flags, "--halting_results", halting, "--output_dir", str(tmp_path / "sweep")]) == 0
    capsys.readouterr()

    for argv, message in (
        (["--hops", "2-3"], "groups that are not swept: [4, 5]"),
        (["--halting_results", str(tmp_path / "none.json")], "none.json"),
        (["--halting_results", str(tmp_path / "sweep" / "depth_sweep.json")], "kind='depth_sweep'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*flags, "--halting_results", halting, *argv])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_results_that_are_nested_too_deeply(flags, tmp_path, capsys):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(SystemExit) as stop:
        main([*flags, "--halting_results", str(tmp_path / "deep.json")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("memreason sweep: error: ") and "deep" in line


def test_other_groups(flags, tmp_path):
    argv = ["--group_column", "type", "--kind", "all", "--trained_hops", "3", "--output_dir", str(tmp_path)]
    assert main([*flags, *argv]) == 0
    groups = [group["group"] for group in read_results(tmp_path / "depth_sweep.json")["groups"]]
    assert groups == ["2hop_test", "2hop_train", "3hop_test", "3hop_train", "4hop_test", "5hop_test", "atomic_facts"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max_recurrences", "0"], "max_recurrences=0 must be at least 1"),
        (["--max_recurences", "4"], "Did you mean --max_recurrences?"),
        (["--halting_criterion", "kl"], "unknown flag '--halting_criterion kl'"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*flags, *argv])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_results_are_not_overwritten(flags, tmp_path, capsys):
    (tmp_path / "depth_margins.pdf").write_bytes(b"precious")
    with pytest.raises(SystemExit):
        main([*flags, "--output_dir", str(tmp_path)])
    assert "depth_margins.pdf" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["depth_margins.pdf"]
    assert (tmp_path / "depth_margins.pdf").read_bytes() == b"precious"
    assert main([*flags, "--output_dir", str(tmp_path), "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == FILES


@pytest.mark.slow
def test_two_processes_share_the_rows(flags, tmp_path):
    argv = [*flags, "--max_recurrences", "3", "--batch_size", "5", "--output_dir"]
    assert main([*argv, str(tmp_path / "one")]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    # Two fresh interpreters: everything is imported twice.
    result = subprocess.run(
        [*launch, "memreason_hf.commands.sweep", *argv, str(tmp_path / "two"), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Wrote ") == 1
    one, two = (read_results(tmp_path / name / "depth_sweep.json") for name in ("one", "two"))
    assert two["environment"]["num_processes"] == 2
    for first, second in zip(one["groups"], two["groups"], strict=True):
        assert first["accuracy"] == second["accuracy"]
        assert first["margin"] == pytest.approx(second["margin"], rel=1e-4, abs=1e-5)


@pytest.fixture
def other_folder(model_folder, tmp_path):
    """The same model with other weights in its head."""
    folder = shutil.copytree(model_folder, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(torch.randn_like(model.get_output_embeddings().weight) * 0.2)
    model.save_pretrained(folder)
    return str(folder)


COMPARED = sorted([*FILES, *(f"depth_comparison.{suffix}" for suffix in ("json", "pdf", "png"))])


def test_models_side_by_side_have_the_numbers_of_their_own_sweeps(flags, other_folder, tmp_path, capsys):
    most = ["--max_recurrences", "5"]
    data = flags[1:]
    assert main([other_folder, *data, *most, "--output_dir", str(tmp_path / "alone")]) == 0
    out = tmp_path / "both"
    assert main([*flags, *most, "--other_models", other_folder, "--output_dir", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == COMPARED
    printed = capsys.readouterr().out
    assert "2 models over the same rows" in printed and "last margin" in printed
    compared = read_results(out / "depth_comparison.json")
    first, second = compared["models"]
    own, alone = (read_results(tmp_path / name / "depth_sweep.json") for name in ("both", "alone"))
    for entry, expected in ((first, own), (second, alone)):
        assert entry["overall"] == expected["overall"] and entry["groups"] == expected["groups"]
    # A control: the models differ.
    assert first["overall"]["margin"] != second["overall"]["margin"]
    assert [model["label"].rpartition("/")[2] for model in compared["models"]] == ["model", "other"]

    argv = [*flags, *most, "--compare", str(tmp_path / "alone" / "depth_sweep.json"), "--output_dir", str(out)]
    assert main([*argv, "--overwrite"]) == 0
    again = read_results(out / "depth_comparison.json")
    assert again["models"][1]["overall"] == second["overall"] and again["models"][0]["overall"] == own["overall"]
    assert main(argv[:-2]) == 0
    assert capsys.readouterr().out.count("Nothing was written") == 1


def test_models_that_cannot_be_compared_are_refused(flags, other_folder, tmp_path, capsys):
    assert main([*flags, "--hops", "2", "--max_recurrences", "2", "--output_dir", str(tmp_path / "two")]) == 0
    capsys.readouterr()
    results = str(tmp_path / "two" / "depth_sweep.json")
    for argv, message in (
        (["--compare", results], "is over other rows: it differs in the groups 3, 4, 5"),
        (["--compare", "nowhere.json"], "compare='nowhere.json': no such file"),
        (["--other_models", str(tmp_path / "none")], "none"),
        (["--other_models", other_folder, other_folder], "is compared twice"),
        (["--other_models", flags[0]], "is compared twice"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*flags, *argv, "--output_dir", str(tmp_path / "out")])
        captured = capsys.readouterr()
        assert stop.value.code == 2 and message in captured.err and captured.out == ""
    assert not (tmp_path / "out").exists()
