"""
Code of this package that runs where the package is not installed: a script, and beside it the parts of the modules
that it needs, each in a file of its own with relative imports.

A part is what the script uses of a module and what that uses in turn, so a metric does not bring a trainer along. The
text of the functions and classes stays as it is.
"""

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from memreason_hf.imports import PACKAGES


def bundle_script(path: Path) -> dict[str, str]:
    """
    The files that a script needs, by name.

    Args:
        path: A script that may import from this package at its top level.

    Returns:
        The script under its own name, and each module of the package that it needs as `memreason_MODULE.py`. The
        script imports all of them, because `evaluate` downloads only what the script itself imports.

    Raises:
        ValueError: The script cannot be parsed, or imports of the package cannot be followed: `import memreason_hf`,
            `from memreason_hf.x import *`, or an import inside a function.
    """
    script = _Module(path)
    parts: dict[str, set[str]] = {}
    script_names = set(script.defined)
    wanted = list(script.needs(script_names))
    while wanted:
        module, name = wanted.pop()
        names = parts.setdefault(module, set())
        if name in names:
            continue
        names.add(name)
        wanted += _Module(_module_path(module)).needs({name})
    files = {}
    for module, names in sorted(parts.items()):
        files[f"{_flat(module)}.py"] = _Module(_module_path(module)).text(names)
    direct = {module for module, _ in script.needs(script_names)}
    # evaluate does not recognise `from . import x`, and takes a comment behind an import for a URL.
    rest = [f"from .{_flat(module)} import {sorted(parts[module])[0]}" for module in sorted(set(parts) - direct)]
    note = ["# evaluate copies only what this script imports; the other files need these."] if rest else []
    files[path.name] = script.text(script_names, extra=[*note, *rest])
    return files


class _Module:
    """The top-level statements of a file, what they define and what they use."""

    def __init__(self, path: Path):
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        try:
            self.tree = ast.parse(self.source)
        except SyntaxError as error:
            raise ValueError(f"{path}, line {error.lineno}: not Python ({error.msg}).") from None
        self.lines = self.source.splitlines()
        self.statements = [node for node in self.tree.body if not _is_docstring(node)]
        # The name of every import and definition, and the statement that binds it.
        self.defined = {name: node for node in self.statements for name in _bound(node)}
        self._check_imports()

    def needs(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """(module of the package, name in it) for every import that some names of this file need."""
        found = []
        for name in self._closure(names):
            node = self.defined[name]
            if isinstance(node, ast.ImportFrom) and _is_own(node.module) and not node.level:
                original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
                found.append(_resolve(node.module, original))
        return found

    def text(self, names: Iterable[str], extra: Iterable[str] = ()) -> str:
        """The file with only some names and what they need; `extra` lines follow its imports."""
        kept = self._closure(names)
        imports, local, body = [], [], []
        for node in self.statements:
            if isinstance(node, ast.Import):
                imports += [f"import {_alias(alias)}" for alias in node.names if _bound_by(alias) in kept]
            elif isinstance(node, ast.ImportFrom):
                aliases = [alias for alias in node.names if (alias.asname or alias.name) in kept]
                for alias in aliases:
                    if _is_own(node.module) and not node.level:
                        module, name = _resolve(node.module, alias.name)
                        renamed = ast.alias(name, alias.asname or (alias.name if alias.name != name else None))
                        local.append(f"from .{_flat(module)} import {_alias(renamed)}")
                    else:
                        imports.append(f"from {'.' * node.level}{node.module or ''} import {_alias(alias)}")
            elif kept & _bound(node) or not _bound(node):
                body.append(self._source(node))
        docstring = self.lines[: self.tree.body[0].end_lineno] if _is_docstring(self.tree.body[0]) else []
        blocks = ["\n".join(docstring), "\n".join(imports), "\n".join([*local, *extra]), *body]
        return "\n\n".join(block for block in blocks if block) + "\n"

    def _closure(self, names):
        """Names of this file, with all others that their statements use."""
        wanted, kept = [name for name in names if name in self.defined], set()
        # Statements that bind nothing, such as a registration, run in any case.
        for node in self.statements:
            wanted += [] if _bound(node) else [name for name in _used(node) if name in self.defined]
        while wanted:
            name = wanted.pop()
            if name in kept:
                continue
            kept.add(name)
            wanted += [used for used in _used(self.defined[name]) if used in self.defined]
        return kept

    def _source(self, node):
        """The text of a statement, with its decorators and the comments right above it."""
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))]) - 1
        while first > 0 and self.lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first : node.end_lineno])

    def _check_imports(self):
        top = set(map(id, self.tree.body))
        for node in ast.walk(self.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(map(_is_own, names)) or (
                isinstance(node, ast.ImportFrom)
                and _is_own(node.module)
                and not node.level
                and (id(node) not in top or any(alias.name == "*" for alias in node.names))
            ):
                raise ValueError(
                    f"{self.path.name}, line {node.lineno}: `{ast.unparse(node)}` cannot be followed. Write `from "
                    "memreason_hf.MODULE import NAME` at the top of the file."
                )


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_own(module):
    return bool(module) and module.split(".")[0] in PACKAGES


def _bound(node) -> set[str]:
    """The names that a top-level statement binds."""
    if isinstance(node, ast.Import):
        return {_bound_by(alias) for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)}


def _bound_by(alias):
    return alias.asname or alias.name.split(".")[0]


def _used(node):
    # `X |= …` uses what it binds.
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _alias(alias):
    return f"{alias.name} as {alias.asname}" if alias.asname and alias.asname != alias.name else alias.name


def _flat(module):
    """The name of the file that holds a part of a module."""
    return "memreason_" + "_".join(module.split(".")[1:])


def _module_path(module) -> Path:
    return Path(importlib.util.find_spec(module).origin)


def _resolve(module, name) -> tuple[str, str]:
    """The module that defines a name, and its name there: packages pass names of their modules on."""
    path = _module_path(module)
    if path.name == "__init__.py":
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for alias in node.names if isinstance(node, ast.ImportFrom) and _is_own(node.module) else ():
                if (alias.asname or alias.name) == name:
                    return _resolve(node.module, alias.name)
    return module, name
