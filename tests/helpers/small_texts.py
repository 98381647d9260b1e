"""Small texts, tokenizers and files that the tests of text share."""

import functools
import json
import random

from memreason_hf.models.new_models import train_tokenizer


_WORDS = ("a", "loop", "reads", "its", "own", "state", "again", "until", "nothing", "changes", "and", "the", "last")


def small_texts(count=60, seed=0, longest=40):
    """Documents of 1 to `longest` words, no two of them equal."""
    words = random.Random(seed)
    return [f"{index} " + " ".join(words.choices(_WORDS, k=words.randint(1, longest))) for index in range(count)]


@functools.cache
def small_text_tokenizer(vocab_size=300):
    return train_tokenizer(small_texts(), vocab_size)


def write_jsonl(path, texts, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text, "n": index}) + "\n" for index, text in enumerate(texts)))
    return path
