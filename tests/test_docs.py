"""What the documents say can be typed: commands, options, keys, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from audit.__main__ import audit
from trainer import recipe as recipes
from trainer.__main__ import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
PROGRAMS = {"golf-train": cli, "golf-audit": audit}


def code_lines(path: Path) -> list[str]:
    """Lines of fenced blocks, without comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


COMMANDS = sorted({line for path in DOCUMENTS for line in code_lines(path) if line.split()[0] in PROGRAMS})
KEYS = sorted(
    {
        match
        for path in DOCUMENTS
        for line in code_lines(path)
        for match in re.findall(r"(?:-S|--set) '?([\w.]+)=", line)
    }
)


def test_there_is_something_to_check() -> None:
    """The patterns above find the documents' commands and keys."""
    assert len(COMMANDS) >= 6
    assert {"qk_gain", "seeds", "corpus.path"} <= set(KEYS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_parses(line: str) -> None:
    """Subcommand and options of every documented command exist."""
    program, name, *arguments = shlex.split(line)
    group = PROGRAMS[program]
    group.commands[name].make_context(name, arguments, parent=click.Context(group, **group.context_settings))


@pytest.mark.parametrize("key", KEYS)
def test_a_documented_key_is_a_key(key: str) -> None:
    """Every key that a document sets is one of the recipe."""
    assert key in recipes.known_keys()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Relative links of the documents point to files that are there."""
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    """At most 150 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_names_the_pipeline_as_dvc_yaml_has_it() -> None:
    """The chain of stages in the README is that of dvc.yaml, in order."""
    stages = re.findall(r"^  (\w+):$", (ROOT / "dvc.yaml").read_text(), flags=re.MULTILINE)
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("resolve →"))
    assert [part.partition("@")[0] for part in line.split(" → ")] == stages


def test_the_trainer_never_imports_the_audit_and_the_audit_the_trainer_in_one_place() -> None:
    """One package makes a number, the other does not trust it: only `audit/replay.py` runs the trainer's own code."""
    for package, other in (("trainer", "audit"), ("audit", "trainer")):
        for path in (ROOT / package).rglob("*.py"):
            imports = re.search(rf"^\s*(from|import) {other}\b", path.read_text(), flags=re.MULTILINE)
            assert bool(imports) == (path == ROOT / "audit" / "replay.py"), path
