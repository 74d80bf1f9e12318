"""House rules that a machine can check: layout, sizes, docstrings, who imports whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "simkv"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
TOP_LEVEL = {"pyproject.toml", "simkv", "traces", "profiles", "experiments", "notebooks", "tests", "README.md"}
MOST_MODULE_LINES = 350
MOST_FUNCTION_LINES = 60

# Who may not import what (prefixes of module names), beyond "no cycles".
FORBIDDEN = {
    "simkv.traces": ("simkv.profiles", "simkv.simulator", "simkv.config", "simkv.figures", "simkv.experiments"),
    "simkv.profile": ("simkv.traces", "simkv.simulator", "simkv.config", "simkv.figures", "simkv.experiments"),
    "simkv.simulator": (
        "simkv.figures",
        "simkv.experiments",
        "simkv.profiler",
        "simkv.testbed",
        "simkv.cli",
        "torch",
        "matplotlib",
    ),
    "simkv.simulator.policies": ("simkv.simulator.store", "simkv.simulator.engine", "simkv.simulator.tiers", "simpy"),
    "simkv.profiler": ("simkv.traces", "simkv.simulator", "simkv.testbed", "simkv.figures", "simkv.experiments"),
    "simkv.figures": ("simkv.simulator", "simkv.experiments", "simkv.config", "torch"),
    "simkv.units": ("simkv.traces", "simkv.profiles", "simkv.simulator", "numpy"),
}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, inside a function) for every run-time import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node in inside
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in inside


def test_top_level_is_the_fixed_layout() -> None:
    """Git tracks nothing at the top but the fixed entries and dotfiles."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert set() == {name for name in top if not name.startswith(".")} - TOP_LEVEL


def test_data_folders_hold_no_code() -> None:
    """traces, profiles, experiments and notebooks hold data and recipes, never importable code."""
    found = [
        path for folder in ("traces", "profiles", "experiments", "notebooks") for path in (ROOT / folder).rglob("*.py")
    ]
    assert [] == found


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_is_small_and_documented(path: Path) -> None:
    """Every module has a docstring and at most 350 lines, every function at most 60 without its docstring."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= MOST_MODULE_LINES
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node, clean=False)
            lines = (node.end_lineno or 0) - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_imports_only_what_it_may(path: Path) -> None:
    """The table of forbidden imports holds, and only the command line imports inside functions."""
    name = _name(path)
    for module, inside in _imports(path):
        for prefix, banned in FORBIDDEN.items():
            if name.startswith(prefix) and not (prefix == "simkv.profile" and name.startswith("simkv.profiler")):
                assert not module.startswith(banned), f"{name} imports {module}"
        assert not inside or name.startswith("simkv.cli"), f"{name} imports {module} inside a function"


def test_only_the_testbed_imports_both_halves() -> None:
    """simulator and profiler meet in simkv.testbed and in the verbs of the command line, nowhere else."""
    both = []
    for path in MODULES:
        halves = {module.split(".")[1] for module, _ in _imports(path) if module.count(".") and module[:6] == "simkv."}
        if {"simulator", "profiler"} <= halves and not _name(path).startswith("simkv.cli"):
            both.append(_name(path))
    assert both
    assert [] == [name for name in both if not name.startswith("simkv.testbed.")]


def test_no_import_cycles() -> None:
    """The graph of run-time imports between simkv's modules has no cycle."""
    names = {_name(path) for path in MODULES}
    graph = {_name(path): {module for module, _ in _imports(path) if module in names} for path in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for module in sorted(graph[name]):
                visit(module, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_import_simkv_is_light() -> None:
    """``import simkv`` loads neither torch, numba, matplotlib nor pandas."""
    code = "import sys, simkv; print([m for m in ('torch', 'numba', 'matplotlib', 'pandas') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "[]" == ran.stdout.strip()


def test_public_names_are_few_and_real() -> None:
    """At most 20 public names, each of which can be imported."""
    import simkv

    assert len(simkv.__all__) <= 20
    assert [] == [name for name in simkv.__all__ if getattr(simkv, name, None) is None]


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_says_what_it_shows(path: Path) -> None:
    """Every test function has a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert [] == silent


def test_nothing_names_this_or_any_other_machine() -> None:
    """No tracked text file holds an absolute path of somebody's machine."""
    homes = ("/" + "work/", "/" + "home/", "/" + "Users/")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    found = []
    for line in listed.stdout.splitlines():
        try:
            text = (ROOT / line).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        found += [f"{line}: {home}" for home in homes if home in text]
    assert [] == found


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_linters_are_silent(tool: list[str]) -> None:
    """ruff check, ruff format and mypy find nothing."""
    ran = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert 0 == ran.returncode, ran.stdout + ran.stderr
