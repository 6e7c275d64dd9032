"""What README and docs tell a newcomer to type exists."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import motthe
from tests.builders import ROOT

DOCUMENTS = ("README.md", "docs/cli.md", "docs/clearing.md", "docs/tariff.md", "load/README.md")
CODE = re.compile(r"```.*?\n(.*?)```|`([^`\n]+)`|^ {4}(.+)$|^#+ (motthe .*)$", re.MULTILINE | re.DOTALL)
ROOT_GROUP = typer.main.get_group(motthe.app)
CONTEXT = typer.Context(ROOT_GROUP)


def inside(group: Any) -> dict[str, Any]:
    """A group's commands by name."""
    return {name: group.get_command(CONTEXT, name) for name in group.list_commands(CONTEXT)}


GROUPS = {name for name, found in inside(ROOT_GROUP).items() if hasattr(found, "commands")}


@cache
def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def command_lines(document: str) -> list[str]:
    """What is written as code after `motthe`, a line each."""
    code = "\n".join(part for found in CODE.findall(text_of(document)) for part in found if part)
    return [line.strip() for line in re.findall(r"(?:^|[\s/])motthe +([a-z-][^\n#]*)", code)]


def commands() -> list[tuple[str, str]]:
    return sorted({(document, line) for document in DOCUMENTS for line in command_lines(document)})


def words_of(line: str) -> list[str]:
    words = re.findall(r"^[a-z][a-z-]*(?: [a-z][a-z-]*)?", line)
    first, *rest = (words[0] if words else "").split()
    return [first, *rest] if first in GROUPS else [first]


def help_of(words: list[str]) -> str:
    found = CliRunner().invoke(motthe.app, [*words, "--help"], env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})
    assert found.exit_code == 0, found.output
    return found.output


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    head = "\n".join(text_of("README.md").splitlines()[:30])
    blocks = "\n".join(code or indented for code, _, indented, _ in CODE.findall(head))
    assert re.search(r"^\s*make demo\b", blocks, re.MULTILINE)
    assert re.search(r"^\s*make test\b", blocks, re.MULTILINE)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_both_are_targets_of_the_makefile(target: str) -> None:
    assert re.search(rf"^{target}:", text_of("Makefile"), re.MULTILINE)


def test_the_documents_name_commands_at_all() -> None:
    assert {document for document, _ in commands()} >= {"docs/cli.md", "load/README.md"}


@pytest.mark.parametrize(("document", "line"), commands(), ids=lambda value: value.replace("/", "-"))
def test_every_command_that_is_written_down_exists_with_its_options(document: str, line: str) -> None:
    if line.startswith("-"):
        assert line.split()[0] in help_of([])
        return
    usage = help_of(words_of(line))
    for option in re.findall(r"--[a-z][a-z-]*", line):
        assert option in usage, f"{document}: {line}"


def test_every_command_is_written_down() -> None:
    names = [
        f"{name} {sub}" if sub else name
        for name, command in inside(ROOT_GROUP).items()
        for sub in (inside(command) if hasattr(command, "commands") else [""])
    ]
    assert len(names) >= 50
    written = "\n".join(text_of(document) for document in DOCUMENTS)
    assert [name for name in names if f"motthe {name}" not in written] == []


def test_every_command_of_a_module_is_among_those_that_are_loaded_from_it() -> None:
    assert None not in [command for group in (ROOT_GROUP, inside(ROOT_GROUP)["simulate"]) for command in inside(group).values()]
    for modules in (motthe.COMMANDS, motthe.SIMULATIONS):
        for module, names in modules.items():
            assert set(inside(typer.main.get_group(import_module(module).app))) == set(names), module


def test_every_option_that_the_commands_page_names_exists() -> None:
    sections = re.split(r"^## motthe ", text_of("docs/cli.md"), flags=re.MULTILINE)[1:]
    assert len(sections) >= 7
    for section in sections:
        usage = help_of(words_of(section.splitlines()[0]))
        for option in re.findall(r"`(--[a-z][a-z-]*)", section):
            assert option in usage, f"motthe {section.splitlines()[0]}: {option}"
