import json

import pyarrow
import pyarrow.parquet
import pytest
from text_models import text_tokenizer
from tokenizers.processors import TemplateProcessing

from memreason_hf.data.text.sources import read_texts
from memreason_hf.evaluation.text.documents import tokenize_documents


TEXTS = ["the cat sat", "größer 東京\nand a line", "a"]


def test_files_of_all_kinds(tmp_path):
    (tmp_path / "a.txt").write_text(TEXTS[1], encoding="utf-8")
    lines = [json.dumps({"body": text, "id": 1}) for text in TEXTS]
    (tmp_path / "b.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"body": [*TEXTS, None, ""]}), tmp_path / "c.parquet")
    assert read_texts(str(tmp_path / "a.txt")) == [TEXTS[1]]
    for name in ("b.jsonl", "c.parquet"):
        assert read_texts([str(tmp_path / name)], "body", "data") == TEXTS
    (tmp_path / "d.txt").write_bytes("ü".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^data: .*d\.txt is not UTF-8"):
        read_texts([str(tmp_path / "d.txt")], "body", "data")


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
