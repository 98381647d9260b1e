"""memreason calibrate as a user runs it: chains, text and solutions, and the model with the threshold."""

import json

import numpy as np
import pytest
import torch
from refusals import refused
from small_tokenizers import byte_level, recurrent
from text_models import TEXT, save_text_model
from transformers import AutoModelForCausalLM

from memreason_hf.commands.calibrate import main
from memreason_hf.commands.evaluate import main as evaluate
from memreason_hf.data import encode_chains, load_multi_hop, load_multi_hop_tokenizer, select_chains
from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.evaluation import predict_answers, read_results
from memreason_hf.hub.cards import make_card
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer
from modeling_recurrent import RecurrentDepthConfig


@pytest.fixture
def flags(model_folder, world_folder):
    # 48 chains, whose answers hardly depend on the model: a large risk.
    return [str(model_folder), "--data", str(world_folder), "--no_progress", "--risk", "0.3"]


CRITERIA = ["--halting_criterion", "kl", "margin"]


def test_a_copy_halts_as_calibrated(flags, model_folder, world_folder, tmp_path, capsys):
    copy, out = tmp_path / "copy", tmp_path / "out"
    assert main([*flags, *CRITERIA, "--save_to", str(copy), "--output_dir", str(out), "--repetitions", "20"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["calibration.json", "calibration.pdf", "calibration.png"]
    printed = capsys.readouterr().out
    assert "Chosen: " in printed and "In 20 repetitions" in printed and "with a confidence of 95 %" in printed
    results = read_results(out / "calibration.json")
    chosen, naive = results["chosen"], results["naive"]
    assert naive["recurrences"] <= chosen["recurrences"] <= 8 and chosen["is_safe"] and chosen["p_value"] <= 0.025

    # The model from its folder, without any argument, takes the recurrences and loses what the calibration says.
    model = AutoModelForCausalLM.from_pretrained(copy)
    dataset = select_chains(load_multi_hop(world_folder)["test"], kind="test")
    tokenizer = load_multi_hop_tokenizer(world_folder)
    arguments = {"dataset": encode_chains(dataset, tokenizer), "collator": ChainCollator(tokenizer.pad_token_id)}
    halted = predict_answers(model, **arguments, batch_size=16)
    full = predict_answers(model, **arguments, batch_size=16, num_recurrences=8)
    assert np.mean(halted.num_recurrences) == pytest.approx(chosen["recurrences"], abs=0.05)
    right, was_right = (np.array(a.predictions) == a.references for a in (halted, full))
    assert np.mean(was_right & ~right) == pytest.approx(chosen["loss"], abs=0.03)
    assert results["reference"]["accuracy"] == pytest.approx(full.accuracy)
    # A control: the model that was calibrated has a fixed depth.
    assert AutoModelForCausalLM.from_pretrained(model_folder).config.halting_criterion is None
    assert model.config.halting_criterion == chosen["criterion"]
    record = model.config.halting_calibration
    assert record["risk"] == 0.3 and record["num_rows"] == 48 and record["fields"]["max_recurrences"] == 8
    # The record outlasts a round trip, and a config without this package's registration reads it silently.
    assert RecurrentDepthConfig.from_dict(model.config.to_dict()).halting_calibration == record
    card = (copy / "README.md").read_text(encoding="utf-8")
    assert "Calibrated halting" in card and "Learn then Test" in card and chosen["criterion"] in card


def test_in_place_and_the_card_of_other_weights(flags, model_folder, capsys):
    before = json.loads((model_folder / "config.json").read_text())
    assert main([*flags, "--halting_criterion", "argmax_stability", "--in_place", "--min_recurrences", "2"]) == 0
    after = json.loads((model_folder / "config.json").read_text())
    changed = {name for name in after if after[name] != before.get(name)}
    expected = {
        "argmax_patience",
        "halting_calibration",
        "halting_criterion",
        "halting_granularity",
        "min_recurrences",
    }
    assert expected - {"argmax_patience"} <= changed <= expected
    assert isinstance(after["argmax_patience"], int) and after["min_recurrences"] == 2
    assert "Calibrated halting" in str(make_card(model_folder))
    # The promise is made for these weights.
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.lm_head.weight[1] += 1
    model.save_pretrained(model_folder)
    assert "Calibrated halting" not in str(make_card(model_folder))


def test_every_group_and_the_best_depth(flags, tmp_path, capsys):
    argv = [*flags, "--halting_criterion", "confidence", "--confidence", "0.6", "--output_dir", str(tmp_path)]
    assert main([*argv, "--by_group", "--against", "best", "--kind", "all", "--group_column", "hops"]) == 0
    results = read_results(tmp_path / "calibration.json")
    assert results["reference"]["kind"] == "best" and results["promise"]["by_group"]
    assert [group["group"] for group in results["groups"]] == [1, 2, 3, 4, 5]
    rows = sum(group["num_rows"] for group in results["groups"])
    assert rows == results["data"]["num_rows"]
    assert max(group["loss"] for group in results["groups"]) <= 0.3
    assert max(one["recurrences"] for one in results["candidates"]) <= results["reference"]["num_recurrences"]
    capsys.readouterr()
    # With too few rows in a group nothing is promised.
    message = refused(capsys, main, [*argv[:-2], "--by_group", "--risk", "0.05"])
    assert "with the 12 rows of group 2: at least 18 are needed" in message


def test_text(tmp_path, capsys):
    folder = tmp_path / "model"
    _, tokenizer = save_text_model(folder)
    texts = [f"{TEXT[index:]} {index}" for index in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    argv = [str(folder), "--data", str(tmp_path / "a.jsonl"), "--no_progress", "--num_candidates", "6"]
    argv += ["--halting_criterion", "state_difference", "--max_recurrences", "5", "--batch_size", "40"]
    out = ["--output_dir", str(tmp_path), "--overwrite"]
    assert main([*argv, *out, "--risk", "0.5", "--save_to", str(tmp_path / "copy")]) == 0
    results = read_results(tmp_path / "calibration.json")
    assert results["promise"]["unit"] == "nats" and results["reference"]["nats"] > 0
    assert results["settings"]["halting_granularity"] == "token" and "nats" in capsys.readouterr().out

    # The same numbers from single runs of the model with its threshold, one document at a time.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    chosen = results["chosen"]
    assert model.config.state_difference_threshold == chosen["threshold"] and model.config.max_recurrences == 5
    losses, counts = [], []
    for ids in tokenizer(texts)["input_ids"]:
        ids = torch.tensor([ids])
        with torch.no_grad():
            halted, full = model(ids, labels=ids), model(ids, labels=ids, num_recurrences=5)
        losses.append(float((halted.loss - full.loss).clamp(0, 1)))
        counts.append(halted.num_recurrences[0, :-1].float().mean())
    assert np.mean(losses) == pytest.approx(chosen["loss"], abs=1e-4)
    assert np.mean(counts) == pytest.approx(chosen["recurrences"], abs=1e-4)
    assert main([*argv, *out, "--risk", "0.3", "--loss", "agreement", "--method", "conformal"]) == 0
    assert read_results(tmp_path / "calibration.json")["promise"]["confidence"] is None


def test_solutions(tmp_path, capsys):
    data = tmp_path / "json"
    data.mkdir()
    rows = [
        {"question": f"Is {i} odd?", "answer": ["True", "False"][i % 2], "cot_steps": [f"[rag]: the {i}"]}
        for i in range(12)
    ]
    train = [{**row, "question": f"{row['question']} Or not?"} for row in rows]
    for name, items in (("test", rows), ("train", train)):
        (data / f"StrategyQA_{name}_clean.json").write_text(json.dumps(items))
    tokenizer = byte_level()
    torch.manual_seed(0)
    model = recurrent(len(tokenizer))
    extend_tokenizer(tokenizer, StepScheme(1, 2), model)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    argv = [str(tmp_path / "model"), "--data", str(data), "--name", "strategy_qa", "--max_new_tokens", "3"]
    argv += ["--no_progress", "--halting_criterion", "entropy", "--num_candidates", "3", "--max_recurrences", "3"]
    assert main([*argv, "--risk", "0.5", "--output_dir", str(tmp_path)]) == 0
    results = read_results(tmp_path / "calibration.json")
    # A random model answers nothing at any depth, so that nothing is lost, and the most daring threshold is chosen.
    assert results["chosen"] == results["naive"] and results["chosen"]["threshold"] == 10
    assert results["chosen"]["recurrences"] == 1 and results["candidates"][0]["recurrences"] == 3
    assert results["reference"]["accuracy"] == 0 and results["data"]["task"] == "solutions"
    assert "--against deepest" in refused(capsys, main, [*argv, "--risk", "0.5", "--against", "best"])
    assert "questions have no groups" in refused(capsys, main, [*argv, "--risk", "0.5", "--by_group"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--risk", "0"], "risk=0.0 must be above 0"),
        (["--risk", "1.5"], "risk=1.5 must be below the largest loss"),
        (["--risk", "0.005"], "the 48 calibration rows: at least 598 are needed"),
        (["--confidence", "1"], "confidence=1.0 must be below 1"),
        (["--method", "conformal", "--confidence", "0.9"], "has no confidence"),
        (["--loss", "perplexity"], "loss='perplexity' is not for chains: it must be one of accuracy, agreement"),
        (["--halting_criterion", "kll"], "halting_criterion='kll' must be one of"),
        (["--halting_criterion", "exit_gate"], "reads a learned gate"),
        (["--halting_granularity", "token"], "chains are calibrated with 'sequence' only"),
        (["--hops", "2,9"], "no row has 9 hops"),
        (["--min_recurrences", "9"], "min_recurrences=9 is above max_recurrences=8"),
        (["--entropy_threshold", "2"], "is the fixed threshold of kl_entropy"),
        (["--in_place", "--save_to", "copy"], "pass one of them"),
        (["--largest_loss", "2"], "largest_loss=2 is for the loss 'perplexity'"),
        (["--max_rows", "0"], "max_rows=0 must be at least 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(flags, argv, message, capsys):
    assert message in refused(capsys, main, [*flags, "--halting_criterion", "kl", *argv])


def test_what_would_win_over_the_config_is_refused(flags, model_folder, capsys):
    assert "has no halting_criterion" in refused(capsys, main, flags)
    (model_folder / "generation_config.json").write_text(json.dumps({"kl_threshold": 0.5, "halting_criterion": "kl"}))
    message = refused(capsys, main, [*flags, *CRITERIA, "--in_place"])
    assert "halting_criterion='kl', which would win over the calibrated config" in message
    config = json.loads((model_folder / "config.json").read_text())
    assert config["halting_criterion"] is None


def test_no_safe_threshold_writes_nothing(flags, model_folder, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        # So sure of itself from the first recurrence on that no margin to try is large enough.
        model.model.norm.weight *= 1e4
    model.save_pretrained(model_folder)
    argv = [*flags, "--halting_criterion", "margin", "--loss", "agreement", "--output_dir", str(tmp_path / "out")]
    message = refused(capsys, main, [*argv, "--risk", "0.1", "--save_to", str(tmp_path / "copy")])
    assert "No threshold keeps risk=0.1: even margin 50 loses" in message
    assert not (tmp_path / "copy").exists()
    # The results say so, too.
    results = read_results(tmp_path / "out" / "calibration.json")
    assert results["chosen"] is None and not any(one["is_safe"] for one in results["candidates"])


def test_the_calibrated_config_decides_in_other_commands(flags, model_folder, world_folder, tmp_path):
    assert main([*flags, "--halting_criterion", "kl", "--in_place"]) == 0
    argv = [str(model_folder), "--data", str(world_folder), "--no_progress", "--output_dir", str(tmp_path / "e")]
    assert evaluate(argv) == 0
    settings = read_results(tmp_path / "e" / "evaluation.json")["settings"]
    config = json.loads((model_folder / "config.json").read_text())
    assert settings["parameters"] == {"kl_threshold": config["kl_threshold"]}
    chosen = json.loads((model_folder / "calibration.json").read_text())["chosen"]
    assert read_results(tmp_path / "e" / "evaluation.json")["overall"]["recurrences"]["mean"] == pytest.approx(
        chosen["recurrences"], abs=0.05
    )
