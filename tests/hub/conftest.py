"""A small Hub for the tests of publishing and loading."""

from local_hub import hub_fixture, this_process  # noqa: F401
