"""These tests train many small models, and share a base with an adapter."""

import pytest
from quick_runs import no_fsync, pytest_collection_finish  # noqa: F401
from small_adapters import adapted, save_base

from memreason_hf.adapters.modes import save_adapter


@pytest.fixture(scope="module")
def on_a_base(tmp_path_factory):
    """A folder with a base, and with an adapter on it. Which mode it has does not matter here."""
    folder = tmp_path_factory.mktemp("on_a_base")
    model, tokenizer = adapted(save_base(folder / "base"), "lora")
    save_adapter(model, tokenizer, folder / "adapter")
    return folder
