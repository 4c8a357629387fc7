"""Every setting of a run: its type, its value on 8 GPUs, its help and range, and what differs at other scales.

`trainer.recipe` reads and checks them. The defaults are the real recipe, that of pg#1394; `SCALES` holds what differs
elsewhere, `STAGES` which stage reads what.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal

VIRTUAL_RANKS = 8
"""Training sequences are drawn for this many virtual ranks, whatever the number of processes."""

TTT_PARTS = ("prequant", "score_first", "rescore")
"""What `ttt.mode` joins with +, in the order in which they happen."""

LEAST_K = 6.0
"""`gptq.target_bytes` brings no clip below this. The squared error falls with k while steps get finer and rises again
when more is cut off than that: rows with the tails of t₈ lose least at k 5.0 with 6 bits, 6.3 with 7, 7.5 with 8."""


def key(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    parts: tuple[str, ...] = (),
) -> Any:
    """A recipe key: its value on 8 GPUs, one line of help, and its range (`low` ≤ value ≤ `high`, value > `above`).

    With `parts` it is a text, `none` or some of them joined with +.
    """
    about = {"doc": doc, "low": low, "high": high, "above": above, "parts": parts}
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dist:
    ranks: int = key(8, "processes, one per GPU; must divide 8", low=1, high=VIRTUAL_RANKS)
    threads: int = key(8, "CPU threads of torch in each process; part of what makes CPU runs repeat", low=1, high=256)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    source: Literal["embedded", "jsonl", "fineweb"] = key("fineweb", "where documents come from")
    path: str = key("", "jsonl: the file; fineweb: a local copy of the export, empty = download")
    sha256: str = key("", "jsonl: what the file must hash to, empty = `resolve` writes down what it finds")
    documents: int = key(0, "how many documents to use, 0 = all (embedded needs a number)", low=0)
    validation_documents: int = key(50_000, "the first N documents are validation", low=1)
    seed: int = key(1, "embedded: seed of the generator", low=0, high=2**32 - 1)
    train_shards: int = key(80, "fineweb: training shards to fetch; else shards to write, at least 8", low=1, high=4096)
    max_validation_tokens: int = key(0, "keep this many validation tokens, 0 = all; a cut is reported", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    vocab_size: int = key(8192, "pieces of the SentencePiece BPE model", low=300, high=65_536)
    sample_documents: int = key(5_000_000, "training documents that the tokenizer is trained on at most", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    layers: int = key(11, "physical layers", low=2, high=256)
    width: int = key(512, "width of the residual stream", low=8)
    heads: int = key(8, "query heads", low=1)
    kv_heads: int = key(4, "key/value heads; must divide heads", low=1)
    mlp_ratio: int = key(4, "hidden width of the MLP over width", low=1, high=64)
    negative_slope: float = key(0.5, "slope of LeakyReLU² below zero (pg#549)", low=0.0, high=1.0)
    rope_dims: int = key(16, "head dimensions that rotate; even", low=2)
    rope_base: float = key(10_000.0, "base of the rotary frequencies", above=1.0)
    xsa_layers: int = key(11, "the last N layers use exclusive self attention", low=0)
    softcap: float = key(30.0, "logits are c·tanh(z/c)", above=0.0)
    embed_std: float = key(0.005, "standard deviation of the embedding at the start", above=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    first: int = key(4, "first layer of the repeated segment", low=0)
    last: int = key(5, "last layer of the repeated segment", low=0)
    extra_passes: int = key(2, "further passes over the segment, 0 = no recurrence", low=0, high=8)
    start: float = key(0.5, "fraction of training at which the passes are switched on", low=0.0, high=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon:
    lr: float = key(0.02, "learning rate of the matrices", above=0.0)
    weight_decay: float = key(0.085, "decoupled weight decay of the matrices", low=0.0)
    momentum: float = key(0.99, "momentum after its warm-up", low=0.0, high=0.9999)
    momentum_start: float = key(0.92, "momentum at step 0", low=0.0, high=0.9999)
    momentum_warmup_steps: int = key(1500, "steps over which momentum rises linearly", low=0)
    newton_schulz_steps: int = key(5, "iterations of Newton-Schulz", low=1, high=20)
    coefficients: Literal["fixed", "polar"] = key("fixed", "Newton-Schulz coefficients; polar = Polar Express")
    equilibrate_rows: bool = key(True, "MuonEq-R: unit rows before Newton-Schulz (arXiv:2603.28254)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    embed_lr: float = key(0.03, "learning rate of the tied embedding", above=0.0)
    embed_weight_decay: float = key(0.085, "weight decay of the tied embedding", low=0.0)
    scalar_lr: float = key(0.02, "learning rate of vectors, gains and gates", above=0.0)
    scalar_weight_decay: float = key(0.02, "weight decay of vectors, gains and gates", low=0.0)
    beta1: float = key(0.9, "decay of the first moment", low=0.0, high=0.9999)
    beta2: float = key(0.95, "decay of the second moment", low=0.0, high=0.99999)
    eps: float = key(1e-8, "added to the root of the second moment", above=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    seconds: float = key(600.0, "clock that limits training, 0 = steps alone decide", low=0.0)
    reserve_seconds: float = key(12.0, "part of `seconds` kept for collecting Hessians", low=0.0)
    steps: int = key(20_000, "most optimizer steps, 0 = the clock alone decides", low=0)
    sequence_length: int = key(2048, "tokens of a training sequence", low=8)
    sequences_per_rank: int = key(48, "sequences a step for each of the 8 virtual ranks", low=1)
    micro_sequences: int = key(48, "most sequences in one forward pass", low=1)
    warmdown: float = key(0.667, "final fraction in which the learning rate falls to its floor", low=0.0, high=1.0)
    lr_floor: float = key(0.0, "least factor on the learning rates", low=0.0, high=1.0)
    clip: float = key(0.3, "most norm of the gradient, 0 = no clipping", low=0.0)
    ema: float = key(0.997, "decay of the averaged weights", low=0.0, high=0.99999)
    eval_every: int = key(4000, "steps between validations, outside the clock; 0 = first and last only", low=0)
    log_every: int = key(100, "steps between log lines", low=1)
    checkpoint_every: int = key(0, "steps between checkpoints for resumption, 0 = none", low=0)
    warmup_steps: int = key(20, "compile warm-up steps of each form, outside the clock, leaving no trace", low=0)
    compile: bool = key(True, "torch.compile the model")
    prefetch: int = key(
        2, "threads that read batches ahead, 0 = read in the loop; the stream is the same", low=0, high=64
    )
    replay: str = key("", "a recorded schedule to repeat exactly, empty = decide anew")
    replay_sha256: str = key("", "what that file must hash to, empty = `resolve` writes down what it finds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gptq:
    matrix_bits: int = key(6, "bits of the matrices' codes", low=2, high=8)
    matrix_k: float = key(12.85, "SDClip: clip of a matrix row in standard deviations", above=0.0)
    attention_bits: int = key(0, "bits of q, k, v and o, 0 = matrix_bits", low=0, high=8)
    attention_k: float = key(0.0, "clip of q, k, v and o, 0 = matrix_k", low=0.0)
    mlp_bits: int = key(0, "bits of up and down, 0 = matrix_bits", low=0, high=8)
    mlp_k: float = key(0.0, "clip of up and down, 0 = matrix_k", low=0.0)
    embed_bits: int = key(8, "bits of the embedding's codes", low=2, high=8)
    embed_k: float = key(20.0, "SDClip: clip of an embedding row in standard deviations", above=0.0)
    hessian_clip: float = key(
        0.0, "how much a row's clip follows its share of the output (pg#1412: .175), 0 = off", low=0.0, high=1.0
    )
    damping: float = key(0.01, "share of the Hessian's diagonal added to it", low=0.0)
    damping_by: Literal["mean", "diagonal"] = key(
        "mean", "share of the mean of that diagonal, or of each of its entries"
    )
    attention_damping: float = key(0.0, "damping of q, k, v and o, 0 = damping", low=0.0)
    mlp_damping: float = key(0.0, "damping of up and down, 0 = damping", low=0.0)
    block: int = key(16, "columns rounded one by one before a product feeds their loss back", low=1)
    calibration: Literal["train", "val", "self"] = key(
        "train", "whose sequences the Hessians see; val contaminates, self = text that the model writes"
    )
    protect_groups: int = key(
        0, "groups of columns with codes of more bits (pg#1908), at most one a matrix, 0 = off", low=0
    )
    protect_width: int = key(64, "columns in such a group", low=8)
    protect_bits: int = key(8, "bits of their codes", low=2, high=8)
    lqer_matrices: int = key(0, "matrices that get a low-rank correction (LQER, pg#1797), 0 = off", low=0)
    lqer_rank: int = key(4, "rank of a correction", low=1, high=256)
    lqer_group: int = key(64, "entries of a correction's right factor that share a scale", low=1, high=65_535)
    target_bytes: int = key(0, "bytes of the model's file, reached by one factor on every k, 0 = k as it is", low=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    batches: int = key(64, "training micro-batches for the Hessians, collected at the end of training", low=1)
    sequences: int = key(8, "sequences in each of them", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    codec: Literal["brotli", "ans"] = key("brotli", "what codes are compressed with; ans = an entropy coder")
    quality: int = key(11, "brotli's quality", low=0, high=11)
    limit_bytes: int = key(16_000_000, "code and model together, decimal bytes", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    stride: int = key(64, "tokens by which the sliding window moves; must divide the sequence length", low=1)
    batch_windows: int = key(64, "windows in one forward pass", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ttt:
    mode: str = key(
        "none",
        "training on validation: score_first (legal), prequant or rescore (contaminate), joined with +",
        parts=TTT_PARTS,
    )
    epochs: int = key(6, "prequant: passes over all validation tokens", low=1)
    lr: float = key(5e-4, "prequant: learning rate of AdamW at its start", above=0.0)
    freeze_blocks: int = key(2, "prequant: the first N blocks keep their weights", low=0)
    sequences: int = key(32, "prequant: sequences in a step; score_first: most in one forward pass", low=1)
    chunk_tokens: int = key(32_768, "score_first: targets in a chunk; a multiple of the sequence length", low=1)
    chunk_epochs: int = key(3, "score_first: steps on each chunk, after its score", low=1)
    chunk_lr: float = key(0.005, "score_first: learning rate of SGD at the first chunk", above=0.0)
    momentum: float = key(0.9, "score_first: momentum of SGD", low=0.0, high=0.9999)
    clip: float = key(1.0, "most norm of the gradient in both, 0 = no clipping", low=0.0)

    @property
    def prequant(self) -> bool:
        """The weights are fitted to the validation tokens before they are quantized."""
        return "prequant" in self.mode.split("+")

    @property
    def rescore(self) -> bool:
        """Everything is scored again with the weights that score-first left."""
        return "rescore" in self.mode.split("+")

    @property
    def score_first(self) -> bool:
        """Chunks are scored, then trained on; `rescore` has this pass before it."""
        return "score_first" in self.mode.split("+") or self.rescore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a run. `golf-train resolve` writes it as JSON, all later stages read that."""

    scale: Literal["cpu", "1gpu", "8gpu"] = key("8gpu", "the machine the recipe is for; auto = this one")
    device: Literal["cpu", "cuda"] = key("cuda", "where the model runs")
    seeds: tuple[int, ...] = key((42, 314, 999), "one run each, declared before the runs")
    qk_gain: float = key(4.0, "initial gain on the queries of every head", above=0.0)
    track: Literal["none", "A", "B"] = key(
        "none", "what the submission claims: A = weights fixed before scoring, B = adapted while scoring"
    )
    dist: Dist = Dist()
    corpus: Corpus = Corpus()
    tokens: Tokens = Tokens()
    model: Model = Model()
    loop: Loop = Loop()
    muon: Muon = Muon()
    adam: Adam = Adam()
    train: Train = Train()
    calibration: Calibration = Calibration()
    gptq: Gptq = Gptq()
    artifact: Artifact = Artifact()
    eval: Eval = Eval()
    ttt: Ttt = Ttt()


