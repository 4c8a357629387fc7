"""The stronger attacker: ledgers of a real toy run, edited, chained and sealed anew, so that only content can tell.

For every class of records there is what the data (`contents`), the trainer's loader (`replay`) or the artifact
(`rescore`) contradict, and what none of the three does. Those edits stand here too, so that the list of what escapes
in docs/what-a-ledger-proves.md stays true; the rules hold some of them against other records of the same ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from audit.contents import check_contents
from audit.evidence import Contents, Mismatch, Replay, Stage
from audit.kept import read_kept
from audit.records import LISTS, Record
from audit.replay import replay_draws
from audit.rescore import ALLOWED, Rescored, rescore
from audit.splits import Data, open_data
from tests.audit import toyruns
from tests.audit.toyruns import Edit, at, every, indices, named, row, rows, with_facts, with_row, with_rows
from tests.toy import toy_recipe

SETTINGS = {
    "corpus__documents": 90,
    "corpus__validation_documents": 2,
    "tokens__sample_documents": 50,
    "eval__stride": 64,
    "calibration__sequences": 1,
    "ttt__mode": "prequant+score_first",
    "ttt__epochs": 1,
    "ttt__chunk_epochs": 1,
    "gptq__calibration": "self",
}
"""Every kind of draw and score in one run: training, fit, chunks, text of the model; artifact, adapted, reference."""


@dataclass(frozen=True)
class Run:
    """A recorded run and what its data are."""

    folder: Path
    data: Data

    def contents(self, stages: Sequence[Stage]) -> Contents:
        kept = {"self": read_kept(self.folder / "quantize/1/calibration.safetensors", "self")}
        return check_contents(stages, self.data, kept=kept)

    def replay(self, stages: Sequence[Stage]) -> Replay:
        return replay_draws(stages, self.data, toy_recipe(**SETTINGS), seed=toyruns.SEED)

    def rescore(self, stages: Sequence[Stage], **sample: int) -> Rescored:
        model = self.folder / "quantize/1/model.golf"
        return rescore(stages, self.data, toy_recipe(**SETTINGS), model, **sample)

    def wrong(self, stages: Sequence[Stage]) -> list[Mismatch]:
        """What any of the three contradicts."""
        found = self.contents(stages), self.replay(stages), self.rescore(stages)
        return [one for each in found for one in each.mismatches]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = toyruns.record(tmp_path_factory.mktemp("toy") / "run", **SETTINGS)
    return Run(folder, open_data([folder / "data"]))


def test_an_honest_run_holds(run: Run) -> None:
    """Every draw and score is of its tokens, every training draw the loader's, every loss of the artifact bit-equal."""
    stages = toyruns.open_stages(run.folder)
    contents, replayed, rescored = run.contents(stages), run.replay(stages), run.rescore(stages)
    assert contents.mismatches == replayed.mismatches == rescored.mismatches == ()
    assert contents.checked == contents.drawn == sum(stage.count("draw") + stage.count("score") for stage in stages)
    assert (contents.escape, contents.unread, replayed.reason, rescored.reason) == (0.0, (), "", "")
    assert replayed.draws == stages[0].count("draw")
    assert 0 < rescored.eligible == rescored.checked == rescored.equal < stages[2].count("score")


def test_a_copied_run_is_the_same(run: Run, tmp_path: Path) -> None:
    """Taking a ledger apart and chaining it anew changes nothing that counts: an edit is what the others are about."""
    honest, copied = toyruns.open_stages(run.folder), toyruns.forge(run.folder, tmp_path)
    assert [s.count("score") for s in honest] == [s.count("score") for s in copied]
    assert run.wrong(copied) == []


# Edits. Each takes the records of a stage and gives others.


def last_of(kind: str, change: Callable[[Record], Record], **values: object) -> Edit:
    """The last record of a kind with these columns, changed."""
    return lambda records: at(indices(records, kind, **values)[-1], change)(records)


