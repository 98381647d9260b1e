"""The table of a comparison: its numbers, its escapes, and what it refuses."""

import json
import random
import re

import pytest

from memreason_hf.analysis.comparison_tables import FORMATS, ComparisonRow, comparison_table, read_rows


def random_row(name, **kwargs):
    accuracy = random.random()
    values = {
        "accuracy": accuracy,
        "num_items": random.randint(1, 5000),
        "accuracy_interval": (accuracy * random.random(), accuracy + (1 - accuracy) * random.random()),
        "num_tokens": random.uniform(0, 900),
        "steps_by_kind": {"memory": random.uniform(0, 5), "reason": random.uniform(0, 5)},
        "scores": {"pass@8": random.random()},
    }
    return ComparisonRow(name=name, **{**values, **kwargs})


def test_every_format_shows_the_numbers():
    rows = [random_row(f"scheme {index}") for index in range(4)]
    for format in ("text", "markdown", "latex"):
        text = comparison_table(rows, format)
        body = [line for line in text.splitlines() if "scheme" in line]
        assert len(body) == 4
        for row, line in zip(rows, body):
            numbers = [float(number) for number in re.findall(r"\d+\.\d+", line)]
            low, high = row.accuracy_interval
            kinds = row.steps_by_kind
            expected = [100 * row.accuracy, 100 * low, 100 * high, 100 * row.scores["pass@8"], row.num_tokens]
            expected += [kinds["memory"], kinds["reason"]]
            assert numbers == pytest.approx(expected, abs=0.051)
            assert f"{row.num_items:,}" in line


def test_json_gives_the_same_rows_back():
    rows = [random_row("a"), random_row("a", data="strategy_qa"), ComparisonRow(name="b", accuracy=1, num_items=1)]
    assert read_rows(comparison_table(rows, "json")) == rows
    assert json.loads(comparison_table(rows, "json"))[2]["accuracy_interval"] is None


def test_columns_that_no_row_fills_are_left_out():
    rows = [
        ComparisonRow(name="a", accuracy=0.5, num_items=4),
        ComparisonRow(name="b", accuracy=0.25, num_items=4, steps_by_kind={"memory": 0, "step": 2}),
    ]
    header, _, first, second = comparison_table(rows).splitlines()
    assert header.split() == ["name", "items", "accuracy,", "%", "step"]
    # The steps of the first row are not known, which differs from none.
    assert first.split() == ["a", "4", "50.0", "-"] and second.split() == ["b", "4", "25.0", "2.00"]
    both = comparison_table([*rows, random_row("c", data="gsm8k", model="llama")], "markdown")
    assert both.splitlines()[0].startswith("| name | model | data | items |")
    assert "| a | - | - | 4 |" in both


def test_the_best_of_each_data_set_is_bold():
    rows = [
        ComparisonRow(name=name, accuracy=accuracy, num_items=10, data=data)
        for name, accuracy, data in [("a", 0.5, "x"), ("b", 0.7, "x"), ("c", 0.7, "x"), ("a", 0.1, "y"), ("a", 1, "z")]
    ]
    for format, bold in (("markdown", r"\*\*(.*?)\*\*"), ("latex", r"\\textbf\{(.*?)\}")):
        assert re.findall(bold, comparison_table(rows, format)) == ["70.0", "70.0"]
        assert not re.findall(bold, comparison_table(rows, format, mark_best=False))
    # One row is not the best of anything.
    assert "**" not in comparison_table(rows[-1:], "markdown")


def test_names_are_text_in_every_format():
    name = "50 % <memory_0> a|b & c_d {e} $f$ **g** \\h # ~ ^"
    rows = [ComparisonRow(name=name, accuracy=0.5, num_items=2)]
    line = comparison_table(rows, "latex", caption="100 % & more").splitlines()
    (row,) = (text for text in line if "textless" in text)
    unescaped = re.sub(r"\\(textbackslash|textless|textgreater|textbar|textasciitilde|textasciicircum)\{\}", "", row)
    unescaped = re.sub(r"\\[&%$#_{}]", "", unescaped).removesuffix(r" \\")
    assert not set(unescaped) & set("%$#_{}\\^~<>|") and unescaped.count("&") == 2
    assert r"\caption{100 \% \& more}" in line
    markdown = comparison_table(rows, "markdown").splitlines()[2]
    assert markdown.count("|") == 4 and "<" not in markdown and "**g" not in markdown
    assert name in comparison_table(rows)


def test_a_row_from_results():
    results = {
        "accuracy": 0.5,
        "accuracy_interval": [0.25, 0.75],
        "num_items": 4,
        "steps_by_kind": {"memory": 6, "reason": 2, "answer": 4, "step": 0},
        "num_tokens": 400,
    }
    row = ComparisonRow.from_results("a", results)
    assert row.num_tokens == 100 and row.steps_by_kind == {"memory": 1.5, "reason": 0.5, "answer": 1, "step": 0}
    assert row.accuracy_interval == (0.25, 0.75)
    assert ComparisonRow.from_results("a", results, num_tokens=8).num_tokens == 2
    with pytest.raises(ValueError, match="The results of 'b' lack accuracy and num_items"):
        ComparisonRow.from_results("b", {"steps_by_kind": {}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": " "}, "name=' ' is blank"),
        ({"accuracy": 70.6}, "accuracy=70.6 must be at most 1"),
        ({"accuracy": float("nan")}, "accuracy=nan must be a finite number"),
        ({"num_items": 0}, "num_items=0 must be at least 1"),
        ({"accuracy_interval": (0.7, 0.6)}, "must have its lower end first"),
        ({"accuracy_interval": (0.7,)}, "must be a pair"),
        ({"steps_by_kind": {"memory": -1}}, r"steps_by_kind\['memory'\]=-1 must be at least 0"),
        ({"scores": {"pass@8": 2}}, r"scores\['pass@8'\]=2 must be at most 1"),
    ],
)
def test_impossible_rows_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ComparisonRow(**{"name": "a", "accuracy": 0.5, "num_items": 2, **values})


def test_impossible_tables_are_refused():
    row = random_row("a")
    with pytest.raises(ValueError, match="no rows to compare"):
        comparison_table([])
    with pytest.raises(ValueError, match="Two rows have name='a'"):
        comparison_table([row, random_row("a")])
    with pytest.raises(ValueError, match=f"format='html' must be one of {', '.join(FORMATS)}"):
        comparison_table([row], "html")
    with pytest.raises(TypeError, match=r"rows\[0\]=.* must be a ComparisonRow"):
        comparison_table([{"name": "a"}])
    for text, message in (
        ("[", "must be JSON"),
        ("{}", "must be a list of objects"),
        ('[{"name": "a"}]', "Row 0 of the table lacks accuracy, num_items"),
        ('[{"name": "a", "accuracy": 2, "num_items": 1}]', "Row 0 of the table: accuracy=2 must be at most 1"),
        ('[{"name": "a", "accuracy": 1, "num_items": 1, "f": 1}]', "has the unknown fields f"),
    ):
        with pytest.raises(ValueError, match=message):
            read_rows(text)
