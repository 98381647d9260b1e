"""Folders that the tests of cards share."""

import pytest
from card_folders import CardFolders
from quick_runs import no_fsync, pytest_collection_finish  # noqa: F401


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """`folders(kind)`: a folder of this kind; not to be changed."""
    return CardFolders(tmp_path_factory.mktemp("cards"))


@pytest.fixture
def at_hub(this_process, monkeypatch):
    """This process at the small Hub, also for what the libraries made of the address when they were imported."""
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    template = f"{this_process.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    return this_process
