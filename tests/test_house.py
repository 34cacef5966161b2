"""The rules of the house: who imports whom, and a README whose commands exist."""

import ast
import re
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY

SCRIPTS = {path.stem for path in REPOSITORY.glob("*.py")}
BENCHMARKS = list((REPOSITORY / "benchmarks").glob("*.py"))
FILES = [
    *REPOSITORY.glob("*.py"),
    *(REPOSITORY / "pipeline").glob("*.py"),
    *(REPOSITORY / "utils").glob("*.py"),
]


def imports(path: Path) -> set[str]:
    """The first name of every module that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports(path):
    assert not imports(path) & SCRIPTS
    other = {"pipeline": "utils", "utils": "pipeline"}.get(path.parent.name)
    assert other not in imports(path)


def test_metrics_need_only_numpy():
    def third_party(file: str) -> set[str]:
        return imports(REPOSITORY / "utils" / file) - sys.stdlib_module_names

    assert third_party("evaluation.py") == {"numpy", "utils"}
    assert third_party("cli.py") == set()


def test_the_readme_names_only_options_that_exist():
    readme = (REPOSITORY / "README.md").read_text()
    defined = set(re.findall(r'"(--[a-z_]+)"', "".join(path.read_text() for path in FILES + BENCHMARKS)))
    torchruns = {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_]+", readme)) <= defined | torchruns


def test_the_readme_starts_with_two_commands():
    block = re.search(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL).group(1)
    assert block.splitlines() == [
        "pip install -r requirements.txt && python main.py --dataset shapes",
        "pip install -r requirements-dev.txt && pytest",
    ]
