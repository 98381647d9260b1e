"""Publishing a folder to a Hub: what is there afterwards, and what was never sent."""

import json
import subprocess
import sys

import pytest
import torch
from hub_folders import add_run_files, local_files, save_model
from local_hub import READER, STRANGER, WRITER
from small_adapters import adapted, save_base
from transformers import AutoConfig, AutoTokenizer

from memreason_hf.adapters.saving import save_adapter
from memreason_hf.hub.client import HubError
from memreason_hf.hub.contents import describe_folder
from memreason_hf.hub.publishing import publish_folder
from memreason_hf.steps.tokenization import read_scheme


NAME = "user/model"


def contents_of(hub, revision="main", name=NAME, type="model"):
    """`{name: content}` of a repository, without what the Hub itself writes."""
    repo = hub.repositories.get(name, type)
    files = {path: hub.repositories.blob(sha256).read_bytes() for path, sha256 in repo.files(revision).items()}
    del files[".gitattributes"]
    return files


def titles(hub, revision="main"):
    return [commit.title for commit in hub.repositories.get(NAME).history(revision)]


def test_the_repository_holds_what_the_folder_says(this_process, model_folder):
    add_run_files(model_folder)
    wanted = {file.name for file in describe_folder(model_folder).files}
    published = publish_folder(model_folder, NAME)
    found = contents_of(this_process)
    assert set(found) == wanted | {"README.md"}
    local = local_files(model_folder)
    assert all(found[name] == local[name] for name in wanted)
    assert "README.md" not in local, "publishing leaves the folder as it was"
    assert published.url == f"{this_process.url}/{NAME}"
    assert published.commit.oid == this_process.repositories.get(NAME).branches["main"]
    assert titles(this_process) == ["Upload model", "initial commit"]
    assert not this_process.repositories.get(NAME).private


def test_the_card_names_the_repository_and_is_valid(this_process, model_folder):
    publish_folder(model_folder, NAME, license="apache-2.0")
    text = contents_of(this_process)["README.md"].decode()
    assert NAME in text and "license: apache-2.0" in text
    assert not any(word in text for word in ("None", "null", "More Information Needed", str(model_folder)))


def test_a_published_model_loads(this_process, tmp_path):
    """With this package here; that it loads without is a test of loading."""
    model = save_model(tmp_path / "sharded", max_shard_size="30KB")
    publish_folder(tmp_path / "sharded", NAME)
    script = tmp_path / "load.py"
    script.write_text(
        "import sys, torch, modeling_recurrent\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({NAME!r}).eval()\n"
        "torch.save(model(torch.arange(12)[None]).logits, sys.argv[1])\n"
    )
    command = [sys.executable, str(script), str(tmp_path / "logits.pt")]
    subprocess.run(command, env=this_process.environment(), check=True, capture_output=True, timeout=100)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), model(torch.arange(12)[None]).logits)


def test_the_scheme_and_the_chat_template_arrive(this_process, model_folder, tmp_path):
    publish_folder(model_folder, NAME)
    for name, content in contents_of(this_process).items():
        (tmp_path / name).write_bytes(content)
    tokenizer, original = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path, model_folder))
    assert read_scheme(tokenizer) == read_scheme(original)
    assert tokenizer.chat_template == original.chat_template is not None
    assert AutoConfig.from_pretrained(tmp_path).auto_map["AutoModelForCausalLM"]


def test_publishing_again_changes_nothing(this_process, model_folder):
    first = publish_folder(model_folder, NAME)
    sent = len(this_process.matching("PUT"))
    second = publish_folder(model_folder, NAME)
    assert first.commit.is_new and not second.commit.is_new and second.commit.oid == first.commit.oid
    assert titles(this_process) == ["Upload model", "initial commit"]
    assert len(this_process.matching("PUT")) == sent == 1


def test_only_what_changed_is_sent_again(this_process, model_folder):
    publish_folder(model_folder, NAME)
    (model_folder / "LICENSE").write_text("new")
    this_process.requests.clear()
    publish_folder(model_folder, NAME, commit_message="With a licence")
    assert titles(this_process) == ["With a licence", "Upload model", "initial commit"]
    assert not this_process.matching("PUT")
    (commit,) = this_process.matching("POST", "/commit/main")
    assert commit.received < 1_000


