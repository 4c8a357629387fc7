"""Reading a run: an honest one is read whole, and whatever is wrong ends in one line that names the stage to repeat."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import RunError
from audit.runs import read_evaluation, read_recipe, read_run, read_seed, read_verified
from tests.audit.staged import MODES

Write = Callable[..., Path]
Files = dict[str, Any]

FILES = [
    "recipe.json",
    "data/data.json",
    "clock/clock.data/times.json",
    *(
        name.format(seed=seed)
        for seed in (42, 314)
        for name in (
            "train/{seed}/metrics.json",
            "train/{seed}/train_loss.tsv",
            "train/{seed}/validation.tsv",
            "quantize/{seed}/metrics.json",
            "quantize/{seed}/model.golf",
            "evaluate/{seed}/metrics.json",
            "clock/clock.train.{seed}/times.json",
            "clock/clock.quantize.{seed}/times.json",
            "clock/clock.evaluate.{seed}/times.json",
        )
    ),
]


def failure(runs: Path) -> str:
    """The message of the error that reading ends in: one line, and it says what to run."""
    with pytest.raises(RunError) as caught:
        read_run(runs)
    message = str(caught.value)
    assert "\n" not in message
    assert "`dvc repro" in message
    return message


def test_an_honest_run_is_read_whole(write_runs: Write, tmp_path: Path) -> None:
    """Every number arrives where its name says, seeds in the recipe's order."""
    run = read_run(write_runs(tmp_path, seeds=(314, 42), val_loss_nats=(3.5, 3.25)))
    assert [seed.seed for seed in run.seeds] == [314, 42]
    assert run.seeds[0].evaluate.val_loss_nats == run.seeds[0].evaluate.sliding.val_loss_nats == 3.5
    assert run.seeds[1].quantize.model_bytes == (tmp_path / "quantize/42/model.golf").stat().st_size
    assert run.seeds[0].train_loss_nats.steps[:3] == (1, 10, 20)
    assert list(run.seeds[0].clocks) == ["train", "quantize", "evaluate"]
    assert run.data.splits.val.documents == 100
    assert run.recipe.get("model.width") == 128
    assert run.recipe.get("model.width.none") is None
    assert run.recipe.number("train.steps") == 150


def test_unknown_facts_may_be_null(write_runs: Write, tmp_path: Path) -> None:
    """A published export has no original bytes, a model without recurrence no loop step, an old run no end digests."""

    def edit(files: Files) -> None:
        files["train/42/metrics.json"]["loop_step"] = None
        del files["train/42/metrics.json"]["identity_at_end"]

    train = read_seed(write_runs(tmp_path, edit=edit), 42).train
    assert (train.loop_step, train.identity_at_end) == (None, None)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(write_runs: Write, tmp_path: Path, name: str) -> None:
    """Any file that is not there is named, with the stage that writes it."""
    (write_runs(tmp_path, seeds=(42, 314)) / name).unlink()
    assert name in failure(tmp_path)


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".golf")])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b'{"seed": 1, "seed": 2}', b"step\n"])
def test_damaged_files_are_named(write_runs: Write, tmp_path: Path, name: str, content: bytes) -> None:
    """Empty, binary, bottomless, foreign and ambiguous files are all refused by name."""
    (write_runs(tmp_path, seeds=(42, 314)) / name).write_bytes(content)
    assert name in failure(tmp_path)


def test_a_key_that_stands_twice_is_refused(write_runs: Write, tmp_path: Path) -> None:
    """Readers of JSON disagree on which of two equal keys counts, so a file may not have them."""
    path = write_runs(tmp_path) / EVALUATE
    path.write_text(path.read_text().replace("{", '{"seed": 314,', 1))
    assert "a key appears twice" in failure(tmp_path)


def put(name: str, *path: Any, value: Any) -> Callable[[Files], None]:
    """An edit of the fake files: `value` at `path` in the JSON file `name`."""

    def edit(files: Files) -> None:
        tree = files[name]
        for part in path[:-1]:
            tree = tree[part]
        tree[path[-1]] = value

    return edit


