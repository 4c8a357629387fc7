"""`params.yaml` as a typed, checked `Recipe`.

Data flow: a YAML or JSON file and `KEY=VALUE` overrides become one flat mapping of dotted keys to text; `resolve`
fills every key that is absent or `auto` with the value of the scale (this machine's, unless the recipe names one),
converts each text by the type of its field, checks ranges and relations, and returns a frozen `Recipe`. `as_dict` and
`from_dict` are inverse, and resolving a resolved recipe changes nothing.

YAML is read without its implicit types (every scalar arrives as text and is converted by the field's type), because
YAML 1.1 and 1.2 readers disagree on `1e-3`, `on` and `12:30`, and DVC rewrites the file in YAML 1.2.

The defaults below are the real recipe, that of pg#1394 on 8 GPUs; `SCALES` holds what differs elsewhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainer.errors import DataError, RecipeError
from trainer.files import sha256_file

AUTO = "auto"
VIRTUAL_RANKS = 8
"""Training sequences are drawn for this many virtual ranks, whatever the number of processes."""


def key(
    default: Any, doc: str, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """A recipe key: its value on 8 GPUs, one line of help, and its range (`low` ≤ value ≤ `high`, value > `above`)."""
    return dataclasses.field(default=default, metadata={"doc": doc, "low": low, "high": high, "above": above})


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
    embed_bits: int = key(8, "bits of the embedding's codes", low=2, high=8)
    embed_k: float = key(20.0, "SDClip: clip of an embedding row in standard deviations", above=0.0)
    damping: float = key(0.01, "share of the Hessian's mean diagonal added to it", low=0.0)
    block: int = key(128, "columns per lazy update", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    batches: int = key(64, "training micro-batches for the Hessians, collected at the end of training", low=1)
    sequences: int = key(8, "sequences in each of them", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    quality: int = key(11, "brotli's quality", low=0, high=11)
    limit_bytes: int = key(16_000_000, "code and model together, decimal bytes", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    stride: int = key(64, "tokens by which the sliding window moves; must divide the sequence length", low=1)
    batch_windows: int = key(64, "windows in one forward pass", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a run. `golf-train resolve` writes it as JSON, all later stages read that."""

    scale: Literal["cpu", "1gpu", "8gpu"] = key("8gpu", "the machine the recipe is for; auto = this one")
    device: Literal["cpu", "cuda"] = key("cuda", "where the model runs")
    seeds: tuple[int, ...] = key((42, 314, 999), "one run each, declared before the runs")
    qk_gain: float = key(4.0, "initial gain on the queries of every head", above=0.0)
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
        },
    }
)


