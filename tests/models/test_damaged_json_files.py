"""Damaged JSON files of a model, and values that do not belong to its weights: one line with the file and the key."""

import json
import shutil

import pytest
from refusals import refused
from text_models import save_text_model

from memreason_hf.commands.generate import main
from memreason_hf.models.json_files import check_json_files


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sound"
    save_text_model(folder)
    return folder


def flags(folder):
    return [str(folder), "--device", "cpu", "--prompt", "the", "--max_new_tokens", "2"]


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


def test_control_a_sound_folder(copy, capsys):
    check_json_files(copy, "model")
    assert main(flags(copy)) == 0


FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["null", "[]", "3", '"text"', "", '{"a": ', DEEP])
def test_files_that_hold_no_object(name, content, copy, capsys):
    (copy / name).write_text(content)
    line = refused(capsys, main, flags(copy))
    assert line.startswith("memreason generate: error: ") and str(copy) in line
    if name != "tokenizer.json" or content not in ('{"a": ', DEEP):
        assert name in line
    assert len(line) < 400


ENTRIES = [
    ({"pad_token_id": 999_999}, "pad_token_id=999999 must be None or at least 0 and below vocab_size"),
    ({"pad_token_id": "x"}, "pad_token_id='x' must be the id of a token"),
    ({"dtype": "nonsense"}, "dtype='nonsense' must be the name of a torch dtype"),
    ({"hidden_size": 48}, "the weights do not belong to config.json"),
    ({"vocab_size": 5000}, "the weights do not belong to config.json"),
    ({"vocab_size": 5}, "The vocabulary does not match"),
    ({"num_recurrent_layers": 3}, "the weights do not belong to the config (missing_keys: model.layers.2"),
    ({"hidden_size": "x"}, "config.json: hidden_size: Field 'hidden_size' expected int, got str"),
    ({"num_recurrences": 10**9}, "config.json: num_recurrences: Value must be at most 10,000"),
    ({"kl_threshold": float("nan")}, "config.json: kl_threshold=nan must be a finite number"),
    ({"model_type": 3}, "config.json: model_type=3 must be text"),
    ({"quantization_config": 3}, "quantization_config=3 must be a dictionary"),
]


@pytest.mark.parametrize(("entries", "message"), ENTRIES, ids=[str(entries) for entries, _ in ENTRIES])
def test_entries_that_cannot_be_used(entries, message, copy, capsys):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    assert message in refused(capsys, main, flags(copy))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"eos_token_id": "x"}, "generation_config.json: eos_token_id='x' must be the id of a token"),
        ({"eos_token_id": [1, None, "x"]}, "generation_config.json: eos_token_id=[1, None, 'x']"),
        ({"num_recurences": 4}, "generation_config.json: num_recurences=4: generate has no such argument. Did you"),
    ],
)
def test_entries_of_a_generation_config(entries, message, copy, capsys):
    (copy / "generation_config.json").write_text(json.dumps(entries))
    assert message in refused(capsys, main, flags(copy))


def test_usual_entries_of_a_generation_config_are_kept(copy, capsys):
    usual = {"eos_token_id": [1, 2], "pad_token_id": None, "temperature": 0.7, "num_recurrences": 2, "_from": 1}
    (copy / "generation_config.json").write_text(json.dumps(usual))
    check_json_files(copy, "model")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("value", [5, "text", {"AutoConfig": 3}, [3]], ids=str)
def test_a_damaged_auto_map_is_named(name, value, copy, capsys):
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**content, "auto_map": value}))
    line = refused(capsys, main, flags(copy))
    assert f"{name}: auto_map={value!r} must" in line


def test_names_in_an_auto_map_are_accepted(copy):
    for name, value in (("config.json", {"AutoConfig": "a.B"}), ("tokenizer_config.json", ["a.B", None])):
        content = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**content, "auto_map": value}))
    check_json_files(copy, "model")