COUNTS = ("documents", "bytes", "original_bytes")
EVALUATE, TRAIN, QUANTIZE = "evaluate/314/metrics.json", "train/314/metrics.json", "quantize/314/metrics.json"
PAIR, NOTHING = {"reference": 2.0, "fitted": 1.0, "worth": 1.0}, {"reference": 1.0, "fitted": 1.0, "worth": 0.0}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put(EVALUATE, "val_bpb", value=1.0), ["val_bpb", "sliding.val_bpb", "evaluate@314"]),
        (put(EVALUATE, "val_loss_nats", value=1.0), ["val_loss_nats", "evaluate@314"]),
        (put(EVALUATE, "sliding", "bytes", value=150_000), ["sliding.val_bpb", "tokens / (ln 2 · bytes)"]),
        (put(EVALUATE, "sequential", "tokens", value=0), ["sequential", "no positive tokens"]),
        (put(EVALUATE, "share_of_first", value=0.1), ["share_of_first", "val_bpb / first_val_bpb"]),
        (put(EVALUATE, "margin_under_bigram_bpb", value=0.1), ["margin_under_bigram_bpb", "bigram"]),
        (put(EVALUATE, "first_val_bpb", value=0.0), ["first_val_bpb is 0.0", "more than 0"]),
        (put(EVALUATE, "pre_quant_val_bpb", value=1.0), ["pre_quant_val_bpb", "from train"]),
        (put(EVALUATE, "artifact_sha256", value="sha256:0"), ["artifact_sha256", "from quantize", "evaluate@314"]),
        (put(EVALUATE, "total_bytes", value=1), ["total_bytes is 1", "from quantize"]),
        (put(EVALUATE, "seed", value=42), ["seed is 42, expected 314"]),
        (put(EVALUATE, "recipe_digest", value="sha256:0"), ["recipe_digest", "seed 42", "dvc repro evaluate"]),
        (put(TRAIN, "seed", value=True), ["seed is True", "a whole number", "train@314"]),
        (put(TRAIN, "steps", value=-1), ["steps is -1"]),
        (put(TRAIN, "steps", value=1.5), ["steps is 1.5"]),
        (put(TRAIN, "first_val_bpb", value=float("nan")), ["first_val_bpb is nan", "a finite number"]),
        (put(TRAIN, "first_val_bpb", value=float("inf")), ["first_val_bpb is inf"]),
        (put(TRAIN, "first_val_bpb", value=10**400), ["first_val_bpb is 1000", "a finite number"]),
        (put(TRAIN, "attention", value=None), ["attention is None", "text"]),
        (put(TRAIN, "source_digest", value="sha256:0"), ["source_digest", "dvc repro train"]),
        (put(TRAIN, "data_digest", value="sha256:0"), ["data_digest", "dvc repro train"]),
        (put(QUANTIZE, "recipe_digest", value="sha256:0"), ["recipe_digest", "dvc repro quantize"]),
        (put(QUANTIZE, "model_bytes", value=10), ["model_bytes is 10", "model.golf", "quantize@314"]),
        (put(QUANTIZE, "code_bytes", value=10), ["total_bytes", "model_bytes + code_bytes"]),
        (put("recipe.json", "seeds", value=[]), ["seeds is []", "dvc repro resolve"]),
        (put("recipe.json", "seeds", value=[42, 42]), ["seeds is [42, 42]", "different"]),
        (put("recipe.json", "seeds", value=[42, "314"]), ["seeds[1] is '314'"]),
        (put("data/data.json", "schema", value=2), ["schema is 2, expected 1"]),
        (put("data/data.json", "bigram_val_bpb", value=9.0), ["data_digest"]),
        (put("data/data.json", "splits", "val", "shards", value=[]), ["split val has 51457 tokens", "0 shards hold 0"]),
        (put("data/data.json", "splits", "val", "tokens", value=0), ["split val has 0 tokens"]),
        (
            put("data/data.json", "splits", "val", value={"shards": [], "tokens": 0} | dict.fromkeys(COUNTS)),
            ["split val has 0 tokens, its 0 shards hold 0"],
        ),
        (put("data/data.json", "splits", "train", "shards", 7, "tokens", value=1), ["split train"]),
        (put("data/data.json", "tokenizer", value="x"), ["tokenizer is 'x', expected an object"]),
        (put("clock/clock.train.314/times.json", "phases", value=[]), ["no phases", "train@314"]),
        (put("clock/clock.train.314/times.json", "phases", 0, "seconds", value=-1.0), ["negative time"]),
        (put("clock/clock.train.314/times.json", "stage", value="data"), ["stage is 'data', expected 'train'"]),
        (put("clock/clock.train.314/times.json", "seed", value=None), ["seed is None, expected 314"]),
    ],
)
def test_a_contradiction_is_named(
    write_runs: Write, tmp_path: Path, edit: Callable[[Files], None], words: list[str]
) -> None:
    """Each planted contradiction is refused in a line that says what, where, and what to run."""
    message = failure(write_runs(tmp_path, edit=edit))
    assert [word for word in words if word not in message] == [], message


