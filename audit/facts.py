"""What the files of a run hold, as frozen dataclasses; `audit.runs` reads and checks them.

Numbers carry their unit in their name: nats are per token, `bpb` is bits per byte of normalized UTF-8 text, `bytes`
are decimal, `tokens` and `documents` are counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audit.trees import value_of

STAGES = ("train", "quantize", "evaluate")
"""The stages that run once for each seed, in their order."""
SCORE_LABELS = ("sliding", "score_first", "rescore")
"""The passes over the validation split that can be the score: `Evaluate.score_label`."""


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
        return 0 if value is None else float(value_of(float, value, where, remedy))


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
    contaminated: tuple[str, ...]
    """Why the artifact depends on validation tokens; empty for a clean one."""


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
class Pair:
    """Bits per byte without and with the fit to validation, and their difference."""

    reference: float
    fitted: float
    worth: float


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """What a fit to the validation tokens was worth at three points, against the same weights without it."""

    before_quantization: Pair
    after_quantization: Pair
    after_sliding: Pair
    share_survived_quantization: float | None
    """Of the worth before quantization, null where that is 0."""
    share_survived_sliding: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """`runs/evaluate/<seed>/metrics.json`."""

    seed: int
    recipe_digest: str
    artifact_sha256: str
    total_bytes: int
    sequential: Score
    sliding: SlidingScore
    score_label: str
    """Which of `SCORE_LABELS` is the score: `val_bpb` is that of `sliding` or of `adapted`."""
    adapted: SlidingScore | None
    """The pass that adapted while it scored, or scored again after it; null without one."""
    contaminated: tuple[str, ...]
    """Why the score is none; empty for a clean one."""
    contamination: Contamination | None
    val_bpb: float
    val_loss_nats: float
    pre_quant_val_bpb: float
    first_val_bpb: float
    bigram_val_bpb: float
    share_of_first: float
    margin_under_bigram_bpb: float

    @property
    def score(self) -> SlidingScore:
        """The pass that is the score."""
        return self.adapted or self.sliding


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
class Spent:
    """Seconds of one phase of a stage, and whether a rule's clock counts them."""

    stage: str
    phase: str
    seconds: float
    counted: bool


@dataclass(frozen=True, kw_only=True)
class RuleClock:
    """The seconds behind TRAIN-TIME or EVAL-TIME: `seconds` are those of the counted phases."""

    seconds: float
    limit_seconds: float | None
    """On as many devices as the run had."""
    spent: tuple[Spent, ...]


@dataclass(frozen=True, kw_only=True)
class Verified:
    """`runs/clock/clock.verify.<seed>/times.json`: the clocks of the rules, and the seals of the ledgers read."""

    seed: int
    clocks: dict[str, RuleClock]
    """By rule."""
    seals: dict[str, str]
    """By stage."""


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
