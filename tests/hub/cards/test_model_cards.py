"""Cards of models and adapters of every kind: the Hub takes them, and their lines load the model."""

import json
import os
import subprocess
import sys

import pytest
import torch
from card_checks import assert_is_true_card, forbidden_lines, private_lines
from card_folders import MODEL_KINDS
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForCausalLM

from memreason_hf.adapters.modes import load_adapter
from memreason_hf.hub.cards import make_card


RECURRENT = ("bare", "chains", "text", "converted", "published")


def code_blocks(card):
    blocks = card.text.split("```python\n")[1:]
    return [block.partition("\n```")[0] for block in blocks]


@pytest.mark.parametrize("kind", MODEL_KINDS)
@pytest.mark.parametrize("repo_id", [None, "user/model"])
def test_every_card_is_valid_and_says_nothing_empty(kind, repo_id, folders):
    assert_is_true_card(make_card(folders(kind), repo_id))


@pytest.mark.parametrize(
    "text", ["x: None", "is null", "loss nan", "[More Information Needed]", "on an unknown dataset"]
)
def test_control_forbidden_words_are_seen(text):
    assert forbidden_lines(f"good\n{text}\ngood") == [text]


def test_control_a_card_of_the_library_is_refused(tmp_path):
    card = ModelCard.from_template(ModelCardData(library_name="transformers"), model_description="A model.")
    with pytest.raises(AssertionError):
        assert_is_true_card(card)
    assert private_lines(f"base: {tmp_path}")


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_the_server_validates_every_card(kind, folders, this_process):
    card = make_card(folders(kind), "user/model", license="apache-2.0", language="en", datasets=["user/data"])
    card.validate()
    card.data["model-index"] = [{"results": []}]
    with pytest.raises(ValueError):
        ModelCard(str(card).replace("license: apache-2.0", "license: {a: b}")).validate()


@pytest.mark.parametrize("kind", [kind for kind in MODEL_KINDS if kind != "classifier"])
def test_the_lines_of_a_card_load_the_model(kind, folders, monkeypatch):
    folder = folders(kind)
    monkeypatch.chdir(folder.parent)
    blocks = code_blocks(make_card(folder))
    assert len(blocks) == (2 if kind in RECURRENT else 1)
    reference = (load_adapter(folder)[0] if "lora" in kind or kind == "tokens" else read(folder)).eval()
    ids = torch.randint(0, 16, (2, 7))
    for block in blocks:
        names = {}
        exec(block.replace('"base_model"', f'"base_of_{folder.name}"'), names)
        assert torch.equal(names["model"].eval()(input_ids=ids).logits, reference(input_ids=ids).logits)
        assert ("tokenizer" in names) == (folder / "tokenizer.json").is_file()


def read(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


WITHOUT_PACKAGE = """
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("memreason_hf", "modeling_recurrent"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refused())
import torch
try:
    exec({with_package!r})
    sys.exit("A control: these lines need the package.")
except ModuleNotFoundError:
    pass
exec({lines!r})
torch.save(model.eval()(torch.arange(14).view(2, 7)).logits, {out!r})
"""


@pytest.mark.slow
def test_they_load_it_in_a_process_without_the_package(folders, tmp_path):
    folder, out = folders("bare"), tmp_path / "logits.pt"
    with_package, lines = code_blocks(make_card(folder))
    code = WITHOUT_PACKAGE.format(with_package=with_package, lines=lines, out=str(out))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = read(folder).eval()(torch.arange(14).view(2, 7)).logits
    assert torch.equal(torch.load(out, weights_only=True), expected)


def test_metadata_of_each_kind(folders):
    cards = {kind: make_card(folders(kind), "user/model").data for kind in MODEL_KINDS}
    assert {kind for kind, data in cards.items() if data.library_name == "peft"} == {"lora", "tokens", "lora+tokens"}
    assert {kind for kind, data in cards.items() if data.pipeline_tag != "text-generation"} == {"classifier"}
    assert cards["classifier"].pipeline_tag == "text-classification"
    recurrent = {kind for kind, data in cards.items() if "recurrent-depth" in (data.tags or ())}
    assert recurrent == {"bare", "chains", "text", "classifier", "converted", "published"}
    # Local bases have no name on the Hub, whatever their path looks like, and no licence is made up.
    assert all(data.base_model is None and data.license is None and data.language is None for data in cards.values())


def test_given_facts_are_in_the_metadata(folders):
    card = make_card(
        folders("lora"),
        "user/model",
        license="other",
        license_name="my-licence",
        license_link="LICENSE",
        language=["en", "de"],
        base_model="owner/base",
        datasets="owner/data",
        tags="extra",
    )
    assert_is_true_card(card)
    data = card.data.to_dict()
    assert (data["license"], data["license_name"], data["language"]) == ("other", "my-licence", ["en", "de"])
    assert (data["base_model"], data["base_model_relation"]) == ("owner/base", "adapter")
    assert data["datasets"] == ["owner/data"] and "extra" in data["tags"]
    assert 'load_adapter("user/model")' in card.text


@pytest.mark.parametrize(
    "facts, message",
    [
        ({"license": "My Licence"}, "license='My Licence' is not an identifier"),
        ({"language": "English"}, "language='English' is not a code"),
        ({"base_model": "/home/me/base"}, "base_model='/home/me/base' is not the name of a repository"),
        ({"datasets": ["a b"]}, "datasets='a b' is not the name of a repository"),
        ({"kind": "song"}, "kind='song' must be one of"),
    ],
)
def test_a_wrong_fact_is_refused(facts, message, folders):
    with pytest.raises(ValueError, match=message):
        make_card(folders("bare"), "user/model", **facts)


def test_what_holds_nothing_and_what_is_damaged_is_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        make_card(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds neither a model"):
        make_card(tmp_path)
    with pytest.raises(ValueError, match="is not the name of a repository"):
        make_card(folders("bare"), "a/b/c")
    folder = folders.copy_of("bare", tmp_path)
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not a JSON file"):
        make_card(folder)
    (folder / "run.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"run\.json must hold one JSON object"):
        make_card(folder)
