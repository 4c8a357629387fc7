"""SELF: the evaluation uses nothing but the artifact and the validation data.

Looked at: everything in the stages that score, and in the others what follows the note that seals the artifact.
Only Python code is seen by the recorder: what a C extension opens or connects is not.
"""

from __future__ import annotations

from collections.abc import Iterator

from audit.evidence import Evidence, Part, Stage
from audit.outline import Moment
from audit.rules import whole
from audit.rules.judging import Classes, judge
from audit.rules.sightings import Sightings
from audit.ruleset import Ruleset
from audit.splits import SHARD
from audit.verdicts import Ruling

MOST_NAME = 100
"""Characters of a file's or program's name."""
CLASSES = Classes(
    fails=("training-data-at-evaluation", "network-at-evaluation"),
    unproven=(*whole.UNPROVEN, "no-evaluation", "unknown-shard", "program-at-evaluation", "fork-at-evaluation"),
    notes=("accepted-program",),
)


def selfcontained(evidence: Evidence) -> Ruling:
    """The ruling on SELF."""
    seen, looked = Sightings(), 0
    if not evidence.evaluation:
        seen.add("no-evaluation", "", f"there is no ledger of a stage {evidence.ruleset.evaluation}")
    for stage in evidence.stages:
        for part in stage.parts:
            for moment in _late(stage, part, evidence.ruleset):
                looked += 1
                _outside(moment, stage, part, evidence.ruleset, seen)
    for stage in evidence.evaluation:
        for part in stage.parts:
            for span in part.outline.spans:
                if span.drawn.get("train"):
                    detail = f"{span.drawn['train']} training sequences are handed out in the phase {span.phase!r}"
                    seen.add("training-data-at-evaluation", stage.title, detail, rank=part.ending.rank, at=span.first)
    return judge(
        "SELF",
        CLASSES,
        (seen, whole.whole(evidence)),
        passed="no training shard, no address beyond this machine, no unknown program, as far as Python code goes",
        reach={"notes": looked},
    )


def _late(stage: Stage, part: Part, ruleset: Ruleset) -> Iterator[Moment]:
    """What a rank noted of the world outside, from where it counts as evaluation on."""
    sealed = part.outline.named("artifact")
    first = 0 if stage.name == ruleset.evaluation else sealed[0].note.at if sealed else None
    if first is not None:
        for moment in part.outline.named("open", "socket", "subprocess", "fork"):
            if moment.note.at >= first:
                yield moment


def _outside(moment: Moment, stage: Stage, part: Part, ruleset: Ruleset, seen: Sightings) -> None:
    note, facts = moment.note, moment.note.facts
    place = {"rank": part.ending.rank, "at": note.at}
    if note.name == "open":
        name = str(facts.get("name", ""))[:MOST_NAME]
        split = SHARD.fullmatch(name)
        if split is None:
            detail = f"the shard {name!r} is opened, whose name does not say its split"
            seen.add("unknown-shard", stage.title, detail, witness={"name": name}, **place)
        elif split[1] == "train":
            detail = f"the training shard {name} is opened"
            seen.add("training-data-at-evaluation", stage.title, detail, witness={"name": name}, **place)
    elif note.name == "socket":
        if facts.get("loopback") is not True:
            detail = f"Python's {facts.get('event', 'socket')} reaches beyond this machine"
            seen.add("network-at-evaluation", stage.title, detail, witness=dict(facts), **place)
    elif note.name == "subprocess":
        _program(moment, stage, ruleset, seen, place)
    else:
        detail = "the process forked, and what a child does stands in no ledger"
        seen.add("fork-at-evaluation", stage.title, detail, witness={}, **place)


def _program(moment: Moment, stage: Stage, ruleset: Ruleset, seen: Sightings, place: dict[str, int]) -> None:
    name, line = str(moment.note.facts.get("executable", ""))[:MOST_NAME], str(moment.note.clock.get("arguments", ""))
    accepted = any(one.name == name and one.argument in line for one in ruleset.subprocesses)
    kind = "accepted-program" if accepted else "program-at-evaluation"
    what = "which the rule set accepts" if accepted else "and what it does stands in no ledger"
    seen.add(kind, stage.title, f"the program {name} is started, {what}", witness={"executable": name}, **place)
