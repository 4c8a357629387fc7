"""One seed verified from its recorded stages: honest modes pass, each violation fails its rule, changes show."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import identity, manifest, verify
from audit.errors import AuditError, ManifestError, RunError
from audit.files import sha256_file, to_json
from audit.merging import read_verdict
from audit.octets import Octets
from audit.report.text import verdict_lines
from audit.runs import read_verified
from audit.shards import Shard
from audit.splits import Split, open_data
from audit.verdicts import Judgement, Verdict, parse
from tests.audit import toyruns
from tests.audit.toyruns import SEED
from tests.toy import toy_recipe
from trainer import recipe as recipes

PASSES = ("C3", "C4", "COVERAGE", "BYTES", "DATA", "SIZE", "TRAIN-TIME", "EVAL-TIME", "SELF")
"""What one honest seed can pass; SEEDS takes more of them."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded toy training with its data described, before quantization."""
    run = toyruns.record(tmp_path_factory.mktemp("toy") / "run", "train")
    data = open_data([run / "data"])
    taken = manifest.take(data)
    identity.write(run / "identity" / "manifest.json", taken, identity.measured(data, taken))
    return run


def finish(trained: Path, run: Path, **settings: Any) -> Path:
    """A copy of the training, quantized and evaluated under other settings."""
    shutil.copytree(trained, run)
    recipe, previous = toy_recipe(**settings), toyruns.ledger.seal_of(toyruns.ledger_of(run, "train"))
    (run / "recipe.json").write_text(json.dumps(recipes.as_dict(recipe)))
    for stage in ("quantize", "evaluate"):
        toyruns.record_stage(run, stage, recipe, previous)
        previous = toyruns.ledger.seal_of(toyruns.ledger_of(run, stage))
    return run


