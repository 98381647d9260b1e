"""A sliding window counts real tokens, wherever padding stands."""

import pytest
import torch
from recurrent_models import pad, random_ids, relative_error, tiny_model

from modeling_recurrent import RecurrentDepthCache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("style", "prelude"), [("gpt2", 0), ("llama", 1)])
def test_a_right_padded_prompt_goes_on_behind_its_holes(attention, style, prelude):
    model = tiny_model(style, initializer_range=0.25, sliding_window=3, num_prelude_layers=prelude).double()
    model.set_attn_implementation(attention)
    rows = [random_ids(n) for n in (5, 2, 7, 4)]
    ids, mask = pad(rows, "right")
    turn = random_ids(4, 3)
    cache = RecurrentDepthCache(model.config)
    with torch.no_grad():
        for count in (3, torch.tensor([1, 3, 2, 3])):
            model(ids, attention_mask=mask, past_key_values=cache, num_recurrences=count)
            longer = torch.cat((mask, torch.ones_like(turn)), dim=1)
            logits = model(turn, attention_mask=longer, past_key_values=cache, num_recurrences=count).logits
            for i, row in enumerate(rows):
                own = count if isinstance(count, int) else int(count[i])
                alone = model(torch.cat((row, turn[i]))[None], num_recurrences=own).logits[0, -3:]
                assert relative_error(logits[i], alone) < 1e-10
            cache.reset()


def test_left_padding_keeps_the_librarys_mask():
    from modeling_recurrent.masks_recurrent import has_holes

    masks = {"0011": False, "1100": False, "1111": False, "0110": False, "1011": True, "0101": True}
    for text, holes in masks.items():
        assert has_holes(torch.tensor([[1, 1, 1, 1], [int(c) for c in text]]).bool()) == holes, text
