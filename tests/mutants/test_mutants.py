"""Every planted violation is caught by its rule, every honest neighbour passes it, and the kill table says so."""

from __future__ import annotations

import difflib
import functools

import pytest

from audit.ruleset import read_ruleset
from audit.verdicts import Judgement, Verdict
from tests.mutants import table
from tests.mutants.catalogue import ENTRIES
from tests.mutants.catalogue.places import ADAPTIVE
from tests.mutants.harness import Bench
from tests.mutants.program import BASE, Edits, Entry, edited

SEEN = [entry for entry in ENTRIES if entry.visible]
UNSEEN = [entry for entry in ENTRIES if not entry.visible]
ELSEWHERE = {
    "seed-or-run-selection": "a matter of several runs: rule SEEDS",
    "code-log-mismatch": "a matter of the files that are submitted: rule REPRO",
    "mixed-config-evidence": "a matter of several runs: rule SEEDS",
    "transformed-byte-denominator": "a matter of the data and their sidecar: published counts",
    "lossy-normalisation": "a matter of the data and their tokenizer: published counts",
}
"""Classes of violations that no single run can hold."""
ALSO = {"hindsight-selection": ("C1", "C2", "C4")}
"""The minimum over passes that were announced is also a second score that replaces the first."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("entry", SEEN, ids=lambda entry: entry.name)
def test_the_mutant_is_killed_and_its_neighbour_is_not(bench: Bench, entry: Entry) -> None:
    """The rule fails the mutant with the expected class and witness and passes the neighbour, as the page says."""
    mutant, neighbour = bench.pair(entry)
    ruling = mutant.ruling(entry.rule)
    assert ruling.verdict is entry.verdict, ruling
    assert entry.finding in table.classes(ruling), ruling.findings
    assert {name: ruling.witness.get(name) for name in entry.names} == entry.names, ruling.witness
    assert neighbour.ruling(entry.rule).verdict is Verdict.PASS, neighbour.ruling(entry.rule)
    assert not failed(neighbour), failed(neighbour)
    assert table.row(entry, mutant, neighbour) in page()


@pytest.mark.parametrize("entry", UNSEEN, ids=lambda entry: entry.name)
def test_what_a_ledger_cannot_see_it_does_not_pretend_to_see(bench: Bench, entry: Entry) -> None:
    """Mutant and neighbour get the same verdict of the rule and no FAIL of any, as the page says."""
    mutant, neighbour = bench.pair(entry)
    assert mutant.ruling(entry.rule).verdict is neighbour.ruling(entry.rule).verdict is not Verdict.FAIL
    assert not failed(mutant), "a ledger sees it now: move it to the entries that it must kill"
    assert not failed(neighbour)
    assert table.row(entry, mutant, neighbour) in page()


@pytest.mark.parametrize("edits", [(), (ADAPTIVE,)], ids=["static", "score-first"])
def test_the_honest_base_passes_all_that_one_run_can_pass(bench: Bench, edits: Edits) -> None:
    """The base, with and without adaptation, gets a PASS of every rule but those that need more than a run."""
    unproven = {ruling.id for ruling in bench.judged(edited(BASE, edits)).rulings if ruling.verdict is not Verdict.PASS}
    assert unproven == {"C1", "C2", "SEEDS", "STAT", "REPRO"}


def failed(judgement: Judgement) -> list[str]:
    """The rules that fail."""
    return [f"{ruling.id}: {ruling.summary}" for ruling in judgement.rulings if ruling.verdict is Verdict.FAIL]


@functools.cache
def page() -> str:
    return table.PATH.read_text(encoding="utf-8")


def test_the_page_is_of_this_catalogue() -> None:
    """docs/kill-table.md is what its command makes of its lines, and has one for every entry."""
    lines = {line.split("`")[1]: line for line in table.rows_of(page())}
    assert set(lines) == {entry.name for entry in ENTRIES}
    assert page() == table.document(ENTRIES, lines), f"run `{table.COMMAND}`"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_mutant_differs_from_its_neighbour_in_one_thing(entry: Entry) -> None:
    """All edits have their place, and change a few lines of the program or some shards, not both."""
    mutant, neighbour = (text.splitlines() for text in entry.programs())
    changed = [part for part in difflib.SequenceMatcher(None, neighbour, mutant).get_opcodes() if part[0] != "equal"]
    assert bool(changed) != bool(entry.mutant_data)
    assert sum(max(stop - start, end - begin) for _, start, stop, begin, end in changed) <= 4


def test_every_class_of_violations_has_a_mutant() -> None:
    """The classes that the rule set names are planted here, or it stands here why they can't be."""
    planted = {entry.kind for entry in ENTRIES}
    assert planted.isdisjoint(ELSEWHERE)
    assert set(read_ruleset().classes) == (planted | set(ELSEWHERE)) - {""}


def test_every_mutant_breaks_a_rule_of_its_class() -> None:
    """The rule that an entry names is one that the rule set gives to the class, where it has one."""
    broken = read_ruleset().classes | ALSO
    assert not [entry.name for entry in ENTRIES if entry.kind and entry.rule not in broken[entry.kind]]


def test_names_are_unique() -> None:
    """No two entries share a name, and so a line."""
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("old", ["nowhere to be found", "split"])
def test_an_edit_without_its_place_is_an_error(old: str) -> None:
    """An edit whose text is missing or stands there twice raises, so no mutant is the base by mistake."""
    with pytest.raises(ValueError, match=r"got \d+ places for the edit of .*, expected 1"):
        edited(BASE, ((old, "x"),))
