"""`memreason lens`, `trajectories` and `patch`: their numbers, files, help and refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from paths import ROOT
from result_schemas import assert_schema_describes_itself
from small_adapters import adapted, as_if_trained, save_base
from small_tokenizers import byte_level
from text_models import save_text_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from memreason_hf import cli
from memreason_hf.adapters.saving import save_adapter
from memreason_hf.commands import lens, patch, trajectories
from memreason_hf.data import encode_chains, load_multi_hop, load_multi_hop_tokenizer, select_chains
from memreason_hf.evaluation import read_results


VERBS = {"lens": lens, "trajectories": trajectories, "patch": patch}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "model"
    save_text_model(folder)
    return str(folder)


@pytest.fixture
def flags(model_folder, world_folder):
    return [str(model_folder), "--data", str(world_folder), "--no_progress"]


def files_of(folder, stem):
    assert sorted(path.name for path in folder.iterdir()) == [f"{stem}.json", f"{stem}.pdf", f"{stem}.png"]
    assert (folder / f"{stem}.png").stat().st_size > 5_000
    return read_results(folder / f"{stem}.json")


def encoded(world_folder, hops):
    rows = select_chains(load_multi_hop(str(world_folder))["test"], kind="test", hops=[hops])
    return encode_chains(rows, load_multi_hop_tokenizer(world_folder))


def test_lens_over_chains(flags, world_folder, model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert lens.main([*flags, "--hops", "4", "--max_recurrences", "6", "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "12 x 4 hops" in printed and "readable from" in printed
    results = files_of(out, "lens")
    rows = encoded(world_folder, 4)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    ids, labels = torch.tensor(rows["input_ids"][:]), torch.tensor(rows["label_ids"][:])
    assert [position["num_targets"] for position in results["positions"]] == [0, *[len(rows)] * 4]
    for recurrence in (1, 6):
        with torch.no_grad():
            best = model(ids, num_recurrences=recurrence, use_cache=False).logits.argmax(-1)
        for at in range(1, 5):
            expected = (best[:, at] == labels[:, at]).double().mean().item()
            assert results["positions"][at]["first_share"][recurrence - 1] == pytest.approx(expected, abs=1e-6)
        start = (best[:, -1] == ids[:, 0]).double().mean().item()
        assert results["entities"][0]["at_answer"][recurrence - 1] == pytest.approx(start, abs=1e-6)
    assert [entity["hop"] for entity in results["entities"]] == list(range(5))
    assert results["positions"][1]["token"] is None and results["hops"] == 4


def test_lens_over_one_chain_and_over_text(flags, text_folder, tmp_path, capsys):
    assert lens.main([*flags, "--hops", "3", "--index", "2", "--top", "2", "--output_dir", str(tmp_path / "a")]) == 0
    chain = files_of(tmp_path / "a", "lens")
    assert chain["data"]["num_rows"] == 1 and chain["positions"][0]["target"] is None
    assert chain["positions"][0]["token"].startswith("<e_") and chain["positions"][1]["target"].startswith("<e_")
    assert [len(step) for step in chain["positions"][1]["top"]] == [2] * 8
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on\nthe mat", encoding="utf-8")
    argv = [text_folder, "--text_file", str(path), "--max_tokens", "5", "--max_recurrences", "4", "--no_progress"]
    assert lens.main([*argv, "--output_dir", str(tmp_path / "b")]) == 0
    text = files_of(tmp_path / "b", "lens")
    assert text["data"] == {"kind": "text", "path": None, "split": None, "num_rows": 1} and text["entities"] is None
    tokens, targets = ([position[name] for position in text["positions"]] for name in ("token", "target"))
    assert targets == [*tokens[1:], None] and len(tokens) == 5
    capsys.readouterr()


def test_trajectories_over_groups(flags, world_folder, model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [*flags, "--hops", "2,5", "--max_rows", "6", "--spectral_rows", "2", "--max_recurrences", "5"]
    assert trajectories.main([*argv, "--components", "3", "--output_dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "to last" in printed and "radius" in printed and "of the variance" in printed
    results = files_of(out, "trajectories")
    assert [(group["group"], group["count"]) for group in results["groups"]] == [(2, 6), (5, 6)]
    assert len(results["explained"]) == 3 and sum(results["explained"]) <= 1 + 1e-9
    ids = torch.tensor(encoded(world_folder, 5)["input_ids"][:6])
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        states = torch.stack(model(ids, num_recurrences=5, output_hidden_states=True).hidden_states)[:, :, -1]
    steps = (states[1:] - states[:-1]).norm(dim=-1) / states[1:].norm(dim=-1)
    np.testing.assert_allclose(results["groups"][1]["step"]["mean"], steps.mean(1).numpy(), rtol=1e-4)
    radii = results["groups"][1]["spectral_radius"]
    assert [(entry["recurrence"], entry["count"]) for entry in radii] == [(t, 2) for t in range(1, 6)]
    assert trajectories.main([*flags, "--hops", "2", "--positions", "all", "--spectral_rows", "0"]) == 0
    assert "radius" not in capsys.readouterr().out


def test_patches_over_chains_and_two_texts(flags, text_folder, tmp_path, capsys):
    # The world's model is random, so its own answers are never all right.
    with pytest.raises(SystemExit):
        patch.main([*flags, "--hops", "3", "--max_rows", "1", "--max_recurrences", "3"])
    assert "There is no pair to patch" in capsys.readouterr().err
    argv = [
        text_folder,
        "--first",
        "the cat sat",
        "--second",
        "the dog ran",
        "--no_progress",
        "--max_recurrences",
        "3",
    ]
    assert patch.main([*argv, "--part", "both", "--output_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "effect of all" in printed and " -> " in printed
    results = files_of(tmp_path / "out", "patch")
    assert results["whole_effect"] == pytest.approx([1.0] * 3, abs=1e-5) and results["whole_flipped"] == [1.0] * 3
    assert results["settings"]["pairs"] is None and len(results["effect"][0]) == len(results["tokens"][0])
    assert results["pairs"][0]["first"] == "the cat sat"


@pytest.mark.parametrize("choice", ["same_relations", "any"])
def test_pairs_of_chains_that_the_model_answers(choice, flags, world_folder, model_folder, tmp_path):
    # A head that reads the right answers off the states: training one would take minutes.
    fit_head(model_folder, encoded(world_folder, 3), 4)
    argv = [*flags, "--hops", "3", "--max_recurrences", "4", "--pairs", choice, "--num_pairs", "3"]
    assert patch.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    results = files_of(tmp_path / "out", "patch")
    assert 1 <= len(results["pairs"]) <= 3 and results["hops"] == 3 and np.shape(results["effect"]) == (4, 4)
    for pair in results["pairs"]:
        assert pair["first_answer"] != pair["second_answer"] and pair["margins"][0] < 0 < pair["margins"][1]
        first, second = (pair[name].replace(" ", "").split("<")[2:] for name in ("first", "second"))
        assert first == second or choice == "any"


def fit_head(folder, rows, recurrences):
    """Changes the head of a saved model so that it answers these rows correctly after `recurrences`."""
    model = AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    ids, answers = torch.tensor(rows["input_ids"][:]), torch.tensor(rows["label_ids"][:])[:, -1]
    with torch.no_grad():
        states = model.model(ids, num_recurrences=recurrences).last_hidden_state[:, -1].double()
        wanted = torch.nn.functional.one_hot(answers, model.config.vocab_size).double()
        model.lm_head.weight.copy_(torch.linalg.lstsq(states, wanted).solution.T.float())
        right = (model(ids, num_recurrences=recurrences).logits[:, -1].argmax(-1) == answers).sum()
    assert right >= 4
    model.save_pretrained(folder)


def test_an_adapter_of_a_loop_is_read_as_its_merged_model(tmp_path, capsys):
    base = save_base(tmp_path / "base", "recurrent")
    model, tokenizer = adapted(base, "lora")
    as_if_trained(model)
    save_adapter(model, tokenizer, tmp_path / "adapter")
    text = "<memory_0> some words"
    argv = [str(tmp_path / "adapter"), "--text", text, "--max_recurrences", "3", "--no_progress"]
    assert lens.main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    results = read_results(tmp_path / "out" / "lens.json")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    found = [position["target_probability"][-1] for position in results["positions"][:-1]]
    before = AutoModelForCausalLM.from_pretrained(base)
    before.resize_token_embeddings(len(tokenizer))
    for network, is_same in ((model, True), (before.eval(), False)):
        with torch.no_grad():
            probabilities = network(input_ids=ids, num_recurrences=3).logits[0].float().softmax(-1)
        expected = [float(probabilities[at, ids[0, at + 1]]) for at in range(ids.shape[1] - 1)]
        # A control: the base alone says something else.
        assert np.allclose(found, expected, atol=1e-5) == is_same
    capsys.readouterr()


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: memreason {verb} [RECIPE.yaml] [MODEL]") and "default: None" not in text
    examples = [line.strip() for line in text.splitlines() if line.startswith(f"  memreason {verb} ")]
    assert len(examples) >= 3
    for example in examples:
        # Words in quotes are one argument.
        parts = example.split('"')
        argv = [word for index, part in enumerate(parts) for word in ([part] if index % 2 else part.split())]
        assert VERBS[verb].make_parser().parse_sections(argv[2:])[0].model
    (schema,) = {
        line for line in text.replace("\n", " ").split() if line.strip("()").startswith("memreason_hf/analysis")
    }
    assert (ROOT / schema.strip("()")).is_file()


@pytest.mark.parametrize("verb", VERBS)
def test_schemas_describe_themselves(verb):
    assert_schema_describes_itself(verb)


BAD = [
    (["lens"], "Pass chains by --data DIR, or a text by --text or --text_file; none is given"),
    (["lens", "--text", "a", "--data", "WORLD"], "text='a' are given"),
    (["lens", "--text", "a", "--hops", "2"], "hops='2' chooses chains"),
    (["lens", "--text", "a", "--split", "train"], "split='train' chooses chains, but text='a' is read"),
    (["patch", "--first", "<e_1>", "--second", "<e_2>", "--max_rows", "3"], "max_rows=3 chooses chains"),
    (["lens", "--text_file", "nowhere.txt"], "text_file='nowhere.txt': no such file"),
    (["lens", "--data", "nowhere"], "data='nowhere': no such folder"),
    (["lens", "--data", "WORLD"], "hops=None must be one hop count here"),
    (["lens", "--data", "WORLD", "--hops", "9"], "no row has 9 hops"),
    (["lens", "--data", "WORLD", "--hops", "2", "--index", "12"], "index=12 is too large: there are 12 chains"),
    (["lens", "--data", "WORLD", "--hops", "2", "--index", "-1"], "index=-1 must be at least 0"),
    (["lens", "--data", "WORLD", "--hops", "2", "--max_recurrences", "0"], "max_recurrences=0 must be at least 1"),
    (["lens", "--data", "WORLD", "--hops", "2", "--top", "0"], "top=0 must be at least 1"),
    (["lens", "--text", "what is it", "--max_tokens", "0"], "max_tokens=0 must be at least 1"),
    (["trajectories", "--data", "WORLD", "--max_recurrences", "1"], "max_recurrences=1 must be at least 2"),
    (["trajectories", "--data", "WORLD", "--components", "99"], "components=99 must be at most hidden_size=16"),
    (["trajectories", "--data", "WORLD", "--spectral_rows", "-1"], "spectral_rows=-1 must be at least 0"),
    (["trajectories", "--data", "WORLD", "--dtype", "bfloat16"], "Pass --dtype float32, or --spectral_rows 0"),
    (["patch"], "neither is given"),
    (["patch", "--first", "<e_1><r_0>"], "second is not given"),
    (
        ["patch", "--first", "<e_1><r_0>", "--second", "<e_2><r_0>", "--data", "WORLD"],
        "and first='<e_1><r_0>' are given",
    ),
    (["patch", "--first", "<e_1><r_0>", "--second", "<e_2>"], "first has 2 tokens and second 1"),
    (["patch", "--first", "<e_1>", "--second", "<e_1>"], "same answer to both texts"),
    (["patch", "--data", "WORLD", "--hops", "2", "--part", "all"], "part='all'"),
    (["patch", "--data", "WORLD", "--hops", "2", "--num_pairs", "0"], "num_pairs=0 must be at least 1"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_flags_are_refused_in_one_line(argv, message, model_folder, world_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb, *rest = [str(world_folder) if word == "WORLD" else word for word in argv]
    with pytest.raises(SystemExit) as stop:
        VERBS[verb].main([str(model_folder), *rest, "--no_progress"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("memreason")]
    assert line.startswith(f"memreason {verb}: error: ") and message in line and captured.out == ""


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_without_a_loop_is_refused(verb, tmp_path, capsys):
    tokenizer = byte_level()
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    texts = ["--first", "a", "--second", "b"] if verb == "patch" else ["--text", "a"]
    with pytest.raises(SystemExit) as stop:
        VERBS[verb].main([str(tmp_path / "gpt2"), *texts])
    assert stop.value.code == 2 and "model_type='gpt2'" in capsys.readouterr().err


def test_results_are_not_overwritten_and_hold_no_paths(flags, tmp_path, capsys):
    argv = [*flags, "--hops", "2", "--max_recurrences", "2", "--output_dir", str(tmp_path / "out")]
    assert lens.main(argv) == 0
    text = (tmp_path / "out" / "lens.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and json.loads(text)["data"]["path"]
    with pytest.raises(SystemExit) as stop:
        lens.main(argv)
    assert stop.value.code == 2 and "lens.json" in capsys.readouterr().err
    assert lens.main([*argv, "--overwrite"]) == 0
    shutil.rmtree(tmp_path / "out")
