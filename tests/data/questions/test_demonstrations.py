"""The choice of demonstrations: similar ones against scores computed by hand, and never the question itself."""

import math
import random
import re
import sys

import numpy as np
import pytest
from datasets import Dataset

from memreason_hf.data.questions.demonstrations import (
    Demonstrations,
    GivenDemonstrations,
    SimilarDemonstrations,
    sentence_embedder,
)


WORDS = [f"w{index}" for index in range(30)]


def make_rows(count):
    return [
        {
            "question": " ".join(random.choices(WORDS, k=random.randint(2, 9))) + f" n{index}?",
            "answer": "True",
            "steps": [{"kind": "memory", "text": f"step {index}"}],
        }
        for index in range(count)
    ]


def words_of(text):
    return re.findall(r"\w+", text.lower())


def bm25_by_hand(questions, question, k1=1.5, b=0.75):
    """The formula of Robertson and Zaragoza with Lucene's idf, document by document."""
    documents = [words_of(text) for text in questions]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words_of(question):
            having = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            count = document.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return np.array(scores)


def test_the_most_similar_by_bm25_come_last():
    pytest.importorskip("bm25s")
    rows = make_rows(40)
    questions = [row["question"] for row in rows]
    choose = SimilarDemonstrations(Dataset.from_list(rows), 5)
    for question in [" ".join(random.choices(WORDS, k=6)) for _ in range(8)]:
        shown = [questions.index(text) for text, _ in choose(question)]
        scores = bm25_by_hand(questions, question)
        assert list(scores[shown]) == sorted(scores[shown])
        assert sorted(scores[shown]) == pytest.approx(sorted(scores)[-5:], rel=1e-5)
    # Words that no question has: the first rows, and no error.
    assert [text for text, _ in choose("zebra")][::-1] == questions[:5]
    assert choose("") == choose("zebra")


def test_the_most_similar_by_embedding_come_last():
    rows = make_rows(25)
    questions = [row["question"] for row in rows]
    vectors = {}

    def embed(texts):
        for text in texts:
            vectors.setdefault(text, np.random.default_rng(len(vectors)).normal(size=7) * (1 + len(vectors)))
        return np.stack([vectors[text] for text in texts])

    choose = SimilarDemonstrations(Dataset.from_list(rows), 4, embed=embed)
    for question in ("one", "two", questions[3]):
        shown = [text for text, _ in choose(question)]
        own = vectors[question]

        def cosine(text, own=own):
            other = vectors[text]
            return own @ other / math.sqrt((own @ own) * (other @ other))

        others = [text for text in questions if text != question]
        assert shown == sorted(others, key=cosine)[-4:]
    with pytest.raises(ValueError, match="embed must give an array of 25 rows"):
        SimilarDemonstrations(Dataset.from_list(rows), 4, embed=lambda texts: np.zeros(3))


@pytest.mark.parametrize("kind", ["random", "bm25", "embedding", "given"])
def test_a_question_is_never_its_own_demonstration(kind):
    if kind == "bm25":
        pytest.importorskip("bm25s")
    rows = make_rows(6)
    makers = {
        "random": lambda: Demonstrations(Dataset.from_list(rows), 5),
        "bm25": lambda: SimilarDemonstrations(Dataset.from_list(rows), 5),
        "embedding": lambda: SimilarDemonstrations(
            Dataset.from_list(rows), 5, embed=lambda texts: np.array([[len(text), 1.0] for text in texts])
        ),
        "given": lambda: GivenDemonstrations(rows, 5),
    }
    choose = makers[kind]()
    for row in rows:
        for question in (row["question"], f" {row['question'].upper()} "):
            shown = [text for text, _ in choose(question)]
            assert len(shown) == 5 and row["question"] not in shown
    shown = choose("Another question?")
    assert len({text for text, _ in shown}) == 5 == len(shown)
    # Its solution ends with its answer.
    assert all(steps[-1].kind == "answer" and steps[0].kind == "memory" for _, steps in shown)


def test_given_demonstrations_keep_their_order():
    rows = make_rows(3)
    choose = GivenDemonstrations(rows)
    assert [text for text, _ in choose("Another?")] == [row["question"] for row in rows]
    with pytest.raises(ValueError, match="is one of the 3 given demonstrations, so only 2 of num_demonstrations=3"):
        choose(rows[1]["question"])
    assert [text for text, _ in GivenDemonstrations(rows, 2)(rows[0]["question"])] == [
        row["question"] for row in rows[1:]
    ]
    with pytest.raises(ValueError, match="num_demonstrations=4 must be between 0 and 3"):
        GivenDemonstrations(rows, 4)
    with pytest.raises(ValueError, match=r"Demonstration 0, .* has no steps"):
        GivenDemonstrations([{**rows[0], "steps": []}])
    with pytest.raises(ValueError, match=r"rows\[0\].* lacks steps and answer"):
        GivenDemonstrations([{"question": "a"}])


def test_missing_libraries_are_named(monkeypatch):
    rows = Dataset.from_list(make_rows(3))
    for module, make in (
        ("bm25s", lambda: SimilarDemonstrations(rows, 1)),
        ("sentence_transformers", lambda: sentence_embedder("some/model")),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"pip install 'memreason-hf\[retrieval\]'"):
            make()