def note(name: str, change: Callable[[Record], Record]) -> Edit:
    """The first note of a name, changed."""
    return lambda records: at(named(records, name)[0], change)(records)


def relabelled(records: list[Record]) -> list[Record]:
    """The fit's validation draws call themselves training draws."""
    return every("draw", lambda r: with_row(r, split=b"train") if row(r)["split"] == b"val" else r)(records)


def shifted(record: Record) -> Record:
    """Other rows in the list, as if they had been drawn."""
    listed = rows(record)
    listed["start"] += 1
    return with_rows(record, listed)


def better(record: Record) -> Record:
    """A loss that is a thousandth lower."""
    listed = rows(record)
    listed["nats"] *= 0.999
    return with_rows(record, listed)


def elsewhere(record: Record) -> Record:
    """Losses of these windows said to be those of others."""
    listed = rows(record)
    listed["begin"] = listed["begin"][::-1].copy()
    return with_rows(record, listed)


def fewer(record: Record) -> Record:
    """One draw less in a list of draws."""
    return with_rows(record, rows(record)[1:])


def without_a_step(records: list[Record]) -> list[Record]:
    """The third step with the draws and forwards before it and the updates after it left out."""
    first, last = indices(records, "step")[1], indices(records, "step")[2]
    return [r for i, r in enumerate(records) if not first < i <= last or r.kind == 0]


def digest_of_nothing(record: Record) -> Record:
    return with_row(record, digest=np.zeros(32, np.uint8))


CAUGHT: dict[str, tuple[str, str, Edit]] = {
    "draw: validation called training": ("contents", "quantize", relabelled),
    "draw: rows elsewhere": ("contents", "train", last_of("draw", shifted)),
    "draw: digest": ("contents", "train", last_of("draw", digest_of_nothing)),
    "draw: checksum": ("contents", "quantize", last_of("draw", lambda r: with_row(r, checksum=1), split=b"val")),
    "draw: length": ("contents", "train", last_of("draw", lambda r: with_row(r, length=63))),
    "draw: text of the model": ("contents", "quantize", last_of("draw", digest_of_nothing, split=b"self")),
    "draw: another id": ("replay", "train", last_of("draw", lambda r: with_row(r, draw=99))),
    "draw: left out": ("replay", "train", lambda rs: [r for i, r in enumerate(rs) if i != indices(rs, "draw")[3]]),
    "step: fewer draws": ("replay", "train", last_of("step", fewer)),
    "step: another number": ("replay", "train", last_of("step", lambda r: with_row(r, step=99))),
    "step: left out with all around it": ("replay", "train", without_a_step),
    "calibration: fewer draws": ("replay", "train", last_of("calibration", fewer)),
    "note run: another seed": ("replay", "train", note("run", lambda r: with_facts(r, seed=2))),
    "score: lower loss": ("rescore", "evaluate", last_of("score", better, label=b"sliding")),
    "score: losses of other windows": ("contents", "evaluate", last_of("score", elsewhere, label=b"sliding")),
    "score: digest": ("contents", "evaluate", last_of("score", digest_of_nothing, label=b"score_first")),
    "score: parameters": (
        "rescore",
        "evaluate",
        last_of("score", lambda r: with_row(r, parameters=1), label=b"sliding"),
    ),
}
"""Name → which of the three contradicts it, the stage it is in, and the edit."""


@pytest.mark.parametrize("name", CAUGHT)
def test_a_consistent_forgery_is_contradicted(run: Run, tmp_path: Path, name: str) -> None:
    """The edited ledger chains, is sealed, and is told by its content, with the record."""
    by, stage, edit = CAUGHT[name]
    stages = toyruns.forge(run.folder, tmp_path, **{stage: edit})
    wrong: tuple[Mismatch, ...] = getattr(run, by)(stages).mismatches
    assert wrong
    assert {one.stage for one in wrong} == {stage}
    kind = name.partition(":")[0]
    assert any(one.kind == kind for one in wrong) or by == "replay", wrong


