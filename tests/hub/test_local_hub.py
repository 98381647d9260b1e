"""The small Hub of the tests, asked by the libraries that others use: what it gives is what it was given."""

import hashlib
import io
import os
import subprocess
import sys

import pandas
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from local_hub import READER, STRANGER, WRITER, Fault


METRIC = """
import datasets
import evaluate


class Same(evaluate.Metric):
    def _info(self):
        features = datasets.Features({name: datasets.Value("int32") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"same": sum(a == b for a, b in zip(predictions, references))}
"""
LIBRARIES = """
import datasets

datasets.disable_progress_bars()
assert datasets.load_dataset("user/rows")["train"]["x"][:] == [1, 2, 3]
datasets.Dataset.from_dict({"y": [4, 5]}).push_to_hub("user/more")
assert datasets.load_dataset("user/more", split="train")["y"][:] == [4, 5]

import evaluate

assert evaluate.load("user/same").compute(predictions=[1, 2], references=[1, 3]) == {"same": 1}

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)).eval()
model.push_to_hub("user/llama")
ids = torch.arange(9)[None]
for _ in range(2):
    assert torch.equal(AutoModelForCausalLM.from_pretrained("user/llama")(ids).logits, model(ids).logits)
"""


def api_of(hub, token=WRITER):
    return HfApi(endpoint=hub.url, token=token)


def test_transformers_datasets_and_evaluate_find_it(hub):
    parquet = io.BytesIO()
    pandas.DataFrame({"x": [1, 2, 3]}).to_parquet(parquet)
    data, space = hub.repositories.create("user/rows", "dataset"), hub.repositories.create("user/same", "space")
    hub.repositories.put_files(data, {"data/train-00000-of-00001.parquet": parquet.getvalue()})
    hub.repositories.put_files(space, {"same.py": METRIC.encode()})
    command = [sys.executable, "-c", LIBRARIES]
    done = subprocess.run(command, env=hub.environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    # Tokens never go to the place that keeps large files.
    stored = [item for item in hub.requests if item.path.startswith(("/files/", "/uploads/"))]
    assert len(stored) > 4 and all(item.token is None for item in stored)
    assert all(item.token == WRITER for item in hub.matching("POST", "/commit/"))


def test_files_commits_and_refs(this_process, tmp_path):
    hub, api = this_process, api_of(this_process)
    large, small = os.urandom(300_000), b"# A card\n"
    assert api.whoami()["name"] == "user"
    api.create_repo("user/a", private=True)
    first = api.create_commit(
        "user/a",
        [CommitOperationAdd("sub/x.safetensors", large), CommitOperationAdd("README.md", small)],
        commit_message="First",
    )
    info = api.model_info("user/a", files_metadata=True)
    assert (info.sha, info.private) == (first.oid, True)
    sizes = {item.rfilename: item.size for item in info.siblings}
    assert sizes["sub/x.safetensors"] == 300_000 and sizes["README.md"] == len(small)
    lfs = {item.rfilename: item.lfs.sha256 for item in info.siblings if item.lfs}
    assert lfs == {"sub/x.safetensors": hashlib.sha256(large).hexdigest()}
    folder = snapshot_download("user/a", local_dir=tmp_path / "a")
    assert (tmp_path / "a" / "sub" / "x.safetensors").read_bytes() == large and folder
    hub.page_size = 1
    assert len(list(api.list_repo_tree("user/a", recursive=True))) == 4
    assert [item.path for item in api.get_paths_info("user/a", ["sub", "none", "README.md"])] == ["README.md", "sub"]
    api.create_tag("user/a", tag="v1")
    api.create_branch("user/a", branch="b")
    second = api.create_commit("user/a", [CommitOperationDelete("README.md")], commit_message="Second", revision="b")
    assert api.file_exists("user/a", "README.md") and not api.file_exists("user/a", "README.md", revision="b")
    refs = api.list_repo_refs("user/a")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first.oid, "b": second.oid}
    assert [commit.title for commit in api.list_repo_commits("user/a", revision="b")] == [
        "Second",
        "First",
        "initial commit",
    ]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(
            path_or_fileobj=b"x", path_in_repo="y", repo_id="user/a", parent_commit=first.oid, revision="b"
        )
    with pytest.raises(EntryNotFoundError):
        api.delete_file("none", "user/a")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/a", "README.md", revision="none", cache_dir=tmp_path / "cache")
    api.delete_repo("user/a")
    assert not api.repo_exists("user/a")


