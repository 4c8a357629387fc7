"""TRAIN-TIME and EVAL-TIME: how long the phases took that the rule set puts on a clock.

Phases tile a stage: each lasts until the next one is announced. What lies before the first one, and what the rule set
calls neutral, is named with its seconds; nothing that trains may be in it, unless the weights came back (a warm-up).
The limit is so many seconds on so many devices, so a run holds all of its devices for as long as any of its ranks
takes. Seconds differ from run to run: they are in `Ruling.clock`, and in no sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from audit.evidence import Evidence, Part, Stage
from audit.outline import Span
from audit.rules import whole
from audit.rules.judging import Classes, judge
from audit.rules.sightings import Sightings
from audit.ruleset import ALL_PHASES, Clock
from audit.splits import SHARD
from audit.verdicts import Ruling

BEFORE = "before the first phase"
UNRECORDED = "before the ledger began"
"""Starting Python, importing torch, and whatever a program does before it announces itself."""
UNPROVEN = (*whole.UNPROVEN, "no-stage", "no-phases", "unknown-phase", "clock-fell")


def clock(rule: str, evidence: Evidence) -> Ruling:
    """The ruling on the clock of this id."""
    limit, seen = evidence.ruleset.clocks[rule], Sightings()
    stages = [stage for stage in evidence.stages if stage.name in limit.stages]
    if not stages:
        seen.add("no-stage", "", f"there is no ledger of a stage {' or '.join(limit.stages)}")
    told: dict[str, Any] = {}
    total = 0.0
    for number, stage in enumerate(stages):
        on = [_part(limit, stage, part, evidence, seen) for part in stage.parts]
        seconds = max(seconds for seconds, _ in on)
        told[stage.name] = next(phases for taken, phases in on if taken == seconds)
        total += seconds
        if number:
            _late(limit, stage, seen)
    held = total * evidence.ranks
    if held > limit.device_seconds:
        detail = f"it held {evidence.ranks} devices for longer than {limit.device_seconds:,.0f} device-seconds allow"
        seen.add(limit.overrun, stages[0].title, detail, witness={"limit_device_seconds": limit.device_seconds})
    devices = f"{evidence.ranks} {'/'.join(sorted({str(stage.facts.get('device', 'unknown')) for stage in stages}))}"
    return judge(
        rule,
        Classes(fails=(limit.overrun, "steps-outside-the-clock", "gptq-after-cap"), unproven=UNPROVEN),
        (seen, whole.whole(evidence)),
        passed=f"under {limit.device_seconds:,.0f} device-seconds; {_outside(limit)}",
        reach={"limit_device_seconds": limit.device_seconds, "devices": devices, "stages": [s.name for s in stages]},
        clock={"limit_device_seconds": limit.device_seconds, "device_seconds": held, "seconds": total, "stages": told},
    )


TRAIN_TIME, EVAL_TIME = (partial(clock, rule) for rule in ("TRAIN-TIME", "EVAL-TIME"))


def _outside(limit: Clock) -> str:
    """What a pass says of the rest of the time."""
    whole = all(ALL_PHASES in phases for phases in limit.stages.values())
    return "all that the stage did is on the clock" if whole else "nothing that trains lies outside the clock"


def _part(
    limit: Clock, stage: Stage, part: Part, evidence: Evidence, seen: Sightings
) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of a rank on the clock, and where all of its seconds went."""
    outline, rank = part.outline, part.ending.rank
    if outline.backwards is not None:
        detail = "a record is older than the one before it; the clock of the machine was set, or the record was"
        seen.add("clock-fell", stage.title, detail, rank=rank, at=outline.backwards)
    before = _before(part)
    if ALL_PHASES in limit.stages[stage.name]:
        return sum(before.values()) + outline.last / 1e9, {"on": before | _seconds(outline.spans), "off": {}}
    if len(outline.spans) == 1:
        seen.add("no-phases", stage.title, f"the stage {stage.name} announced no phases", rank=rank)
    on = [span for span in outline.spans if limit.covers(stage.name, span.phase)]
    off = [span for span in outline.spans if not limit.covers(stage.name, span.phase)]
    neutral = evidence.ruleset.neutral.get(stage.name, {})
    for span in off:
        for kind, detail in _wrong(span, neutral, evidence.ruleset.name):
            seen.add(kind, stage.title, detail, rank=rank, at=span.first, witness={"phase": span.phase})
    for span in _training(off, outline.spans):
        detail = f"steps in the phase {_name(span)!r}, which is not on the clock, and the weights did not come back"
        about = {"phase": span.phase}
        kind = "steps-outside-the-clock"
        seen.add(kind, stage.title, detail, rank=rank, at=span.first, records=span.moved, witness=about)
    return sum(span.seconds for span in on), {"on": _seconds(on), "off": before | _seconds(off)}


def _before(part: Part) -> dict[str, float]:
    """Seconds between the start of the program and that of its ledger, if its note `run` tells them."""
    told = (moment.note.clock.get("seconds_before") for moment in part.outline.named("run"))
    seconds = sum(float(found) for found in told if isinstance(found, (int, float)) and 0 < found < 1e9)
    return {UNRECORDED: seconds} if seconds else {}


def _wrong(span: Span, neutral: Mapping[str, str], name: str) -> Iterator[tuple[str, str]]:
    """What speaks against a phase off the clock: class and detail."""
    if span.phase and span.phase not in neutral:
        yield "unknown-phase", f"the rule set {name} does not say whether the phase {span.phase!r} is on the clock"
    if span.records.get("calibration") and span.drawn.get("train"):
        detail = f"Hessians of training data are collected in the phase {_name(span)!r}, which is not on the clock"
        yield "gptq-after-cap", detail


def _training(off: Sequence[Span], spans: Sequence[Span]) -> Iterator[Span]:
    """Spans off the clock whose steps left a trace: the weights after it are not known to be those before it."""
    after = {id(span): following.entry for span, following in pairwise(spans)}
    for span in off:
        if span.moved and (span.entry is None or after.get(id(span)) != span.entry):
            yield span


def _late(limit: Clock, stage: Stage, seen: Sightings) -> None:
    """Training shards that a stage after the training opens outside the clock."""
    for part in stage.parts:
        for moment in part.outline.named("open"):
            name = SHARD.fullmatch(str(moment.note.facts.get("name", "")))
            span = [span for span in part.outline.spans if span.first <= moment.note.at][-1]
            if name and name[1] == "train" and not limit.covers(stage.name, span.phase):
                detail = f"the training shard {name[0]} is opened when the clock of the training has ended"
                seen.add("gptq-after-cap", stage.title, detail, rank=part.ending.rank, at=moment.note.at)


def _seconds(spans: Sequence[Span]) -> dict[str, float]:
    """Seconds by phase."""
    found: dict[str, float] = {}
    for span in spans:
        found[_name(span)] = found.get(_name(span), 0.0) + span.seconds
    return found


def _name(span: Span) -> str:
    return span.phase or BEFORE
