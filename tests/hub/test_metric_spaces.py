"""Metrics as Spaces: `evaluate.load` finds them where the package is missing, and they measure and refuse the same."""

import json
import random
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
from huggingface_hub import SpaceCard
from local_hub import local_hub

from memreason_hf.hub.code_bundle import bundle_script
from memreason_hf.hub.inspection import inspect_files
from memreason_hf.hub.metric_spaces import stage_metric
from memreason_hf.metrics import metric_names, metric_path
from memreason_hf.steps import Step, StepScheme


NAMES = metric_names()
# One is published under another name than its own.
SPACES = {name: f"user/{'my-' if name == 'answer_accuracy' else ''}{name}" for name in NAMES}
# Computes what the test asks for in a process that cannot import the package.
CHILD = """
import doctest, importlib.abc, json, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("memreason_hf", "modeling_recurrent", "data_scripts"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import evaluate

found = {"loaded": {}, "doctests": {}, "answers": []}
metrics = {}
for name, space in json.load(open(sys.argv[1]))["spaces"].items():
    metrics[name] = metric = evaluate.load(space, keep_in_memory=True)
    found["loaded"][name] = [metric.module_type, metric.description, metric.citation, list(metric.features)]
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testmod(sys.modules[type(metric).__module__], optionflags=flags)
    found["doctests"][name] = [results.attempted, results.failed]
for name, arguments in json.load(open(sys.argv[1]))["questions"]:
    try:
        found["answers"].append(metrics[name].compute(**arguments))
    except Exception as error:
        found["answers"].append(f"{type(error).__name__}: {error}")
found["heavy"] = [name for name in ("torch", "transformers", "memreason_hf") if name in sys.modules]
json.dump(found, open(sys.argv[2], "w"))
"""


def random_solution(scheme):
    words = ["iron", "is", "not", "heavier", "than", "900,000", "Oslo", "so", "it", "sinks", "water", "3.5"]
    steps = [
        Step(random.choice(["memory", "reason"]), " ".join(random.choices(words, k=random.randrange(1, 9))) + ".")
        for _ in range(random.randrange(4))
    ]
    answer = Step("answer", f"The answer is: {random.choice(['True', 'False', 'perhaps'])}")
    return scheme.render([*steps, answer])


def random_questions(count=12):
    """(metric, arguments) with random solutions, in the ways that the arguments allow."""
    asked = []
    for _ in range(count):
        rows = random.randrange(1, 7)
        scheme = random.choice([StepScheme(), StepScheme(2, 3), StepScheme(marks="words")])
        predictions = [random_solution(scheme) for _ in range(rows)]
        references = [
            scheme.render([Step("memory", "Iron is heavier."), Step("answer", "The answer is: True")])
        ] * rows
        common = {"predictions": predictions, "references": references, "scheme": scheme.to_dict()}
        asked += [
            ("answer_accuracy", {**common, "questions": [f"q{i % 2}" for i in range(rows)], "bootstrap_samples": 9}),
            ("step_distribution", common),
            ("step_attribution", {**common, "judge": random.choice(["exact", "overlap"])}),
        ]
        labels = [random.choices(range(5), k=rows) for _ in range(2)]
        groups = [f"{random.randrange(20)}hop" for _ in range(rows)]
        asked.append(("grouped_accuracy", {"predictions": labels[0], "references": labels[1], "groups": groups}))
    return asked


WRONG = [
    ("answer_accuracy", {"predictions": [], "references": []}),
    ("answer_accuracy", {"predictions": "ab", "references": ["A", "B"]}),
    ("answer_accuracy", {"predictions": ["The answer is: A"], "references": ["so"]}),
    ("answer_accuracy", {"predictions": ["The answer is: A"], "references": ["A"], "confidence": 95}),
    ("step_distribution", {"predictions": ["a"], "references": ["b"], "scheme": {"token": 1}}),
    ("step_distribution", {"predictions": ["a", None], "references": ["b", "c"]}),
    ("step_attribution", {"predictions": ["a"], "references": ["b"], "judge": "mine"}),
    ("step_attribution", {"predictions": ["a"], "references": ["b"], "question": ["c"]}),
    ("grouped_accuracy", {"predictions": [1.5], "references": [1], "groups": ["2"]}),
    ("grouped_accuracy", {"predictions": [1], "references": [1], "groups": ["2"], "expected_groups": ["3"]}),
]


