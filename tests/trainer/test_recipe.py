"""The recipe: what DVC writes is what the trainer reads, and what is wrong is said in one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import ruamel.yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trainer import recipe as recipes
from trainer.errors import DataError, RecipeError
from trainer.settings import LEAST_K, SCALES, STAGES, TTT_PARTS

ROOT = Path(__file__).parents[2]


def key_values() -> st.SearchStrategy[dict[str, Any]]:
    """A typed value within range for some keys each; relations between keys are kept out of the way."""
    related = {f"gptq.{n}" for n in ("attention_bits", "mlp_bits", "protect_groups", "lqer_matrices", "target_bytes")}
    free = [
        name
        for name in recipes.known_keys()
        if (name.startswith(("muon.", "adam.", "gptq.", "artifact.")) and name not in related) or name == "qk_gain"
    ]
    free += ["train.lr_floor", "train.clip", "train.replay", "corpus.path", "train.compile", "model.softcap"]
    return st.lists(st.sampled_from(sorted(free)), unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: one_value(name) for name in names})
    )


def one_value(name: str) -> st.SearchStrategy[Any]:
    wanted, about = recipes._field_type(name), recipes.known_keys()[name].metadata
    if get_origin(wanted) is Literal:
        return st.sampled_from(get_args(wanted))
    if wanted is bool:
        return st.booleans()
    if wanted is str:
        return st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029\ufeff"))
    low = about["above"] if about["low"] is None else about["low"]
    high = 1e9 if about["high"] is None else about["high"]
    if wanted is int:
        return st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=about["low"] is None, allow_subnormal=False)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        section, dot, inner = name.partition(".")
        if dot:
            tree.setdefault(section, {})[inner] = value
        else:
            tree[section] = value
    return tree


@given(key_values())
@example({"corpus.path": "on", "train.replay": "12:30"})
@example({"corpus.path": "0123", "train.replay": "1e-3"})
@example({"corpus.path": "null", "train.replay": "~", "train.compile": True, "adam.eps": 1e-05})
def test_what_dvc_writes_is_what_the_trainer_reads(
    tmp_path_factory: pytest.TempPathFactory, flat: dict[str, Any]
) -> None:
    """Any typed value written in YAML 1.2, as `dvc exp run -S` does, is read back as the same typed value."""
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    stream = io.StringIO()
    ruamel.yaml.YAML().dump({"scale": "cpu"} | nested(flat), stream)
    path.write_text(stream.getvalue(), encoding="utf-8")
    read = recipes.resolve(recipes.load(path))
    expected = recipes.resolve({"scale": "cpu"} | flat)
    assert read == expected
    tree = recipes.as_dict(read)
    for name, value in flat.items():
        section, dot, inner = name.partition(".")
        got = tree[section][inner] if dot else tree[section]
        assert (type(got), got) == (type(value), value) or value == recipes.AUTO


@pytest.mark.parametrize("text", ["0.00003", "3e-05", "3E-5", "3.0e-5"])
def test_every_spelling_of_a_small_number_is_that_number(tmp_path: Path, text: str) -> None:
    """YAML 1.1 takes `3e-05` for text; the recipe takes it for 0.00003."""
    (tmp_path / "params.yaml").write_text(f"scale: cpu\nadam:\n  eps: {text}\n")
    assert recipes.resolve(recipes.load(tmp_path / "params.yaml")).adam.eps == 3e-5


@pytest.mark.parametrize("scale", SCALES)
def test_resolving_a_resolved_recipe_changes_nothing(scale: str, tmp_path: Path) -> None:
    """recipe.json, read again by any stage, is the recipe that was written."""
    recipe = recipes.resolve({"scale": scale, "qk_gain": "5.0"})
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipes.as_dict(recipe)))
    assert recipes.resolve(recipes.load(path), gpus=3) == recipe
    assert recipes.from_dict(recipes.as_dict(recipe)) == recipe


def test_params_yaml_names_every_key_and_changes_no_default() -> None:
    """The committed params.yaml lists exactly the recipe's keys; what it does not leave to the scale is the default."""
    flat = recipes.load(ROOT / "params.yaml")
    assert list(flat) == list(recipes.known_keys())
    for scale in SCALES:
        assert recipes.resolve(flat | {"scale": scale}) == recipes.resolve({"scale": scale})


