"""The digest of the code that a function or class runs, as far as this package wrote it.

Followed are names, not files: from a definition to every definition of this package that it names,
and from those on. A change of comments, docstrings, layout or of neighbors in the same file changes
no digest; a change of a called helper does. What only words things is left out, and other people's
libraries are: a row of results names their versions instead.
"""

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

PACKAGE = "synthesis"
WORDS = frozenset({f"{PACKAGE}.{name}" for name in ("errors", "types", "synthesizer", "methods")})
"""Modules without arithmetic: a new method of the interface or the table makes no figure stale."""


def fingerprint(path: str) -> str:
    """Return 64 hexadecimal digits for `module:name` and all that it names in this package."""
    module, _, name = path.partition(":")
    seen: dict[tuple[str, str], str] = {}
    waiting = [(module, name)]
    while waiting:
        here = waiting.pop()
        if here in seen or here[0] in WORDS:
            continue
        definition = _definitions(here[0]).get(here[1])
        if definition is None:
            continue
        seen[here] = ast.dump(definition)
        waiting += _names_of(definition, here[0])
    digest = hashlib.sha256()
    for (where, what), text in sorted(seen.items()):
        digest.update(f"{where}:{what}\n{text}\n".encode())
    return digest.hexdigest()


def _names_of(definition: ast.AST, module: str) -> list[tuple[str, str]]:
    imported = dict(_imports(module))
    for node in ast.walk(definition):  # imports within a function
        imported |= _imported_by(node)
    found = []
    for node in ast.walk(definition):
        if isinstance(node, ast.Name):
            found.append(imported.get(node.id, (module, node.id)))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            where, what = imported.get(node.value.id, ("", ""))
            if where.startswith(PACKAGE) and _is_module(f"{where}.{what}"):
                found.append((f"{where}.{what}", node.attr))
    return found


@cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


@cache
def _tree(module: str) -> ast.Module:
    found = importlib.util.find_spec(module) if module.partition(".")[0] == PACKAGE else None
    if found is None or found.origin is None:
        return ast.Module(body=[], type_ignores=[])
    return _without_docstrings(ast.parse(Path(found.origin).read_text()))


@cache
def _definitions(module: str) -> dict[str, ast.AST]:
    table: dict[str, ast.AST] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            table[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        table[name.id] = node
    return table


@cache
def _imports(module: str) -> dict[str, tuple[str, str]]:
    table: dict[str, tuple[str, str]] = {}
    for node in _tree(module).body:
        table |= _imported_by(node)
    return table


def _imported_by(node: ast.AST) -> dict[str, tuple[str, str]]:
    if not isinstance(node, ast.ImportFrom) or node.module is None:
        return {}
    return {name.asname or name.name: (node.module, name.name) for name in node.names}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [
                part
                for part in node.body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return tree