@pytest.fixture(scope="module")
def asked():
    return [*random_questions(), *WRONG]


@pytest.fixture(scope="module")
def found(asked, tmp_path_factory):
    """What the metrics on the Hub answer in the process without the package."""
    folder = tmp_path_factory.mktemp("spaces")
    with local_hub(folder / "hub") as hub:
        for name, space in SPACES.items():
            staged = folder / name
            staged.mkdir()
            stage_metric(name, staged, repo_id=space)
            files = {path.relative_to(staged).as_posix(): path.read_bytes() for path in staged.rglob("*.*")}
            hub.repositories.put_files(hub.repositories.create(space, "space"), files)
        (folder / "in.json").write_text(json.dumps({"spaces": SPACES, "questions": asked}))
        environment = hub.environment(token=None, HF_UPDATE_DOWNLOAD_COUNTS="0")
        environment.pop("PYTHONPATH", None)
        command = [sys.executable, "-c", CHILD, "in.json", "out.json"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


@pytest.fixture
def local(tmp_path):
    return lambda name: evaluate.load(metric_path(name), keep_in_memory=True, cache_dir=str(tmp_path))


def test_they_measure_and_refuse_the_same_without_the_package(found, asked, local):
    metrics = {name: local(name) for name in NAMES}
    expected = []
    for name, arguments in asked:
        try:
            expected.append(json.loads(json.dumps(metrics[name].compute(**arguments))))
        except Exception as error:
            expected.append(f"{type(error).__name__}: {error}")
    assert found["answers"] == expected
    # The questions are ones that can tell: numbers first, then refusals.
    assert all(isinstance(answer, dict) for answer in expected[: -len(WRONG)])
    assert all(isinstance(answer, str) for answer in expected[-len(WRONG) :])
    for name in NAMES:
        answers = [json.dumps(answer) for (asked_name, _), answer in zip(asked, expected) if asked_name == name]
        assert len(set(answers)) > 4, name


@pytest.mark.parametrize("name", NAMES)
def test_they_describe_themselves_and_their_examples_are_right(found, local, name):
    metric = local(name)
    assert found["loaded"][name] == ["metric", metric.description, metric.citation, list(metric.features)]
    attempted, failed = found["doctests"][name]
    assert attempted > 2 and failed == 0


def test_they_bring_no_large_library(found):
    # evaluate itself imports torch where it is installed; the package is what must not come.
    assert "memreason_hf" not in found["heavy"]
    for name in NAMES:
        text = "".join(bundle_script(Path(metric_path(name), f"{name}.py")).values())
        assert "import torch" not in text and "transformers" not in text.replace("`transformers`", "")


@pytest.mark.parametrize("name", NAMES)
def test_the_space_has_its_page_and_card(tmp_path, name):
    stage_metric(name, tmp_path, repo_id=SPACES[name], license="apache-2.0")
    card = SpaceCard.load(tmp_path / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.license) == ("gradio", "app.py", "apache-2.0")
    assert card.data.sdk_version and {"evaluate", "metric"} <= set(card.data.tags)
    assert f'evaluate.load("{SPACES[name]}"' in card.text
    assert "repository that this folder" not in card.text.replace("\n", " ")
    for word in ("None", "null", "More Information Needed"):
        assert f" {word}." not in card.text
    requirements = (tmp_path / "requirements.txt").read_text().split()
    assert {"datasets", "evaluate"} <= set(requirements) and "memreason_hf" not in requirements
    # Where an example uses the package, the card says so in one line.
    assert (">>> from memreason_hf" in card.text) == ("needs this package, too" in card.text)
    assert inspect_files([tmp_path]) == []


@pytest.mark.slow
def test_the_page_answers(tmp_path):
    pytest.importorskip("gradio", reason="needs Gradio (extra demo)")
    stage_metric("grouped_accuracy", tmp_path, repo_id="user/grouped_accuracy")
    code = (
        "import app, json\n"
        "right = json.dumps({'predictions': [1, 2], 'references': [1, 3], 'groups': ['a', 'b']})\n"
        "assert app.page.fn(right)['accuracy'] == 0.5\n"
        "assert set(json.loads(app.EXAMPLE)) == {'predictions', 'references', 'groups'}\n"
        "try:\n    app.page.fn('[')\n"
        "except app.gr.Error as error:\n    assert 'JSONDecodeError' in str(error)\n"
        "else:\n    raise AssertionError('not refused')\n"
        "app.page.launch(prevent_thread_lock=True, quiet=True, server_name='127.0.0.1')\n"
        "from urllib.request import urlopen\n"
        "assert b'Grouped accuracy' in urlopen(app.page.local_url).read()\n"
        "app.page.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_metric_of_ones_own(tmp_path):
    folder = tmp_path / "share"
    folder.mkdir()
    script = (
        '"""Mine."""\n\nimport datasets\nimport evaluate\n\nfrom memreason_hf.steps import KINDS as NAMES\n\n\n'
        "class Share(evaluate.Metric):\n    def _info(self):\n        features = datasets.Features({'predictions': "
        "datasets.Value('string')})\n        return evaluate.MetricInfo(description='x', citation='y', "
        "inputs_description='z', features=features)\n\n    def _compute(self, predictions):\n"
        "        return {'share': sum(text in NAMES for text in predictions) / len(predictions)}\n"
    )
    (folder / "share.py").write_text(script)
    (folder / "README.md").write_text("---\ntitle: My share\nlicense: mit\n---\n\n# My share\n\nMine.\n")
    staged = tmp_path / "staged"
    staged.mkdir()
    stage_metric(folder, staged, repo_id="user/share-2")
    metric = evaluate.load(str(staged / "share-2.py"), keep_in_memory=True, cache_dir=str(tmp_path / "cache"))
    assert metric.compute(predictions=["memory", "x"]) == {"share": 0.5}
    card = SpaceCard.load(staged / "README.md")
    assert card.data.license == "mit" and card.data.title == "My share" and "Mine." in card.text
    # Only the constant of the module comes along, and what it uses.
    assert len((staged / "memreason_steps_kinds.py").read_text().splitlines()) < 40
    for line, message in (
        ("import memreason_hf.steps", r"line 1: `import memreason_hf.steps` cannot be followed"),
        ("from memreason_hf.steps import *", "cannot be followed"),
        ("def f():\n    from memreason_hf.steps import Step", "line 2: .* cannot be followed"),
        ("def f(:", "line 1: not Python"),
    ):
        (folder / "share.py").write_text(line)
        with pytest.raises(ValueError, match=message):
            stage_metric(folder, staged, repo_id="user/share")


def test_wrong_names_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"'accuracy' is neither a folder nor a metric .*grouped_accuracy"):
        stage_metric("accuracy", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no empty\.py"):
        stage_metric(tmp_path / "empty", tmp_path)
    with pytest.raises(ValueError, match=r"repo_id='user/v1.2': evaluate imports the metric by the name"):
        stage_metric("grouped_accuracy", tmp_path, repo_id="user/v1.2")
    (tmp_path / "empty" / "empty.py").write_text("")
    (tmp_path / "empty" / "app.py").write_text("")
    with pytest.raises(ValueError, match="is a Space already"):
        stage_metric(tmp_path / "empty", tmp_path)