def test_files_of_others_are_kept_unless_they_are_to_go(this_process, model_folder):
    this_process.repositories.create(NAME)
    this_process.repositories.put_files(
        this_process.repositories.get(NAME), {"a/other.txt": b"1", "config.json": b"2"}
    )
    publish_folder(model_folder, NAME)
    assert contents_of(this_process)["a/other.txt"] == b"1"
    assert contents_of(this_process)["config.json"] == (model_folder / "config.json").read_bytes()
    publish_folder(model_folder, NAME, delete_others=True)
    assert set(contents_of(this_process)) == {path.name for path in model_folder.iterdir()} | {"README.md"}
    assert titles(this_process)[:2] == ["Upload model"] * 2


def test_a_private_repository(this_process, model_folder):
    publish_folder(model_folder, NAME, private=True)
    assert this_process.repositories.get(NAME).private
    with pytest.raises(HubError, match="does not exist"):
        publish_folder(model_folder, NAME, token=STRANGER, create_pr=True)
    # A repository that is public does not become private without a word.
    publish_folder(model_folder, "user/public")
    with pytest.raises(ValueError, match="exists and is public"):
        publish_folder(model_folder, "user/public", private=True)


def test_branches(this_process, model_folder):
    publish_folder(model_folder, NAME)
    (model_folder / "LICENSE").write_text("of the branch")
    for _ in range(2):
        published = publish_folder(model_folder, NAME, revision="try/2")
    assert not published.commit.is_new
    assert "LICENSE" in contents_of(this_process, "try/2") and "LICENSE" not in contents_of(this_process)
    assert titles(this_process, "try/2") == ["Upload model", "Upload model", "initial commit"]
    repo = this_process.repositories.get(NAME)
    repo.tags["v1"] = repo.branches["main"]
    with pytest.raises(ValueError, match="revision='v1' is a tag"):
        publish_folder(model_folder, NAME, revision="v1")


def test_a_pull_request_is_opened_once(this_process, model_folder):
    this_process.repositories.create("team/model")
    (model_folder / "LICENSE").write_text("proposed")
    options = {"create_pr": True, "commit_message": "A better model"}
    first = publish_folder(model_folder, "team/model", token=STRANGER, **options)
    repo = this_process.repositories.get("team/model")
    assert first.commit.pr_url == f"{this_process.url}/team/model/discussions/1"
    assert set(repo.files()) == {".gitattributes"} and "model.safetensors" in repo.files("refs/pr/1")
    again = publish_folder(model_folder, "team/model", token=STRANGER, **options)
    assert again.commit.pr_url == first.commit.pr_url and not again.commit.is_new
    # Other contents are another proposal, and so are those of another user.
    (model_folder / "LICENSE").write_text("proposed again")
    assert publish_folder(model_folder, "team/model", token=STRANGER, **options).commit.pr_url.endswith("/2")
    assert publish_folder(model_folder, "team/model", token=WRITER, **options).commit.pr_url.endswith("/3")
    more = publish_folder(model_folder, "team/model", token=STRANGER, revision="refs/pr/1", commit_message="More")
    assert repo.pull_refs["refs/pr/1"] == more.commit.oid and len(repo.discussions) == 3


