"""What of a run was computed again, and what was not, in so many words: a verdict rests on no more than this.

    told = again(contents, replay, requantized, rescored)      by `audit.verify`, into the subject of the judgement
    for what, text in lines(judgement): …                      for a terminal and the report

None is what nobody was asked for: rows without data, and all that needs recipe and artifact where ledgers are given as
folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from audit.evidence import Contents, Replay
from audit.rules.sightings import many
from audit.verdicts import Judgement

if TYPE_CHECKING:
    from audit.requantize import Requantized
    from audit.rescore import Rescored

KEY = "computed_again"
"""In the subject of a judgement."""
WITH_SEED = "not done; it takes the recipe and the artifact, which only `verify --seed` reads"


def again(
    contents: Contents | None, replay: Replay | None, requantized: Requantized | None, rescored: Rescored | str | None
) -> dict[str, str]:
    """By what could be computed again: how much was, or `not done; …` and why."""
    found = {
        "rows of the shards": "not done; give the data with --data",
        "draws of the loader": WITH_SEED,
        "artifact": WITH_SEED,
        "losses of the artifact": WITH_SEED,
    }
    if contents is not None:
        found["rows of the shards"] = f"read for {contents.checked:,} of {contents.drawn:,} draws and scores"
    if replay is not None:
        done = f"{many(replay.steps, 'step')}, {many(replay.draws, 'draw')}"
        found["draws of the loader"] = _done(done, replay.reason)
    if requantized is not None:
        done = f"{requantized.differing:,} of {many(requantized.numbers, 'number')} differ"
        found["artifact"] = _done(done, requantized.reason)
    if isinstance(rescored, str):
        found["losses of the artifact"] = rescored
    elif rescored is not None:
        done = f"{rescored.checked:,} of {many(rescored.eligible, 'score record')}, {rescored.equal:,} equal to the bit"
        found["losses of the artifact"] = _done(done, rescored.reason)
    return found


def _done(done: str, reason: str) -> str:
    return f"not done; {reason}" if reason else done


def lines(judgement: Judgement) -> list[tuple[str, str]]:
    """(what, how much of it was computed again), by seed where seeds differ; none of a judgement that doesn't say."""
    seeds = judgement.subject.get("seeds")
    subjects = seeds if isinstance(seeds, Mapping) else {"": judgement.subject}
    told = {seed: subject.get(KEY) for seed, subject in subjects.items() if isinstance(subject, Mapping)}
    whole = {seed: found for seed, found in told.items() if isinstance(found, Mapping)}
    rows = []
    for what in dict.fromkeys(str(key) for found in whole.values() for key in found):
        texts = {seed: str(found.get(what, "not said")) for seed, found in whole.items()}
        same = set(texts.values())
        rows.append((what, same.pop() if len(same) == 1 else "; ".join(f"seed {s}: {t}" for s, t in texts.items())))
    return rows
