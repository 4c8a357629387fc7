"""What makes a result worthless, how it is marked, and what the violation was worth.

The marks go with the artifact (its metadata), the metrics of the stages and their logs, so that no contaminated mode
can leave a result that looks clean. What prequant was worth is measured against a reference: the same checkpoint,
unfitted, through the same steps, as three pairs of bits per byte: before quantization, after it, and after it with
sliding windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.scoring import Score
from trainer.settings import Recipe

REFERENCE = "reference "
"""Before the label of every score of the unfitted reference."""


def of_artifact(recipe: Recipe) -> list[str]:
    """Why an artifact of this recipe depends on the validation tokens; empty for a clean one."""
    reasons = {"prequant": recipe.ttt.prequant, "calibration=val": recipe.gptq.calibration == "val"}
    return [reason for reason, holds in reasons.items() if holds]


def of_score(recipe: Recipe, metadata: Mapping[str, Any]) -> list[str]:
    """Why a score is worthless: what the artifact's metadata say of it, and a second scoring after adaptation."""
    return [*metadata["contaminated"], *(["rescore"] if recipe.ttt.rescore else [])]


def warning(reasons: Sequence[str]) -> str:
    """The line of the log."""
    told = ", ".join(reasons)
    return f"CONTAMINATED by {told}: validation tokens were used before the score that counts them; no valid result"


def pair(reference: float, fitted: float) -> dict[str, float]:
    """Bits per byte without and with the fit, and their difference: what the fit was worth."""
    return {"reference": reference, "fitted": fitted, "worth": reference - fitted}


def survey(before: Mapping[str, float], found: Mapping[str, Score]) -> dict[str, Any]:
    """The three pairs, and the share of the worth before quantization that is left after it (null if there was none).

    `before` is the pair of the stage quantize, `found` the scores of the stage evaluate by label.
    """
    after = {name: pair(found[REFERENCE + name].val_bpb, found[name].val_bpb) for name in ("sequential", "sliding")}
    share = {name: each["worth"] / before["worth"] if before["worth"] else None for name, each in after.items()}
    return {
        "before_quantization": dict(before),
        "after_quantization": after["sequential"],
        "after_sliding": after["sliding"],
        "share_survived_quantization": share["sequential"],
        "share_survived_sliding": share["sliding"],
    }


def describe(found: Mapping[str, Any]) -> str:
    """The line of the log about a `survey`."""
    worth = {name: found[name]["worth"] for name in ("before_quantization", "after_quantization", "after_sliding")}
    told = ", ".join(f"{bpb:+.4f} {name.replace('_', ' ')}" for name, bpb in worth.items())
    share = found["share_survived_quantization"]
    kept = "" if share is None else f"; {share:.1%} of it survived quantization"
    return f"the fit to validation was worth (bits per byte) {told}{kept}"
