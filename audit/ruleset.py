"""A contest's rules as data: limits, rule ids and their texts, profiles, clocks, accepted practice, dated rulings.

    ruleset = read_ruleset(PARAMETER_GOLF)       ruleset.profile("pipeline"), ruleset.rules_of("prequant-val-ttt")

Data flow: a YAML file → text scalars (no implicit types, no aliases, no key twice) → values by the type of each field
→ `Ruleset`, whose parts are held against each other: profiles and classes may name only rules that are there. Nothing
in the file is evaluated; a key that no field has is an error, so that no limit is overlooked by a misspelling.
"""

from __future__ import annotations

import dataclasses
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from audit.errors import ManifestError, RulesetError, RunError
from audit.files import read_text
from audit.published import Published, read_published
from audit.trees import parse, short

SCHEMA = 1
PARAMETER_GOLF = Path(__file__).with_name("rulesets") / "parameter_golf.yaml"
ALL_PHASES = "*"
"""In a clock: the whole stage, with what lies before and behind its phases."""
REMEDY = "mend the rule set"


@dataclass(frozen=True, kw_only=True)
class Limits:
    artifact_bytes: int
    """Code and model together."""
    seeds: int
    improvement_nats: float
    """Per token, over a named baseline."""
    p_value: float
    cut_targets: int
    """Targets at the end of the split that may stay unscored, because windows are whole."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    text: str
    proof: str
    """What would prove it."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A limit of time: `seconds` on `devices`, over the phases of some stages."""

    seconds: float
    devices: int
    overrun: str
    """The class of a run that takes longer."""
    stages: dict[str, tuple[str, ...]]
    """Stage → phases that run against it, or `*`."""

    @property
    def device_seconds(self) -> float:
        """The same limit on one device."""
        return self.seconds * self.devices

    def covers(self, stage: str, phase: str) -> bool:
        return bool({phase, ALL_PHASES} & set(self.stages.get(stage, ())))


@dataclass(frozen=True, kw_only=True)
class Subprocess:
    """A program that evaluation may start, and a text that its arguments then hold."""

    name: str
    argument: str


@dataclass(frozen=True, kw_only=True)
class OverlapLimits:
    most_share: float
    """Of validation tokens, where nothing is known of the data: more is neither proven nor a fault."""


