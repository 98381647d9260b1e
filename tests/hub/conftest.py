"""A Hub on the loopback interface, this process as its client, and small models to send there."""

import shutil

import pytest
from hub_folders import save_model
from local_hub import hub_fixture, this_process_fixture  # noqa: F401  (fixtures)


@pytest.fixture(scope="session")
def _saved_small_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder)
    return folder


@pytest.fixture
def model_folder(_saved_small_model, tmp_path):
    """A saved model that a test may change."""
    return shutil.copytree(_saved_small_model, tmp_path / "model")
