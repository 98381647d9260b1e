"""What a run by a recipe records about its data is what the card of its model says."""

import pytest
from card_checks import assert_is_true_card
from datasets import Dataset, DatasetDict
from small_adapters import save_base
from small_finetunes import ITEMS
from small_texts import small_texts, write_jsonl
from small_tokenizers import byte_level

from memreason_hf.data.questions.memory_reason import (
    MemoryReasonData,
    MemoryReasonReport,
    SplitReport,
    save_memory_reason,
)
from memreason_hf.data.questions.schema import fill_columns
from memreason_hf.hub.cards import make_card
from memreason_hf.training import FinetuneArguments, RecurrentTrainingArguments
from memreason_hf.training.chains.recipe import prepare_run
from memreason_hf.training.runs.output_folder import claim, record_file
from memreason_hf.training.solutions.recipe import prepare_finetuning
from memreason_hf.training.text.arguments import TextTrainingArguments
from memreason_hf.training.text.recipe import prepare_text_run


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_recurrent_layers": 1}
RUN = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}


def card_after(trainer):
    trainer.train()
    trainer.save_model()
    card = make_card(trainer.args.output_dir)
    assert_is_true_card(card)
    return card


def test_chains(tmp_path):
    world = {"num_entities": 6, "num_relations": 3, "train_hops": "2-3", "test_hops": "2-3", "cap_to_available": True}
    args = RecurrentTrainingArguments(str(tmp_path / "run"), **RUN)
    data = {"path": str(tmp_path / "data" / "small_world"), "seed": 5, **world}
    trainer = prepare_run(args, model={"style": "gpt2", **SIZES}, data=data, curriculum={})
    text = card_after(trainer).text
    assert "from the folder small\\_world" in text and "6 entities and 3 relations (seed 5)" in text
    assert f"Rows: {len(trainer.train_dataset):,} training." in text and "2-3 hops" in text


def test_text(tmp_path):
    write_jsonl(tmp_path / "texts" / "part-0.jsonl", small_texts())
    args = TextTrainingArguments(str(tmp_path / "run"), **RUN)
    data = {"files": str(tmp_path / "texts" / "*.jsonl"), "sequence_length": 24}
    trainer, _ = prepare_text_run(args, model={"vocab_size": 300, **SIZES}, data=data)
    text = card_after(trainer).text
    assert "Text of part-0.jsonl." in text and "rows of 24 tokens" in text
    assert f"Rows: {len(trainer.train_dataset or trainer.train_rows):,} training." in text


@pytest.mark.parametrize("mode", ["full", "tokens"])
def test_questions(mode, tmp_path):
    asked = [{**item, "question": f"{item['question']} Is it so?"} for item in ITEMS]
    rows = fill_columns(DatasetDict(train=Dataset.from_list(ITEMS), test=Dataset.from_list(asked)))
    report = MemoryReasonReport("strategy_qa", "source", {"train": SplitReport(6, 6, 9)})
    folder = save_memory_reason(MemoryReasonData(rows, report), tmp_path / "strategy")
    base = save_base(tmp_path / "base")
    byte_level().save_pretrained(base)
    args = FinetuneArguments(str(tmp_path / "run"), eval_strategy="no", load_best_model_at_end=False, **RUN)
    trainer, _ = prepare_finetuning(
        args, data={"path": str(folder)}, model={"path": str(base)}, adapter={"mode": mode}
    )
    card = card_after(trainer)
    assert "from the folder strategy" in card.text and "Rows: 6 training." in card.text
    assert ("# run\n" in card.text) and ("`tokens`" in card.text) == (mode == "tokens")
    assert "the local folder base" in card.text and card.data.base_model is None


def test_a_run_that_starts_again_forgets_the_data(tmp_path):
    claim(tmp_path, {"seed": 1}, restart=False)
    record_file(tmp_path, "training_data.json")
    (tmp_path / "training_data.json").write_text("{}")
    claim(tmp_path, {"seed": 2}, restart=True)
    assert not (tmp_path / "training_data.json").exists()
