import json
import os
import subprocess
import sys

import pytest
import torch
from family_models import tiny_source
from refusals import refused
from small_tokenizers import byte_level
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.generation import GenerationConfig

from memreason_hf import cli
from memreason_hf.commands import convert
from memreason_hf.commands.unroll import main
from memreason_hf.models.conversion.exactness import CASES
from memreason_hf.models.conversion.record import read_record
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


LAYERS = ["--prelude", "1", "--loop", "2", "--coda", "1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A loop that a plain decoder can express, and one with gates."""
    folder = tmp_path_factory.mktemp("converted")
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = tiny_source("llama", vocab_size=len(tokenizer))
    model.generation_config = GenerationConfig(do_sample=True, top_k=7, eos_token_id=2)
    model.save_pretrained(folder / "source")
    tokenizer.save_pretrained(folder / "source")
    for name, flags in {
        "looped": ["--input_injection", "none"],
        "gated": [],
        "open": ["--injection_gate_init", "1"],
    }.items():
        assert convert.main([str(folder / "source"), str(folder / name), *LAYERS, *flags]) == 0
    return folder


def test_writes_a_plain_decoder_and_measures_it(folders, tmp_path, capsys):
    out = tmp_path / "plain"
    assert cli.main(["unroll", str(folders / "looped"), str(out), "--num_recurrences", "3"]) == 0
    assert "num_recurrences=3 against the loop" in (printed := capsys.readouterr().out)
    assert "Exact: every difference is 0.0." in printed
    record = read_record(out)
    assert record["exactness"]["differences"] == dict.fromkeys(CASES, 0.0)
    assert record["num_recurrences"] == 3 and record["source"]["num_layers"] == 4
    plain = LlamaForCausalLM.from_pretrained(out)
    assert plain.config.num_hidden_layers == record["result"]["num_layers"] == 1 + 3 * 2 + 1
    assert record["result"]["num_parameters"] == sum(p.numel() for p in plain.parameters())
    looped = RecurrentDepthForCausalLM.from_pretrained(folders / "looped")
    ids = torch.randint(3, 99, (2, 9))
    with torch.no_grad():
        logits = plain(ids).logits
        assert torch.equal(logits, looped(ids, num_recurrences=3, use_cache=False).logits)
        # A control: another depth differs.
        assert (logits - looped(ids, num_recurrences=2).logits).abs().max() > 1e-3
    assert (plain.generation_config.do_sample, plain.generation_config.top_k) == (True, 7)
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (folders / "source", out)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    # Nothing of ours is in the folder, apart from the record.
    written = json.loads((out / "config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"] and "auto_map" not in written
    assert not list(out.glob("*.py"))
    assert not {name for name in json.loads((out / "generation_config.json").read_text()) if "recurrence" in name}


def test_loads_without_this_package(folders, tmp_path):
    out = tmp_path / "plain"
    assert main([str(folders / "looped"), str(out), "--num_recurrences", "2"]) == 0
    ids = torch.randint(3, 99, (2, 9))
    with torch.no_grad():
        expected = RecurrentDepthForCausalLM.from_pretrained(folders / "looped")(ids, num_recurrences=2).logits
    torch.save({"ids": ids, "expected": expected}, tmp_path / "case.pt")
    code = (
        "import sys, torch\n"
        "sys.modules.update({'modeling_recurrent': None, 'memreason_hf': None})\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"case = torch.load({str(tmp_path / 'case.pt')!r}, weights_only=True)\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})\n"
        f"AutoTokenizer.from_pretrained({str(out)!r})\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(model(case['ids']).logits, case['expected'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_open_gates_are_plain_repetition(folders, tmp_path):
    assert main([str(folders / "open"), str(tmp_path / "plain"), "--num_recurrences", "3"]) == 0
    assert read_record(tmp_path / "plain")["exactness"]["is_exact"]


def test_one_recurrence_of_a_gated_model_is_the_source_without_layers(folders, tmp_path):
    assert main([str(folders / "gated"), str(tmp_path / "plain"), "--num_recurrences", "1"]) == 0
    assert read_record(tmp_path / "plain")["exactness"]["is_exact"]
    assert LlamaForCausalLM.from_pretrained(tmp_path / "plain").config.num_hidden_layers == 4


def test_wrong_input(folders, tmp_path, capsys):
    out = str(tmp_path / "plain")
    line = refused(capsys, main, [str(folders / "gated"), out, "--num_recurrences", "2"])
    assert "the gates on the way back into the loop mix the state with the input" in line
    line = refused(capsys, main, [str(folders / "looped"), out, "--num_recurrences", "0"])
    assert "num_recurrences=0 must be at least 1" in line
    assert "num_recurrences is not given" in refused(capsys, main, [str(folders / "looped"), out])
    line = refused(capsys, main, [str(folders / "source"), out, "--num_recurrences", "2"])
    assert "has model_type='llama'" in line
    own = tmp_path / "own"
    RecurrentDepthForCausalLM(
        RecurrentDepthConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
    ).save_pretrained(own)
    assert "the model has our own blocks" in refused(capsys, main, [str(own), out, "--num_recurrences", "2"])
    same = [str(folders / "looped"), str(folders / "looped"), "--num_recurrences", "2", "--overwrite"]
    assert "are the same folder" in refused(capsys, main, same)
    assert "is not empty" in refused(capsys, main, [str(folders / "looped"), str(own), "--num_recurrences", "2"])
    assert not (tmp_path / "plain").exists()
