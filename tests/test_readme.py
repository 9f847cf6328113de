"""What the README tells people to type works."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mambavision.cli
import mvsearch.cli

README = Path(__file__).parent.parent / "README.md"


def test_the_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})  # our own text, as a reader would run it


def commands():
    return sorted(set(re.findall(r"^    (mvsearch|mambavision) (\w+)", README.read_text(), re.MULTILINE)))


@pytest.mark.parametrize(("program", "verb"), commands())
def test_the_verbs_exist(program, verb):
    app = {"mvsearch": mvsearch.cli.app, "mambavision": mambavision.cli.app}[program]
    assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0


def test_linked_files_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
