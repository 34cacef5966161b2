"""The structure of the repository: imports, and the help of every command."""

import ast
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

import demo
import export
import main
import val
from benchmarks import bench
from experiments import claims, coverage, efficientnet_lite, pointing
from helpers import REPOSITORY
from utils import evaluation, plot
from utils.runtime.arguments import Parser

SCRIPTS = {path.stem for path in REPOSITORY.glob("*.py")}
SHIPPED = [
    *REPOSITORY.glob("*.py"),
    *(REPOSITORY / "pipeline").rglob("*.py"),
    *(REPOSITORY / "utils").rglob("*.py"),
]
PREPARERS = [import_module(f"utils.{path.stem}") for path in sorted(REPOSITORY.glob("utils/prepare_*.py"))]
COMMANDS = [
    main,
    val,
    demo,
    export,
    evaluation,
    plot,
    *PREPARERS,
    bench,
    claims,
    coverage,
    efficientnet_lite,
    pointing,
]


def imports(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(path: Path) -> set[str]:
    """The first part of every module name that a file imports."""
    return {name.split(".")[0] for name in imports(path)}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_one_way(path):
    """Scripts import pipeline and utils, utils imports pipeline, and pipeline imports neither."""
    assert not packages(path) & (SCRIPTS | {"benchmarks", "experiments", "tests"})
    if path.parent == REPOSITORY / "pipeline":
        assert "utils" not in packages(path)
    if path.parent == REPOSITORY / "utils" / "runtime":
        own = {name for name in imports(path) if name.startswith(("utils", "pipeline"))}
        assert all(name.startswith("utils.runtime") for name in own)


def test_imports_have_no_circle():
    graph = {module_name(path): imports(path) for path in SHIPPED}
    graph = {name: graph[name] & graph.keys() for name in graph}
    while graph:
        leaves = [name for name in graph if not graph[name]]
        assert leaves, f"these import each other: {sorted(graph)}"
        graph = {name: graph[name] - set(leaves) for name in graph if name not in leaves}


def test_which_process_this_is_stands_in_one_file():
    """torchrun's environment variables are read once, so that no two files can disagree."""
    variable = re.compile(r'environ.*"(LOCAL_)?(RANK|WORLD_SIZE)"')
    readers = [str(path.relative_to(REPOSITORY)) for path in SHIPPED if variable.search(path.read_text())]
    assert readers == ["utils/runtime/processes.py"]


def test_some_files_need_few_packages():
    def third_party(file: str) -> set[str]:
        return packages(REPOSITORY / file) - set(sys.stdlib_module_names)

    assert third_party("pipeline/csra.py") == {"torch"}  # so that it can be copied
    for path in (REPOSITORY / "utils" / "metrics").glob("*.py"):
        assert third_party(f"utils/metrics/{path.name}") <= {"numpy", "utils"}
    assert third_party("utils/evaluation.py") == {"utils"}
    assert third_party("utils/runtime/arguments.py") == {"utils"}
    assert third_party("utils/runtime/workers.py") == {"utils"}
    assert third_party("utils/runtime/signals.py") == {"utils"}
    assert third_party("utils/runtime/processes.py") == set()


@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.__name__)
def test_every_command_explains_its_options(command, script, monkeypatch):
    parsers = []
    print_help = Parser.print_help
    monkeypatch.setattr(Parser, "print_help", lambda parser: [parsers.append(parser), print_help(parser)])
    result = command(script, "--help")
    assert (result.status, result.err) == (0, "")
    assert "[default: None]" not in result.out
    (parser,) = parsers
    assert parser.description
    assert [option.dest for option in parser._actions if not option.help] == []
