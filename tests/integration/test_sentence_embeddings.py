"""Demonstrations by a model of sentence-transformers, a small one that is made on the spot."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_tokenizers import byte_level
from transformers import BertConfig, BertModel

from memreason_hf.data.questions.demonstrations import SimilarDemonstrations, sentence_embedder


pytest.importorskip("sentence_transformers", reason='needs pip install "memreason-hf[retrieval]"')
pytestmark = pytest.mark.slow


def save_encoder(folder):
    """A random encoder, of which the library takes the mean over tokens; returns its model and tokenizer."""
    torch.manual_seed(0)
    tokenizer = byte_level(model_max_length=64)
    tokenizer.padding_side = "right"  # as encoders have it
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    model.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    return model, tokenizer


def test_the_most_similar_questions_by_a_real_encoder(tmp_path):
    model, tokenizer = save_encoder(tmp_path)
    embed = sentence_embedder(str(tmp_path / "encoder"), device="cpu")
    questions = [f"Is the {word} of words a step {index}?" for index, word in enumerate(("memory", "reason", "sky"))]

    def by_hand(text):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        return states[0].mean(0).numpy()

    expected = np.stack([by_hand(question) for question in questions])
    assert np.allclose(embed(questions), expected, atol=1e-5)
    rows = [{"question": q, "answer": "True", "steps": [{"kind": "memory", "text": "it"}]} for q in questions]
    (shown,) = SimilarDemonstrations(Dataset.from_list(rows), 1, embed=embed)("Is the sky a step?")
    own = by_hand("Is the sky a step?")
    cosines = expected @ own / np.linalg.norm(expected, axis=1)
    assert shown[0] == questions[int(cosines.argmax())]


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"embedding_model=.*nowhere.* cannot be loaded"):
        sentence_embedder(str(tmp_path / "nowhere"), device="cpu")