def test_a_pull_request_is_merged(this_process):
    hub = this_process
    api = api_of(hub, STRANGER)
    hub.repositories.create("user/a")
    commit = api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="user/a", create_pr=True)
    assert commit.pr_revision == "refs/pr/1" and not api.file_exists("user/a", "x")
    assert api.get_discussion_details("user/a", 1).status == "open"
    with pytest.raises(HfHubHTTPError, match="403"):
        api.merge_pull_request("user/a", 1)
    api_of(hub).merge_pull_request("user/a", 1)
    assert api.file_exists("user/a", "x") and api.get_discussion_details("user/a", 1).status == "merged"


def test_who_may_see_and_write(this_process, tmp_path):
    hub = this_process
    private = hub.repositories.create("user/private", private=True)
    gated = hub.repositories.create("user/gated", gated="manual")
    for repo in (private, gated):
        hub.repositories.put_files(repo, {"x": b"1"})
    for token in (STRANGER, False):
        with pytest.raises(RepositoryNotFoundError):
            api_of(hub, token).model_info("user/private")
        assert api_of(hub, token).model_info("user/gated").gated == "manual"
        with pytest.raises(GatedRepoError):
            hf_hub_download("user/gated", "x", endpoint=hub.url, token=token, cache_dir=tmp_path / str(token))
    gated.granted.add("stranger")
    hf_hub_download("user/gated", "x", endpoint=hub.url, token=STRANGER, cache_dir=tmp_path / "granted")
    reader = api_of(hub, READER)
    assert reader.model_info("user/private").private
    for api in (reader, api_of(hub, STRANGER)):
        with pytest.raises(HfHubHTTPError, match="403"):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="user/gated")
    with pytest.raises(HfHubHTTPError, match="401"):
        api_of(hub, "nobody").model_info("user/gated")
    assert set(hub.repositories.get("user/gated").files()) == {".gitattributes", "x"}


def test_downloads_go_on_after_a_break(this_process, tmp_path):
    repo, content = this_process.repositories.create("user/a"), os.urandom(400_000)
    this_process.repositories.put_files(repo, {"x.safetensors": content})
    url = f"{this_process.url}/user/a/resolve/main/x.safetensors"
    part = get_session().get(url, headers={"Range": "bytes=100000-"}, follow_redirects=True)
    assert part.status_code == 206 and part.content == content[100_000:]
    this_process.faults.append(Fault("GET", "^/files/", drop="before"))
    path = hf_hub_download("user/a", "x.safetensors", cache_dir=tmp_path / "cache")
    with open(path, "rb") as file:
        assert file.read() == content


def test_parts_of_a_very_large_file(hub):
    hub.part_size = 70_000
    hub.repositories.create("user/a")
    content = os.urandom(200_001)
    environment = hub.environment()
    script = "import sys; from huggingface_hub import upload_file; upload_file(path_or_fileobj=sys.argv[1], "
    script += "path_in_repo='x.bin', repo_id='user/a')"
    path = hub.folder / "x.bin"
    path.write_bytes(content)
    subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=True, capture_output=True)
    assert hub.repositories.get("user/a").files()["x.bin"] == hashlib.sha256(content).hexdigest()
    assert len(hub.matching("PUT", "/uploads/")) == 3


def test_a_pointer_to_nothing_is_refused(this_process):
    api = api_of(this_process)
    this_process.repositories.create("user/a")
    addition = CommitOperationAdd("x.safetensors", b"x" * 100)
    addition._upload_mode, addition._is_uploaded, addition._should_ignore = "lfs", True, False
    with pytest.raises(BadRequestError, match="does not exist"):
        api.create_commit("user/a", [addition], commit_message="Nothing behind it")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: mit\ntags: [a]", None),
        ("tags: {a: 1}", '"tags" must be'),
        ("a: [", "YAML"),
        ("model-index: [{name: a, results: [{task: {}, metrics: []}]}]", "task.type"),
    ],
)
def test_metadata_of_cards_is_checked(this_process, metadata, message):
    this_process.repositories.create("user/a")
    given = {"path_in_repo": "README.md", "repo_id": "user/a"}
    content = f"---\n{metadata}\n---\n# A\n".encode()
    if message is None:
        api_of(this_process).upload_file(path_or_fileobj=content, **given)
    else:
        with pytest.raises(ValueError, match=message):
            api_of(this_process).upload_file(path_or_fileobj=content, **given)