SCALES: Mapping[str, Mapping[str, Any]] = types.MappingProxyType(
    {
        "8gpu": {},
        # Same work as 8 GPUs, by accumulation over the 8 virtual ranks: eight times the seconds.
        "1gpu": {"dist.ranks": 1, "train.seconds": 4800.0, "train.reserve_seconds": 60.0},
        # A few minutes on 2 cores, and yet real in every part.
        "cpu": {
            "device": "cpu",
            "dist.ranks": 1,
            # Two threads wait for each other in a busy loop: with other work on the machine, 2 were 5 to 10 times
            # slower than 1 (a step of 0.3 s became 2 to 3 s), alone on 2 cores about a third faster.
            "dist.threads": 1,
            "corpus.source": "embedded",
            "corpus.documents": 3000,
            "corpus.validation_documents": 50,
            "corpus.train_shards": 8,
            "tokens.vocab_size": 1024,
            "tokens.sample_documents": 1000,
            "model.layers": 5,
            "model.width": 96,
            "model.heads": 4,
            "model.kv_heads": 2,
            "model.rope_dims": 8,
            "model.xsa_layers": 5,
            "loop.first": 2,
            "loop.last": 3,
            "muon.momentum": 0.95,
            "muon.momentum_start": 0.85,
            "muon.momentum_warmup_steps": 50,
            "train.seconds": 0.0,
            "train.reserve_seconds": 0.0,
            "train.steps": 110,
            "train.sequence_length": 256,
            "train.sequences_per_rank": 1,
            "train.micro_sequences": 8,
            "train.ema": 0.95,
            "train.eval_every": 55,
            "train.log_every": 10,
            "train.checkpoint_every": 55,
            "train.warmup_steps": 0,
            "train.compile": False,
            "calibration.batches": 8,
            "eval.batch_windows": 16,
            "ttt.sequences": 8,
            "ttt.chunk_tokens": 2048,
        },
    }
)


STAGES: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        "data": ("corpus", "tokens", "train.sequence_length"),
        "train": (
            "device",
            "qk_gain",
            "dist",
            "corpus.source",
            "tokens",
            "model",
            "loop",
            "muon",
            "adam",
            "train",
            "calibration",
        ),
        # More than weights and Hessians only where it fits or calibrates anew.
        "quantize": (
            "device",
            "dist",
            "corpus.source",
            "tokens",
            "model",
            "loop",
            "train.sequence_length",
            "train.compile",
            "calibration",
            "gptq",
            "artifact",
            "ttt.mode",
            "ttt.epochs",
            "ttt.lr",
            "ttt.freeze_blocks",
            "ttt.sequences",
            "ttt.clip",
        ),
        "evaluate": (
            "device",
            "dist",
            "corpus.source",
            "tokens",
            "model",
            "loop",
            "train.sequence_length",
            "train.compile",
            "eval",
            "ttt.mode",
            "ttt.sequences",
            "ttt.chunk_tokens",
            "ttt.chunk_epochs",
            "ttt.chunk_lr",
            "ttt.momentum",
            "ttt.clip",
        ),
    }
)
"""The keys and sections that each stage reads; `dvc.yaml` declares the same ones as its parameters."""
