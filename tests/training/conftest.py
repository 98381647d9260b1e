"""These tests train many small models."""

from quick_runs import no_fsync, pytest_collection_finish  # noqa: F401
