"""What a run leaves, read into frozen dataclasses and checked.

Data flow: a JSON file becomes a tree, `parse` makes the dataclass of it (the fields are the schema: a key that is
missing, of another type or not finite is an error; keys that nobody reads are let pass), and the `_check_*` functions
hold the file against itself, its folder and its neighbours. Whoever gets a value from here has a checked one.

    run = read_run(Path("runs"))
    run.seeds[0].evaluate.sliding.val_bpb

Numbers carry their unit in their name: nats are per token, `bpb` is bits per byte of normalized UTF-8 text, `bytes`
are decimal, `tokens` and `documents` are counts.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from audit.errors import RunError
from audit.files import read_json, read_text, sha256_file

T = TypeVar("T")
STAGES = ("train", "quantize", "evaluate")
"""The stages that run once for each seed, in their order."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`runs/recipe.json`: the keys that the audit needs, and the whole tree to show."""

    seeds: tuple[int, ...]
    scale: str
    device: str
    tree: Mapping[str, Any]

    def get(self, dotted: str) -> Any:
        """The value of `section.key`, None where the recipe has no such key."""
        value: Any = self.tree
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def number(self, dotted: str) -> float:
        """The number `section.key`, 0 where the recipe has no such key. Raises RunError if it is no number."""
        value = self.get(dotted)
        where, remedy = f"recipe.json: {dotted}", "run `dvc repro resolve`"
        return 0 if value is None else float(_value(float, value, where, remedy))


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    shards: tuple[ShardFacts, ...]
    documents: int | None
    tokens: int
    bytes: int | None
    """UTF-8 bytes of the normalized text: what bits per byte divides by."""
    original_bytes: int | None
    """UTF-8 bytes before normalization, null where only tokens were published."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    train: SplitFacts
    val: SplitFacts


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    name: str
    sha256: str
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """`runs/data/data.json`."""

    schema: int
    source: str
    tokenizer: TokenizerFacts
    splits: Splits
    duplicates_dropped: int | None
    normalized_share: float | None
    """Normalized over original bytes of both splits."""
    bigram_val_bpb: float


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a training worked with, by digest."""

    recipe_digest: str
    source_digest: str
    data_digest: str


@dataclass(frozen=True, kw_only=True)
class Train:
    """`runs/train/<seed>/metrics.json`."""

    seed: int
    recipe_digest: str
    data_digest: str
    source_digest: str
    parameters: int
    steps: int
    loop_step: int | None
    train_tokens: int
    first_val_bpb: float
    first_val_loss_nats: float
    pre_quant_val_bpb: float
    pre_quant_val_loss_nats: float
    calibration_sequences: int
    attention: str
    identity_at_end: Identity | None = None
    """The digests once more, taken when the training ended."""


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """`runs/quantize/<seed>/metrics.json`."""

    seed: int
    recipe_digest: str
    artifact_sha256: str
    model_bytes: int
    code_bytes: int
    total_bytes: int
    limit_bytes: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """One way of scoring the validation split; `tokens` and `bytes` are those of the scored targets."""

    val_loss_nats: float
    val_bpb: float
    tokens: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class SlidingScore(Score):
    stride: int


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """`runs/evaluate/<seed>/metrics.json`."""

    seed: int
    recipe_digest: str
    artifact_sha256: str
    total_bytes: int
    sequential: Score
    sliding: SlidingScore
    val_bpb: float
    val_loss_nats: float
    pre_quant_val_bpb: float
    first_val_bpb: float
    bigram_val_bpb: float
    share_of_first: float
    margin_under_bigram_bpb: float