@dataclass(frozen=True, kw_only=True)
class Practice:
    """What merged records do."""

    text: str
    threads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the organizers ruled, and when."""

    date: str
    text: str
    threads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Ruleset:
    """See the file; fields are its keys."""

    schema: int
    name: str
    edition: str
    about: str
    repository: str
    evaluation: str
    """The stage that scores."""
    official: tuple[str, ...]
    """Corpora whose counts are published."""
    limits: Limits
    rules: dict[str, Rule]
    profiles: dict[str, tuple[str, ...]]
    classes: dict[str, tuple[str, ...]]
    clocks: dict[str, Clock]
    """By the id of the rule."""
    neutral: dict[str, dict[str, str]]
    """Stage → phase outside the clocks → why it may be."""
    contaminations: dict[str, str]
    """What a run may say against its own score, and the rule that it breaks with it; any other reason breaks C3."""
    resumed: tuple[str, ...]
    subprocesses: tuple[Subprocess, ...]
    overlap: OverlapLimits
    practices: tuple[Practice, ...]
    rulings: tuple[Decision, ...]
    published_splits: dict[str, Published]

    def profile(self, name: str) -> tuple[str, ...]:
        """The rules that a profile requires. Raises RulesetError that names the profiles there are."""
        if name not in self.profiles:
            raise RulesetError(f"got profile {name!r}, the rule set {self.name} has {', '.join(self.profiles)}")
        return self.profiles[name]

    def rules_of(self, violation: str) -> tuple[str, ...]:
        """The rules that a class of violations breaks. Raises RulesetError for a class that is not in it."""
        if violation not in self.classes:
            raise RulesetError(f"got class {violation!r}, the rule set {self.name} does not know it; {REMEDY}")
        return self.classes[violation]

    def thread(self, number: int) -> str:
        """The address of a thread that a ruling or practice rests on."""
        return f"https://github.com/{self.repository}/issues/{number}"


def read_ruleset(path: Path = PARAMETER_GOLF) -> Ruleset:
    """A rule set from its file. Raises RulesetError for a file that is damaged, newer, or contradicts itself."""
    try:
        text = read_text(path, remedy="give a rule set with --ruleset")
        tree = yaml.load(text, Loader=_Plain)
    except RunError as cause:
        raise RulesetError(str(cause)) from None
    except (yaml.YAMLError, RecursionError) as cause:
        raise RulesetError(f"{path} is not plain YAML: {' '.join(str(cause).split())}; {REMEDY}") from None
    return parse_ruleset(tree, where=str(path))


def parse_ruleset(tree: Any, *, where: str) -> Ruleset:
    """A rule set from nested text. Raises as `read_ruleset` does."""
    values = _typed(Ruleset, tree, where)
    try:
        found = parse(Ruleset, values, where=where, remedy=REMEDY)
        published = read_published(values["published_splits"], where=f"{where}: published_splits")
    except (RunError, ManifestError) as cause:
        raise RulesetError(str(cause)) from None
    if found.schema != SCHEMA:
        raise RulesetError(f"{where}: schema is {found.schema}, this reads {SCHEMA}; use another golf-audit")
    _check(found, where)
    return dataclasses.replace(found, published_splits=published)


def _check(ruleset: Ruleset, where: str) -> None:
    """Nothing may name a rule that is not there, and no profile may require nothing."""
    named = {f"profile {name}": ids for name, ids in ruleset.profiles.items()}
    named |= {f"class {name}": ids for name, ids in ruleset.classes.items()}
    named |= {f"clock {name}": (name,) for name in ruleset.clocks}
    named |= {f"contamination {name}": (rule,) for name, rule in ruleset.contaminations.items()}
    for what, ids in named.items():
        unknown = [rule for rule in ids if rule not in ruleset.rules]
        if unknown or not ids or len(set(ids)) != len(ids):
            raise RulesetError(
                f"{where}: {what} names {', '.join(unknown or ids) or 'no rule'}, expected different ones of "
                f"{', '.join(ruleset.rules)}; {REMEDY}"
            )
    for rule, clock in ruleset.clocks.items():
        if clock.overrun not in ruleset.classes or not clock.stages or clock.seconds <= 0 or not clock.devices:
            raise RulesetError(f"{where}: clock {rule} has no class, stage, seconds or devices that it can judge by")


def _typed(kind: Any, given: Any, where: str) -> Any:
    """Text scalars as JSON values of the type `kind`; what does not fit stays text, for `parse` to refuse."""
    if get_origin(kind) in (Union, types.UnionType):
        inner = next(one for one in get_args(kind) if one is not type(None))
        return None if given == "null" else _typed(inner, given, where)
    if dataclasses.is_dataclass(kind) and isinstance(given, dict):
        hints = get_type_hints(kind)
        unknown = [key for key in given if key not in hints]
        if unknown:
            raise RulesetError(f"{where}: unknown key {short(unknown[0])}; the keys are {', '.join(hints)}")
        return {key: _typed(hints[key], value, f"{where}: {key}") for key, value in given.items()}
    if get_origin(kind) is dict and isinstance(given, dict):
        return {key: _typed(get_args(kind)[1], value, f"{where}: {key}") for key, value in given.items()}
    if get_origin(kind) is tuple and isinstance(given, list):
        return [_typed(get_args(kind)[0], value, where) for value in given]
    if kind is int and isinstance(given, str) and re.fullmatch(r"[0-9]{1,18}", given):
        return int(given)
    if kind is float and isinstance(given, str) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?(e-?[0-9]{1,2})?", given):
        return float(given)
    return given


class _Plain(yaml.BaseLoader):
    """YAML with text scalars alone; an alias, which can make little text into much, and a key twice are errors."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias in line {self.line + 1}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep=deep)
        if len(found) != len(node.value):
            raise yaml.YAMLError(f"a key twice in the mapping of line {node.start_mark.line + 1}")
        return found
