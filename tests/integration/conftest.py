"""One saved model that reads any text, for libraries that load it by themselves."""

from types import SimpleNamespace

import pytest
from text_models import save_text_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """`folder` of a tiny model, the `model` and its `tokenizer`. Its width is 64, which bitsandbytes needs."""
    folder = tmp_path_factory.mktemp("saved") / "text_model"
    model, tokenizer = save_text_model(
        folder, hidden_size=64, intermediate_size=64, initializer_range=0.2, residual_init_scale=0.3
    )
    return SimpleNamespace(folder=str(folder), model=model, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def continuation(saved):
    """Greedy generation for one prompt alone: the new ids, and the whole output."""

    def write(prompt, max_new_tokens=6, **kwargs):
        ids = saved.tokenizer(prompt, return_tensors="pt")["input_ids"]
        output = saved.model.generate(
            ids,
            attention_mask=ids.new_ones(ids.shape),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            **kwargs,
        )
        return output.sequences[0, ids.shape[1] :], output

    return write
