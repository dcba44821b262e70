"""Tests mezzotint.cli with every command that the tutorials and how-to pages show."""

import ast

import pytest
import typer
from tests.documentation import ROOT, commands, every_page, pages, programs

import mezzotint as mz
from mezzotint.cli.main import app

OUTSIDE = {
    "pip",
    "python",
    "curl",
    "uvx",
    "pipx",
    "brew",
    "docker",
    "scp",
    "cp",
    "cd",
    "export",
    "./dev",
}
"""Programs that are not ours, or are not a verb of ours."""


def shown(path):
    return str(path.relative_to(ROOT).with_suffix(""))


@pytest.mark.parametrize("page", pages(), ids=shown)
def test_every_command_of_a_page_runs_on_the_fake(page, cli, service, tmp_path):
    for name in ("bench", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    for level, words in commands(page):
        if level == "run" and words[0] not in OUTSIDE:
            assert words[0] == "mezzotint", words
            done = cli(*words[1:])
            assert done.code == 0, f"{' '.join(words)}: {done.err}"


def silent(command):
    """Take the body out of a command and everything below it: arguments are read, no more."""
    command.callback = None if getattr(command, "commands", None) else lambda **_: None
    for inner in getattr(command, "commands", {}).values():
        silent(inner)
    return command


@pytest.fixture(scope="module")
def arguments_only():
    return silent(typer.main.get_command(app))


@pytest.mark.parametrize("page", every_page(), ids=shown)
def test_every_command_that_a_page_shows_is_one_that_is_there(page, arguments_only):
    for _, words in commands(page):
        if words[0] == "mezzotint":
            arguments_only.main(words[1:], standalone_mode=False)
        else:
            assert words[0] in OUTSIDE, words
            says = " ".join(words).lower()
            is_json = words[0] == "curl" and any(word.startswith("{") for word in words)
            assert not is_json or "content-type: application/json" in says, words


@pytest.mark.parametrize("page", every_page(), ids=shown)
def test_python_of_a_page_is_python_and_names_what_is_there(page):
    for text in programs(page):
        for node in ast.walk(ast.parse(text)):
            is_ours = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if is_ours and node.value.id == "mz":
                assert hasattr(mz, node.attr), node.attr


def test_links_of_the_pages_lead_somewhere():
    import re

    for page in every_page():
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"
