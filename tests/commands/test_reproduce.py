"""memreason reproduce from end to end, with models that learn nothing in a few steps."""

import re
import shlex

import pytest
from refusals import refused
from transformers import AutoTokenizer

from memreason_hf.commands import reproduce
from memreason_hf.evaluation import read_results
from memreason_hf.experiments.depth_extrapolation.run import ExtrapolationArguments, trained_hops
from memreason_hf.experiments.scheme_comparison.run import ComparisonArguments
from memreason_hf.experiments.scheme_comparison.schemes import SCHEMES, choose_variants
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import read_scheme
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.sampling_recurrent import sample_num_recurrences


FEW = ["--seeds", "5", "--source_steps", "3", "--further_steps", "2", "--batch_size", "4", "--num_test_chains", "4"]


def test_help_names_every_experiment(capsys):
    for argv in (["--help"], []):
        assert reproduce.main(argv) == 0
        text = capsys.readouterr().out
        for name, (_, line) in reproduce.EXPERIMENTS.items():
            assert re.search(rf"^  {name} +{re.escape(line)}$", text, re.MULTILINE)


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


TRY = ["--schemes", "answer_only,random_marks", "--token_counts", "1", "--num_items", "3", "--num_world_items", "12"]
TRY += ["--max_steps", "2", "--warmup_steps", "1", "--per_device_train_batch_size", "4", "--max_new_tokens", "6"]
TRY += ["--hidden_size", "16", "--num_layers", "1", "--num_attention_heads", "2", "--use_cpu"]


@pytest.mark.slow
def test_schemes_from_questions_to_the_table(tmp_path, capsys):
    arguments = ["memory_reason", "--output_dir", str(tmp_path), *TRY]
    assert reproduce.main(arguments) == 0
    text = capsys.readouterr().out
    results = read_results(tmp_path / "comparison.json")
    assert list(results["schemes"]) == ["answer_only", "random_marks", "memory_reason_1"]
    for name, entry in results["schemes"].items():
        assert f"\n{entry['title']}  " in text
        assert entry["measures"]["num_items"] == 3 and entry["training"]["steps"] == 2
        assert len((tmp_path / name / "solutions.jsonl").read_text().splitlines()) == 3
        scheme = read_scheme(AutoTokenizer.from_pretrained(tmp_path / name))
        assert scheme == StepScheme.from_dict(entry["scheme"])
    counts = {name: entry["training"]["num_parameters"] for name, entry in results["schemes"].items()}
    # A row of 16 numbers for every token: 1 + 4 * 2 of random marks, 1 + 4 of the other; embeddings are tied.
    assert counts["random_marks"] - counts["answer_only"] == 9 * 16
    assert counts["memory_reason_1"] - counts["answer_only"] == 5 * 16

    # A kill in the middle: what is finished is kept, and the rest gives the same.
    folder = tmp_path / "random_marks"
    (folder / "results.json").unlink()
    lines = (folder / "solutions.jsonl").read_text().splitlines(keepends=True)
    (folder / "solutions.jsonl").write_text("".join(lines[:1]))
    trained = (folder / "training.json").stat().st_mtime_ns
    assert reproduce.main(arguments) == 0
    assert (folder / "training.json").stat().st_mtime_ns == trained
    again = read_results(tmp_path / "comparison.json")["schemes"]
    assert [again[name]["measures"] for name in again] == [entry["measures"] for entry in results["schemes"].values()]
    assert sorted((folder / "solutions.jsonl").read_text().splitlines()) == sorted("".join(lines).splitlines())
    assert "holds another run" in refused(capsys, reproduce.main, [*arguments, "--seed", "1"])


def test_the_recipes_of_the_published_models(capsys):
    parser = reproduce.make_comparison_parser()
    for recipe, base, tokens in (
        ("strategyqa_llama2", "meta-llama/Llama-2-7b-chat-hf", (2, 4)),
        ("truthfulqa_llama31", "meta-llama/Llama-3.1-8B-Instruct", (3, 4)),
        ("commonsenseqa", "meta-llama/Llama-2-7b-chat-hf", (2, 4)),
    ):
        path, values = parser.parse_recipe([recipe, "--seed", "3"])
        assert path.stem == f"finetune_{recipe}" and values["model"]["path"] == base
        mode = values["adapter"]["mode"]
        variants = choose_variants(list(SCHEMES), [1, 8], values["steps"], mode=mode)
        assert (variants["plain"].mode, variants["memory_reason"].mode) == ("lora", "lora+tokens")
        assert variants["memory_reason"].scheme == StepScheme(*tokens)
        assert len(variants) == 12
    assert values["training"]["seed"] == 3
    # What the comparison decides cannot be set beside it.
    assert "unknown flag '--layout" in refused(capsys, reproduce.main, ["memory_reason", "--layout", "front"])
    assert "schemes='x' must name some of" in refused(capsys, reproduce.main, ["memory_reason", "--schemes", "x"])


