"""Folders that the tests of cards share."""

import pytest
from card_folders import CardFolders
from local_hub import hub_fixture, this_process  # noqa: F401
from quick_runs import no_fsync, pytest_collection_finish  # noqa: F401


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """`folders(kind)`: a folder of this kind; not to be changed."""
    return CardFolders(tmp_path_factory.mktemp("cards"))