def test_params_yaml_leaves_to_the_scale_what_the_scales_set() -> None:
    """A key that a scale sets is `auto` in params.yaml, else the scale could never take effect."""
    flat = recipes.load(ROOT / "params.yaml")
    for scale, overlay in SCALES.items():
        assert {name for name in overlay if flat[name] != recipes.AUTO} == set(), scale


def test_dvc_yaml_declares_what_each_stage_reads() -> None:
    """The parameters of each stage in dvc.yaml are `recipe.STAGES`, so no key that matters escapes DVC."""
    stages = ruamel.yaml.YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    declared = {name: stages[name]["params"][0]["runs/recipe.json"] for name in STAGES}
    assert declared == {name: list(names) for name, names in STAGES.items()}


@pytest.mark.parametrize(("gpus", "scale"), [(0, "cpu"), (1, "1gpu"), (4, "1gpu"), (8, "8gpu"), (16, "8gpu")])
def test_auto_takes_the_scale_of_the_machine(gpus: int, scale: str) -> None:
    """The number of GPUs decides the scale where the recipe says auto."""
    assert recipes.resolve({}, gpus=gpus).scale == scale


def test_an_explicit_value_wins_over_the_scale() -> None:
    """A key that is set is never overwritten by the scale."""
    assert recipes.resolve({"scale": "cpu", "model.width": "64"}).model.width == 64


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("qkgain=5", "did you mean 'qk_gain'"),
        ("weight_decay=0.1", "did you mean 'muon.weight_decay'"),
        ("model.widht=64", "did you mean 'model.width'"),
        ("qk_gain=fast", "got 'fast', expected a number"),
        ("qk_gain=nan", "expected a number"),
        ("qk_gain=1e300", "expected a number"),
        ("qk_gain=-1", "expected more than 0"),
        ("model.layers=5.5", "expected a whole number"),
        ("model.layers=1", "expected at least 2"),
        ("train.compile=maybe", "expected true or false"),
        ("device=tpu", "expected cpu or cuda"),
        ("scale=9gpu", "expected auto, 8gpu, 1gpu, cpu"),
        ("dist.ranks=3", "expected a divisor of 8"),
        ("seeds=[1, 1]", "expected different numbers"),
        ("seeds=[]", "expected a list of whole numbers"),
        ("model.heads=3", "heads must divide width"),
        ("model.rope_dims=7", "expected an even number"),
        ("loop.last=9", "first ≤ last < model.layers"),
        ("eval.stride=60", "expected a divisor of train.sequence_length"),
        ("train.steps=0", "training would never end"),
        ("calibration.batches=9", "expected a multiple of 8"),
        ("corpus.source=jsonl", "corpus.path is empty"),
        ("corpus.documents=50", "expected more than corpus.validation_documents"),
        ("ttt.mode=prequent", "expected none or prequant, score_first, rescore, each at most once, joined by +"),
        ("ttt.mode=rescore+rescore", "got 'rescore+rescore', expected none or prequant, score_first, rescore"),
        ("ttt.mode=none+prequant", "expected none or prequant"),
        ("ttt.mode=prequant+", "expected none or prequant"),
        ("ttt.mode=", "expected none or prequant"),
        ("gptq.calibration=validation", "expected train or val or self"),
        ("gptq.mlp_bits=1", "expected 2 to 8, or 0 for gptq.matrix_bits = 6"),
        ("gptq.protect_width=7", "expected at least 8"),
        ("gptq.damping_by=median", "expected mean or diagonal"),
        ("gptq.target_bytes=16000000", "expected less than artifact.limit_bytes = 16000000"),
        ("artifact.codec=lzma", "expected brotli or ans"),
        ("track=C", "expected none or A or B"),
        ("ttt.momentum=1", "expected at most 0.9999"),
        ("model=3", "model is a section"),
        ("qk_gain", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(override: str, said: str) -> None:
    """Every refusal is one line that names the key, what was got and what is expected."""
    with pytest.raises(RecipeError) as refused:
        recipes.resolve(
            {"scale": "cpu"}
            | recipes.load(ROOT / "params.yaml", [override])
            | ({} if override.startswith("scale") else {"scale": "cpu"})
        )
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1, 2\n", "just text", "{}: 1", "3: 4", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    """Lists, broken YAML, bare text, odd keys and empty files give one line, not a trace."""
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(RecipeError) as refused:
        recipes.load(tmp_path / "params.yaml")
    assert "\n" not in str(refused.value)


def test_another_corpus_under_the_same_name_is_seen(tmp_path: Path) -> None:
    """resolve pins the digest of a jsonl file: a changed file changes the recipe, and a pinned recipe refuses it."""
    path = tmp_path / "documents.jsonl"
    path.write_text('{"text": "one"}\n')
    flat = {"scale": "cpu", "corpus.source": "jsonl", "corpus.path": str(path)}
    first = recipes.pin(recipes.resolve(flat))
    assert recipes.pin(first) == first
    path.write_text('{"text": "two"}\n')
    assert recipes.digest(recipes.pin(recipes.resolve(flat)), stage="data") != recipes.digest(first, stage="data")
    with pytest.raises(DataError, match=r"the recipe says sha256:"):
        recipes.pin(first)
    path.unlink()
    with pytest.raises(DataError, match="give a file that is there"):
        recipes.pin(recipes.resolve(flat))
    replay = recipes.resolve({"scale": "cpu", "train.replay": str(tmp_path / "schedule.json")})
    (tmp_path / "schedule.json").write_text("{}")
    pinned = recipes.pin(replay)
    (tmp_path / "schedule.json").write_text("{} ")
    assert recipes.digest(recipes.pin(replay), stage="train") != recipes.digest(pinned, stage="train")
    with pytest.raises(DataError, match=r"train\.replay .* the recipe says sha256:"):
        recipes.pin(pinned)
    assert recipes.pin(recipes.resolve({"scale": "cpu"})) == recipes.resolve({"scale": "cpu"})


def test_the_digest_of_a_stage_moves_with_its_keys_alone() -> None:
    """qk_gain changes what train reads and not what evaluate reads; seeds change neither."""
    base, gain, seeds = (
        recipes.resolve({"scale": "cpu"} | more) for more in ({}, {"qk_gain": "5"}, {"seeds": ["1", "2"]})
    )
    assert recipes.digest(base, stage="train") != recipes.digest(gain, stage="train")
    assert recipes.digest(base, stage="evaluate") == recipes.digest(gain, stage="evaluate")
    assert all(recipes.digest(base, stage=stage) == recipes.digest(seeds, stage=stage) for stage in STAGES)


@given(st.permutations(TTT_PARTS).flatmap(lambda parts: st.integers(1, 3).map(lambda count: tuple(parts[:count]))))
def test_a_mode_is_its_parts_in_any_order(parts: tuple[str, ...]) -> None:
    """Parts joined with + mean the same in every order; what each switches on follows from the parts alone."""
    ttt = recipes.resolve({"scale": "cpu", "ttt.mode": "+".join(parts)}).ttt
    assert ttt.mode == "+".join(sorted(parts, key=TTT_PARTS.index))
    assert (ttt.prequant, ttt.rescore) == ("prequant" in parts, "rescore" in parts)
    assert ttt.score_first == bool({"score_first", "rescore"} & set(parts)), "rescore has a score-first pass before it"


@given(st.text(st.sampled_from("+ceglnopqrstu_ "), max_size=12))
@example("score_first,rescore")
@example("PREQUANT")
def test_what_is_no_mode_is_refused(text: str) -> None:
    """Any other text is one line that names the parts."""
    if text == "none" or (set(text.split("+")) <= set(TTT_PARTS) and len(set(text.split("+"))) == text.count("+") + 1):
        return
    with pytest.raises(RecipeError, match=r"^ttt\.mode: got .*, expected none or prequant, score_first, rescore, each"):
        recipes.resolve({"scale": "cpu", "ttt.mode": text})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ttt.mode": "score_first", "ttt.chunk_tokens": "2000"}, "a multiple of train.sequence_length = 256"),
        ({"ttt.mode": "rescore", "ttt.chunk_tokens": "64"}, "a multiple of train.sequence_length = 256"),
        ({"ttt.mode": "prequant", "ttt.freeze_blocks": "6"}, "at most model.layers = 5"),
    ],
)
def test_keys_of_a_mode_are_held_to_its_relations(more: dict[str, str], said: str) -> None:
    """What a mode can't work with is refused in that mode, and lies idle in another."""
    with pytest.raises(RecipeError, match=said):
        recipes.resolve({"scale": "cpu"} | more)
    recipes.resolve({"scale": "cpu"} | more | {"ttt.mode": "none"})


@pytest.mark.parametrize(
    ("key", "value", "switch", "said"),
    [
        ("protect_width", "96", "protect_groups", "expected less than model.width = 96"),
        ("lqer_rank", "49", "lqer_matrices", "expected at most the 48 rows of k and v"),
    ],
)
def test_keys_of_an_option_are_held_to_the_model(key: str, value: str, switch: str, said: str) -> None:
    """What an option of the quantizer can't work with is refused where it is on, and lies idle where it is off."""
    flat = {"scale": "cpu", f"gptq.{key}": value}
    with pytest.raises(RecipeError, match=rf"gptq\.{key}: got {value}, {said}"):
        recipes.resolve(flat | {f"gptq.{switch}": "1"})
    recipes.resolve(flat)


@pytest.mark.parametrize(
    "narrow", [{"matrix_k": "5.9"}, {"embed_k": "5.9"}, {"attention_k": "5.9"}, {"mlp_k": "5.9", "matrix_k": "20"}]
)
def test_a_size_to_reach_needs_clips_that_wider_steps_make_smaller(narrow: dict[str, str]) -> None:
    """A role's clip below LEAST_K is refused where target_bytes is on, and is what was asked for where it is off."""
    flat = {"scale": "cpu"} | {f"gptq.{key}": value for key, value in narrow.items()}
    recipes.resolve(flat)
    with pytest.raises(RecipeError, match=r"^gptq\.target_bytes: got 9000 with a clip k of 5\.9, expected 6 or more "):
        recipes.resolve(flat | {"gptq.target_bytes": "9000"})
    assert LEAST_K == 6.0


def test_a_clip_that_no_role_has_is_not_held_against_a_size() -> None:
    """matrix_k lies idle where attention and MLP have clips of their own; LEAST_K itself is wide enough."""
    flat = {"gptq.matrix_k": "1", "gptq.attention_k": "6", "gptq.mlp_k": "6", "gptq.embed_k": "6"}
    recipes.resolve({"scale": "cpu", "gptq.target_bytes": "9000"} | flat)


def test_nothing_that_touches_validation_is_a_key_of_training() -> None:
    """Neither mode, calibration nor track moves the digest of data and training; those that read them do move."""
    base = recipes.resolve({"scale": "cpu"})
    for name, field in recipes.known_keys().items():
        if not name.startswith("ttt.") and name not in ("gptq.calibration", "track"):
            continue
        other = {"ttt.mode": "rescore+prequant", "gptq.calibration": "self", "track": "A"}.get(name)
        value = getattr(base.ttt, name.removeprefix("ttt."), None)
        changed = recipes.resolve({"scale": "cpu", name: other or str(value * 2 if value != 0.9 else 0.5)})
        moved = {stage for stage in STAGES if recipes.digest(base, stage=stage) != recipes.digest(changed, stage=stage)}
        assert not moved & {"data", "train"}, name
        assert moved or name == "track", f"{name} ({field.metadata['doc']}) is read by no stage"