def test_help_of_the_comparison_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["memory_reason", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("  memreason reproduce memory_reason")]
    assert len(lines) == 6
    for line in lines:
        _, values = reproduce.make_comparison_parser().parse_recipe(shlex.split(line, comments=True)[3:])
        ComparisonArguments(**values["comparison"])


SMALL = [
    "--num_entities",
    "6",
    "--num_relations",
    "3",
    "--train_hops",
    "2-3",
    "--test_hops",
    "2-4",
    "--cap_to_available",
]
SMALL += ["--num_train_chains", "20", "--num_test_chains", "6", "--hidden_size", "16", "--intermediate_size", "32"]
SMALL += ["--num_attention_heads", "2", "--per_device_train_batch_size", "4", "--max_steps", "3", "--use_cpu"]
SMALL += ["--measured_recurrences", "8", "--deep_hops", "9", "--num_deep_chains", "3", "--warmup_steps", "1"]


def test_depth_extrapolation_and_the_same_again(tmp_path, capsys):
    arguments = ["depth_extrapolation", "--output_dir", str(tmp_path), *SMALL]
    assert reproduce.main(arguments) == 0
    text = capsys.readouterr().out
    results = read_results(tmp_path / "extrapolation.json")
    assert [entry["hops"] for entry in results["hop_counts"]] == [2, 3, 4]
    assert [(entry["hops"], entry["count"]) for entry in results["deep"]] == [(9, 3)]
    assert results["training"]["steps"] == 3 and results["training"]["chains"] == 12
    assert results["training"]["trained_hops"] == 3 and results["recipe"]["model"]["hidden_size"] == 16
    assert "deepest hop count at 60%" in text and (tmp_path / "extrapolation.png").is_file()

    # A kill in the middle: what is finished is kept, and the rest gives the same.
    measures = tmp_path / "measures"
    (measures / "results_9.json").unlink()
    hops_file, weights = measures / "results_hops.json", tmp_path / "model" / "model.safetensors"
    measured_at, trained = hops_file.stat().st_mtime_ns, weights.read_bytes()
    assert reproduce.main(arguments) == 0
    assert hops_file.stat().st_mtime_ns == measured_at and weights.read_bytes() == trained
    again = read_results(tmp_path / "extrapolation.json")
    assert [again[name] for name in ("hop_counts", "deep")] == [results[name] for name in ("hop_counts", "deep")]
    assert "num_deep_chains=3 there, now 4" in refused(capsys, reproduce.main, [*arguments, "--num_deep_chains", "4"])


def test_deep_chains_must_be_longer_than_those_of_training(tmp_path, capsys):
    arguments = ["depth_extrapolation", "--output_dir", str(tmp_path), *SMALL, "--deep_hops", "3"]
    assert "deep_hops='3' must be above" in refused(capsys, reproduce.main, arguments)
    assert list(tmp_path.iterdir()) == []
    # With a curriculum that ends earlier, they are.
    assert trained_hops({"data": {"train_hops": "2-40"}, "curriculum": {"last_stage": 12}}) == 12
    assert trained_hops({"data": {"train_hops": "2-40"}, "curriculum": {"stages": [1, 2, 8]}}) == 8
    assert trained_hops({"data": {"train_hops": "2-8"}, "curriculum": {"enabled": False, "last_stage": 4}}) == 8


def test_help_of_depth_extrapolation_teaches(capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["depth_extrapolation", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("  memreason reproduce depth_extrapolation")]
    assert len(lines) == 5
    for line in lines:
        _, values = reproduce.make_extrapolation_parser().parse_recipe(shlex.split(line, comments=True)[3:])
        ExtrapolationArguments(**values["extrapolation"])


def test_the_recipe_of_depth_extrapolation_can_pass_its_stages():
    """After the growth of the depth, no training step has fewer recurrences than the longest chains have hops."""
    _, values = reproduce.make_extrapolation_parser().parse_recipe([reproduce.DEFAULT_EXTRAPOLATION])
    fields = {name: values["model"][name] for name in ("num_recurrences", "recurrence_sampling")}

    def fewest(**changes):
        config = RecurrentDepthConfig(**{**fields, **changes})
        return min(sample_num_recurrences(config, 0, step) for step in range(500))

    assert fewest() >= trained_hops(values)
    # Control: a distribution with the same mean does.
    assert fewest(recurrence_sampling="poisson", recurrence_min=1, recurrence_max=16) < trained_hops(values)
