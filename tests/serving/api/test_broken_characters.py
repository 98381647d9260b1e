"""A text that is shown token by token is the text of all tokens, also where its bytes are no characters."""

import random

import pytest
from small_tokenizers import byte_level, sentence_piece
from text_models import text_tokenizer

from memreason_hf.serving.api.served_model import ShownTokens
from memreason_hf.serving.batching.text import TextStream


def rows(tokenizer, count):
    """Ids of whole characters, of characters without some of their bytes, and of any bytes."""
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    pieces = [i for i, name in enumerate(names) if (len(name) == 1 and not name.isascii()) or name.startswith("<0x")]
    for index in range(count):
        ids = [random.choice(pieces if random.random() < 0.8 else range(4, len(tokenizer))) for _ in range(14)]
        if index % 3:
            text = "".join(random.choice("aé日😀 \n€") for _ in range(6))
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if index % 3 == 2:
            ids = [one for one in ids if random.random() < 0.8]
        yield ids


@pytest.mark.parametrize("make", [text_tokenizer, byte_level, sentence_piece])
def test_pieces_are_the_text_of_all_tokens(make):
    tokenizer = make()
    broken = 0
    for ids in rows(tokenizer, 600):
        stream = TextStream(tokenizer)
        pieces = [stream.add(one, last=place == len(ids) - 1)[0] for place, one in enumerate(ids)]
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces) == text
        broken += "\ufffd" in text
    assert make is sentence_piece or broken > 100


@pytest.mark.parametrize(("shown", "name"), [(lambda tokenizer: tokenizer, "<reason>"), (ShownTokens, "<pad>")])
def test_a_token_that_is_left_out_between_the_bytes_of_a_character(shown, name):
    model_tokenizer = text_tokenizer()
    tokenizer, special = shown(model_tokenizer), model_tokenizer.convert_tokens_to_ids(name)
    for character in "é日😀":
        ids = model_tokenizer(character, add_special_tokens=False)["input_ids"]
        for place in range(1, len(ids)):
            mixed = [*ids[:place], special, *ids[place:], *ids]
            stream = TextStream(tokenizer)
            pieces = [stream.add(one, last=index == len(mixed) - 1)[0] for index, one in enumerate(mixed)]
            assert "".join(pieces) == tokenizer.decode(mixed, skip_special_tokens=True) == 2 * character
