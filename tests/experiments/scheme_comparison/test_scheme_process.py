"""One scheme is trained and evaluated for real, in this process, and goes on where it was killed."""

import json

import pytest
import torch
from small_tokenizers import byte_level, llama
from transformers import AutoTokenizer

from memreason_hf.adapters.saving import is_adapter_folder
from memreason_hf.data.questions.memory_reason import save_memory_reason
from memreason_hf.experiments.folders import check_removable, claim_folder
from memreason_hf.experiments.scheme_comparison.process import main, read_scheme_results
from memreason_hf.experiments.scheme_comparison.schemes import choose_variants
from memreason_hf.experiments.scheme_comparison.world import WorldQuestions, build_world_questions
from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import read_scheme


TRAINING = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_new_tokens": 6, "use_cpu": True, "seed": 1}
TRAINING |= {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
SMALL = {"architecture": "llama", "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
BASE = {"num_prefix_tokens": 1, "num_step_tokens": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "data"
    return str(save_memory_reason(build_world_questions(WorldQuestions(12, 4, 0)), folder))


@pytest.fixture
def write_task(tmp_path, data):
    def write(name, mode="full", **sections):
        variant = choose_variants([name], [], BASE, mode=mode)[name]
        training = {**TRAINING, **sections.pop("training", {})}
        sections = {"data": {"path": data}, "adapter": {"mode": variant.mode}, **sections, "training": training}
        sections["steps"] = variant.scheme.to_dict()
        folder = tmp_path / name
        claim_folder(folder, {"of": "this test"}, restart=False)
        task = {"folder": str(folder), "sections": sections, "num_items": 3, "threads": None}
        (tmp_path / "task.json").write_text(json.dumps(task))
        return folder, str(tmp_path / "task.json")

    return write


def test_a_new_model_and_the_rest_of_a_killed_evaluation(write_task):
    folder, task = write_task("prefix_only", new_model=SMALL)
    assert main([task]) == 0
    results = read_scheme_results(folder)
    assert results["measures"]["num_items"] == 3 and results["training"]["steps"] == 2
    assert read_scheme(AutoTokenizer.from_pretrained(folder)) == StepScheme(1, 0)
    texts = (folder / "solutions.jsonl").read_text().splitlines(keepends=True)
    assert len(texts) == 3 and all("\n<prefix>" in json.loads(line)["text"] for line in texts)
    assert results["num_tokens"] == sum(json.loads(line)["num_tokens"] for line in texts)

    (folder / "results.json").unlink()
    (folder / "solutions.jsonl").write_text(texts[0] + texts[1][:30])
    trained = (folder / "training.json").read_bytes()
    main([task])
    assert (folder / "training.json").read_bytes() == trained
    assert sorted((folder / "solutions.jsonl").read_text().splitlines(keepends=True)) == sorted(texts)
    assert read_scheme_results(folder)["measures"] == results["measures"]


def test_an_adapter_whose_scheme_has_no_tokens(write_task, tmp_path):
    tokenizer = byte_level()
    torch.manual_seed(0)
    llama(len(tokenizer), max_position_embeddings=1024).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    # With checkpoints and evaluations, as the published recipes have them.
    training = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "num_test": 1}
    folder, task = write_task("plain", mode="lora+tokens", model={"path": str(tmp_path / "base")}, training=training)
    assert main([task]) == 0
    assert is_adapter_folder(folder) and list(folder.glob("checkpoint-*"))
    results = read_scheme_results(folder)
    assert 0 < results["training"]["num_trained"] < results["training"]["num_parameters"] / 2
    # Everything in the folder was written by the experiment, so --restart may remove it.
    check_removable([folder])
