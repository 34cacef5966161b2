"""Installing: the versions that are refused and allowed, pip install, and the files that check all this."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import val
from helpers import REPOSITORY
from utils.checkpoint import load_model
from utils.runtime import errors, versions

README = (REPOSITORY / "README.md").read_text()
GATE = (REPOSITORY / ".ci/run").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
# Installs this folder into another as pip install -e does, after it has made the environment to build in.
INSTALL = """
import os, sys, zipfile
sys.path.insert(0, ".ci")
import build_backend
site = sys.argv[1]  # setuptools changes sys.argv
wheel = build_backend.build_editable(site)
zipfile.ZipFile(os.path.join(site, wheel)).extractall(site)
"""
# Uses what is installed there.
IMPORT = """
import site, sys
site.addsitedir(sys.argv[1])
import utils
from utils.checkpoint import load_model
from utils.data.classes import class_names
print(utils.__file__, class_names("voc07")[0], load_model(sys.argv[2], device="cpu").classes[0])
"""


def pinned(name: str) -> list[Requirement]:
    """The lines of a requirements file that name a package."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith(("-r", "#"))]


def run_python(code: str, *arguments: object, folder: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["2.4.1", "2.4.1+cu124", "1.13.1"])
def test_an_old_torch_is_refused_in_one_line(workdir, fails, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=version))
    fails(val, "--load_from", "none.pth", says=[f"PyTorch {version}", "2.5 or later", "pip install"])


@pytest.mark.parametrize("version", ["2.5.0", "2.5.0a0+nv24.10", "2.14.1", "3.0.0"])
def test_a_later_torch_is_accepted(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=version))
    versions.check_torch()


def test_load_model_refuses_an_old_torch(trained, monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.4.1")
    with pytest.raises(errors.UserError, match="PyTorch 2.4.1 is too old"):
        load_model(trained / "best.pth")


def test_the_pins_are_versions_that_work():
    allowed = {
        requirement.name: requirement for requirement in map(Requirement, PROJECT["project"]["dependencies"])
    }
    pins = {requirement.name: requirement for requirement in pinned("requirements.txt")}
    assert allowed.keys() == pins.keys()
    for name, pin in pins.items():
        (version,) = pin.specifier
        assert version.operator == "=="
        assert version.version in allowed[name].specifier
    assert allowed["torch"].specifier == SpecifierSet(">=" + ".".join(map(str, versions.OLDEST_TORCH)))


def test_the_oldest_numpy_has_integers_of_64_bits_on_windows():
    allowed = {r.name: r for r in map(Requirement, PROJECT["project"]["dependencies"])}
    assert "1.26.4" not in allowed["numpy"].specifier
    assert "2.0.0" in allowed["numpy"].specifier


def test_every_development_requirement_is_pinned():
    for requirement in pinned("requirements-dev.txt"):
        assert [specifier.operator for specifier in requirement.specifier] == ["=="]


def test_the_requirements_of_the_benchmark_are_pinned_as_those_of_development():
    development = {pin.name: pin for pin in pinned("requirements-dev.txt")}
    for pin in pinned("benchmarks/requirements.txt"):
        assert [specifier.operator for specifier in pin.specifier] == ["=="]
        assert str(pin) == str(development.get(pin.name, pin))


def test_a_copy_in_site_packages_is_refused_in_one_line(tmp_path):
    pytest.importorskip("setuptools")
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY / '.ci')!r}); import build_backend as b; b.{{}}"
    for call in ("get_requires_for_build_wheel()", f"build_wheel({str(tmp_path)!r})"):
        result = run_python(code.format(call), folder=tmp_path)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert "pip install -e ." in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_editable_install_works_from_any_folder(trained_wide, tmp_path):
    pytest.importorskip("setuptools")
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    for folder in (source, site, elsewhere):
        folder.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    for name in (".ci", "pipeline", "utils", "data/voc07"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    result = run_python(INSTALL, site, folder=source)
    assert result.returncode == 0, result.stderr
    result = run_python(IMPORT, site, trained_wide / "best.pth", folder=elsewhere)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(source / "utils/__init__.py"), "aeroplane", "circle"]


def readme_cpu_command() -> str:
    return re.search(r"^ {4}(pip install .*)$", README, re.MULTILINE).group(1)


def test_the_cpu_command_stands_before_the_first_commands_and_has_the_pinned_versions():
    words = readme_cpu_command().split()
    pins = [str(pin) for pin in pinned("requirements.txt") if pin.name in ("torch", "torchvision")]
    assert sorted(words[2:4]) == sorted(pins)
    assert README.index(readme_cpu_command()) < README.index("```bash")


def supported_versions() -> list[str]:
    prefix = "Programming Language :: Python :: "
    return [
        line.removeprefix(prefix) for line in PROJECT["project"]["classifiers"] if line.startswith(prefix)
    ]


def test_the_supported_pythons_are_the_same_everywhere():
    versions = supported_versions()
    allowed = SpecifierSet(PROJECT["project"]["requires-python"])
    minors = [f"3.{minor}" for minor in range(30)]
    assert [version for version in minors if version in allowed] == versions
    assert f"for version in {' '.join(versions)}; do" in GATE
    assert f"You need Python {versions[0]} to {versions[-1]}." in README
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + versions[0].replace(".", "")


def test_the_workflow_runs_the_commands_of_the_gate_and_the_readme():
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/tests.yml").read_text())["jobs"]
    known = [line.strip() for line in (GATE + README).splitlines()]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert len(commands) == 7
    for command in commands:
        assert command in known
    assert jobs["tests"]["needs"] == "lint"
    systems = [
        (entry["os"].split("-")[0], entry["python"])
        for entry in jobs["tests"]["strategy"]["matrix"]["include"]
    ]
    versions = supported_versions()
    assert {("ubuntu", versions[0]), ("ubuntu", versions[-1])} < set(systems)
    assert {"ubuntu", "macos", "windows"} == {system for system, _ in systems}
    assert {version for _, version in systems} <= set(versions)


def test_the_gate_is_a_valid_script():
    subprocess.run(["bash", "-n", REPOSITORY / ".ci/run"], check=True)
    assert os.access(REPOSITORY / ".ci/run", os.X_OK)


def test_the_version_stands_in_one_place():
    version = PROJECT["project"]["version"]
    citation = (REPOSITORY / "CITATION.cff").read_text()
    assert re.findall(r"^version: *\S+", citation, re.MULTILINE) == []
    released = re.findall(r"^## \[?(\d[\d.]*)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version


def test_the_hooks_of_pre_commit_have_the_pinned_ruff():
    yaml = pytest.importorskip("yaml")
    (repository,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    (pin,) = [str(pin) for pin in pinned("requirements-dev.txt") if pin.name == "ruff"]
    assert repository["rev"] == pin.replace("ruff==", "v")
