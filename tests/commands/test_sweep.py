import subprocess
import sys

import pytest

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