@dataclass(frozen=True, kw_only=True)
class Phase:
    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Clock:
    """`runs/clock/clock.<stage>.<seed>/times.json`; `seed` is null for the stage `data`."""

    stage: str
    phases: tuple[Phase, ...]
    total_seconds: float
    seed: int | None = None
    tokens_per_second: float | None = None
    peak_memory_mib: float | None = None
    training_clock_seconds: float | None = None
    """What the contest's limit on training counts: without warm-up and validation."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve: `steps` never falls, and `values` has one number for each of them."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """Everything that the report tells about one seed."""

    seed: int
    train: Train
    quantize: Quantize
    evaluate: Evaluate
    train_loss_nats: Series
    val_loss_nats: Series
    clocks: Mapping[str, Clock]
    """By stage, in the order of `STAGES`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole pipeline run: the recipe, the data, and the recipe's seeds in the recipe's order."""

    recipe: Recipe
    data: Data
    data_digest: str
    data_clock: Clock
    seeds: tuple[SeedRun, ...]


def parse(kind: type[T], tree: Any, *, where: str, remedy: str) -> T:
    """A `kind` (a dataclass) from a JSON value. Raises RunError that names the key, what it is and should be."""
    if not isinstance(tree, dict):
        raise RunError(f"{where} is {_short(tree)}, expected an object; {remedy}")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is always a dataclass here
        if field.name in tree:
            values[field.name] = _value(hints[field.name], tree[field.name], f"{where}: {field.name}", remedy)
        elif field.default is dataclasses.MISSING:
            raise RunError(f"{where}: {field.name} is missing; {remedy}")
    return kind(**values)


def _value(kind: Any, given: Any, where: str, remedy: str) -> Any:
    """One JSON value as the annotation `kind` wants it: str, int ≥ 0, finite float, tuple, dict, dataclass or None."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(inner for inner in get_args(kind) if inner is not type(None))
        return None if given is None else _value(kind, given, where, remedy)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return parse(kind, given, where=where, remedy=remedy)
    if get_origin(kind) is tuple and isinstance(given, list):
        return tuple(_value(get_args(kind)[0], item, f"{where}[{i}]", remedy) for i, item in enumerate(given))
    if get_origin(kind) is dict and isinstance(given, dict):
        return {name: _value(get_args(kind)[1], item, f"{where}.{name}", remedy) for name, item in given.items()}
    if kind is str and isinstance(given, str):
        return given
    if kind is int and isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**63:
        return given
    if kind is float and isinstance(given, (int, float)) and not isinstance(given, bool) and abs(given) < 2**1000:
        return given
    wanted = {
        str: "text",
        int: "a whole number from 0 to 2^63 - 1",
        float: "a finite number",
        tuple: "a list",
        dict: "an object",
    }
    raise RunError(f"{where} is {_short(given)}, expected {wanted[get_origin(kind) or kind]}; {remedy}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    for name, score in (("sequential", found.sequential), ("sliding", found.sliding)):
        if not score.tokens or not score.bytes or score.val_bpb <= 0:
            raise RunError(f"{where}: {name} has no positive tokens, bytes and val_bpb; {remedy}")
        bpb = score.val_loss_nats / math.log(2) * score.tokens / score.bytes
        _check_close(f"{where}: {name}.val_bpb", score.val_bpb, bpb, "val_loss_nats · tokens / (ln 2 · bytes)", remedy)
    if found.first_val_bpb <= 0:
        raise RunError(f"{where}: first_val_bpb is {found.first_val_bpb}, expected more than 0; {remedy}")
    first, margin = found.val_bpb / found.first_val_bpb, found.bigram_val_bpb - found.val_bpb
    _check_close(f"{where}: val_bpb", found.val_bpb, found.sliding.val_bpb, "sliding.val_bpb", remedy)
    _check_close(f"{where}: val_loss_nats", found.val_loss_nats, found.sliding.val_loss_nats, "sliding's", remedy)
    _check_close(f"{where}: share_of_first", found.share_of_first, first, "val_bpb / first_val_bpb", remedy)
    _check_close(f"{where}: margin_under_bigram_bpb", found.margin_under_bigram_bpb, margin, "bigram - val_bpb", remedy)
    return found


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


def read_series(path: Path, columns: Sequence[str], *, remedy: str) -> Series:
    """The second of `columns` over the first (the step) of a tab-separated file with exactly these columns.

    Raises RunError for another header, an empty file, a cell that is no finite number, or steps that fall.
    """
    lines = read_text(path, remedy=remedy).removesuffix("\n").split("\n")
    if lines[0].split("\t") != list(columns):
        raise RunError(f"{path}: the header is {_short(lines[0])}, expected {' '.join(columns)} with tabs; {remedy}")
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
                f"{path}, line {number}: got {_short(line)}, expected {len(columns)} finite numbers and a step that "
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


def check_shared(folder: Path, name: str, values: Mapping[int, str]) -> None:
    """All seeds have the same digest. Raises RunError that names the first two that differ."""
    (first, expected), *rest = values.items()
    for seed, value in rest:
        if value != expected:
            raise RunError(
                f"{folder}/{seed}/metrics.json: {name} is {_short(value)}, expected {_short(expected)} as seed {first} "
                f"has (a mean over seeds is of one recipe); run `dvc repro {folder.name}`"
            )


def _check_equal(where: str, got: object, expected: object, source: str, remedy: str) -> None:
    if got != expected:
        raise RunError(f"{where} is {_short(got)}, expected {_short(expected)} from {source}; {remedy}")


def _check_close(where: str, got: float, expected: float, source: str, remedy: str) -> None:
    """To 1e-6: files may hold rounded numbers, and a score is told to 1e-4."""
    if not math.isclose(got, expected, rel_tol=1e-6, abs_tol=1e-6):
        raise RunError(f"{where} is {got}, expected {expected} from {source}; {remedy}")