def test_an_artifact_that_was_exchanged_is_found(write_runs: Write, tmp_path: Path) -> None:
    """One changed byte of the artifact: its digest is computed from the file, not believed."""
    model = write_runs(tmp_path) / "quantize/314/model.golf"
    content = bytearray(model.read_bytes())
    content[100] ^= 1
    model.write_bytes(content)
    assert "artifact_sha256" in failure(tmp_path)


def test_a_bigram_of_other_data_is_found(write_runs: Write, tmp_path: Path) -> None:
    """An evaluation that compares with another bigram model than the data's is stale."""

    def edit(files: Files) -> None:
        row = files[EVALUATE]
        row["bigram_val_bpb"] += 0.5
        row["margin_under_bigram_bpb"] += 0.5

    assert "bigram_val_bpb" in failure(write_runs(tmp_path, edit=edit))


@pytest.mark.parametrize(
    ("mode", "edit", "words"),
    [
        ("score_first", put(EVALUATE, "score_label", value="sliding"), ["score_label is 'sliding' with an adapted"]),
        ("score_first", put(EVALUATE, "adapted", value=None), ["score_label is 'score_first' without an adapted"]),
        ("score_first", put(EVALUATE, "adapted", "val_bpb", value=1.0), ["adapted.val_bpb", "tokens / (ln 2 · bytes)"]),
        ("score_first", put(EVALUATE, "adapted", "bytes", value=0), ["adapted has no positive"]),
        ("rescore", put(EVALUATE, "score_label", value="best of both"), ["score_label is 'best of both'"]),
        ("plain", put(EVALUATE, "score_label", value="score_first"), ["score_label is 'score_first' without"]),
        ("prequant", put(EVALUATE, "contaminated", value=[]), ["contaminated is empty", "evaluate@314"]),
        ("prequant", put(EVALUATE, "contaminated", value=["rescore"]), ["contaminated lacks prequant", "evaluate@314"]),
        (
            "prequant",
            put(EVALUATE, "contamination", "after_sliding", "worth", value=1.0),
            ["after_sliding.worth is 1.0"],
        ),
        ("prequant", put(EVALUATE, "contamination", "after_sliding", "reference", value=9.0), ["after_sliding.worth"]),
        (
            "prequant",
            put(EVALUATE, "contamination", "after_quantization", value=PAIR),
            ["after_quantization.fitted is 1.0"],
        ),
        (
            "prequant",
            put(EVALUATE, "contamination", "before_quantization", value=NOTHING),
            ["where the fit was worth 0.0"],
        ),
        ("prequant", put(EVALUATE, "contamination", "share_survived_sliding", value=0.9), ["share_survived_sliding"]),
        (
            "prequant",
            put(EVALUATE, "contamination", "share_survived_quantization", value=None),
            ["quantization is None"],
        ),
    ],
)
def test_a_contradiction_about_the_score_is_named(
    write_runs: Write, tmp_path: Path, mode: str, edit: Callable[[Files], None], words: list[str]
) -> None:
    """The score is the pass that is named, and what a fit was worth follows from its pairs, or the file is refused."""
    message = failure(write_runs(tmp_path, mode=mode, edit=edit))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_a_run_is_read(write_runs: Write, tmp_path: Path, mode: str) -> None:
    """Honest or contaminated, a run that is consistent is read; judging it is the rules' matter."""
    found = read_run(write_runs(tmp_path, mode=mode)).seeds[0].evaluate
    assert found.val_bpb == found.score.val_bpb
    assert (found.score is found.sliding) == (mode not in ("score_first", "rescore"))
    assert bool(found.contaminated) == (mode in ("prequant", "calibration", "rescore"))
    assert bool(found.contamination) == (mode == "prequant")


def test_a_fit_that_was_worth_nothing_has_no_share(write_runs: Write, tmp_path: Path) -> None:
    """Where the fit changed nothing, no share of it can have survived: null is right, and read."""

    def edit(files: Files) -> None:
        survey = files[EVALUATE]["contamination"]
        survey["before_quantization"] = NOTHING
        survey.update(share_survived_quantization=None, share_survived_sliding=None)

    found = read_run(write_runs(tmp_path, mode="prequant", edit=edit)).seeds[1].evaluate.contamination
    assert found is not None
    assert (found.before_quantization.worth, found.share_survived_sliding) == (0.0, None)


