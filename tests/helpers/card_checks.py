"""What every card must be, whatever it describes."""

import getpass
import re
import socket

import yaml
from hub_metadata import check_metadata, read_metadata
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results


# Words of a form that nobody filled in, and of values that do not exist.
FORBIDDEN = re.compile(
    r"\b(none|null|nan|undefined)\b|more information needed|\bunknown\b|\bTODO\b|\[\s*optional", re.I
)


def forbidden_lines(text):
    return [line for line in text.splitlines() if FORBIDDEN.search(line)]


def private_lines(text):
    """Lines that name a path of this machine, its user or its name."""
    names = [re.escape(name) for name in (getpass.getuser(), socket.gethostname()) if len(name) > 2]
    private = re.compile("|".join([r"(?<![:\w/])/(?:tmp|home|root|work|Users|var)\b", *(rf"\b{n}\b" for n in names)]))
    return [line for line in text.splitlines() if private.search(line)]


def empty_sections(text):
    """Headings that nothing follows, before the next heading of the same or a higher level."""
    lines = [line for line in re.sub(r"```.*?```", "code", text, flags=re.S).splitlines() if line.strip()]
    levels = [len(match[0]) if (match := re.match(r"#+(?= )", line)) else 0 for line in lines] + [1]
    return [
        line for line, level, following in zip(lines, levels, levels[1:]) if level and following and following <= level
    ]


def broken_tables(text):
    """Lines of tables with another number of cells than their header."""
    broken, width = [], None
    for line in text.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        width = cells if width is None else width
        broken += [line] if cells != width else []
    return broken


def empty_cells(text):
    """Lines of tables with a cell that nobody filled in."""
    return [line for line in text.splitlines() if re.match(r"\|.*\|\s*\|", line)]


def assert_is_true_card(card, repo_type="model"):
    """The Hub takes the card, it says nothing empty, and nothing private."""
    text = str(card)
    assert forbidden_lines(text) == []
    assert private_lines(text) == []
    assert empty_sections(card.text) == []
    assert broken_tables(card.text) == []
    assert empty_cells(card.text) == []
    assert "\n\n\n" not in text
    metadata = read_metadata(text)
    assert check_metadata(metadata, repo_type) == []
    assert [name for name, value in metadata.items() if value in ([], {}, "")] == []
    assert metadata == yaml.safe_load(card.data.to_yaml()) == type(card)(text).data.to_dict()
    for name in (*_texts(metadata.get("base_model")), *_texts(metadata.get("datasets"))):
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    if repo_type == "model":
        assert_results_survive(card.data)


def assert_results_survive(data: ModelCardData):
    """The results are the same after the Hub's own form of them."""
    results = data.eval_results
    if not results:
        assert "model-index" not in data.to_dict()
        return
    index = eval_results_to_model_index(data.model_name, results)
    name, again = model_index_to_eval_results(index)
    assert name == data.model_name and data.to_dict()["model-index"] == index

    def key(result: EvalResult):
        return (str(result.unique_identifier), result.metric_type, str(result.metric_name))

    assert sorted(again, key=key) == sorted(results, key=key)


def _texts(value):
    return [] if value is None else [value] if isinstance(value, str) else value
