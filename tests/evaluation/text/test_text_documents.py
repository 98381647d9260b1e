import json

import pyarrow
import pyarrow.parquet
import pytest
from text_models import text_tokenizer
from tokenizers.processors import TemplateProcessing

from memreason_hf.evaluation.text.documents import read_texts, tokenize_documents


TEXTS = ["the cat sat", "größer 東京\nand a line", "a"]


def test_files_of_all_kinds(tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[1], encoding="utf-8")
    lines = [json.dumps({"body": text, "id": 1}) for text in TEXTS]
    (tmp_path / "b.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"body": [*TEXTS, None, ""]}), tmp_path / "c.parquet")
    assert read_texts([tmp_path / "a.txt", tmp_path / "b.jsonl"], "body") == [TEXTS[1], *TEXTS]
    assert read_texts([tmp_path / "c.parquet"], "body") == TEXTS


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("a.csv", b"x", ValueError, "must be a file of the kind .txt, .jsonl, .parquet"),
        ("a.txt", "ü".encode("latin-1"), ValueError, "not UTF-8"),
        ("a.txt", b"", ValueError, "holds no text"),
        ("a.jsonl", b'{"text": "a"}\n{', ValueError, "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "a"}', ValueError, "no texts in column='text'. Its columns are body"),
        ("a.jsonl", b"[1]", ValueError, "no texts in column='text'"),
        ("a.parquet", b"PAR", ValueError, "is not a parquet file"),
        ("none.txt", None, FileNotFoundError, "none.txt"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_texts([tmp_path / name])


def test_bytes_are_those_of_what_is_predicted():
    tokenizer = text_tokenizer()
    plain = tokenize_documents(TEXTS, tokenizer)
    first = [tokenizer.decode(ids[:1]) for ids in plain.ids]
    assert plain.ids == [ids for ids in tokenizer(TEXTS)["input_ids"] if len(ids) > 1] and len(plain.ids) == 2
    assert plain.num_bytes == sum(len(t.encode()) for t in TEXTS[:2]) - sum(len(t.encode()) for t in first)
    # With a token before the text, all of the text is predicted.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    begun = tokenize_documents(TEXTS, tokenizer)
    assert begun.num_bytes == sum(len(text.encode()) for text in TEXTS) and len(begun.ids) == 3
    with pytest.raises(ValueError, match="None of the 1 documents"):
        tokenize_documents(["a"], text_tokenizer())
