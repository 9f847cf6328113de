"""What the README tells people to type works, and no page links to what is not there."""

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import mambavision.cli
import mvsearch.cli

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "studies" / "reference").glob("*.md")]


def test_the_python_block_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})  # our own text, as a reader would run it


def commands():
    return sorted(set(re.findall(r"^    (mvsearch|mambavision) (\w+)", README.read_text(), re.MULTILINE)))


def verbs(program):
    """The command line of a program, and the verbs it knows."""
    app = {"mvsearch": mvsearch.cli.app, "mambavision": mambavision.cli.app}[program]
    return app, set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("program", ["mvsearch", "mambavision"])
def test_it_shows_every_verb_and_no_other(program):
    assert {verb for shown, verb in commands() if shown == program} == verbs(program)[1]


@pytest.mark.parametrize(("program", "verb"), commands())
def test_the_verbs_say_how_they_are_used(program, verb):
    assert CliRunner().invoke(verbs(program)[0], [verb, "--help"]).exit_code == 0


def anchors(page):
    """What the headings of a page are called in a link, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_to_is_there(page):
    for target, _, heading in re.findall(r"\]\((?!https?:)([^)#]*)(#([^)]+))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not heading or heading in anchors(linked), f"{target}#{heading}"
