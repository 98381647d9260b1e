"""Knowledge from a corpus: the best passage by the formula of BM25, computed here by hand."""

import json
import math
import random
import re

import pytest

from memreason_hf.annotation import Corpus


pytest.importorskip("bm25s", reason='needs pip install "memreason-hf[retrieval]"')
WORDS = ["ice", "snow", "river", "stone", "7", "bank", "moon", "flame", "air", "salt"]


def by_hand(passages, question, k1=1.5, b=0.75):
    """The scores of Lucene's BM25, up to a constant factor."""
    texts = [re.findall(r"\w+", passage.lower()) for passage in passages]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in re.findall(r"\w+", question.lower()):
            df = sum(word in other for other in texts)
            tf = text.count(word)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(text) / mean)) if tf else 0.0
        scores.append(score)
    return scores


def test_the_best_passage_is_that_of_the_formula():
    chance, decided = random.Random(), 0
    for _ in range(60):
        passages = [" ".join(chance.choices(WORDS, k=chance.randint(1, 12))).capitalize() for _ in range(20)]
        corpus = Corpus(passages, stop_words=None)
        question = " ".join(chance.choices(WORDS, k=chance.randint(1, 4))) + "?"
        scores = by_hand(corpus.passages, question)
        first, second = sorted(scores, reverse=True)[:2]
        if first - second < 1e-5:
            continue
        decided += 1
        best = corpus.best(question)
        assert best == corpus.passages[scores.index(first)]
        if second > 0 and sorted(scores, reverse=True)[2] < second - 1e-5:
            assert corpus.best(question, exclude=[best]) == corpus.passages[scores.index(second)]
    assert decided > 20


def test_a_question_without_a_common_word_has_no_passage():
    corpus = Corpus(["Ice is the lightest.", "Snow is white."])
    assert corpus.best("What is the moon?") is None
    assert corpus.best("What is the snow?") == "Snow is white."
    assert corpus.best("What is the snow?", exclude=["Snow is white."]) is None
    assert corpus.best("") is None


def test_text_files_json_lines_and_folders_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffOne\npassage.\n\n  \nAnother.\r\n\r\nThird.\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jsonl").write_text("\n".join(json.dumps({"body": t}) for t in ("Fourth.", "Another.")))
    corpus = Corpus.load(tmp_path, text_column="body")
    assert corpus.passages == ["One passage.", "Another.", "Third.", "Fourth."]
    assert Corpus.load(tmp_path / "a.txt").passages == corpus.passages[:3]
    assert Corpus.load(tmp_path / "a.txt").digest != corpus.digest


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.jsonl", '{"text": "a"}\n{"text', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n{"body": "b"}', "a.jsonl, line 2: must be an object with a text under 'text'"),
        ("a.jsonl", "5", "line 1: must be an object"),
        ("a.csv", "a,b", "must have one of the suffixes"),
        ("a.txt", " \n\n ", "has no passages"),
        ("a.txt", "the of and", "no words apart from stop words"),
        ("b.bin", "", "has no files with the suffix"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        Corpus.load(tmp_path if name == "b.bin" else tmp_path / name)


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("Köln".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt is not a text in UTF-8"):
        Corpus.load(tmp_path)
