"""`push_to_hub` of models and adapters: what goes, and the card that goes with it."""

import json
from pathlib import Path

import pytest
import torch
from card_checks import assert_is_true_card, forbidden_lines
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from paths import ROOT
from peft import PeftModel
from small_adapters import SCHEME, adapted, save_base
from small_tokenizers import byte_level, llama
from text_models import save_text_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from memreason_hf.adapters.modes import save_adapter
from memreason_hf.hub.cards import is_generated
from memreason_hf.hub.inspection import inspect_files
from memreason_hf.steps.tokenization import read_scheme
from modeling_recurrent.card_recurrent import CARD_MARK


REPO = "user/model"
PERSON = "---\nlicense: mit\n---\n\n# My model\n\nI wrote this. More information needed on the weather.\n"
CODE = sorted(path.name for path in (ROOT / "modeling_recurrent").glob("*.py") if path.name != "__init__.py")


def files_of(repo=REPO):
    return sorted(HfApi().list_repo_files(repo))


def card_of(repo=REPO):
    return Path(hf_hub_download(repo, "README.md")).read_text()


def test_a_model_goes_with_its_code_and_a_true_card(at_hub, folders):
    folder = folders("bare")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.push_to_hub(REPO, max_shard_size="20KB")
    shards = [name for name in files_of() if name.startswith("model-0")]
    others = ["README.md", "config.json", "generation_config.json", "model.safetensors.index.json", ".gitattributes"]
    assert len(shards) > 1 and set(files_of()) <= {*shards, *others, *CODE} and set(CODE) <= set(files_of())
    config = json.loads(Path(hf_hub_download(REPO, "config.json")).read_text())
    assert len(config["auto_map"]) == 6
    card = ModelCard(card_of())
    assert_is_true_card(card)
    assert f"- Parameters: {model.num_parameters():,}" in card.text and f'"{REPO}"' in card.text
    ids = torch.randint(0, 50, (2, 7))
    again = AutoModelForCausalLM.from_pretrained(REPO)
    assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)


def test_control_the_card_of_the_library_is_a_form_with_blanks(at_hub):
    llama(50).push_to_hub(REPO)
    assert forbidden_lines(card_of()) and is_generated(card_of())


def test_the_form_of_a_tokenizer_is_replaced(at_hub, folders):
    AutoTokenizer.from_pretrained(folders("bare")).push_to_hub(REPO)
    assert forbidden_lines(card_of())
    AutoModelForCausalLM.from_pretrained(folders("bare")).push_to_hub(REPO)
    assert CARD_MARK in card_of() and forbidden_lines(card_of()) == []


def test_a_card_that_a_person_wrote_stays(at_hub, folders, tmp_path):
    api, model = HfApi(), AutoModelForCausalLM.from_pretrained(folders("bare"))
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=PERSON.encode(), path_in_repo="README.md", repo_id=REPO)
    model.push_to_hub(REPO)
    assert ModelCard(card_of()).text.strip() == ModelCard(PERSON).text.strip()
    # The same of a card in the folder that is saved and pushed.
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "README.md").write_text(PERSON)
    model.save_pretrained(folder, push_to_hub=True, repo_id="user/other")
    assert card_of("user/other") == (folder / "README.md").read_text() == PERSON
    # A control: the card of a program is written again.
    (folder / "README.md").write_text(PERSON + CARD_MARK)
    model.save_pretrained(folder, push_to_hub=True, repo_id="user/third")
    assert CARD_MARK in card_of("user/third") and "weather" not in card_of("user/third")


def test_an_edited_form_is_a_persons_card():
    form = str(ModelCard.from_template(ModelCard("---\nlicense: mit\n---\n").data))
    assert is_generated(form)
    assert not is_generated(form.replace("[More Information Needed]", "It rains.", 1))
    assert not is_generated(form + "\nOne more sentence.\n")
    assert not is_generated("---\nlicense: [\n---\n# Mine\n") and not is_generated("")


def test_a_head_says_its_task(at_hub, folders):
    AutoModelForSequenceClassification.from_pretrained(folders("classifier")).push_to_hub(REPO)
    card = ModelCard(card_of())
    assert_is_true_card(card)
    assert card.data.pipeline_tag == "text-classification"
    assert "AutoModelForSequenceClassification.from_pretrained" in card.text


@pytest.mark.parametrize("mode", ["lora", "tokens", "lora+tokens"])
def test_the_card_of_a_saved_adapter_is_ours(mode, tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base"), mode)
    save_adapter(model, tokenizer, tmp_path / "adapter")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert_is_true_card(card)
    assert "# adapter\n" in card.text and f"`{mode}`" in card.text and "14" in card.text
    # Also where it was there before, in a folder that exists, and by itself.
    save_adapter(model, tokenizer, tmp_path / "adapter")
    assert "# adapter\n" in (tmp_path / "adapter" / "README.md").read_text()
    model.save_pretrained(tmp_path / "alone")
    assert_is_true_card(ModelCard.load(tmp_path / "alone" / "README.md"))
    # A control: PEFT's own.
    PeftModel.create_or_update_model_card(model, str(tmp_path))
    assert forbidden_lines((tmp_path / "README.md").read_text())
    model.create_or_update_model_card(tmp_path / "alone")
    assert forbidden_lines((tmp_path / "alone" / "README.md").read_text()) == []


def test_an_adapter_keeps_a_persons_card(tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base"), "tokens")
    save_adapter(model, tokenizer, tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text(PERSON)
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "README.md").read_text() == PERSON
    save_adapter(model, tokenizer, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "README.md").read_text() == PERSON


def test_an_adapter_goes_with_its_card(at_hub, tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base"), "lora+tokens")
    tokenizer.push_to_hub(REPO)
    with pytest.raises(ValueError, match=r"is a folder of this machine.*\(base_model\)"):
        model.push_to_hub(REPO)
    assert "adapter_config.json" not in files_of()
    model.push_to_hub(REPO, base_model="user/base")
    card = ModelCard(card_of())
    assert_is_true_card(card)
    assert card.data.base_model == "user/base"
    assert card.data.library_name == "peft" and f'load_adapter("{REPO}"' in card.text
    assert read_scheme(AutoTokenizer.from_pretrained(REPO)) == SCHEME
    assert {"adapter_config.json", "adapter_model.safetensors", "memreason_adapter.json", "tokenizer.json"} <= set(
        files_of()
    )
    # Where the base is on this machine stays here.
    folder = Path(snapshot_download(REPO))
    assert "local_base.json" not in files_of() and inspect_files([folder]) == []
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "user/base"


def test_a_model_of_its_own_code_goes_with_that_code_again(at_hub, folders, own_modules):
    """The class that `trust_remote_code` loads pushes as the package's does."""
    cls = get_class_from_dynamic_module("modeling_recurrent.RecurrentDepthForCausalLM", folders("bare"))
    cls.register_for_auto_class("AutoModelForCausalLM")
    cls.from_pretrained(folders("bare")).push_to_hub(REPO)
    assert set(CODE) <= set(files_of()) and CARD_MARK in card_of()
    assert_is_true_card(ModelCard(card_of()))


def test_a_saved_text_model_has_no_card_until_it_is_pushed(tmp_path):
    save_text_model(tmp_path)
    assert not (tmp_path / "README.md").exists()
    assert byte_level()