def test_a_dry_run_sends_nothing_and_needs_no_token(this_process, model_folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    add_run_files(model_folder)
    seen = []
    published = publish_folder(model_folder, NAME, dry_run=True, report=seen.append)
    assert published.commit is None and not this_process.requests
    (publication,) = seen
    real = {upload.name: upload.size for upload in publication.uploads}
    assert len(publication.left) == 11
    # The control: the same call without dry_run sends exactly these files.
    monkeypatch.setenv("HF_TOKEN", WRITER)
    publish_folder(model_folder, NAME)
    assert {name: len(content) for name, content in contents_of(this_process).items()} == real


@pytest.mark.parametrize("place", [".", "..", "../model/", "~"])
def test_a_folder_by_any_spelling(this_process, model_folder, monkeypatch, place):
    inside = model_folder / "results"
    inside.mkdir()
    monkeypatch.chdir(inside if place == ".." else model_folder)
    if place == "~":
        with pytest.raises(FileNotFoundError, match="does not exist"):
            publish_folder(place, NAME, dry_run=True)
    else:
        publish_folder(place, NAME)
        assert "model.safetensors" in contents_of(this_process)


def test_an_owner_is_added(this_process, model_folder):
    publish_folder(model_folder, "short")
    assert "user/short" in contents_of(this_process, name="user/short")["README.md"].decode()


@pytest.mark.parametrize("name", ["a b/c", "a/b/c", "a--b/c", "/c", "a/", "a/b.git", "", "a/" + "b" * 100])
def test_what_is_no_name(this_process, model_folder, name):
    with pytest.raises(ValueError, match="is not the name of a repository"):
        publish_folder(model_folder, name)
    assert not this_process.requests


def test_what_must_not_leave_is_refused_before_anything_is_sent(this_process, model_folder, tmp_path):
    (model_folder / "LICENSE").write_text(f"One\nTwo {tmp_path}/data\n")
    with pytest.raises(ValueError, match="LICENSE, line 2"):
        publish_folder(model_folder, NAME)
    with pytest.raises(ValueError, match="LICENSE, line 2"):
        publish_folder(model_folder, NAME, dry_run=True)
    assert not this_process.requests
    publish_folder(model_folder, NAME, allow=["LICENSE:2"])
    assert "LICENSE" in contents_of(this_process)


def test_the_token_itself_does_not_leave(this_process, model_folder):
    (model_folder / "LICENSE").write_text(f"key: {STRANGER}\n")
    with pytest.raises(ValueError, match="LICENSE, line 1") as refused:
        publish_folder(model_folder, NAME, token=STRANGER)
    assert STRANGER not in str(refused.value) and not this_process.requests


def test_run_json_goes_when_it_is_asked_for(this_process, model_folder):
    add_run_files(model_folder)
    publish_folder(model_folder, NAME)
    assert "run.json" not in contents_of(this_process)
    publish_folder(model_folder, NAME, include_run=True)
    assert contents_of(this_process)["run.json"] == (model_folder / "run.json").read_bytes()


def test_a_card_that_a_person_wrote_is_kept(this_process, model_folder):
    (model_folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    publish_folder(model_folder, NAME)
    assert contents_of(this_process)["README.md"] == (model_folder / "README.md").read_bytes()
    with pytest.raises(ValueError, match=r"license='apache-2.0' would not be in the card"):
        publish_folder(model_folder, NAME, license="apache-2.0")


def test_a_card_that_the_hub_refuses_is_refused_before_the_repository_is_made(this_process, model_folder):
    (model_folder / "README.md").write_text("---\nlicense: 3\ntags: {a: b}\n---\n# Mine\n")
    with pytest.raises(ValueError, match="the Hub refuses its metadata") as refused:
        publish_folder(model_folder, NAME)
    assert '"tags" must be' in str(refused.value) and "\n" not in str(refused.value)
    assert not this_process.repositories.all()


def test_a_card_that_nobody_can_read_is_one_line(this_process, model_folder):
    (model_folder / "README.md").write_text("---\ntags: [\n---\n# Mine\n")
    assert "README.md: its metadata cannot be read" in refusal(model_folder)
    assert "README.md: its metadata cannot be read" in refusal(model_folder, dry_run=True)
    (model_folder / "README.md").write_bytes(b"\xff\xfe\x00")
    assert "README.md" in refusal(model_folder)
    assert not this_process.requests


def test_files_that_the_repository_ignores_are_no_secret(this_process, model_folder):
    repo = this_process.repositories.create(NAME)
    this_process.repositories.put_files(repo, {".gitignore": b"*.jinja\n"})
    with pytest.raises(HubError, match=r"did not take chat_template.jinja: see its .gitignore"):
        publish_folder(model_folder, NAME)


def refusal(model_folder, name=NAME, **options):
    with pytest.raises((ValueError, OSError)) as refused:
        publish_folder(model_folder, name, **options)
    text = str(refused.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_tokens(this_process, model_folder, monkeypatch):
    wrong = "wrong-token-of-nobody"
    assert "does not know the token (401)" in refusal(model_folder, token=wrong)
    assert "may only read" in refusal(model_folder, token=READER)
    assert "refuses stranger/model (403" in refusal(model_folder, "stranger/model")
    assert "refuses nowhere/model (403" in refusal(model_folder, "nowhere/model")
    illegal = refusal(model_folder, token="writer\nof-user")
    assert "holds characters" in illegal and "of-user" not in illegal
    monkeypatch.setenv("HF_TOKEN", wrong)
    text = refusal(model_folder)
    assert "HF_TOKEN goes before" in text and wrong not in text
    monkeypatch.delenv("HF_TOKEN")
    this_process.requests.clear()
    text = refusal(model_folder)
    assert "hf auth login" in text and "HF_TOKEN" in text
    assert not this_process.requests and not this_process.repositories.all()


def test_a_repository_that_a_pull_request_needs(this_process, model_folder):
    assert "user/model does not exist" in refusal(model_folder, create_pr=True)
    assert not this_process.repositories.all()
    this_process.repositories.create(NAME)
    text = refusal(model_folder, create_pr=True, revision="none")
    assert "is no branch of user/model" in text


def test_a_gated_repository(this_process, model_folder):
    repo = this_process.repositories.create("team/model", gated="manual")
    text = refusal(model_folder, "team/model", token=STRANGER, create_pr=True)
    assert "team/model is gated" in text and "Ask for access" in text
    repo.granted.add("stranger")
    publish_folder(model_folder, "team/model", token=STRANGER, create_pr=True)
    assert len(repo.discussions) == 1


def test_a_model_in_the_wrong_kind_of_repository(this_process, model_folder):
    assert "repo_type='dataset', but" in refusal(model_folder, repo_type="dataset")
    assert not this_process.requests


def test_an_adapter_names_a_base_that_others_find(this_process, tmp_path):
    save_adapter(*adapted(save_base(tmp_path / "base"), "lora"), tmp_path / "adapter")
    assert "is a folder of this machine" in refusal(tmp_path / "adapter", "user/adapter")
    assert not this_process.requests
    before = (tmp_path / "adapter" / "adapter_config.json").read_bytes()
    publish_folder(tmp_path / "adapter", "user/adapter", base_model="user/base")
    found = contents_of(this_process, name="user/adapter")
    assert json.loads(found["adapter_config.json"]) == json.loads(before) | {"base_model_name_or_path": "user/base"}
    assert "base_model: user/base" in found["README.md"].decode()
    assert (tmp_path / "adapter" / "adapter_config.json").read_bytes() == before
    assert found["adapter_model.safetensors"] == (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert "local_base.json" not in found and (tmp_path / "adapter" / "local_base.json").exists()


def test_a_space(this_process, tmp_path):
    space = tmp_path / "space"
    space.mkdir()
    (space / "app.py").write_text("import gradio\n")
    (space / "README.md").write_text("---\ntitle: A page\nsdk: gradio\n---\n# A page\n")
    published = publish_folder(space, "user/page")
    assert published.url == f"{this_process.url}/spaces/user/page"
    assert contents_of(this_process, name="user/page", type="space") == local_files(space)
    assert this_process.repositories.get("user/page", "space").sdk == "gradio"


@pytest.mark.slow
def test_the_environment_of_a_process_decides_the_hub(hub, model_folder, tmp_path):
    """Nothing patched: HF_ENDPOINT and HF_TOKEN alone."""
    command = [sys.executable, "-m", "memreason_hf.cli", "publish", str(model_folder), NAME]
    done = subprocess.run(command, env=hub.environment(), capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/{NAME}" in done.stdout and WRITER not in done.stdout + done.stderr
    assert hub.repositories.get(NAME).branches["main"] in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and not (model_folder / "README.md").exists()
