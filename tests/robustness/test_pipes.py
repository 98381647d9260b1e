"""A pipe in the place of a file that is read: to open it would wait for a writer for ever."""

import faulthandler
import json
import os
import shutil
from pathlib import Path

import pytest
from processes import run_child

from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.multi_hop import build_multi_hop, load_multi_hop, save_multi_hop
from memreason_hf.data.questions.memory_reason import build_memory_reason, load_memory_reason, save_memory_reason
from memreason_hf.data.questions.own_data import load_questions
from memreason_hf.data.questions.schema import write_questions
from memreason_hf.data.text.arguments import TextArguments
from memreason_hf.data.text.sources import open_texts
from memreason_hf.hub.cards import make_card


CONFIG = MultiHopConfig(
    num_entities=6, num_relations=3, train_hops="2-3", test_hops="2-4", num_train_chains=20, num_test_chains=4
)
READERS = {
    "load_multi_hop": ("world", load_multi_hop),
    "load_multi_hop of JSON": ("json", load_multi_hop),
    "load_memory_reason": ("questions", load_memory_reason),
    "load_memory_reason of a source": ("source", lambda folder: load_memory_reason(folder, "strategy_qa")),
    "load_questions": ("questions", load_questions),
    "load_questions of files": ("lines", load_questions),
    "make_card": ("questions", make_card),
    "open_texts": ("questions", lambda folder: open_texts(TextArguments(dataset=str(folder), column="question"), 0)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    save_multi_hop(build_multi_hop(CONFIG), root / "world")
    (root / "json").mkdir()
    for path in (root / "world").glob("*.json"):
        if path.name in ("train.json", "valid.json", "test.json", "test_small.json", "vocab.json"):
            shutil.copy(path, root / "json")
    (root / "source").mkdir()
    items = [
        {"question": f"Is {i} a step?", "answer": "True", "cot_steps": [f"[rag]: the {i}", "[reason]: it is"]}
        for i in range(4)
    ]
    for split in ("train", "test"):
        rows = [{**item, "question": f"{split}: {item['question']}"} for item in items]
        (root / "source" / f"StrategyQA_{split}_clean.json").write_text(json.dumps(rows))
    save_memory_reason(build_memory_reason("strategy_qa", str(root / "source")), root / "questions")
    for split, rows in load_questions(root / "questions").items():
        write_questions(root / "lines" / f"{split}.jsonl", rows)
    return root


def read_all(root, name):
    """Replaces every file in turn. What a reader does not need counts as missing; other pipes are refused."""
    faulthandler.dump_traceback_later(60, exit=True)
    folder, read = READERS[name]
    refused = 0
    for path in sorted(path for path in Path(root, folder).rglob("*") if path.is_file()):
        moved = Path(root, "moved")
        shutil.move(path, moved)
        os.mkfifo(path)
        try:
            read(Path(root, folder))
        except (OSError, ValueError) as error:
            assert str(folder) in str(error) or path.name in str(error), f"{path}: {error}"
            refused += 1
        path.unlink()
        shutil.move(moved, path)
    assert refused
    read(Path(root, folder))  # a control: all of it is right


@pytest.mark.parametrize("name", READERS)
def test_no_reader_waits_for_a_writer(folders, tmp_path, name):
    shutil.copytree(folders, tmp_path / "copy")
    assert run_child(read_all, tmp_path / "copy", name) == 0