def test_the_fit_is_traced_to_validation(run: Run, tmp_path: Path) -> None:
    """Validation draws that call themselves training are not only wrong: their place in validation is given."""
    stages = toyruns.forge(run.folder, tmp_path, quantize=relabelled)
    wrong = run.contents(stages).mismatches
    assert len(wrong) == sum(row(r)["split"] == b"val" for r in _draws(run, "quantize"))
    assert all(one.found_in["split"] == "val" for one in wrong)


def _draws(run: Run, stage: str) -> list[Record]:
    records = toyruns.records_of(run.folder, stage)
    return [records[i] for i in indices(records, "draw")]


def test_true_rows_that_the_loader_did_not_draw(run: Run, tmp_path: Path) -> None:
    """Training rows from elsewhere, with their right digest and checksum: the shards agree, the loader does not."""
    split = run.data.split("train")

    def exchanged(record: Record) -> Record:
        listed = rows(record)
        listed["start"] += 1
        drawn = split.rows(listed["shard"], listed["start"], length=int(row(record)["length"]) + 1)
        return with_rows(with_row(record, **toyruns.sums(drawn)), listed)

    stages = toyruns.forge(run.folder, tmp_path, train=last_of("draw", exchanged))
    assert run.contents(stages).mismatches == ()
    assert [one.kind for one in run.replay(stages).mismatches] == ["draw"]


def test_another_artifact_is_not_computed(run: Run, tmp_path: Path) -> None:
    """An artifact that quantize did not note is none whose losses mean anything."""
    stages = toyruns.forge(run.folder, tmp_path, quantize=note("artifact", lambda r: with_facts(r, sha256="sha256:00")))
    found = run.rescore(stages)
    assert (found.checked, found.escape, found.mismatches) == (0, 1.0, ())
    assert "the ledger of quantize has sha256:00" in found.reason


def test_a_step_before_a_score_hides_no_loss(run: Run, tmp_path: Path) -> None:
    """An update put in before the score does not keep losses of the artifact's parameters from being computed again."""

    def hidden(records: list[Record]) -> list[Record]:
        first = indices(records, "score")[0]
        update = toyruns.update(0, 1, 2)
        return last_of("score", better, label=b"sliding")([*records[:first], update, *records[first:]])

    found = run.rescore(toyruns.forge(run.folder, tmp_path, evaluate=hidden))
    assert [one.kind for one in found.mismatches] == ["score"]


def test_a_sample_of_scores_says_what_escapes(run: Run) -> None:
    """Fewer records computed, and the chance that a forged one is not among them."""
    found = run.rescore(toyruns.open_stages(run.folder), sample=2, seed=3)
    assert (found.checked, found.equal, found.mismatches) == (2, 2, ())
    assert found.escape == pytest.approx(1 - 2 / found.eligible)


def test_a_machine_that_sums_otherwise_is_no_forger(run: Run, tmp_path: Path) -> None:
    """Differences of the last bits, as another processor has them, are within what is allowed, and counted."""

    def jittered(record: Record) -> Record:
        listed = rows(record)
        listed["nats"] = np.nextafter(listed["nats"].astype(np.float32), np.float32(0))
        return with_rows(record, listed)

    found = run.rescore(toyruns.forge(run.folder, tmp_path, evaluate=last_of("score", jittered, label=b"sliding")))
    assert found.mismatches == ()
    assert found.equal == found.checked - 1
    assert 0 < found.largest < 1e-6


def test_many_small_gifts_are_no_noise(run: Run, tmp_path: Path) -> None:
    """Every loss lower by less than a window may be off: each record passes, all together don't."""

    def given(record: Record) -> Record:
        listed = rows(record)
        listed["nats"] -= 5e-5 * listed["scored"]
        return with_rows(record, listed)

    found = run.rescore(toyruns.forge(run.folder, tmp_path, evaluate=every("score", given)))
    assert found.mean == pytest.approx(5e-5)
    assert found.largest < ALLOWED["cpu"].window
    (wrong,) = found.mismatches
    assert f"the losses of {found.checked} records from this one on are 5e-05 nats per token lower" in wrong.detail


