"""What Python files import: read from their text, without running them."""

import ast
from pathlib import Path
from typing import NamedTuple


PACKAGES = ("memreason_hf", "modeling_recurrent")


class Import(NamedTuple):
    """
    One import.

    Attributes:
        module: the module, with its packages.
        name: what is imported from it, which may be a module, too; None for `import module`.
        line: the line of the statement, from 1.
        is_inside: whether it is inside a function.
    """

    module: str
    name: str | None
    line: int
    is_inside: bool

    @property
    def is_own(self) -> bool:
        """Whether the module is one of this package."""
        return self.module.split(".")[0] in PACKAGES


def imports_of(path: Path, module: str = "") -> list[Import]:
    """
    The imports of a file.

    Args:
        path: the file.
        module: its name with its packages, by which relative imports are resolved. Without it they are left out.

    Raises:
        SyntaxError: the file is not Python.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, node.lineno, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (module or not node.level):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*parents, *([node.module] if node.module else [])])
            found += [Import(name, alias.name, node.lineno, id(node) in inside) for alias in node.names]
    return found
