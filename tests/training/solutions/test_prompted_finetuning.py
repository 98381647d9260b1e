"""Fine-tuning with a prompt of its own: trained on, used in evaluations, and saved with the tokenizer."""

import json

import pytest
import torch
from small_tokenizers import byte_level, llama
from transformers import GenerationConfig

from memreason_hf.data.questions.memory_reason import load_memory_reason
from memreason_hf.data.questions.prompts import Prompter, PromptFormat, read_prompt_format
from memreason_hf.models.configs_and_tokenizers import read_tokenizer
from memreason_hf.training.solutions.arguments import FinetuneArguments
from memreason_hf.training.solutions.recipe import prepare_finetuning


CHAT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("prompted")
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>", "<|end|>"]})
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    llama(len(tokenizer)).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    data = root / "json"
    data.mkdir()
    for split in ("test", "train"):
        rows = [
            {"question": f"Is {i} of {split} a step?", "answer": "True", "cot_steps": [f"[rag]: the {i}"]}
            for i in range(5)
        ]
        (data / f"StrategyQA_{split}_clean.json").write_text(json.dumps(rows))
    return root


def prepare(folders, output_dir, prompt, model="base", **data):
    args = FinetuneArguments(
        output_dir=str(output_dir),
        max_steps=1,
        per_device_train_batch_size=2,
        num_test=2,
        max_new_tokens=3,
        use_cpu=True,
        disable_tqdm=True,
        seed=11,
    )
    data = {"path": str(folders / "json"), "name": "strategy_qa", **data}
    steps = {"num_prefix_tokens": 1, "num_step_tokens": 1} if model == "base" else {}
    base = {"path": str(folders / model)}
    return prepare_finetuning(args, data=data, model=base, steps=steps, adapter={"mode": "full"}, prompt=prompt)


def test_a_chat_is_trained_evaluated_and_saved(folders, tmp_path, monkeypatch):
    prompt = {"chat_template": True, "system": "Be kind.", "instruction": "Solve it."}
    trainer, report = prepare(folders, tmp_path / "run", prompt, num_demonstrations=1, num_train_items=4)
    assert "Prompt: chat template, system text, an instruction, 1 demonstration (drawn at random)" in report.describe()
    seen = []
    generate = trainer.model.generate

    def recording(**arguments):
        seen.extend(zip(arguments["input_ids"].tolist(), arguments["attention_mask"].tolist()))
        return generate(**arguments)

    monkeypatch.setattr(trainer.model, "generate", recording)
    trainer.train()
    trainer.save_model()
    loaded = read_tokenizer(str(tmp_path / "run"), "model")
    format = read_prompt_format(loaded)
    assert format == PromptFormat(
        chat_template=True,
        system="Be kind.",
        instruction="Solve it.",
        num_demonstrations=1,
        demonstrations_seed=11,
        num_pool_items=4,
    )
    dataset = load_memory_reason(str(folders / "json"), "strategy_qa")
    prompter = Prompter(loaded, demonstrations=trainer.demonstrations)
    prompts = [prompter.prompt_ids(question) for question in dataset["test"]["question"][:2]]
    evaluated = [[i for i, real in zip(ids, mask) if real] for ids, mask in seen]
    assert sorted(evaluated) == sorted(prompts)
    text = prompter.text(dataset["test"]["question"][0])
    assert text.startswith("<|turn|>system\nBe kind.<|end|>\n<|turn|>user\nSolve it.\n\nIs ") and "of train" in text
    # The model's own generate stops there, too.
    saved = GenerationConfig.from_pretrained(tmp_path / "run")
    assert saved.eos_token_id == [loaded.eos_token_id, loaded.convert_tokens_to_ids("<|end|>")]
    # Rows of training begin with the same prompts, and end with the end of the turn.
    rows = [list(trainer.train_rows[index]["input_ids"]) for index in range(4)]
    for row, question in zip(rows, dataset["train"]["question"]):
        ids = prompter.prompt_ids(question)
        assert row[: len(ids)] == ids and row[-1] == loaded.convert_tokens_to_ids("<|end|>")


def test_the_prompt_of_the_study_leaves_nothing_in_the_tokenizer(folders, tmp_path):
    trainer, report = prepare(folders, tmp_path / "run", None)
    assert "prompt_format" not in trainer.processing_class.init_kwargs and "Prompt" not in report.describe()
    start = Prompter(trainer.processing_class).prompt_ids("Is 0 of train a step?")
    assert list(trainer.train_rows[0]["input_ids"])[: len(start)] == start


def test_training_on_keeps_the_prompt_unless_told(folders, tmp_path):
    template = tmp_path / "mine.txt"
    template.write_text("Q: {question}\nA: ")
    trainer, _ = prepare(folders, tmp_path / "first", {"template": str(template)})
    trainer.save_model(str(folders / "trained"))
    template.unlink()
    again, _ = prepare(folders, tmp_path / "second", None, model="trained")
    assert read_prompt_format(again.processing_class).template == "Q: {question}\nA: "
    other, _ = prepare(folders, tmp_path / "third", {"template": "none"}, model="trained")
    assert read_prompt_format(other.processing_class) == PromptFormat()
    alpaca, _ = prepare(folders, tmp_path / "fourth", {"template": "alpaca", "instruction": "Go."}, model="trained")
    assert "### Input:\n{question}" in read_prompt_format(alpaca.processing_class).template


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"system": "Be kind."}, "system='Be kind.' belongs to a chat template"),
        ({"demonstrations": "given"}, "needs demonstrations_file"),
        ({"embedding_model": "m", "demonstrations": "bm25"}, "embedding_model='m' is for demonstrations='embedding'"),
        ({"demonstrations_file": "x", "demonstrations": "bm25"}, "demonstrations_file='x' gives the demonstrations"),
        ({"demonstrations": "bm25"}, "demonstrations='bm25' has no effect without demonstrations"),
        ({"template": "nothing.txt"}, "template='nothing.txt': no such file"),
    ],
)
def test_impossible_prompts_are_refused(folders, tmp_path, prompt, message):
    with pytest.raises((ValueError, OSError)) as caught:
        prepare(folders, tmp_path / "run", prompt)
    assert message in str(caught.value)
