"""SEEDS: runs that are enough, of one configuration, and different where seeds must make a difference."""

from __future__ import annotations

from typing import Any

import pytest

from audit.evidence import Evidence
from audit.rules.seeds import RULE, facts, over, seeds
from audit.verdicts import Judgement, Ruling, Verdict, parse
from tests.audit.ledgers import NATS, RULESET, Book, honest, train


def judgement(seed: int, changes: dict[str, Any]) -> Judgement:
    """The judgement of a run, as a file gives it back."""
    told = {
        "seed": seed,
        "first_state": f"0x{seed}",
        "sequences": f"sha256:{seed}",
        "nats": 1.0 + seed / 1000,
        "recipe": "sha256:r",
        "sources": "sha256:s",
        "data": "sha256:d",
    }
    ruling = Ruling(id=RULE, verdict=Verdict.UNPROVEN, evidence="claims", summary="", reach=told | changes)
    made = Judgement(subject={}, profile="pipeline", required=(RULE,), rulings=(ruling,))
    return parse(made.as_dict(), where="verdict.json")


def ruled(*changes: dict[str, Any]) -> tuple[Verdict, set[str]]:
    """SEEDS over runs of seeds 1, 2, …, changed one by one."""
    ruling = over({seed: judgement(seed, change) for seed, change in enumerate(changes, 1)}, RULESET)
    return ruling.verdict, {finding.kind for finding in ruling.findings}


@pytest.mark.parametrize(
    ("changes", "verdict", "expected"),
    [
        (({}, {}, {}), Verdict.PASS, set()),
        (({}, {}), Verdict.UNPROVEN, {"too-few-seeds"}),
        (({}, {}, {"nats": 1.001}), Verdict.FAIL, {"same-loss"}),
        (({}, {}, {"first_state": "0x1"}), Verdict.UNPROVEN, {"seed-without-effect"}),
        (({}, {}, {"sequences": "sha256:1"}), Verdict.UNPROVEN, {"seed-without-effect"}),
        (({}, {}, {"recipe": "sha256:x"}), Verdict.FAIL, {"mixed-config-evidence"}),
        (({}, {}, {"data": "sha256:x"}), Verdict.FAIL, {"mixed-config-evidence"}),
        (({}, {}, {"sources": None}), Verdict.UNPROVEN, {"seed-unknown"}),
        (({}, {}, {"seed": 7}), Verdict.UNPROVEN, {"seed-unknown"}),
    ],
)
def test_seeds_together(changes: tuple[dict[str, Any], ...], verdict: Verdict, expected: set[str]) -> None:
    """Three different runs of one configuration pass; what they share, or differ in where they must not, is named."""
    assert ruled(*changes) == (verdict, expected)


@pytest.mark.parametrize(("count", "said"), [(1, "1 seed run, 3 are asked for"), (2, "2 seeds run, 3 are asked for")])
def test_one_seed_is_one(count: int, said: str) -> None:
    """A reader is told how many seeds there are in words that fit the number."""
    assert over({seed: judgement(seed, {}) for seed in range(count)}, RULESET).summary == said


def test_no_seeds_are_no_pass() -> None:
    """Over no judgement at all the rule is not proven."""
    assert over({}, RULESET).verdict is Verdict.UNPROVEN


def test_one_run_tells_what_its_seed_did(tmp_path: Any) -> None:
    """A run's ledger gives its seed, first weights, drawn sequences, loss and digests; alone it proves nothing."""
    evidence: Evidence = honest(tmp_path).evidence()
    ruling = seeds(evidence)
    assert (ruling.verdict, ruling.id) == (Verdict.UNPROVEN, RULE)
    told = ruling.reach
    assert (told["seed"], told["nats"], told["recipe"]) == (42, NATS, "sha256:r")
    assert None not in told.values()
    assert dict.fromkeys(facts(Book(tmp_path).evidence()).values()) == {None: None}


def test_other_sequences_are_another_digest(tmp_path: Any) -> None:
    """Runs that draw other rows, or equal ones in another order, have other digests, and equal ones the same."""
    told = []
    for name, steps in (("a", 4), ("b", 4), ("c", 5)):
        book = Book(tmp_path / name)
        train(book, steps=steps)
        told.append(facts(book.evidence())["sequences"])
    assert told[0] == told[1] != told[2]