def known_keys() -> dict[str, dataclasses.Field[Any]]:
    """Every recipe key in file order, dotted (`muon.lr`), with the dataclass field that describes it."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for field in dataclasses.fields(Recipe):
        if dataclasses.is_dataclass(field.default):
            found |= {f"{field.name}.{inner.name}": inner for inner in dataclasses.fields(field.default)}
        else:
            found[field.name] = field
    return found


def load(path: Path | str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a recipe file (YAML, or the JSON of a resolved recipe) and `KEY=VALUE` overrides as flat dotted keys.

    Scalars stay text. Raises RecipeError for a file that is missing, not a mapping, or names an unknown key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"can't read the recipe {path}: {error}; give a YAML or JSON file with --config") from None
    if path.suffix == ".json":
        flat = flatten(_parse_json(text, path), where=str(path))
    else:
        flat = flatten(_parse_yaml(text, path), where=str(path))
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(f"--set {override}: expected KEY=VALUE, for instance --set qk_gain=5.0")
        flat |= flatten(
            {name.strip(): _parse_yaml(value, "--set") if name.strip() == "seeds" else value}, where="--set"
        )
    return flat


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecipeError(f"{path} is not JSON: {error}; run `golf-train resolve` again") from None


def _parse_yaml(text: str, path: Path | str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def flatten(tree: Any, *, where: str) -> dict[str, Any]:
    """Nested sections as flat dotted keys. Raises RecipeError for unknown keys, naming the nearest right one."""
    if not isinstance(tree, Mapping):
        raise RecipeError(f"{where}: expected a mapping of keys to values, got {type(tree).__name__}")
    known = known_keys()
    sections = {name.partition(".")[0] for name in known if "." in name}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if name in sections:
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}: {name} is a section, expected keys below it, got {value!r}")
            flat |= flatten({f"{name}.{inner}": leaf for inner, leaf in value.items()}, where=where)
        elif name in known:
            flat[name] = value
        else:
            raise RecipeError(f"{where}: unknown key {name!r}{_nearest(str(name), known)}")
    return flat


def _nearest(name: str, known: Iterable[str]) -> str:
    """The hint of an unknown key: the known key nearest to it, also when only its last part was written."""
    known = list(known)
    same_tail = [candidate for candidate in known if candidate.rpartition(".")[2] == name.rpartition(".")[2]]
    near = same_tail or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(known)}"


def resolve(flat: Mapping[str, Any], *, gpus: int = 0) -> Recipe:
    """A complete Recipe from flat keys (`load`), with absent and `auto` keys taken from the scale.

    `gpus` is the number of GPUs of this machine; it decides the scale where the recipe says `auto`.
    Raises RecipeError for a value of the wrong type or range, or two that contradict each other.
    """
    known = known_keys()
    scale = str(flat.get("scale", AUTO))
    if scale == AUTO:
        scale = "cpu" if gpus == 0 else "8gpu" if gpus >= VIRTUAL_RANKS else "1gpu"
    if scale not in SCALES:
        raise RecipeError(f"scale: got {scale!r}, expected auto, {', '.join(SCALES)}")
    values: dict[str, Any] = {"scale": scale}
    for name, field in known.items():
        given = flat.get(name, AUTO)
        if given == AUTO and name != "scale":
            given = SCALES[scale].get(name, field.default)
        if name != "scale":
            values[name] = _convert(name, field, given)
    recipe = _assemble(values)
    check(recipe)
    return recipe


def _assemble(values: Mapping[str, Any]) -> Recipe:
    sections: dict[str, Any] = {}
    for field in dataclasses.fields(Recipe):
        if dataclasses.is_dataclass(field.default):
            kind: Any = type(field.default)
            inner = {f.name: values[f"{field.name}.{f.name}"] for f in dataclasses.fields(kind)}
            sections[field.name] = kind(**inner)
        else:
            sections[field.name] = values[field.name]
    return Recipe(**sections)


def _field_type(name: str) -> Any:
    section, dot, inner = name.partition(".")
    owner = type(getattr(Recipe(), section)) if dot else Recipe
    return get_type_hints(owner)[inner if dot else section]


def _convert(name: str, field: dataclasses.Field[Any], given: Any) -> Any:
    """Text (or a JSON value) to the field's type, range checked."""
    wanted = _field_type(name)
    if get_origin(wanted) is tuple:
        if not isinstance(given, (list, tuple)) or not given:
            raise RecipeError(f"{name}: got {given!r}, expected a list of whole numbers such as [42, 314, 999]")
        value: Any = tuple(_number(name, item, int) for item in given)
    elif get_origin(wanted) is Literal:
        value = str(given)
        if value not in get_args(wanted):
            raise RecipeError(f"{name}: got {value!r}, expected {' or '.join(get_args(wanted))}")
    elif wanted is bool:
        value = {"true": True, "false": False}.get(str(given).lower())
        if value is None:
            raise RecipeError(f"{name}: got {given!r}, expected true or false")
    elif wanted is str:
        if not isinstance(given, str):
            raise RecipeError(f"{name}: got {given!r}, expected text")
        value = given
    else:
        value = _number(name, given, wanted)
        _check_range(name, value, field.metadata)
    return value


def _number(name: str, given: Any, wanted: type) -> Any:
    kind = "a whole number" if wanted is int else "a number"
    refused = RecipeError(f"{name}: got {given!r}, expected {kind}")
    if isinstance(given, bool) or not isinstance(given, (str, int, float)):
        raise refused
    try:
        value = wanted(given)
    except (ValueError, OverflowError):
        raise refused from None
    if not math.isfinite(value) or (wanted is int and not isinstance(given, str) and value != given):
        raise refused
    return value


def _check_range(name: str, value: float, metadata: Mapping[str, Any]) -> None:
    low, high, above = metadata["low"], metadata["high"], metadata["above"]
    if low is not None and value < low:
        raise RecipeError(f"{name}: got {value}, expected at least {low}")
    if high is not None and value > high:
        raise RecipeError(f"{name}: got {value}, expected at most {high}")
    if above is not None and value <= above:
        raise RecipeError(f"{name}: got {value}, expected more than {above}")


