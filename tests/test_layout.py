"""The layout of the package: imports point downwards and nothing grows too large."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

from memreason_hf.imports import imports_of


PACKAGES = ("modeling_recurrent", "memreason_hf", "data_scripts")
# From top to bottom. A module may import from lower floors and from its own folder.
FLOORS = (
    ("cli",),
    ("commands", "data_scripts"),
    ("command_line",),
    ("experiments", "serving", "hub", "recipes"),
    ("analysis",),
    ("training", "halting", "annotation"),
    ("metrics",),
    ("evaluation",),
    ("chat",),
    ("models",),
    ("adapters",),
    ("data",),
    ("steps",),
    ("repositories",),
    ("file_sets", "model_files"),
    ("locks",),
    ("files", "tables", "messages", "patches", "checks", "interrupts", "imports"),
    ("modeling_recurrent",),
)
# Inside `training` a further order holds.
TRAINING_FLOORS = (("chains", "solutions", "text"), ("scheduled",), ("runs",))
MOST_LINES = 600
# Of a function without its docstring.
MOST_FUNCTION_LINES = 60


def modules():
    """`{dotted name: path}` of every module of the packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def targets_of(path: Path, name: str, known) -> list[tuple[str, int, bool]]:
    """(imported module, line, whether inside a function) of every import of the packages in a file."""
    found = []
    for entry in imports_of(path, name):
        whole = f"{entry.module}.{entry.name}"
        target = whole if whole in known else entry.module
        if target.split(".")[0] in PACKAGES:
            found.append((target, entry.line, entry.is_inside))
    return found


MODULES = modules()


def floor_of(name: str, floors) -> int:
    return next(index for index, rooms in enumerate(floors) if name in rooms)


def room_of(module: str) -> str | None:
    """The name in `FLOORS` that a module belongs to; None for `memreason_hf/__init__.py`, which imports by name."""
    package, *rest = module.split(".")
    return package if package != "memreason_hf" else rest[0] if rest else None


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    room = room_of(name)
    for target, line, _ in targets_of(MODULES[name], name, MODULES):
        other = room_of(target)
        if None in (room, other) or room == other:
            continue
        assert floor_of(room, FLOORS) < floor_of(other, FLOORS), f"line {line}: {name} imports {target}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("memreason_hf.training.")])
def test_imports_inside_training_point_downwards(name):
    room = name.split(".")[2]
    for target, line, _ in targets_of(MODULES[name], name, MODULES):
        other = target.split(".")[2:3]
        if not target.startswith("memreason_hf.training.") or other == [room]:
            continue
        assert floor_of(room, TRAINING_FLOORS) < floor_of(other[0], TRAINING_FLOORS), f"line {line}: {target}"


def test_there_is_no_circle():
    graph = {
        name: {target for target, _, _ in targets_of(path, name, MODULES) if target != name and target in MODULES}
        for name, path in MODULES.items()
    }
    done, path = set(), []

    def visit(name):
        if name in done:
            return
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        path.append(name)
        for target in sorted(graph[name]):
            visit(target)
        done.add(path.pop())

    for name in graph:
        visit(name)


@pytest.mark.parametrize("name", MODULES)
def test_nothing_of_the_packages_is_imported_inside_a_function(name):
    late = [(target, line) for target, line, inside in targets_of(MODULES[name], name, MODULES) if inside]
    assert not late


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_too_long(name):
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, f"{name} has {lines} lines: split it by subject."


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_too_long(name):
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            begin = node.body[0].end_lineno if ast.get_docstring(node) is not None else node.lineno
            lines = node.end_lineno - begin
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} has {lines} lines: cut it into parts."


def test_no_test_file_is_too_long():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= MOST_LINES, f"{path.name} has {lines} lines: split it by subject."


def test_no_merge_is_unfinished():
    for path in sorted(path for folder in (*PACKAGES, "tests", ".ci") for path in (ROOT / folder).rglob("*.*")):
        if path.suffix in (".py", ".md", ".yaml", ".txt", ".toml"):
            lines = path.read_text(encoding="utf-8").split("\n")
            assert not [line for line in lines if line.startswith(("<" * 7 + " ", ">" * 7 + " "))], path


def test_the_model_is_flat_and_imports_its_own_files_alone():
    """`save_pretrained` copies files of one folder that import each other by a single dot."""
    folder = ROOT / "modeling_recurrent"
    assert {path.parent for path in folder.rglob("*.py")} == {folder}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and "." not in node.module, f"{path.name}, line {node.lineno}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not any(name.split(".")[0] in PACKAGES for name in names), f"{path.name}, line {node.lineno}"


def test_the_rules_see_what_breaks_them(tmp_path):
    """A control: the reader of imports finds an import upwards, inside a function, and by any spelling."""
    path = tmp_path / "bad.py"
    path.write_text(
        "import memreason_hf.commands.train\n"
        "from memreason_hf.training.runs import checkpoints\n"
        "def late():\n    from ..data import padding\n"
    )
    found = targets_of(path, "memreason_hf.steps.bad", MODULES)
    assert [(target, inside) for target, _, inside in found] == [
        ("memreason_hf.commands.train", False),
        ("memreason_hf.training.runs.checkpoints", False),
        ("memreason_hf.data.padding", True),
    ]
