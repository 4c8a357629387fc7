"""What a run leaves, read into the dataclasses of `audit.facts` and checked.

Data flow: a JSON file becomes a tree, `audit.trees.parse` makes the dataclass of it, and the `_check_*` functions hold
the file against itself, its folder and its neighbours. Whoever gets a value from here has a checked one.

    run = read_run(Path("runs"))
    run.seeds[0].evaluate.sliding.val_bpb
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from audit.errors import RunError
from audit.facts import (
    SCORE_LABELS,
    STAGES,
    Clock,
    Contamination,
    Data,
    Evaluate,
    Pair,
    Quantize,
    Recipe,
    Run,
    SeedRun,
    Series,
    Train,
    Verified,
)
from audit.files import read_json, read_text, sha256_file
from audit.trees import parse, short

T = TypeVar("T")


def read_recipe(path: Path) -> Recipe:
    """The resolved recipe. Raises RunError if it is no recipe or its seeds are not different whole numbers."""
    remedy = "run `dvc repro resolve`"
    tree = read_json(path, remedy=remedy)

    @dataclass(frozen=True)
    class Head:
        seeds: tuple[int, ...]
        scale: str
        device: str

    head = parse(Head, tree, where=str(path), remedy=remedy)
    if not head.seeds or len(set(head.seeds)) != len(head.seeds):
        raise RunError(f"{path}: seeds is {list(head.seeds)}, expected one or more different seeds; {remedy}")
    return Recipe(seeds=head.seeds, scale=head.scale, device=head.device, tree=tree)


def read_data(path: Path) -> Data:
    """`data.json`. Raises RunError if it is damaged, of another schema, or its sums contradict its shards."""
    remedy = "run `dvc repro data`"
    data = parse(Data, read_json(path, remedy=remedy), where=str(path), remedy=remedy)
    if data.schema != 1:
        raise RunError(f"{path}: schema is {data.schema}, expected 1; {remedy}")
    for name, split in (("train", data.splits.train), ("val", data.splits.val)):
        total = sum(shard.tokens for shard in split.shards)
        if not total or total != split.tokens:
            raise RunError(
                f"{path}: split {name} has {split.tokens} tokens, its {len(split.shards)} shards hold {total}; {remedy}"
            )
    return data


def read_evaluation(folder: Path, seed: int) -> Evaluate:
    """`<folder>/<seed>/metrics.json`, consistent in itself. Raises RunError, also if it names another seed."""
    remedy = f"run `dvc repro evaluate@{seed}`"
    where = folder / str(seed) / "metrics.json"
    found = parse(Evaluate, read_json(where, remedy=remedy), where=str(where), remedy=remedy)
    _check_equal(f"{where}: seed", found.seed, seed, "its folder", remedy)
    passes = {"sequential": found.sequential, "sliding": found.sliding, "adapted": found.adapted}
    for name, score in passes.items():
        if score is None:
            continue
        if not score.tokens or not score.bytes or score.val_bpb <= 0:
            raise RunError(f"{where}: {name} has no positive tokens, bytes and val_bpb; {remedy}")
        bpb = score.val_loss_nats / math.log(2) * score.tokens / score.bytes
        _check_close(f"{where}: {name}.val_bpb", score.val_bpb, bpb, "val_loss_nats · tokens / (ln 2 · bytes)", remedy)
    if found.first_val_bpb <= 0:
        raise RunError(f"{where}: first_val_bpb is {found.first_val_bpb}, expected more than 0; {remedy}")
    _check_score(str(where), found, remedy)
    if found.contamination:
        _check_contamination(str(where), found, found.contamination, remedy)
    return found


def _check_score(where: str, found: Evaluate, remedy: str) -> None:
    """The numbers of the run are those of the pass that `score_label` names."""
    if found.score_label not in SCORE_LABELS or (found.score_label == "sliding") != (found.adapted is None):
        raise RunError(
            f"{where}: score_label is {short(found.score_label)} {'without' if found.adapted is None else 'with'} an "
            f"adapted pass, expected sliding without one, or {' or '.join(SCORE_LABELS[1:])} with one; {remedy}"
        )
    score, name = found.score, "sliding" if found.adapted is None else "adapted"
    first, margin = found.val_bpb / found.first_val_bpb, found.bigram_val_bpb - found.val_bpb
    _check_close(f"{where}: val_bpb", found.val_bpb, score.val_bpb, f"{name}.val_bpb", remedy)
    _check_close(f"{where}: val_loss_nats", found.val_loss_nats, score.val_loss_nats, f"{name}'s", remedy)
    _check_close(f"{where}: share_of_first", found.share_of_first, first, "val_bpb / first_val_bpb", remedy)
    _check_close(f"{where}: margin_under_bigram_bpb", found.margin_under_bigram_bpb, margin, "bigram - val_bpb", remedy)


def _check_contamination(where: str, found: Evaluate, told: Contamination, remedy: str) -> None:
    """What the fit was worth follows from its pairs, and the fitted side of them are the scores of this run."""
    if not found.contaminated:
        raise RunError(f"{where}: contamination is measured, but contaminated is empty, expected a reason; {remedy}")
    pairs: dict[str, tuple[Pair, float | None]] = {
        "before_quantization": (told.before_quantization, None),
        "after_quantization": (told.after_quantization, found.sequential.val_bpb),
        "after_sliding": (told.after_sliding, found.sliding.val_bpb),
    }
    for name, (pair, fitted) in pairs.items():
        worth, place = pair.reference - pair.fitted, f"{where}: contamination.{name}"
        _check_close(f"{place}.worth", pair.worth, worth, "reference - fitted", remedy)
        if fitted is not None:
            _check_close(f"{place}.fitted", pair.fitted, fitted, "the score of that pass", remedy)
    before = told.before_quantization.worth
    shares = {
        "share_survived_quantization": (told.share_survived_quantization, told.after_quantization.worth),
        "share_survived_sliding": (told.share_survived_sliding, told.after_sliding.worth),
    }
    for name, (share, worth) in shares.items():
        if (share is None) != (before == 0):
            raise RunError(f"{where}: contamination.{name} is {share} where the fit was worth {before}; {remedy}")
        if share is not None:
            # A share of next to nothing is all rounding: compare what is left, in bits per byte.
            _check_close(f"{where}: contamination.{name} · {before}", share * before, worth, "the worth after", remedy)


def read_seed(runs: Path, seed: int) -> SeedRun:
    """Everything one seed left under `runs`, each stage held against the one before it.

    Raises RunError for a file that is missing, damaged or of another seed, and for a stage that worked on something
    else than the stage before it left: the message names the stage to run again.
    """
    evaluate = read_evaluation(runs / "evaluate", seed)
    train = _read_stage(Train, runs, "train", seed)
    quantize = _read_stage(Quantize, runs, "quantize", seed)
    _check_artifact(runs, quantize)

    where, remedy = f"{runs}/evaluate/{seed}/metrics.json", f"run `dvc repro evaluate@{seed}`"
    _check_equal(f"{where}: artifact_sha256", evaluate.artifact_sha256, quantize.artifact_sha256, "quantize", remedy)
    _check_equal(f"{where}: total_bytes", evaluate.total_bytes, quantize.total_bytes, "quantize", remedy)
    _check_close(f"{where}: first_val_bpb", evaluate.first_val_bpb, train.first_val_bpb, "train", remedy)
    _check_close(f"{where}: pre_quant_val_bpb", evaluate.pre_quant_val_bpb, train.pre_quant_val_bpb, "train", remedy)

    if missing := [reason for reason in quantize.contaminated if reason not in evaluate.contaminated]:
        raise RunError(f"{where}: contaminated lacks {', '.join(missing)}, as quantize marked it; {remedy}")

    remedy = f"run `dvc repro train@{seed}`"
    folder = runs / "train" / str(seed)
    losses = read_series(folder / "train_loss.tsv", ("step", "train_loss_nats", "lr_factor"), remedy=remedy)
    validation = read_series(folder / "validation.tsv", ("step", "val_loss_nats", "val_bpb"), remedy=remedy)
    clocks = {stage: read_clock(runs, stage, seed) for stage in STAGES}
    return SeedRun(
        seed=seed,
        train=train,
        quantize=quantize,
        evaluate=evaluate,
        train_loss_nats=losses,
        val_loss_nats=validation,
        clocks=clocks,
    )


def _read_stage(kind: type[T], runs: Path, stage: str, seed: int) -> T:
    remedy = f"run `dvc repro {stage}@{seed}`"
    where = runs / stage / str(seed) / "metrics.json"
    found = parse(kind, read_json(where, remedy=remedy), where=str(where), remedy=remedy)
    _check_equal(f"{where}: seed", getattr(found, "seed"), seed, "its folder", remedy)  # noqa: B009 - T has one
    return found


def _check_artifact(runs: Path, quantize: Quantize) -> None:
    """The artifact is the one that `quantize` describes: its own bytes are counted and digested here."""
    remedy = f"run `dvc repro quantize@{quantize.seed}`"
    folder = runs / "quantize" / str(quantize.seed)
    where, model = f"{folder}/metrics.json", folder / "model.golf"
    digest = sha256_file(model, remedy=remedy)
    _check_equal(f"{where}: artifact_sha256", quantize.artifact_sha256, digest, str(model), remedy)
    _check_equal(f"{where}: model_bytes", quantize.model_bytes, model.stat().st_size, str(model), remedy)
    total = quantize.model_bytes + quantize.code_bytes
    _check_equal(f"{where}: total_bytes", quantize.total_bytes, total, "model_bytes + code_bytes", remedy)


def read_clock(runs: Path, stage: str, seed: int | None = None) -> Clock:
    """The times of one stage (of one seed). Raises RunError, also for a clock without phases."""
    member = stage if seed is None else f"{stage}@{seed}"
    remedy = f"run `dvc repro {member}`"
    where = runs / "clock" / f"clock.{member.replace('@', '.')}" / "times.json"
    clock = parse(Clock, read_json(where, remedy=remedy), where=str(where), remedy=remedy)
    _check_equal(f"{where}: stage", clock.stage, stage, "its folder", remedy)
    if seed is not None:
        _check_equal(f"{where}: seed", clock.seed, seed, "its folder", remedy)
    if not clock.phases or min(clock.total_seconds, *(phase.seconds for phase in clock.phases)) < 0:
        raise RunError(f"{where} has no phases or a negative time, expected phases of 0 seconds or more; {remedy}")
    return clock


def read_verified(runs: Path, seed: int) -> Verified:
    """What `verify` measured for a seed. Raises RunError, also for a clock that is not the sum of what it counts."""
    remedy = f"run `dvc repro verify@{seed}`"
    where = runs / "clock" / f"clock.verify.{seed}" / "times.json"
    found = parse(Verified, read_json(where, remedy=remedy), where=str(where), remedy=remedy)
    _check_equal(f"{where}: seed", found.seed, seed, "its folder", remedy)
    for rule, clock in found.clocks.items():
        if min([clock.seconds, *(spent.seconds for spent in clock.spent)]) < 0:
            raise RunError(f"{where}: {rule} has a negative time, expected 0 seconds or more; {remedy}")
        counted = math.fsum(spent.seconds for spent in clock.spent if spent.counted)
        _check_close(f"{where}: {rule}", clock.seconds, counted, "the sum of its counted phases", remedy)
    return found


def read_series(path: Path, columns: Sequence[str], *, remedy: str) -> Series:
    """The second of `columns` over the first (the step) of a tab-separated file with exactly these columns.

    Raises RunError for another header, an empty file, a cell that is no finite number, or steps that fall.
    """
    lines = read_text(path, remedy=remedy).removesuffix("\n").split("\n")
    if lines[0].split("\t") != list(columns):
        raise RunError(f"{path}: the header is {short(lines[0])}, expected {' '.join(columns)} with tabs; {remedy}")
    steps: list[int] = []
    values: list[float] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            cells = [float(cell) for cell in line.split("\t")]
            step = int(line.split("\t")[0])
        except ValueError:
            cells, step = [], -1
        if len(cells) != len(columns) or not all(map(math.isfinite, cells)) or step < (steps[-1] if steps else 0):
            raise RunError(
                f"{path}, line {number}: got {short(line)}, expected {len(columns)} finite numbers and a step that "
                f"does not fall; {remedy}"
            )
        steps.append(step)
        values.append(cells[1])
    if not steps:
        raise RunError(f"{path} has a header and no rows; {remedy}")
    return Series(steps=tuple(steps), values=tuple(values))


def read_run(runs: Path) -> Run:
    """The whole run under `runs`: recipe, data, and exactly the recipe's seeds.

    Raises RunError as its parts do, and where the seeds do not share recipe, data and source, so that a mean over
    them would be a mean over different things.
    """
    recipe = read_recipe(runs / "recipe.json")
    data_path = runs / "data" / "data.json"
    data = read_data(data_path)
    digest = sha256_file(data_path, remedy="run `dvc repro data`")
    seeds = tuple(read_seed(runs, seed) for seed in recipe.seeds)
    check_shared(runs / "evaluate", "recipe_digest", {run.seed: run.evaluate.recipe_digest for run in seeds})
    check_shared(runs / "quantize", "recipe_digest", {run.seed: run.quantize.recipe_digest for run in seeds})
    for name in ("recipe_digest", "source_digest"):
        check_shared(runs / "train", name, {run.seed: getattr(run.train, name) for run in seeds})
    for run in seeds:
        remedy = f"run `dvc repro train@{run.seed}`"
        where = f"{runs}/train/{run.seed}/metrics.json: data_digest"
        _check_equal(where, run.train.data_digest, digest, str(data_path), remedy)
        where = f"{runs}/evaluate/{run.seed}/metrics.json: bigram_val_bpb"
        _check_close(where, run.evaluate.bigram_val_bpb, data.bigram_val_bpb, str(data_path), "run `dvc repro`")
    return Run(recipe=recipe, data=data, data_digest=digest, data_clock=read_clock(runs, "data"), seeds=seeds)


def check_shared(folder: Path, name: str, values: Mapping[int, object]) -> None:
    """All seeds have the same value. Raises RunError that names the first two that differ."""
    (first, expected), *rest = values.items()
    for seed, value in rest:
        if value != expected:
            raise RunError(
                f"{folder}/{seed}/metrics.json: {name} is {short(value)}, expected {short(expected)} as seed {first} "
                f"has (a mean over seeds is of one recipe); run `dvc repro {folder.name}`"
            )


def _check_equal(where: str, got: object, expected: object, source: str, remedy: str) -> None:
    if got != expected:
        raise RunError(f"{where} is {short(got)}, expected {short(expected)} from {source}; {remedy}")


def _check_close(where: str, got: float, expected: float, source: str, remedy: str) -> None:
    """To 1e-6: files may hold rounded numbers, and a score is told to 1e-4."""
    if not math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-6):
        raise RunError(f"{where} is {got}, expected {expected} from {source}; {remedy}")
