"""The size of things, as the design sets it: files, functions, parameters, names, base dependencies."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "lilliput").rglob("*.py"))
FORBIDDEN_NAMES = ("Manager", "Handler", "Wrapper", "Utils", "Base")


def functions(path):
    tree = ast.parse(path.read_text("utf-8"))
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_sources_are_found():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    assert len(path.read_text("utf-8").splitlines()) <= 500
    for function in functions(path):
        lines = function.end_lineno - function.lineno + 1
        assert lines <= 60, f"{function.name} has {lines} lines"
        arguments = function.args
        count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
        own = [a.arg for a in arguments.args[:1]]
        assert count - (own in (["self"], ["cls"])) <= 7, f"{function.name} has {count} parameters"


def test_median_file_is_small():
    lengths = sorted(len(p.read_text("utf-8").splitlines()) for p in SOURCES)
    assert lengths[len(lengths) // 2] <= 140


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_and_inheritance(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            # By whole words: BinaryBases are vectors, nothing's Base.
            assert not set(re.findall("[A-Z][a-z0-9]*", node.name)) & set(FORBIDDEN_NAMES), node.name
            assert len(node.bases) <= 2, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_its_job(path):
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


def test_base_dependencies_are_few():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert len(project["dependencies"]) <= 8


def test_nothing_unsafe_in_the_package():
    """No pickle, eval or exec; torch.load only with weights_only=True, for state dicts that the user names."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "marshal", "shelve", "dill"} & {n.partition(".")[0] for n in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "os.system", "torch.export.load"}, path
                if called == "torch.load":
                    keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert keywords.get("weights_only") == "True", path
