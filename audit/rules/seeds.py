"""SEEDS: enough runs of one configuration, whose seeds make a difference.

One run tells what its seed did (`seeds`, in `reach`); the judgements of several are held against each other (`over`):
first weights, drawn sequences and losses must differ, recipe, sources and data must not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

from audit.evidence import Evidence
from audit.rules.history import history
from audit.rules.judging import Classes, judge
from audit.rules.sightings import Sightings, many
from audit.ruleset import Ruleset
from audit.verdicts import Judgement, Ruling

RULE = "SEEDS"
ALONE = Classes(fails=(), unproven=("one-run",))
CLASSES = Classes(
    fails=("mixed-config-evidence", "same-loss"),
    unproven=("too-few-seeds", "seed-unknown", "seed-without-effect"),
)
EFFECTS = {"first_state": "first weights", "sequences": "drawn sequences"}
SAME = ("recipe", "sources", "data")


def seeds(evidence: Evidence) -> Ruling:
    """What one run says of its seed: UNPROVEN, with the facts for `over` in `reach`."""
    seen = Sightings()
    seen.add("one-run", "", "one run shows nothing about seeds")
    return judge(RULE, ALONE, (seen,), passed="", evidence="claims", reach=facts(evidence))


def facts(evidence: Evidence) -> dict[str, Any]:
    """Seed, first weights, drawn sequences, mean loss in nats, and digests of a run; null where they are not known."""
    found: dict[str, Any] = dict.fromkeys(("seed", *EFFECTS, "nats", *SAME))
    if not evidence.stages:
        return found
    first = evidence.stages[0]
    found["seed"] = first.facts.get("seed", evidence.claims.seed if evidence.claims else None)
    outline = first.parts[0].outline
    found["first_state"] = f"{outline.first_state:#018x}" if outline.first_state is not None else None
    found["sequences"] = outline.sequences if outline.records["draw"] else None
    identity = next((note.facts for _, note in first.notes("identity")), {})
    found |= {name: identity[name] for name in SAME if isinstance(identity.get(name), str)}
    totals = history(evidence).totals
    headline = evidence.claims.headline if evidence.claims else ""
    total = totals.get(headline) or next(iter(totals.values()), None)
    if total is not None and total.targets and math.isfinite(total.nats):
        found["nats"] = total.nats / total.targets
    return found


def over(judgements: Mapping[int, Judgement], ruleset: Ruleset) -> Ruling:
    """The ruling on SEEDS over the judgements of several runs, by seed."""
    seen = Sightings()
    told = {seed: _told(judgement) for seed, judgement in judgements.items()}
    if len(told) < ruleset.limits.seeds:
        detail = f"{many(len(told), 'seed')} run, {ruleset.limits.seeds} are asked for"
        seen.add("too-few-seeds", "", detail, witness={"seeds": sorted(told)})
    for seed, found in told.items():
        missing = [name for name in ("seed", *EFFECTS, "nats", *SAME) if found.get(name) is None]
        if missing or found["seed"] != seed:
            what = f"does not say its {', '.join(missing)}" if missing else f"says that its seed is {found['seed']}"
            seen.add("seed-unknown", f"seed {seed}", f"the run of seed {seed} {what}")
    for one, other in combinations(told, 2):
        _pair(one, other, told, seen)
    _configurations(told, seen)
    return judge(
        RULE,
        CLASSES,
        (seen,),
        passed=f"{len(told)} runs of one configuration that differ in first weights, drawn sequences and loss",
        evidence="claims",
        reach={f"seed {seed}": found for seed, found in told.items()},
    )


def _told(judgement: Judgement) -> dict[str, Any]:
    return dict(next((ruling.reach for ruling in judgement.rulings if ruling.id == RULE), {}))


def _pair(one: int, other: int, told: Mapping[int, Mapping[str, Any]], seen: Sightings) -> None:
    """Two seeds that leave the same mark are one measurement."""
    a, b = told[one], told[other]
    for name, what in EFFECTS.items():
        if a.get(name) is not None and a.get(name) == b.get(name):
            detail = f"seeds {one} and {other} have the same {what}, {a[name]}"
            seen.add("seed-without-effect", "", detail, witness={"seeds": [one, other], name: a[name]})
    if a.get("nats") is not None and a.get("nats") == b.get("nats"):
        detail = f"seeds {one} and {other} have the same loss, {a['nats']} nats: that is no second run"
        seen.add("same-loss", "", detail, witness={"seeds": [one, other], "nats": a["nats"]})


def _configurations(told: Mapping[int, Mapping[str, Any]], seen: Sightings) -> None:
    """All runs of a mean are of one recipe, one source and one data set."""
    for name in SAME:
        digests = Counter(found[name] for found in told.values() if found.get(name) is not None)
        if len(digests) > 1:
            usual = digests.most_common(1)[0][0]
            others = [seed for seed, found in told.items() if found.get(name) not in (None, usual)]
            detail = (
                f"the {name} of seed {others[0]} are not those of the others: a mean over them is of different things"
            )
            about = {"seeds": others, "found": told[others[0]][name], "others": usual}
            seen.add("mixed-config-evidence", "", detail, witness=about)