@pytest.mark.parametrize("nats", [float("nan"), float("inf"), -1.0])
def test_losses_that_are_no_numbers_are_contradicted(run: Run, tmp_path: Path, nats: float) -> None:
    """NaN compares with nothing, and yet it does not pass."""

    def broken(record: Record) -> Record:
        listed = rows(record)
        listed["nats"][0] = nats
        return with_rows(record, listed)

    found = run.rescore(toyruns.forge(run.folder, tmp_path, evaluate=last_of("score", broken, label=b"sliding")))
    assert [one.kind for one in found.mismatches] == ["score"]


# What none of the three contradicts


ESCAPES: dict[str, tuple[str, Edit]] = {
    "clock: any time": ("train", lambda records: [r._replace(now=r.now // 2) for r in records]),
    "note: phase": ("train", note("phase", lambda r: with_facts(r, name="coffee"))),
    "note: open left out": (
        "evaluate",
        lambda records: [r for i, r in enumerate(records) if i not in named(records, "open")],
    ),
    "note: weights, another reason": ("train", note("weights", lambda r: with_facts(r, why="rounding"))),
    "note: total": ("evaluate", note("total", lambda r: with_facts(r, nats=1.0))),
    "note: identity": ("train", note("identity", lambda r: with_facts(r, sources="sha256:00"))),
    "forward: checksum": ("train", last_of("forward", lambda r: with_row(r, checksum=1))),
    "forward: gradients": ("quantize", last_of("forward", lambda r: with_row(r, grad=0), grad=1)),
    "step: rate and loops": ("train", last_of("step", lambda r: with_row(r, lr=9.0, looped=0))),
    "step: collectives": ("train", last_of("step", lambda r: with_row(r, collectives=2**31))),
    "step: validation draws not used": ("quantize", last_of("step", fewer)),
    "update: fingerprints": ("train", every("update", lambda r: with_row(r, before=1, after=1))),
    "state: fingerprint": ("train", every("state", lambda r: with_row(r, parameters=1))),
    "score: label": ("evaluate", last_of("score", lambda r: with_row(r, label=b"other"), label=b"sliding")),
    "score: counted": ("evaluate", last_of("score", lambda r: with_row(r, counted=1), label=b"sliding")),
    "score: bytes": ("evaluate", last_of("score", lambda r: with_rows(r, _octets(rows(r))), label=b"sliding")),
    "score: loss after a step": ("evaluate", last_of("score", better, label=b"score_first")),
    "score: loss that is not counted": ("train", last_of("score", better)),
    "calibration: of the text of the model": ("quantize", last_of("calibration", fewer)),
}
"""What the rules, the claims, a repeated run or nobody can hold against a ledger; see docs/what-a-ledger-proves.md."""


def _octets(listed: np.ndarray) -> np.ndarray:
    listed["octets"] += 1
    return listed


@pytest.mark.parametrize("name", ESCAPES)
def test_what_escapes_data_loader_and_artifact(run: Run, tmp_path: Path, name: str) -> None:
    """These edits agree with the shards, the loader and the artifact: other evidence has to tell them, or none does."""
    stage, edit = ESCAPES[name]
    assert run.wrong(toyruns.forge(run.folder, tmp_path, **{stage: edit})) == []


def test_every_kind_of_record_is_looked_at() -> None:
    """All kinds are in one of the two lists, and lists of sequences and windows too."""
    kinds = {name.partition(":")[0].split()[0] for name in [*CAUGHT, *ESCAPES]}
    assert kinds - {"clock"} == {"note", "draw", "forward", "step", "update", "score", "state", "calibration"}
    assert set(LISTS) <= kinds
