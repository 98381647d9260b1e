"""What a folder is, and which of its files go: the list of what stays is as long as that of what goes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_folders import add_run_files, save_model
from safetensors.torch import save_file
from small_adapters import adapted, save_base

import memreason_hf
from memreason_hf.adapters.saving import save_adapter
from memreason_hf.data import MultiHopConfig, build_multi_hop, save_multi_hop
from memreason_hf.hub.contents import describe_folder


METRICS = Path(memreason_hf.__file__).parent / "metrics"
MODEL_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def names(contents):
    return {file.name for file in contents.files}


def stays(contents):
    return {item.name: item.reason for item in contents.left}


def code(found):
    return {name for name in found if name.endswith(".py")}


def test_a_model_goes_with_its_code_and_its_tokenizer(model_folder):
    contents = describe_folder(model_folder)
    assert (contents.kind, contents.repo_type) == ("model", "model")
    assert names(contents) - code(names(contents)) == MODEL_FILES
    assert (
        code(names(contents)) == {path.name for path in model_folder.glob("*.py")} and len(code(names(contents))) > 9
    )
    assert not contents.left
    assert contents.size == sum(path.stat().st_size for path in model_folder.iterdir())


def test_what_training_leaves_stays(model_folder):
    before = names(describe_folder(model_folder))
    add_run_files(model_folder)
    contents = describe_folder(model_folder)
    assert names(contents) == before
    everything = {path.name for path in model_folder.iterdir()}
    assert set(stays(contents)) == everything - before and len(stays(contents)) == 11
    assert "--include_run" in stays(contents)["run.json"]
    assert stays(contents)["pytorch_model.bin"].startswith("a pickle")
    assert names(describe_folder(model_folder, include_run=True)) == before | {"run.json"}


def test_results_pictures_and_documents_go(model_folder):
    before = names(describe_folder(model_folder))
    results = model_folder / "results"
    results.mkdir()
    document = json.dumps({"schema_version": 1, "environment": {}, "kind": "evaluation"})
    for path in (model_folder / "evaluation.json", results / "sweep.json"):
        path.write_text(document)
    for name in ("results/sweep.png", "results/sweep.pdf", "LICENSE", "README.md", "conversion.json"):
        (model_folder / name).write_text("x")
    # Not documents of results.
    (results / "settings.json").write_text("{}")
    (results / "broken.json").write_text("{")
    contents = describe_folder(model_folder)
    added = {"evaluation.json", "results/sweep.json", "results/sweep.png", "results/sweep.pdf"}
    assert names(contents) == before | added | {"LICENSE", "README.md", "conversion.json"}
    assert set(stays(contents)) == {"results/settings.json", "results/broken.json"}


def test_further_files_go_when_they_are_named_but_no_pickle(model_folder):
    add_run_files(model_folder)
    contents = describe_folder(model_folder, include=["notes.*", "*.bin", ".cache/*", "checkpoint-10/*"])
    assert "notes.txt" in names(contents)
    assert {"training_args.bin", "pytorch_model.bin", ".cache", "checkpoint-10"} <= set(stays(contents))


def test_folders_of_their_own_inside_a_model_stay(model_folder, tmp_path):
    shutil.copytree(model_folder, model_folder / "best")
    shutil.copytree(world(tmp_path), model_folder / "data")
    (model_folder / "elsewhere").symlink_to(tmp_path)
    contents = describe_folder(model_folder)
    assert stays(contents)["best"] == "a model of its own"
    assert "memreason publish" in stays(contents)["data"]
    assert stays(contents)["elsewhere"] == "a link to a folder"
    assert not any(name.startswith(("best", "data", "elsewhere")) for name in names(contents))


def test_shards_go_with_their_index(tmp_path):
    save_model(tmp_path / "sharded", max_shard_size="30KB")
    found = names(describe_folder(tmp_path / "sharded"))
    shards = {path.name for path in (tmp_path / "sharded").glob("model-*.safetensors")}
    assert len(shards) > 2 and shards | {"model.safetensors.index.json"} <= found


def test_files_of_a_cached_snapshot_are_links(model_folder, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in model_folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    (snapshot / "LICENSE").symlink_to(tmp_path / "nowhere")
    contents = describe_folder(snapshot)
    assert names(contents) == names(describe_folder(model_folder))
    assert contents.size == describe_folder(model_folder).size
    assert "broken link" in stays(contents)["LICENSE"]


def test_an_adapter(tmp_path):
    base = save_base(tmp_path / "base")
    save_adapter(*adapted(base, "lora"), tmp_path / "adapter")
    contents = describe_folder(tmp_path / "adapter")
    assert (contents.kind, contents.repo_type) == ("adapter", "model")
    wanted = {"adapter_config.json", "adapter_model.safetensors", "memreason_adapter.json", "tokenizer.json"}
    assert wanted <= names(contents)


def world(tmp_path):
    config = MultiHopConfig(
        num_entities=6,
        num_relations=3,
        train_hops="2-3",
        test_hops="2-4",
        num_train_chains=5,
        num_test_chains=3,
        num_small_test_chains=2,
        num_atomic_probes=2,
        num_train_probes=2,
        cap_to_available=True,
    )
    save_multi_hop(build_multi_hop(config), tmp_path / "world")
    return tmp_path / "world"


def test_a_data_set_a_metric_and_a_space(tmp_path):
    assert describe_folder(world(tmp_path)).kind == "dataset"
    metrics = [path for path in METRICS.iterdir() if (path / "README.md").exists()]
    assert len(metrics) > 2
    for folder in metrics:
        assert describe_folder(folder).kind == "metric"
        assert describe_folder(folder).repo_type == "space"
    space = tmp_path / "space"
    space.mkdir()
    (space / "app.py").write_text("import gradio")
    (space / "README.md").write_text("---\nsdk: gradio\n---\n")
    contents = describe_folder(space)
    assert (contents.kind, names(contents)) == ("space", {"app.py", "README.md"})


def test_a_folder_of_two_things_needs_a_type(model_folder, tmp_path):
    shutil.copytree(world(tmp_path), model_folder, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="a model and a dataset"):
        describe_folder(model_folder)
    assert describe_folder(model_folder, repo_type="model").kind == "model"
    assert describe_folder(model_folder, repo_type="dataset").kind == "dataset"


def test_what_is_no_folder_of_anything(tmp_path, model_folder):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        describe_folder(tmp_path / "missing")
    with pytest.raises(NotADirectoryError, match="is a file"):
        describe_folder(model_folder / "config.json")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(ValueError, match="nothing to publish"):
        describe_folder(run)
    shutil.copytree(model_folder, run / "checkpoint-7")
    with pytest.raises(ValueError, match=r"Did you mean .*checkpoint-7\?"):
        describe_folder(run)
    with pytest.raises(ValueError, match="repo_type='dataset'"):
        describe_folder(model_folder, repo_type="dataset")


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def change_header(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8] = ord("x")
    path.write_bytes(content)


def add_weights(name):
    return lambda folder: save_file({"x": torch.zeros(3)}, folder / name)


DAMAGES = {
    "no weights": (remove("model.safetensors"), "holds no weights: model.safetensors is missing"),
    "no config": (remove("config.json"), "without a config: config.json is missing"),
    "cut": (cut, "model.safetensors is damaged"),
    "empty": (write("model.safetensors", b""), "the file is empty"),
    "header": (change_header, "model.safetensors is damaged"),
    "adapter config": (write("adapter_config.json", b"{}"), "two models: config.json and adapter_config.json"),
    "adapter weights": (add_weights("adapter_model.safetensors"), "two models: config.json and adapter_model"),
    "shards beside": (
        add_weights("model-00001-of-00002.safetensors"),
        "two models: model.safetensors and model-00001",
    ),
    "index beside": (write("model.safetensors.index.json", b"{}"), "two models: model.safetensors and model.safetens"),
    "code": (remove("modeling_recurrent.py"), "auto_map names modeling_recurrent.py, which the folder lacks"),
    "imported code": (remove("halting_recurrent.py"), "halting_recurrent.py, which the folder lacks"),
    "config damaged": (write("config.json", b"{"), "config.json is damaged"),
    "config a list": (write("config.json", b"[]"), "must hold a JSON object"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused(model_folder, damage):
    act, message = DAMAGES[damage]
    describe_folder(model_folder)
    act(model_folder)
    with pytest.raises(ValueError) as refused:
        describe_folder(model_folder)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_pickle_alone_is_no_model(model_folder):
    (model_folder / "model.safetensors").unlink()
    torch.save({}, model_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle, which is not published"):
        describe_folder(model_folder)


def test_shards_that_do_not_fit_their_index(tmp_path):
    folder = tmp_path / "sharded"
    save_model(folder, max_shard_size="30KB")
    index = folder / "model.safetensors.index.json"
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    good = {path: path.read_bytes() for path in (index, first)}

    def check(message):
        with pytest.raises(ValueError, match=message):
            describe_folder(folder)
        for path, content in good.items():
            path.write_bytes(content)
        describe_folder(folder)

    index.unlink()
    check("model.safetensors.index.json is missing")
    index.write_text('{"weight_map": 3}')
    check("is damaged")
    first.unlink()
    check(f"lacks {first.name}")
    first.write_bytes(second.read_bytes())
    check(f"{first.name} lacks the tensors")
    stale = folder / "model-00001-of-00099.safetensors"
    stale.write_bytes(good[first])
    with pytest.raises(ValueError, match=f"two models: {index.name} does not list {stale.name}"):
        describe_folder(folder)