def check(recipe: Recipe) -> None:
    """The relations between keys. Raises RecipeError with both values and what to change."""
    model, train, loop = recipe.model, recipe.train, recipe.loop
    if VIRTUAL_RANKS % recipe.dist.ranks:
        raise RecipeError(f"dist.ranks: got {recipe.dist.ranks}, expected a divisor of {VIRTUAL_RANKS}: 1, 2, 4 or 8")
    if len(set(recipe.seeds)) != len(recipe.seeds) or min(recipe.seeds) < 0 or max(recipe.seeds) >= 2**32:
        raise RecipeError(f"seeds: got {list(recipe.seeds)}, expected different numbers from 0 to 2^32 - 1")
    if model.width % model.heads or model.heads % model.kv_heads:
        raise RecipeError(
            f"model: width {model.width}, heads {model.heads}, kv_heads {model.kv_heads}; "
            "heads must divide width and kv_heads must divide heads"
        )
    if model.rope_dims % 2 or model.rope_dims > model.width // model.heads:
        raise RecipeError(
            f"model.rope_dims: got {model.rope_dims}, expected an even number up to the head's width, "
            f"{model.width // model.heads}"
        )
    if loop.extra_passes and not loop.first <= loop.last < model.layers:
        raise RecipeError(
            f"loop: segment {loop.first} to {loop.last}, expected first ≤ last < model.layers = {model.layers}; "
            "set loop.extra_passes=0 for no recurrence"
        )
    if train.sequence_length % recipe.eval.stride:
        raise RecipeError(
            f"eval.stride: got {recipe.eval.stride}, expected a divisor of train.sequence_length "
            f"= {train.sequence_length}"
        )
    if not train.seconds and not train.steps:
        raise RecipeError("train.seconds and train.steps are both 0, so training would never end; set one of them")
    if train.seconds and train.reserve_seconds >= train.seconds:
        raise RecipeError(
            f"train.reserve_seconds: got {train.reserve_seconds}, expected less than train.seconds = {train.seconds}"
        )
    if recipe.calibration.batches % VIRTUAL_RANKS:
        raise RecipeError(
            f"calibration.batches: got {recipe.calibration.batches}, expected a multiple of {VIRTUAL_RANKS}, so that "
            "every rank collects equally many"
        )
    if recipe.corpus.source == "jsonl" and not recipe.corpus.path:
        raise RecipeError("corpus.source is jsonl but corpus.path is empty; set corpus.path=FILE")
    if recipe.corpus.source == "embedded" and recipe.corpus.documents <= recipe.corpus.validation_documents:
        raise RecipeError(
            f"corpus.documents: got {recipe.corpus.documents}, expected more than "
            f"corpus.validation_documents = {recipe.corpus.validation_documents}"
        )


def pin(recipe: Recipe) -> Recipe:
    """The recipe with the digests of the files that it names filled in, so that other content under a name is seen.

    These are a jsonl corpus and a schedule to replay. Raises DataError if one is missing, or not the one named.
    """
    corpus, train = recipe.corpus, recipe.train
    if corpus.source == "jsonl":
        corpus = dataclasses.replace(corpus, sha256=_pinned("corpus.path", corpus.path, corpus.sha256))
    if train.replay:
        digest = _pinned("train.replay", train.replay, train.replay_sha256)
        train = dataclasses.replace(train, replay_sha256=digest)
    return dataclasses.replace(recipe, corpus=corpus, train=train)


def _pinned(name: str, path: str, wanted: str) -> str:
    try:
        found = sha256_file(Path(path))
    except OSError as error:
        raise DataError(f"can't read {name} {path}: {error.strerror}; give a file that is there") from None
    if wanted not in ("", found):
        raise DataError(f"{name} {path} has {found}, the recipe says {wanted}; run `golf-train resolve` again")
    return found


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested JSON values; `from_dict` is its inverse."""
    tree = dataclasses.asdict(recipe)
    tree["seeds"] = list(recipe.seeds)
    return tree


def from_dict(tree: Mapping[str, Any]) -> Recipe:
    """A Recipe from nested values. Raises RecipeError as `resolve` does."""
    return resolve(flatten(tree, where="recipe"))


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
        "quantize": ("dist", "gptq", "artifact"),
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
        ),
    }
)
"""The keys and sections that each stage reads; `dvc.yaml` declares the same ones as its parameters."""


def digest(recipe: Recipe, *, stage: str) -> str:
    """`sha256:…` of what a stage reads of the recipe, as canonical JSON."""
    tree = as_dict(recipe)
    read: dict[str, Any] = {}
    for name in STAGES[stage]:
        value: Any = tree
        for part in name.split("."):
            value = value[part]
        read[name] = value
    text = json.dumps(read, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