EVALUATED = ("clocks", "EVAL-TIME", "spent")
VERIFIED = "clock/clock.verify.314/times.json"


def test_the_times_of_verify_are_read(write_runs: Write, tmp_path: Path) -> None:
    """Clocks by rule with what they count, seals by stage."""
    found = read_verified(write_runs(tmp_path), 314)
    assert found.clocks["TRAIN-TIME"].seconds == 42.0
    assert [spent.phase for spent in found.clocks["TRAIN-TIME"].spent if not spent.counted] == ["validation"]
    assert found.clocks["EVAL-TIME"].limit_seconds == 600.0
    assert list(found.seals) == ["train", "quantize", "evaluate"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda files: files.pop(VERIFIED), ["clock.verify.314/times.json", "dvc repro verify@314"]),
        (put(VERIFIED, "seed", value=42), ["seed is 42, expected 314"]),
        (put(VERIFIED, "clocks", "TRAIN-TIME", "seconds", value=40.0), ["TRAIN-TIME is 40.0", "its counted phases"]),
        (put(VERIFIED, *EVALUATED, 0, "seconds", value=-1.0), ["EVAL-TIME has a negative time"]),
        (put(VERIFIED, *EVALUATED, 0, "counted", value=1), ["counted is 1, expected true or false"]),
        (put(VERIFIED, "seals", value=None), ["seals is None, expected an object"]),
    ],
)
def test_damaged_times_of_verify_are_named(
    write_runs: Write, tmp_path: Path, edit: Callable[[Files], None], words: list[str]
) -> None:
    """A clock is the sum of the phases that it counts; anything else is refused with the stage to run."""
    with pytest.raises(RunError) as caught:
        read_verified(write_runs(tmp_path, edit=edit), 314)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    "row",
    ["", "160\t3.0", "160\t3.0\tnan", "160\tinf\t1.0", "9\t3.0\t1.0", "1.5\t3.0\t1.0", "160\t3.0\t1.0\t", "x\t3\t1"],
)
def test_a_damaged_row_is_named(write_runs: Write, tmp_path: Path, row: str) -> None:
    """A curve with a cut, foreign or backward row is refused with its line number."""
    runs = write_runs(tmp_path)
    with (runs / "train/42/train_loss.tsv").open("a") as stream:
        stream.write(row + "\n")
    assert "train_loss.tsv, line 18" in failure(runs)


def test_a_curve_without_rows_is_refused(write_runs: Write, tmp_path: Path) -> None:
    """A header alone is an empty measurement."""
    (write_runs(tmp_path) / "train/42/validation.tsv").write_text("step\tval_loss_nats\tval_bpb\n")
    assert "no rows" in failure(tmp_path)


def test_endless_files_are_not_read(tmp_path: Path) -> None:
    """A file longer than any honest one is refused unread."""
    path = tmp_path / "recipe.json"
    with path.open("wb") as stream:
        stream.truncate(2**26 + 1)
    with pytest.raises(RunError, match="longer than 67108864 bytes"):
        read_recipe(path)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything below a JSON value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in [(*path, key), *leaves(value, (*path, key))]]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=120)
def test_no_value_breaks_the_reader(write_runs: Write, data: st.DataObject) -> None:
    """Whatever stands at any place of the evaluation's JSON, reading succeeds or raises RunError, nothing else."""
    with tempfile.TemporaryDirectory() as name:
        mode = data.draw(st.sampled_from(["plain", "prequant", "score_first"]))
        folder = write_runs(Path(name), seeds=[42], mode=mode, only=("evaluate/",)) / "evaluate"
        path = folder / "42" / "metrics.json"
        tree = json.loads(path.read_text())
        *above, last = data.draw(st.sampled_from(leaves(tree)))
        node = tree
        for part in above:
            node = node[part]
        node[last] = value = data.draw(junk)
        path.write_text(json.dumps(tree))
        with contextlib.suppress(RunError):
            found: Any = read_evaluation(folder, 42)
            for part in above:
                found = getattr(found, part)
            read = found[last] if isinstance(found, tuple) else getattr(found, last)
            expected = tuple(value) if isinstance(value, list) else value
            assert read == expected, "a value that was read is the value that stands there"
