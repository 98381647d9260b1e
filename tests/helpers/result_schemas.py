"""Checks that the tests of every kind of document share."""

import json

from memreason_hf.evaluation import read_results, results_schema, write_results


def assert_schema_describes_itself(kind):
    """Every object of the schema has a description, and some of its entries have one."""
    schema = results_schema(kind)
    json.dumps(schema)
    parts = [part for part in (schema, *schema["$defs"].values()) if "properties" in part]
    assert [part["title"] for part in parts if not part.get("description")] == []
    assert any("description" in entry for part in parts for entry in part["properties"].values())


def assert_written_and_read(document, path):
    """A document survives its file."""
    write_results(path, document)
    assert read_results(path) == document
