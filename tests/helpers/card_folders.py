"""Folders of every kind that has a card, small and complete."""

import functools
import json
import shutil
from pathlib import Path

from published_loops import published, save_any
from small_adapters import adapted, as_if_trained, save_base
from small_chain_results import save_chain_results
from small_finetunes import small_finetune
from small_runs import small_chains, small_trainer
from small_texts import small_rows, small_text_trainer
from text_models import save_text_model

from memreason_hf.adapters.modes import save_adapter
from memreason_hf.commands.convert import main as convert
from memreason_hf.commands.unroll import main as unroll
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForSequenceClassification


CHAIN_CONFIG = {
    "num_entities": 6,
    "num_relations": 3,
    "out_degree": None,
    "train_hops": "2-4",
    "test_hops": "2-4",
    "num_train_chains": 40,
    "num_test_chains": 12,
    "seed": 42,
}
MODEL_KINDS = (
    "bare",
    "chains",
    "text",
    "steps",
    "classifier",
    "converted",
    "unrolled",
    "published",
    "lora",
    "tokens",
    "lora+tokens",
)


def _bare(folder):
    save_text_model(folder)


def _chains(folder):
    trainer = small_trainer(folder, max_steps=4, eval_strategy="steps", eval_steps=4)
    trainer.data_record = {
        "kind": "chains",
        "folder": "/home/somebody/data/small_world",
        "config": CHAIN_CONFIG,
        "rows": {"training": len(small_chains()[1])},
    }
    _finish(trainer)
    save_chain_results(trainer.model, small_chains()[2], trainer.data_collator, folder / "results")


def _text(folder):
    trainer = small_text_trainer(folder, small_rows(), max_steps=4, eval_dataset=small_rows(), eval_steps=4)
    trainer.data_record = {
        "kind": "text",
        "files": ["part-0.jsonl", "part-1.jsonl"],
        "sequence_length": 24,
        "rows": {"training": len(small_rows())},
    }
    trainer.evaluate()
    _finish(trainer)


def _steps(folder):
    trainer = small_finetune(folder, num_train_epochs=1)
    trainer.data_record = {"kind": "questions", "name": "strategy_qa", "folder": "data/questions"}
    _finish(trainer)
    save_solutions_summary(folder)


def _finish(trainer):
    trainer.train()
    trainer.save_model()
    trainer.save_state()


def save_solutions_summary(folder, **changes):
    """The summary and the settings that `memreason evaluate-steps` writes."""
    kinds = {"memory": 3, "reason": 4, "answer": 5, "step": 0}
    summary = {
        "accuracy": 0.6,
        "accuracy_interval": [0.2, 0.9],
        "num_items": 5,
        "num_questions": 5,
        "num_invalid_answers": 1,
        "steps_by_kind": kinds,
        "reference_steps_by_kind": kinds,
        "departures_by_kind": kinds,
    }
    settings = {"data": "/home/somebody/data/questions", "name": "strategy_qa", "split": "test", **changes}
    (folder / "test.jsonl.summary.json").write_text(json.dumps(summary))
    (folder / "test.jsonl.settings.json").write_text(json.dumps(settings))


def _classifier(folder):
    config = RecurrentDepthConfig.llama_style(vocab_size=50, hidden_size=16, num_attention_heads=2, num_labels=3)
    RecurrentDepthForSequenceClassification(config).save_pretrained(folder)


def _converted(folder):
    source = folder.with_name(f"source_of_{folder.name}")
    save_base(source)
    assert convert([str(source), str(folder), "--prelude", "0", "--loop", "1", "--coda", "0"]) == 0


def _unrolled(folder):
    loop = folder.with_name("loop_of_unrolled")
    if not loop.exists():
        _converted(loop)
    assert unroll([str(loop), str(folder), "--num_recurrences", "1"]) == 0


def _published(folder):
    source = folder.with_name("source_of_published")
    save_any(source, "ouro", *published("ouro"))
    assert convert([str(source), str(folder)]) == 0


def _adapter(mode, folder):
    base = folder.with_name(f"base_of_{folder.name}")
    save_base(base)
    model, tokenizer = adapted(base, mode)
    save_adapter(as_if_trained(model), tokenizer, folder)


_MAKERS = {
    "bare": _bare,
    "chains": _chains,
    "text": _text,
    "steps": _steps,
    "classifier": _classifier,
    "converted": _converted,
    "unrolled": _unrolled,
    "published": _published,
    **{mode: functools.partial(_adapter, mode) for mode in ("lora", "tokens", "lora+tokens")},
}


class CardFolders:
    """Makes a folder of each kind once. `copy_of` gives a copy that a test may change."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, kind: str) -> Path:
        folder = self.root / kind.replace("+", "_")
        if not folder.exists():
            _MAKERS[kind](folder)
        return folder

    def copy_of(self, kind: str, parent: Path) -> Path:
        return Path(shutil.copytree(self(kind), parent / kind.replace("+", "_")))
