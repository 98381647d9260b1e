"""One server for the tests that only ask."""

import pytest
from api_servers import running


@pytest.fixture(scope="module")
def server():
    """A running server with the defaults of `served_model`."""
    with running() as asked:
        yield asked
