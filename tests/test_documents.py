"""The documents: the commands in them parse, and their links and options exist."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from helpers import REPOSITORY
from utils.runtime.arguments import Parser

DOCUMENTS = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("[bet]*/**/README.md")]
TORCHRUN_OPTIONS = {"--nproc_per_node", "--nnodes", "--max_restarts", "--rdzv_backend", "--rdzv_endpoint"}
OTHER_OPTIONS = {"--index", "--check"}  # of pip, where it is the start of --index-url, and of ruff


def document_name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def commands(document: Path) -> list[str]:
    """The commands of a document that run a script of ours, in blocks, in indented lines and within lines."""
    text = document.read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?: {4})?((?:\w+=\S+ )*(?:python|torchrun) .*)$", text, re.MULTILINE)
    found = lines + re.findall(r"`((?:python|torchrun) [^`]+)`", text)
    return list(dict.fromkeys(line for line in found if ".py" in line))


COMMANDS = [(document, line) for document in DOCUMENTS for line in commands(document)]


@pytest.mark.parametrize(("document", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_commands_parse(document, line, tmp_path, monkeypatch):
    class ParsedError(Exception):
        pass

    parse = Parser.parse_known_args

    def parse_and_stop(*arguments):
        _, unknown = parse(*arguments)
        assert not unknown or module.__name__ == "experiments.claims"  # which passes options on to main.py
        raise ParsedError

    words = shlex.split(line, comments=True)
    script = next(index for index, word in enumerate(words) if word.endswith(".py"))
    module = importlib.import_module(words[script].removesuffix(".py").replace("/", "."))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words[script:])
    monkeypatch.setattr(Parser, "parse_known_args", parse_and_stop)
    if {"-h", "--list_checkpoints"} & {*words}:
        pytest.skip("prints and exits, which other tests try")
    if "--model timm:" in line:
        pytest.importorskip("timm")
    with pytest.raises(ParsedError):
        module.main()


def test_there_are_commands_to_parse():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_links_lead_to_files_and_headings(document):
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, heading = target.partition("#")
        if "://" not in target:
            file = document.parent / path if path else document
            assert file.exists(), target
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if heading else []
            assert not heading or heading in {title.lower().replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_options_exist(document):
    files = [path for path in REPOSITORY.rglob("*.py") if ".venv" not in path.parts]
    source = "".join(path.read_text() for path in files)
    defined = set(re.findall(r'"(--[a-z_]+)"', source))
    switches = re.findall(r'"--([a-z_]+)", action=argparse.BooleanOptionalAction', source)
    defined |= {f"--no-{switch}" for switch in switches}
    named = set(re.findall(r"(?<![\w-])--(?:no-)?[a-z][a-z_]+", document.read_text()))
    assert named <= defined | TORCHRUN_OPTIONS | OTHER_OPTIONS


def test_the_readme_starts_with_two_commands():
    readme = (REPOSITORY / "README.md").read_text()
    assert re.search(r"```bash\n(.*?)```", readme, re.DOTALL).group(1).splitlines() == [
        "pip install -r requirements.txt && python main.py --dataset shapes",
        "pip install -r requirements-dev.txt && pytest",
    ]
