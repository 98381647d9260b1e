import json
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from datasets import Dataset

from memreason_hf.command_line import chain_inputs
from memreason_hf.commands.evaluate import main
from memreason_hf.data import encode_chains, load_multi_hop, load_multi_hop_tokenizer, select_chains
from memreason_hf.evaluation import read_results
from modeling_recurrent import RecurrentDepthForCausalLM
from modeling_recurrent.halting_recurrent import HALTING_CRITERIA


KL = ["--halting_criterion", "kl", "--kl_threshold", "0.1"]


@pytest.fixture
def flags(model_folder, world_folder):
    return [str(model_folder), "--data", str(world_folder), "--no_progress", "--device", "cpu"]


def refused(capsys, argv):
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("memreason evaluate: error: ")]
    return line


@torch.no_grad()
def test_agrees_with_one_row_at_a_time(flags, model_folder, world_folder, tmp_path, capsys):
    assert main([*flags, *KL, "--output_dir", str(tmp_path / "out"), "--batch_size", "7"]) == 0
    results = read_results(tmp_path / "out" / "evaluation.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["evaluation.json"]

    model = RecurrentDepthForCausalLM.from_pretrained(model_folder)
    rows = select_chains(load_multi_hop(world_folder)["test"], kind="test")
    counts, hits = {}, {}
    for row in encode_chains(rows, load_multi_hop_tokenizer(world_folder)):
        output = model(
            torch.tensor([row["input_ids"]]),
            halting_criterion="kl",
            kl_threshold=0.1,
            halting_granularity="sequence",
        )
        counts.setdefault(row["hops"], []).append(int(output.num_recurrences))
        hits.setdefault(row["hops"], []).append(int(output.logits[0, -1].argmax()) == row["label_ids"][-1])
    assert len({count for group in counts.values() for count in group}) >= 4
    assert [group["group"] for group in results["groups"]] == [2, 3, 4, 5]
    for group in results["groups"]:
        expected = counts[group["group"]]
        assert group["count"] == len(expected) == 12
        assert group["accuracy"] == pytest.approx(np.mean(hits[group["group"]]))
        assert group["recurrences"] == {
            "mean": pytest.approx(np.mean(expected)),
            "median": np.median(expected),
            "standard_deviation": pytest.approx(np.std(expected)),
            "minimum": min(expected),
            "maximum": max(expected),
        }
        assert group["fixed"] is None
    assert results["data"]["num_rows"] == results["overall"]["count"] == 48
    printed = capsys.readouterr().out
    assert "halting by kl (kl_threshold 0.1), 1 to 8 recurrences" in printed
    assert "48 rows in" in printed and "ms per row" in printed


def test_baseline_compares_and_draws(flags, tmp_path, capsys):
    assert main([*flags, *KL, "--fixed_baseline", "--output_dir", str(tmp_path / "out"), "--trained_hops", "3"]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["evaluation.json", "evaluation.pdf", "evaluation.png"]
    results = read_results(tmp_path / "out" / "evaluation.json")
    assert results["model"]["trained_hops"] == 3
    for group in results["groups"]:
        assert 1 <= group["fixed"]["best_recurrence"] <= 8
    assert "best fixed" in capsys.readouterr().out


def test_fixed_depth(flags, tmp_path, capsys):
    assert main([*flags, "--num_recurrences", "5", "--output_dir", str(tmp_path / "out")]) == 0
    results = read_results(tmp_path / "out" / "evaluation.json")
    assert results["settings"]["num_recurrences"] == 5
    assert results["settings"]["halting_criterion"] is None
    assert (results["overall"]["recurrences"]["minimum"], results["overall"]["recurrences"]["maximum"]) == (5, 5)
    assert "fixed at 5 recurrences" in capsys.readouterr().out


def test_rows_are_chosen_by_flags(flags, tmp_path):
    chosen = [
        "--split",
        "test",
        "--kind",
        "all",
        "--group_column",
        "type",
        "--max_rows_per_group",
        "3",
        "--hops",
        "1,3",
    ]
    assert main([*flags, *KL, *chosen, "--output_dir", str(tmp_path / "out")]) == 0
    groups = read_results(tmp_path / "out" / "evaluation.json")["groups"]
    assert [(group["group"], group["count"]) for group in groups] == [
        ("3hop_test", 3),
        ("3hop_train", 3),
        ("atomic_facts", 3),
    ]


def test_recipe_with_overriding_flags(model_folder, world_folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"inputs:\n  model: {model_folder}\n  data: {world_folder}\n  no_progress: true\n  hops: 2-4\n"
        f"halting:\n  halting_criterion: kl\n  kl_threshold: 3e-1\n  min_recurrences: 2\n"
        f"output:\n  output_dir: {tmp_path / 'out'}\n",
        encoding="utf-8",
    )
    assert main([str(recipe), "--hops", "2,5", "--min_recurrences", "3"]) == 0
    results = read_results(tmp_path / "out" / "evaluation.json")
    assert [group["group"] for group in results["groups"]] == [2, 5]
    assert results["settings"]["parameters"] == {"kl_threshold": 0.3}
    assert results["settings"]["min_recurrences"] == results["overall"]["recurrences"]["minimum"] == 3


def test_model_beside_a_recipe(model_folder, world_folder, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"inputs:\n  model: nowhere\n  data: {world_folder}\n  no_progress: true\n", encoding="utf-8")
    assert main([str(recipe), str(model_folder)]) == 0


@pytest.mark.parametrize("criterion", [name for name in HALTING_CRITERIA if name != "exit_gate"])
def test_every_criterion_has_its_flags(flags, criterion, capsys):
    parameters = [field.name for field in fields(HALTING_CRITERIA[criterion])]
    values = {"argmax_patience": "2", "entropy_threshold": "2.0", "confidence_threshold": "0.3"}
    given = [part for name in parameters for part in (f"--{name}", values.get(name, "0.2"))]
    assert main([*flags, "--halting_criterion", criterion, *given]) == 0
    assert f"halting by {criterion} (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "no-such-owner/no-such-model"], "no such folder, and not in the cache of the Hub either"),
        (["--halting_criterion", "kll"], r"halting_criterion='kll' must be one of.*Did you mean 'kl'"),
        (["--haltin_criterion", "kl"], r"unknown flag '--haltin_criterion kl'. Did you mean --halting_criterion\?"),
        (["--halting_criterion", "exit_gate"], "exit_gate reads a learned gate|needs a model with exit_gate=True"),
        (["--halting_criterion", "kl", "--kl_threshold", "-1"], "kl_threshold: Value must be above 0, got -1.0"),
        (["--halting_criterion", "kl", "--num_recurrences", "4"], "num_recurrences=4 fixes the depth"),
        (["--num_recurrences", "0"], "num_recurrences: Value must be at least 1, got 0"),
        (
            ["--num_recurrences", "3", "--kl_threshold", "0.3"],
            "kl_threshold=0.3 is a parameter of .*, but num_recurrences=3 decides",
        ),
        (
            ["--halting_criterion", "confidence", "--argmax_patience", "3"],
            "argmax_patience=3 is a parameter of argmax_stability, but halting_criterion='confidence' decides",
        ),
        (["--trained_hops", "-3"], "trained_hops=-3 must be at least 1"),
        (["--min_recurrences", "9"], "min_recurrences=9 is above max_recurrences=8"),
        (["--halting_granularity", "row"], "row"),
        (["--split", "tset"], r"split='tset'.*train, validation, test, test_small"),
        (["--hops", "2,3,9"], r"hops='2,3,9': no row has 9 hops.*2-5"),
        (["--hops", "two"], "two"),
        (["--group_column", "hop"], "group_column='hop' must be hops or type"),
        (["--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--max_rows_per_group", "0"], "max_rows_per_group=0 must be at least 1"),
        (["--split", "train"], "kind='test'"),
        (["--data", "nowhere"], "data='nowhere': no such folder"),
        (["--model", "./nowhere"], "model='./nowhere': no such folder"),
        (["--device", "quantum"], "device='quantum'"),
        (["--tokenizer", "nowhere/else/three"], "nowhere/else/three"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, argv, message, capsys, tmp_path):
    line = refused(capsys, [*flags, *argv, "--output_dir", str(tmp_path / "out")])
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


def test_missing_names(world_folder, model_folder, capsys):
    assert "model is not given" in refused(capsys, ["--data", str(world_folder)])
    assert "data is not given" in refused(capsys, [str(model_folder)])
    assert "at most one" in refused(capsys, ["one", "two", "--data", str(world_folder)])


def test_unknown_key_in_a_recipe(flags, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("halting:\n  kl_treshold: 0.1\n", encoding="utf-8")
    line = refused(capsys, [str(recipe), *flags])
    assert "kl_treshold" in line and "kl_threshold" in line


def test_results_are_not_overwritten(flags, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*flags, "--output_dir", str(out)]) == 0
    before = (out / "evaluation.json").read_bytes()
    capsys.readouterr()
    line = refused(capsys, [*flags, "--output_dir", str(out)])
    assert "evaluation.json" in line and "--overwrite" in line
    assert (out / "evaluation.json").read_bytes() == before
    assert main([*flags, "--output_dir", str(out), "--num_recurrences", "2", "--overwrite"]) == 0
    assert read_results(out / "evaluation.json")["settings"]["num_recurrences"] == 2


def test_empty_data_set(flags, monkeypatch, capsys):
    empty = Dataset.from_dict({"input_text": [], "type": [], "hops": [], "entities": []})
    monkeypatch.setattr(chain_inputs, "load_multi_hop", lambda path: {"test": empty})
    assert "split='test'" in (line := refused(capsys, flags)) and "empty" in line


def test_tokenizer_larger_than_the_model(flags, model_folder, capsys):
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] -= 3
    (model_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    line = refused(capsys, flags)
    assert "vocabulary does not match" in line and f"vocab_size is {config['vocab_size']}" in line


def test_data_of_another_world(flags, model_folder, capsys):
    tokenizer = json.loads((model_folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {name.replace("<e_", "<x_"): index for name, index in vocabulary.items()}
    (model_folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    line = refused(capsys, flags)
    assert "vocabulary does not match" in line and "<e_0>" in line


def test_tokenizer_from_the_data_set(flags, model_folder, world_folder, capsys):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model_folder / name).unlink()
    line = refused(capsys, flags)
    assert "tokenizer.json" in line and "--tokenizer" in line
    assert main([*flags, "--tokenizer", str(world_folder)]) == 0


@pytest.mark.parametrize("damage", ["truncated", "missing", "config", "no_config", "gpt2", "tokenizer"])
def test_damaged_model_folders(flags, model_folder, damage, capsys):
    weights, config = model_folder / "model.safetensors", model_folder / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "missing":
        weights.unlink()
    elif damage == "config":
        config.write_text(config.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    elif damage == "no_config":
        (model_folder / "checkpoint-20").mkdir()
        config.rename(model_folder / "checkpoint-20" / "config.json")
    elif damage == "tokenizer":
        (model_folder / "tokenizer.json").write_text("{", encoding="utf-8")
    elif damage == "gpt2":
        config.write_text('{"model_type": "gpt2"}', encoding="utf-8")
    line = refused(capsys, flags)
    assert str(model_folder) in line
    expected = {"truncated": "cut off", "no_config": "Did you mean", "gpt2": "model_type='gpt2'"}
    assert expected.get(damage, "") in line


def test_weights_that_do_not_fit_the_config(flags, model_folder, capsys):
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    (model_folder / "config.json").write_text(json.dumps({**config, "num_recurrent_layers": 2}), encoding="utf-8")
    line = refused(capsys, flags)
    assert "do not belong to the config (missing_keys: model.layers.1" in line


def test_trained_range_from_the_run(flags, model_folder, tmp_path):
    run = {"fingerprint": {"curriculum.stages": [2, 3]}, "files": []}
    (model_folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    assert main([*flags, "--output_dir", str(tmp_path / "a")]) == 0
    assert read_results(tmp_path / "a" / "evaluation.json")["model"]["trained_hops"] == 3
    (model_folder / "run.json").write_text("{}", encoding="utf-8")
    assert main([*flags, "--output_dir", str(tmp_path / "b")]) == 0
    assert read_results(tmp_path / "b" / "evaluation.json")["model"]["trained_hops"] is None


def test_dtype(flags, tmp_path):
    assert main([*flags, "--dtype", "bfloat16", "--output_dir", str(tmp_path)]) == 0
    assert read_results(tmp_path / "evaluation.json")["model"]["dtype"] == "bfloat16"
