"""memreason reproduce from end to end, with models that learn nothing in a few steps."""

import pytest
from refusals import refused

from memreason_hf.commands import reproduce
from memreason_hf.evaluation import read_results


FEW = ["--seeds", "5", "--source_steps", "3", "--further_steps", "2", "--batch_size", "4", "--num_test_chains", "4"]


def test_help_names_every_experiment(capsys):
    for argv in (["--help"], []):
        assert reproduce.main(argv) == 0
        text = capsys.readouterr().out
        for name, (_, line) in reproduce.EXPERIMENTS.items():
            assert f"  {name}  {line}" in text


def test_unknown_experiments_and_flags(capsys):
    assert "unknown experiment 'frobnicate'. Choose one of retrofit" in refused(capsys, reproduce.main, ["frobnicate"])
    assert "unknown flag '--steps 3'" in refused(capsys, reproduce.main, ["retrofit", "--steps", "3"])
    assert "gradients='none' must be separate or shared" in refused(
        capsys, reproduce.main, ["retrofit", "--gradients", "none"]
    )


def test_help_of_an_experiment_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["retrofit", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("  memreason reproduce retrofit")]
    assert len(lines) == 4
    for line in lines:
        (arguments,) = reproduce.make_parser().parse_sections(line.split("#")[0].split()[3:])
        assert arguments.seed_numbers


def test_all_of_it_and_the_same_again(tmp_path, capsys):
    arguments = ["retrofit", "--output_dir", str(tmp_path), *FEW]
    assert reproduce.main(arguments) == 0
    text = capsys.readouterr().out
    results = read_results(tmp_path / "retrofit.json")
    entry = results["seeds"]["5"]
    assert entry["conversion_difference"] == entry["weight_difference"] == 0.0
    assert entry["looped"]["losses"][0] == pytest.approx(entry["static"]["losses"][0], rel=1e-6)
    assert len(entry["looped"]["losses"]) == 128
    assert "Perplexity of a place" in text and "(c) 4 times the best depth" in text

    # A kill in the middle: what is finished is kept, the rest is trained again to the same numbers.
    folder = tmp_path / "seed_5"
    for name in ("results.json", "looped/training.json"):
        (folder / name).unlink()
    kept = (folder / "static" / "training.json").stat().st_mtime_ns
    assert reproduce.main(arguments) == 0
    assert (folder / "static" / "training.json").stat().st_mtime_ns == kept
    again = read_results(tmp_path / "retrofit.json")["seeds"]["5"]
    assert [again[name] for name in ("static", "looped")] == [entry[name] for name in ("static", "looped")]
    assert "gate=0.5 there, now 1.0" in refused(capsys, reproduce.main, [*arguments, "--gate", "1.0"])
