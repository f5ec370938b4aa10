"""House rules that a program can check; the others are in CONTRIBUTING.md for people."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel
from setuptools import find_packages

from dicom_node import rules, settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dicom_node", "synthesis")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
COMMAND_LINES = {"cli.py", "__main__.py"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def public_definitions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield public functions, classes and methods, those of private classes left out."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        yield member


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_and_public_names_have_docstrings(path):
    tree = parse(path)

    silent = [node.name for node in public_definitions(tree) if not ast.get_docstring(node)]

    assert ast.get_docstring(tree), f"{name_of(path)} does not say what it is"
    assert silent == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_command_lines_print(path):
    calls = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)]

    lines = [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]

    assert path.name in COMMAND_LINES or lines == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_runs_code_or_pickles_from_data(path):
    """reliability.md S1 to S4: no shell, no eval, no pickle, no unsafe YAML."""
    tree = parse(path)
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }

    assert calls.isdisjoint({"eval", "exec", "os.system", "torch.load", "yaml.load", "joblib.load"})
    assert imported.isdisjoint({"pickle", "shelve", "marshal", "dill"})
    assert "shell=True" not in path.read_text(encoding="utf-8")


def test_layers_and_library_doors_hold():
    # A process of its own: import-linter configures logging, which silences the loggers here.
    command = shutil.which("lint-imports", path=Path(sys.executable).parent)
    answer = subprocess.run(
        [command, "--no-logo"], capture_output=True, text=True, check=False, cwd=ROOT
    )

    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("module", ["dicom_node.receiver", "synthesis", "dicom_node.network"])
def test_import_loads_neither_models_nor_codecs(module):
    heavy = {"torch", "SimpleITK", "sklearn", "highdicom", "gdcm", "openjpeg", "jpeg_ls", "PIL"}
    if module == "synthesis":
        heavy -= {"highdicom", "PIL"}
    code = f"import sys, {module}; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()

    assert heavy.isdisjoint(loaded)


def test_only_the_two_packages_are_installed():
    with (ROOT / "pyproject.toml").open("rb") as file:
        rules = tomllib.load(file)["tool"]["setuptools"]["packages"]["find"]

    found = find_packages(str(ROOT), include=rules["include"])

    assert {name.split(".")[0] for name in found} == set(PACKAGES)


@cache
def documented(model: type[BaseModel], name: str) -> bool:
    """Say whether a field is described: in its class's docstring, beside it, or by `Field`."""
    if model.model_fields[name].description:
        return True
    tree = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(tree, ast.ClassDef)
    if re.search(rf"^\s+{name}: \S", ast.get_docstring(tree, clean=False) or "", re.MULTILINE):
        return True
    return any(
        isinstance(field, ast.AnnAssign)
        and ast.unparse(field.target) == name
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        for field, after in pairwise(tree.body)
    )


def find_owner(model: type[BaseModel], name: str) -> type[BaseModel]:
    """Return the class of the bases of `model` that declares the field."""
    return next(base for base in model.__mro__ if name in inspect.get_annotations(base))


def find_undocumented(value: object, kind: object, where: str) -> Iterator[str]:
    """Yield the dotted keys of a YAML value of the type `kind` that nobody explains."""
    parts = get_args(kind)
    if isinstance(value, list):
        for part in parts:
            for item in value:
                yield from find_undocumented(item, part, where)
    elif isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {field.alias or name: name for name, field in kind.model_fields.items()}
        for key in value.keys() & fields.keys():
            if not documented(find_owner(kind, fields[key]), fields[key]):
                yield f"{where}.{key} ({kind.__name__})"
            annotation = kind.model_fields[fields[key]].annotation
            yield from find_undocumented(value[key], annotation, f"{where}.{key}")
    elif isinstance(value, dict) and get_origin(kind) in {dict, Mapping}:
        for key, item in value.items():
            yield from find_undocumented(item, parts[1], f"{where}.{key}")
    else:
        for part in parts:
            yield from find_undocumented(value, part, where)


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("node.yaml", settings.NodeSettings),
        ("contrasts.yaml", rules.Contrasts),
        ("routing.yaml", rules.Routing),
        ("models.yaml", rules.ModelPolicy),
    ],
)
def test_every_key_of_the_shipped_configuration_is_documented(file, model):
    document = yaml.safe_load((ROOT / "config" / file).read_text(encoding="utf-8"))

    assert sorted(set(find_undocumented(document, model, file))) == []
