"""One server for the tests that only ask."""

import pytest
from api_servers import running


@pytest.fixture(scope="module")
def server():
    """A running server with the defaults of `served_model`."""
    pytest.importorskip("fastapi", reason='needs "memreason-hf[serve]"')
    pytest.importorskip("uvicorn", reason='needs "memreason-hf[serve]"')
    pytest.importorskip("prometheus_client", reason='needs "memreason-hf[serve]"')
    with running() as asked:
        yield asked