@pytest.fixture(scope="module")
def honest(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(trained, tmp_path_factory.mktemp("honest") / "run")


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    """The honest run, for one test to change."""
    return shutil.copytree(honest, tmp_path / "run")


def verified(run: Path, **options: Any) -> Judgement:
    return verify.verify_seed(run, SEED, verify.Options(**options)).judgement


def failed(judgement: Judgement) -> set[str]:
    return {ruling.id for ruling in judgement.rulings if ruling.verdict is Verdict.FAIL}


def classes(judgement: Judgement) -> set[str]:
    """Classes of the findings that fail a rule."""
    return {one.kind for ruling in judgement.rulings for one in ruling.findings if one.severity == "error"}


HONEST: Sequence[dict[str, Any]] = (
    {},
    {"gptq__calibration": "self"},
    {"ttt__mode": "score_first", "ttt__chunk_tokens": 1024},
    {"ttt__mode": "score_first", "ttt__chunk_tokens": 1024, "track": "B"},
    {"track": "A"},
)


@pytest.mark.parametrize("settings", HONEST, ids=["plain", "self", "score first", "track B", "track A"])
def test_an_honest_mode_passes_what_one_seed_can_pass(trained: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Nothing fails, and every rule that one seed can prove is proven, adaptation after the score included."""
    judgement = verified(finish(trained, tmp_path / "run", **settings))
    assert {rule: judgement.ruling(rule).verdict for rule in PASSES} == dict.fromkeys(PASSES, Verdict.PASS)
    assert failed(judgement) == set()
    assert judgement.ruling("TRACK").verdict == (Verdict.PASS if "track" in settings else Verdict.UNPROVEN)
    assert judgement.verdict is Verdict.UNPROVEN
    assert judgement.ruling("SEEDS").verdict is Verdict.UNPROVEN


ADAPTING = {"ttt__chunk_tokens": 1024}


@pytest.mark.parametrize(
    ("settings", "rules", "kinds"),
    [
        ({"ttt__mode": "prequant"}, {"C3"}, {"trained-before-scored"}),
        ({"gptq__calibration": "val"}, {"C3"}, {"calibrated-on-validation"}),
        ({"ttt__mode": "rescore"} | ADAPTING, {"C4"}, {"rescored-after-update"}),
        ({"ttt__mode": "score_first", "track": "A"} | ADAPTING, {"TRACK"}, {"state-changed", "stepped-while-scoring"}),
        (
            {"ttt__mode": "prequant+rescore", "gptq__calibration": "val"} | ADAPTING,
            {"C3", "C4"},
            {"trained-before-scored", "calibrated-on-validation", "rescored-after-update"},
        ),
        (
            {"ttt__mode": "prequant+score_first", "gptq__calibration": "val"} | ADAPTING,
            {"C3"},
            {"trained-before-scored", "calibrated-on-validation"},
        ),
    ],
    ids=["prequant", "calibration", "rescore", "track", "all of them", "the seed's stack"],
)
def test_each_violation_fails_its_own_rule(
    trained: Path, tmp_path: Path, settings: dict[str, Any], rules: set[str], kinds: set[str]
) -> None:
    """Every contaminating switch fails its rule with its own class of finding and a witness, alone and stacked."""
    judgement = verified(finish(trained, tmp_path / "run", **settings))
    assert failed(judgement) == rules
    assert classes(judgement) == kinds
    assert all(judgement.ruling(rule).witness for rule in rules)
    assert judgement.verdict is Verdict.FAIL


def test_the_witness_of_a_fit_names_step_range_and_the_score_that_came_later(trained: Path, tmp_path: Path) -> None:
    """A reader can look the violation up: stage, rank, record, step, shard, tokens, and the record that scores them."""
    witness = verified(finish(trained, tmp_path / "run", ttt__mode="prequant")).ruling("C3").witness
    assert (witness["stage"], witness["rank"], witness["step"], witness["split"]) == ("quantize", 0, 0, "val")
    assert witness["targets"] > 0
    assert witness["scored_in"]["stage"] == "evaluate"


def test_a_verdict_repeats_and_holds_no_time(honest: Path, tmp_path: Path) -> None:
    """Two verifications write the same verdict.json; seconds and seals go to the clock file, which reads back."""
    for number in range(2):
        found = verify.verify_seed(honest, SEED, verify.Options())
        verify.write_verdict(tmp_path / str(number), found)
    one, other = ((tmp_path / name / "verdict.json").read_bytes() for name in ("0", "1"))
    assert one == other
    assert parse(json.loads(one), where="here").as_dict() == read_verdict(tmp_path / "0").as_dict()
    verify.write_clock(tmp_path / "clock" / f"clock.verify.{SEED}" / "times.json", SEED, found)
    clocks = read_verified(tmp_path, SEED)
    assert set(clocks.clocks) == {"TRAIN-TIME", "EVAL-TIME"}
    assert 0 < clocks.clocks["TRAIN-TIME"].seconds < clocks.clocks["TRAIN-TIME"].limit_seconds
    assert set(clocks.seals) == {"train", "quantize", "evaluate"}
    assert not any(seal.encode() in one for seal in clocks.seals.values())


def test_the_trainers_own_code_gives_everything_again(honest: Path) -> None:
    """The subject says how many losses and numbers of the artifact were made again, and that all are equal."""
    subject = verified(honest, rescore=5).subject
    assert subject["rescored"]["score_records"] == subject["rescored"]["equal_to_the_bit"] == 5
    assert subject["requantized"]["differing"] == 0 < subject["requantized"]["numbers"]
    of = subject["rescored"]["of"]
    assert subject["computed_again"]["losses of the artifact"] == f"5 of {of} score records, 5 equal to the bit"
    assert not [text for text in subject["computed_again"].values() if text.startswith("not done")]
    without = verified(honest, rescore=0)
    assert without.subject["rescored"].startswith("not done")
    assert "\n  computed again, losses of the artifact: not done; ask for it with --rescore N" in verdict_lines(without)


Edit = Callable[[Path], object]


def other_tokens(run: Path) -> None:
    """The tokens of a shard backwards: the same size, other text."""
    shard = min((run / "data").glob("train_*.bin"))
    content = shard.read_bytes()
    shard.write_bytes(content[:1024] + np.frombuffer(content[1024:], "<u2")[::-1].tobytes())


def other_artifact(run: Path) -> None:
    path = run / "quantize" / str(SEED) / "model.golf"
    metrics = path.with_name("metrics.json")
    path.write_bytes(path.read_bytes() + b"\0")
    facts = json.loads(metrics.read_text())
    facts["artifact_sha256"] = sha256_file(path, remedy="")
    facts["model_bytes"] += 1
    facts["total_bytes"] += 1
    metrics.write_text(json.dumps(facts))
    evaluation = run / "evaluate" / str(SEED) / "metrics.json"
    claimed = json.loads(evaluation.read_text()) | {k: facts[k] for k in ("artifact_sha256", "total_bytes")}
    evaluation.write_text(json.dumps(claimed))


def better_score(run: Path) -> None:
    """A score that the ledger does not have, consistent in itself."""
    path = run / "evaluate" / str(SEED) / "metrics.json"
    found = json.loads(path.read_text())
    for tree in (found, found["sliding"]):
        tree["val_bpb"] *= 0.99
        tree["val_loss_nats"] *= 0.99
    found["share_of_first"] *= 0.99
    found["margin_under_bigram_bpb"] = found["bigram_val_bpb"] - found["val_bpb"]
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("edit", "rules"),
    [(other_tokens, {"C3", "DATA"}), (better_score, {"COVERAGE"})],
    ids=["tokens", "score"],
)
def test_what_was_changed_afterwards_fails(run: Path, edit: Edit, rules: set[str]) -> None:
    """Other training tokens under the same name, and a better score in the metrics, contradict the ledger."""
    edit(run)
    assert rules <= failed(verified(run))


def test_another_artifact_is_refused(run: Path) -> None:
    """A model file that is not the one of the ledger is no artifact to judge, whatever the metrics say of it."""
    other_artifact(run)
    judgement = verified(run)
    assert "SIZE" in failed(judgement)
    assert judgement.subject["requantized"].startswith(str(run))


def test_a_flipped_bit_a_lost_stage_and_another_seed_are_one_line(run: Path) -> None:
    """What can't be judged is an error that names the file, never a verdict."""
    path = toyruns.ledger_of(run, "quantize") / "rank0.ledger"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(AuditError, match=r"clock\.quantize\.1/rank0\.ledger, block"):
        verified(run)
    shutil.rmtree(path.parent)
    with pytest.raises(AuditError, match=r"clock\.quantize\.1"):
        verified(run)
    shutil.copytree(toyruns.ledger_of(run, "train"), path.parent)
    with pytest.raises(AuditError, match="starts from"):
        verified(run)


def test_ledgers_alone_are_judged_with_less(honest: Path) -> None:
    """Given as folders, with the data but without claims, the order of events is proven and the rest is not."""
    folders = [toyruns.ledger_of(honest, stage) for stage in toyruns.STAGES]
    found = verify.verify_folders(folders, verify.Options(data=honest / "data")).judgement
    assert {found.ruling(rule).verdict for rule in ("C3", "C4", "COVERAGE", "BYTES")} == {Verdict.PASS}
    assert {found.ruling(rule).verdict for rule in ("DATA", "SIZE")} == {Verdict.UNPROVEN}
    told = found.subject["computed_again"]
    assert [text.startswith("not done") for text in told.values()] == [False, True, True, True]
    assert verdict_lines(found).count("not done; it takes the recipe and the artifact") == 3
    assert found.ruling("C3").summary.endswith("; no loader was run again")
    bare = verify.verify_folders(folders, verify.Options(data=honest / "data", profile="generic")).judgement
    assert bare.verdict is Verdict.PASS
    with pytest.raises(RunError, match="no ledger"):
        verify.verify_folders([], verify.Options())


def test_data_that_changed_since_their_overlap_was_measured(run: Path) -> None:
    """An overlap of other data is refused, and without one DATA is not proven."""
    overlap = run / "identity" / identity.OVERLAP
    tree = json.loads(overlap.read_text())
    overlap.write_text(to_json(tree | {"root": "sha256:" + "0" * 64}))
    with pytest.raises(ManifestError, match="was measured on data of root"):
        verified(run)
    overlap.unlink()
    assert verified(run).ruling("DATA").verdict is Verdict.UNPROVEN


OCTETS_SPLIT = 600


@given(st.lists(st.tuples(st.integers(0, OCTETS_SPLIT - 2), st.integers(1, 64)), min_size=1, max_size=12))
def test_bytes_of_windows_are_those_of_their_tokens(trained: Path, windows: list[tuple[int, int]]) -> None:
    """However windows lie, near or far, over a border of shards or not: the count is that of token after token."""
    octets = Octets.read(trained / "data" / "tokenizer.model")
    tokens = np.random.default_rng(0).integers(0, octets.vocab_size, OCTETS_SPLIT).astype(np.uint16)
    split = Split("val", (Shard(Path("a"), (), tokens[:250]), Shard(Path("b"), (), tokens[250:])))
    first = np.array([begin for begin, _ in windows], dtype=np.int64)
    many = np.minimum(np.array([count for _, count in windows], dtype=np.int64), OCTETS_SPLIT - 1 - first)
    expected = [
        int(octets.count(tokens[f : f + m], tokens[f + 1 : f + m + 1]).sum()) for f, m in zip(first, many, strict=True)
    ]
    assert verify.octet_counter(split, octets)(first, many).tolist() == expected
