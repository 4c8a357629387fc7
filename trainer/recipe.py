"""`params.yaml` as a typed, checked `Recipe`.

Data flow: a YAML or JSON file and `KEY=VALUE` overrides become one flat mapping of dotted keys to text; `resolve`
fills every key that is absent or `auto` with the value of the scale (this machine's, unless the recipe names one),
converts each text by the type of its field, checks ranges and relations, and returns a frozen `Recipe`. `as_dict` and
`from_dict` are inverse, and resolving a resolved recipe changes nothing.

YAML is read without its implicit types (every scalar arrives as text and is converted by the field's type), because
YAML 1.1 and 1.2 readers disagree on `1e-3`, `on` and `12:30`, and DVC rewrites the file in YAML 1.2.

The keys themselves stand in `trainer.settings`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from trainer.errors import DataError, RecipeError
from trainer.files import sha256_file
from trainer.settings import LEAST_K, SCALES, STAGES, VIRTUAL_RANKS, Recipe

AUTO = "auto"


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
        value = _joined(name, given, field.metadata["parts"]) if field.metadata["parts"] else given
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
    if not abs(value) < 1e38 or (wanted is int and not isinstance(given, str) and value != given):
        raise refused
    return value


def _joined(name: str, given: str, parts: tuple[str, ...]) -> str:
    """`none`, or some of `parts` joined with +, each once, in any order; in the order of `parts`."""
    found = given.split("+")
    if given != "none" and (not set(found) <= set(parts) or len(set(found)) != len(found)):
        raise RecipeError(f"{name}: got {given!r}, expected none or {', '.join(parts)}, each at most once, joined by +")
    return given if given == "none" else "+".join(part for part in parts if part in found)


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
    if VIRTUAL_RANKS % recipe.dist.ranks:
        raise RecipeError(f"dist.ranks: got {recipe.dist.ranks}, expected a divisor of {VIRTUAL_RANKS}: 1, 2, 4 or 8")
    if len(set(recipe.seeds)) != len(recipe.seeds) or min(recipe.seeds) < 0 or max(recipe.seeds) >= 2**32:
        raise RecipeError(f"seeds: got {list(recipe.seeds)}, expected different numbers from 0 to 2^32 - 1")
    check_model(recipe)
    check_quantizer(recipe)
    check_adaptation(recipe)
    check_training(recipe)
    if recipe.corpus.source == "jsonl" and not recipe.corpus.path:
        raise RecipeError("corpus.source is jsonl but corpus.path is empty; set corpus.path=FILE")
    if recipe.corpus.source == "embedded" and recipe.corpus.documents <= recipe.corpus.validation_documents:
        raise RecipeError(
            f"corpus.documents: got {recipe.corpus.documents}, expected more than "
            f"corpus.validation_documents = {recipe.corpus.validation_documents}"
        )


def check_model(recipe: Recipe) -> None:
    """The relations of the keys that shape the model."""
    model, loop = recipe.model, recipe.loop
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


def check_training(recipe: Recipe) -> None:
    """The relations of the keys that training, calibration and scoring run by."""
    train = recipe.train
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


def check_quantizer(recipe: Recipe) -> None:
    """The relations of the keys that shape the artifact."""
    model, gptq, limit = recipe.model, recipe.gptq, recipe.artifact.limit_bytes
    if 1 in (gptq.attention_bits, gptq.mlp_bits):
        raise RecipeError(
            f"gptq: attention_bits {gptq.attention_bits}, mlp_bits {gptq.mlp_bits}; expected 2 to 8, or 0 for "
            f"gptq.matrix_bits = {gptq.matrix_bits}"
        )
    if gptq.protect_groups and gptq.protect_width >= model.width:
        raise RecipeError(
            f"gptq.protect_width: got {gptq.protect_width}, expected less than model.width = {model.width}"
        )
    fewest = model.kv_heads * (model.width // model.heads)
    if gptq.lqer_matrices and gptq.lqer_rank > fewest:
        raise RecipeError(f"gptq.lqer_rank: got {gptq.lqer_rank}, expected at most the {fewest} rows of k and v")
    if gptq.target_bytes >= limit:
        raise RecipeError(
            f"gptq.target_bytes: got {gptq.target_bytes}, expected less than artifact.limit_bytes = {limit}, which the "
            "code counts toward too"
        )
    least = min(gptq.embed_k, gptq.attention_k or gptq.matrix_k, gptq.mlp_k or gptq.matrix_k)
    if gptq.target_bytes and least < LEAST_K:
        raise RecipeError(
            f"gptq.target_bytes: got {gptq.target_bytes} with a clip k of {least:g}, expected {LEAST_K:g} or more of "
            "every role: below that wider steps need not save bytes; raise that k, or set gptq.target_bytes=0"
        )


def check_adaptation(recipe: Recipe) -> None:
    """The relations of the keys that `ttt.mode` puts to use."""
    ttt, length, stride = recipe.ttt, recipe.train.sequence_length, recipe.eval.stride
    if ttt.prequant and ttt.freeze_blocks > recipe.model.layers:
        raise RecipeError(
            f"ttt.freeze_blocks: got {ttt.freeze_blocks}, expected at most model.layers = {recipe.model.layers}"
        )
    if ttt.score_first and (ttt.chunk_tokens % length or ttt.chunk_tokens % stride):
        raise RecipeError(
            f"ttt.chunk_tokens: got {ttt.chunk_tokens}, expected a multiple of train.sequence_length = {length} and of "
            f"eval.stride = {stride}, so that a chunk is scored whole before it is trained on"
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
