"""Folders to publish: small models with random weights, and what a run leaves beside them."""

import json
from pathlib import Path

import torch
from recurrent_models import tiny_config
from small_tokenizers import byte_level

from memreason_hf.steps import StepScheme
from memreason_hf.steps.tokenization import extend_tokenizer
from modeling_recurrent import RecurrentDepthForCausalLM


CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def save_model(folder: Path, *, max_shard_size: str = "50GB", **config) -> RecurrentDepthForCausalLM:
    """Saves a model with its code, and a tokenizer with a scheme and a chat template."""
    tokenizer = byte_level()
    tokenizer.chat_template = CHAT_TEMPLATE
    extend_tokenizer(tokenizer, StepScheme(1, 1))
    model = RecurrentDepthForCausalLM(tiny_config("llama", vocab_size=len(tokenizer), **config)).eval()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return model


def add_run_files(folder: Path) -> None:
    """What training leaves in the folder of a run: state, checkpoints, pickles, hidden files, notes."""
    (folder / "run.json").write_text(json.dumps({"fingerprint": {"kind": "text"}, "files": []}))
    (folder / "trainer_state.json").write_text("{}")
    (folder / "notes.txt").write_text("not to be seen\n")
    (folder / "train.py").write_text("print('not the code of the model')\n")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "model.safetensors").write_bytes(b"hidden")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "pytorch_model.bin"):
        torch.save({"a": torch.zeros(2)}, folder / name)
    checkpoint = folder / "checkpoint-10"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors", "optimizer.pt"):
        (checkpoint / name).write_bytes(b"{}")


def local_files(folder: Path) -> dict[str, bytes]:
    """`{name: content}` of all files of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
