"""Rule sets: data that are read strictly, hold together, and say what product and contest say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from audit.errors import RulesetError
from audit.ruleset import PARAMETER_GOLF, Ruleset, parse_ruleset, read_ruleset

TAXONOMY = {
    "prequant-val-ttt",
    "multi-epoch-ttt-last-score",
    "rescore-after-ttt",
    "hindsight-selection",
    "slot-scored-region",
    "hashed-ngram-target-key",
    "two-pass-rescore",
    "train-ngram-oracle",
    "noncausal-hint-gate",
    "byte-mixture-unnormalised",
    "partial-val-coverage",
    "byte-lut-double-count",
    "byte-meta-inflated",
    "transformed-byte-denominator",
    "lossy-normalisation",
    "train-val-overlap",
    "train-on-val",
    "paid-prefix",
    "gptq-after-cap",
    "gptq-val-calibration",
    "train-overrun",
    "eval-overrun",
    "eval-work-outside-timer",
    "artifact-over-cap",
    "cross-doc-smear",
    "architecture-noncausal-state",
    "code-log-mismatch",
    "mixed-config-evidence",
    "eval-warmup-on-val",
    "seed-or-run-selection",
}
"""The classes of violations that reviewers of the contest name."""


@pytest.fixture(scope="module")
def golf() -> Ruleset:
    return read_ruleset()


@pytest.fixture
def tree() -> Any:
    """The file as nested text."""
    return copy.deepcopy(yaml.load(PARAMETER_GOLF.read_text(encoding="utf-8"), Loader=yaml.BaseLoader))


def test_the_contest(golf: Ruleset) -> None:
    """Limits, rules and profiles are the contest's and the product's."""
    assert list(golf.rules) == [
        *("C1", "C2", "C3", "C4", "COVERAGE", "BYTES", "DATA", "SIZE", "TRAIN-TIME", "EVAL-TIME", "SELF"),
        *("SEEDS", "STAT", "REPRO", "TRACK"),
    ]
    assert (golf.limits.artifact_bytes, golf.limits.seeds) == (16_000_000, 3)
    assert (golf.limits.improvement_nats, golf.limits.p_value) == (0.005, 0.01)
    assert {name: clock.device_seconds for name, clock in golf.clocks.items()} == {
        "TRAIN-TIME": 4800,
        "EVAL-TIME": 4800,
    }
    pipeline = {"C3", "C4", "COVERAGE", "BYTES", "DATA", "SIZE", "TRAIN-TIME", "EVAL-TIME", "SELF", "SEEDS"}
    probe = {"C1", "C2", "C3", "C4", "COVERAGE", "BYTES", "SELF"}
    submission = {"SIZE", "TRAIN-TIME", "EVAL-TIME", "SEEDS", "DATA"}
    assert {name: set(golf.profile(name)) for name in golf.profiles} == {
        "pipeline": pipeline,
        "probe": probe,
        "submission": submission,
        "record": probe | submission | {"STAT", "REPRO"},
        "generic": {"C3"},
    }


def test_every_class_of_violations_has_its_rules(golf: Ruleset) -> None:
    """The classes are those that reviewers name, and each breaks at least one rule."""
    assert set(golf.classes) == TAXONOMY
    assert golf.rules_of("prequant-val-ttt") == ("C3",)
    with pytest.raises(RulesetError, match="does not know it"):
        golf.rules_of("bad-luck")


def test_clocks_and_neutral_phases_do_not_overlap(golf: Ruleset) -> None:
    """A phase is on one clock or on none; every neutral one has its reason."""
    for stage, phases in golf.neutral.items():
        for phase, reason in phases.items():
            assert reason
            assert not any(clock.covers(stage, phase) for clock in golf.clocks.values())
    assert golf.clocks["EVAL-TIME"].covers("evaluate", "anything at all")
    assert not golf.clocks["EVAL-TIME"].covers("train", "training")


def test_rulings_and_practice_have_addresses(golf: Ruleset) -> None:
    """Every ruling has its day, and with every practice the threads that it rests on."""
    assert [one.date for one in golf.rulings] == sorted(one.date for one in golf.rulings)
    assert all(one.threads and one.text for one in (*golf.rulings, *golf.practices))
    assert golf.thread(593) == "https://github.com/openai/parameter-golf/issues/593"


def test_another_contest_is_another_file(tree: Any, tmp_path: Path) -> None:
    """Limits and rules come from the file that is named."""
    tree["name"], tree["limits"]["artifact_bytes"] = "half_golf", "8000000"
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert read_ruleset(path).limits.artifact_bytes == 8_000_000


def cut(tree: Any, *keys: str) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    del tree[keys[-1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(limit="5"), "unknown key 'limit'; the keys are schema"),
        (lambda tree: tree["limits"].update(artefact_bytes="5"), "limits: unknown key 'artefact_bytes'"),
        (lambda tree: cut(tree, "limits", "seeds"), "limits: seeds is missing"),
        (lambda tree: tree["limits"].update(seeds="three"), "seeds is 'three', expected a whole number"),
        (lambda tree: tree["limits"].update(p_value="nan"), "p_value is 'nan', expected a finite number"),
        (lambda tree: tree.update(schema="2"), "schema is 2, this reads 1"),
        (lambda tree: tree["profiles"].update(pipeline=["C3", "C9"]), "profile pipeline names C9"),
        (lambda tree: tree["profiles"].update(nothing=[]), "profile nothing names no rule"),
        (lambda tree: tree["profiles"].update(twice=["C3", "C3"]), "expected different ones"),
        (lambda tree: tree["classes"].update({"paid-prefix": ["X"]}), "class paid-prefix names X"),
        (lambda tree: tree["clocks"]["TRAIN-TIME"].update(overrun="late"), "clock TRAIN-TIME has no class"),
        (lambda tree: tree["clocks"]["TRAIN-TIME"].update(devices="0"), "clock TRAIN-TIME has no class"),
        (lambda tree: tree.update(rules=["C1"]), "rules is ['C1'], expected an object"),
        (lambda tree: tree.update(published_splits={}), "no published splits"),
    ],
)
def test_what_is_wrong_is_named(tree: Any, change: Any, message: str) -> None:
    """A key that is unknown, missing or of another kind, and a name that leads nowhere, is one line with its place."""
    change(tree)
    with pytest.raises(RulesetError) as caught:
        parse_ruleset(tree, where="rules.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1, 2]\nb: *x\n", "an alias in line 2"),
        ("schema: 1\nschema: 1\n", "a key twice in the mapping of line 1"),
        ("schema: !!python/object/apply:os.system ['true']\n", "schema is ['true'], expected a whole number"),
        ("a: [1, 2\n", "is not plain YAML"),
        ("- 1\n", "expected an object"),
        ("", "expected an object"),
        ("[" * 5000, "is not plain YAML"),
        ("\0", "is not plain YAML"),
    ],
)
def test_hostile_files(text: str, message: str, tmp_path: Path) -> None:
    """Aliases, keys twice, tags, deep nests and what is no mapping are refused; nothing is evaluated."""
    path = tmp_path / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RulesetError) as caught:
        read_ruleset(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    with pytest.raises(RulesetError, match="can't read"):
        read_ruleset(tmp_path / "none.yaml")


def test_profiles_are_named(golf: Ruleset) -> None:
    """An unknown profile is an error with those there are."""
    with pytest.raises(RulesetError, match="pipeline, probe, submission, record, generic"):
        golf.profile("podium")
