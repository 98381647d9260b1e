"""Kinds of documents: those of the package, and one that is registered here."""

import json
from typing import Literal

import pytest
from paths import ROOT
from result_schemas import assert_schema_describes_itself, assert_written_and_read
from typing_extensions import TypedDict

from memreason_hf.evaluation import describe_environment, read_results, register_kind, results_schema, write_results
from memreason_hf.evaluation import results as results_module
from memreason_hf.evaluation.results import Document, expect_kind, new_document, validate_results


class Place(TypedDict):
    """Where it was."""

    city: str
    """Its name."""
    height: float | None


class Weather(Document):
    kind: Literal["weather"]
    sky: Literal["blue", "grey"]
    places: list[Place]
    """In any order."""


@pytest.fixture(autouse=True)
def weather_kind(monkeypatch):
    monkeypatch.setattr(results_module, "_KINDS", dict(results_module._KINDS))
    register_kind("weather", Weather)


@pytest.fixture
def document():
    places = [{"city": "Bergen", "height": 12}, {"city": "東京", "height": None}]
    return new_document("weather", environment=describe_environment("cpu"), sky="grey", places=places)


def test_a_new_document_is_written_and_read(document, tmp_path):
    assert list(document)[:3] == ["schema_version", "kind", "created"] and document["kind"] == "weather"
    path = tmp_path / "weather.json"
    write_results(path, document)
    assert read_results(path) == document
    assert "東京" in path.read_text(encoding="utf-8")


def test_half_of_a_character_is_written_as_an_escape(document, tmp_path):
    document["places"][0]["city"] = "\udc80"
    write_results(tmp_path / "weather.json", document)
    assert read_results(tmp_path / "weather.json") == document


def test_numbers_keep_their_types(document, tmp_path):
    write_results(tmp_path / "weather.json", document)
    assert type(read_results(tmp_path / "weather.json")["places"][0]["height"]) is int


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: d.update(sky="green"), "^sky='green' must be 'blue' or 'grey'.$"),
        (lambda d: d["places"][1].update(height="high"), r"^places\[1\].height='high' must be a number or null.$"),
        (lambda d: d["places"][1].update(height=float("inf")), r"^places\[1\].height=inf must be a finite number.$"),
        (lambda d: d["places"].append(None), r"^places\[2\]=None must be an object.$"),
        (lambda d: d["places"][0].update(town="x"), r"^places\[0\]: missing keys \[\], unknown keys \['town'\]. Add"),
        (lambda d: d["places"][0].pop("city"), r"^places\[0\]: missing keys \['city'\], unknown keys \[\]. Add"),
        (
            lambda d: (d.pop("sky"), d.pop("places")),
            r"^results: missing keys \['places', 'sky'\], unknown keys \[\]. Add",
        ),
        (lambda d: d.update(kind="climate"), "^kind='climate' must be one of .*weather. Another kind is known once "),
        (lambda d: d.update(schema_version=7), "^schema_version=7 must be 1: this release of memreason-hf reads 1.$"),
    ],
)
def test_what_breaks_a_schema_is_named_in_one_line(document, break_it, message):
    validate_results(document)
    break_it(document)
    with pytest.raises(ValueError, match=message):
        validate_results(document)


def test_a_kind_may_check_more_than_types(document):
    class Forecast(Weather):
        kind: Literal["forecast"]

    def check(document):
        if len(document["places"]) < 2:
            raise ValueError("places has one entry only.")

    register_kind("forecast", Forecast, check=check)
    document["kind"] = "forecast"
    validate_results(document)
    with pytest.raises(ValueError, match="places has one entry only"):
        new_document("forecast", environment=document["environment"], sky="blue", places=document["places"][:1])


def test_a_kind_is_registered_once():
    with pytest.raises(ValueError, match="kind='weather' is already registered"):
        register_kind("weather", Weather)


def test_another_kind_than_the_expected_one(document):
    expect_kind(document, "weather")
    with pytest.raises(ValueError, match="kind='weather': the results must be of kind 'evaluation'"):
        expect_kind(document, "evaluation")


def test_the_schema_of_a_kind():
    schema = results_schema("weather")
    assert schema["required"] == ["schema_version", "created", "environment", "kind", "sky", "places"]
    assert schema["properties"]["places"]["description"] == "In any order."
    place = schema["$defs"]["Place"]
    assert place["properties"]["city"] == {"description": "Its name.", "title": "City", "type": "string"}
    assert schema["additionalProperties"] is False and place["additionalProperties"] is False
    with pytest.raises(ValueError, match="kind='snow' must be one of"):
        results_schema("snow")


@pytest.mark.parametrize("kind", ["evaluation", "depth_sweep"])
def test_schemas_describe_themselves(kind):
    assert_schema_describes_itself(kind)


def test_saved_results_are_still_read(tmp_path):
    path = ROOT / "tests" / "benchmarks" / "results" / "quickstart_evaluation.json"
    results = read_results(path)
    assert results == json.loads(path.read_text(encoding="utf-8"))
    assert_written_and_read(results, tmp_path / "again.json")
