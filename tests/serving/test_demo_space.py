"""The files of a Space: all that the page needs, nothing else, and nothing of this machine."""

import ast
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from demo_models import demo_model, save
from huggingface_hub import SpaceCard
from paths import ROOT
from without_package import library_links, run_without_the_package

from memreason_hf.serving.demo import space
from memreason_hf.serving.demo.space import needed_modules, requirements, stage_space


@pytest.fixture(scope="module")
def without_gradio():
    """The files do not depend on Gradio, but for its version."""
    if find_spec("gradio") is not None:
        yield
        return
    real = space.version
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "version", lambda name: "6.31.0" if name == "gradio" else real(name))
        patch.setattr(space, "check_gradio", lambda: None)
        yield


@pytest.fixture(scope="module")
def staged(tmp_path_factory, without_gradio):
    """A staged Space, which tests only read."""
    folder = tmp_path_factory.mktemp("space") / "staged"
    names = stage_space("user/model", folder, license="apache-2.0", base="user/base", examples=["the cat"])
    assert names == sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return folder


@pytest.fixture
def libraries(tmp_path):
    return library_links(tmp_path / "libraries")


def test_the_card_says_how_the_space_runs(staged):
    data = SpaceCard.load(staged / "README.md").data
    assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "apache-2.0")
    assert data.models == ["user/model", "user/base"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", data.sdk_version)
    assert "None" not in (staged / "README.md").read_text()
    assert json.loads((staged / "examples.json").read_text()) == ["the cat"]


def test_what_is_not_known_is_left_out(tmp_path, without_gradio):
    stage_space("user/model", tmp_path / "other")
    text = (tmp_path / "other" / "README.md").read_text()
    assert "license" not in text and "None" not in text and "null" not in text


def test_every_library_is_pinned_to_a_release(staged):
    lines = (staged / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = {line.partition("==")[0].lower() for line in lines}
    assert {"torch", "transformers", "peft", "tokenizers"} <= names
    # The SDK brings it.
    assert "gradio" not in names
    assert not {"memreason-hf", "trl", "lm_eval", "pytest"} & names


def test_all_that_is_imported_is_there_and_nothing_else(staged):
    """By a reading of its own: every import of the package leads to a file in the Space."""
    files = {str(path.relative_to(staged)) for path in staged.rglob("*.py")}
    for name in files:
        for node in ast.walk(ast.parse((staged / name).read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                module = node.module
            elif isinstance(node, ast.ImportFrom):
                module = f"{Path(name).parent.as_posix().replace('/', '.')}.{node.module}"
            else:
                continue
            if module.split(".")[0] in ("memreason_hf", "modeling_recurrent"):
                place = module.replace(".", "/")
                assert f"{place}.py" in files or f"{place}/__init__.py" in files, f"{name} imports {module}"
    assert (staged / "memreason_hf" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    for folder in ("commands", "command_line", "training", "experiments", "metrics", "recipes"):
        assert not (staged / "memreason_hf" / folder).exists()
    for name, path in needed_modules().items():
        assert path.read_bytes() == (ROOT / path.relative_to(ROOT)).read_bytes(), name


def test_no_path_of_this_machine_is_in_it(staged):
    for path in staged.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert str(ROOT) not in text and str(Path.home()) not in text and str(staged) not in text


@pytest.mark.parametrize("name", ["/tmp/model", "model", "a/b/c", "user/na me", "../x", "user/--x", ""])
def test_what_is_no_name_on_the_hub_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr(space, "check_gradio", lambda: None)
    with pytest.raises(ValueError, match="model="):
        stage_space(name, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_a_folder_that_holds_something_is_not_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(space, "check_gradio", lambda: None)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        stage_space("user/model", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_library_that_is_missing_is_named(tmp_path):
    path = tmp_path / "uses.py"
    path.write_text("import surely_not_installed\n")
    with pytest.raises(ValueError, match="surely_not_installed is not installed"):
        requirements({"uses": path})


@pytest.mark.slow
def test_the_model_answers_where_the_package_is_not_installed(staged, libraries, tmp_path):
    elsewhere = run_without_the_package("import memreason_hf", tmp_path, libraries)
    assert "No module named 'memreason_hf'" in elsewhere.stderr
    folder = shutil.copytree(staged, tmp_path / "space")
    # A folder of that name stands for the model on the Hub.
    save(demo_model(), folder / "user" / "model")
    code = """
import pathlib
from memreason_hf.serving.demo import answers
assert pathlib.Path(answers.__file__).is_relative_to(pathlib.Path.cwd()), answers.__file__
model = answers.DemoModel.load("user/model")
choice = model.options.choose("kl", 5, {})
print([answer.ending for answer in model.answer("the cat", choice, answers.Sampling(max_new_tokens=3))][-1])
"""
    ran = run_without_the_package(code, folder, libraries)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() in ("length", "eos")
