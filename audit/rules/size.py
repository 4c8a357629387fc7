"""SIZE: code and model have at most so many bytes, and the model is the very file that the run sealed and scored."""

from __future__ import annotations

from audit.evidence import Evidence
from audit.rules.judging import Classes, judge
from audit.rules.sightings import Sightings
from audit.trees import short
from audit.verdicts import Ruling

CLASSES = Classes(
    fails=("artifact-over-cap", "artifact-differs"),
    unproven=("no-artifact", "artifact-unannounced", "code-uncounted"),
)


def size(evidence: Evidence) -> Ruling:
    """The ruling on SIZE. The model's bytes were counted; those of the code are what the run says."""
    seen, artifact, claims = Sightings(), evidence.artifact, evidence.claims
    limit = evidence.ruleset.limits.artifact_bytes
    code = claims.code_bytes if claims else None
    model = artifact.bytes if artifact else None
    if artifact is None:
        seen.add("no-artifact", "", "the artifact is not here to be counted")
    if code is None:
        seen.add("code-uncounted", "", "nobody says how many bytes the code has")
    _same(evidence, seen)
    total = (model or 0) + (code or 0)
    if total > limit:
        detail = f"model {model or 0:,} + code {code or 0:,} = {total:,} bytes, the limit is {limit:,}"
        about = {"model_bytes": model, "code_bytes": code, "limit_bytes": limit}
        seen.add("artifact-over-cap", "", detail, witness=about)
    return judge(
        "SIZE",
        CLASSES,
        (seen,),
        passed=f"model {model or 0:,} (counted) + code {code or 0:,} (claimed) = {total:,} bytes of {limit:,}",
        evidence="claims",
        reach={"model_bytes": model, "code_bytes": code, "limit_bytes": limit},
    )


def _same(evidence: Evidence, seen: Sightings) -> None:
    """The file, the note in the ledger, the seal and the reports must name one artifact."""
    artifact, claims = evidence.artifact, evidence.claims
    named: list[tuple[str, str, int, object, object]] = []
    for stage in evidence.stages:
        for rank, note in stage.notes("artifact"):
            named.append((f"stage {stage.title}", stage.title, rank, note.facts.get("sha256"), note.facts.get("bytes")))
            seal = stage.parts[rank].ending.seal
            if seal is not None:
                named.append((f"the seal of {stage.title}", stage.title, rank, seal.get("artifact"), None))
    if evidence.stages and not named:
        seen.add("artifact-unannounced", "", "no stage announced the artifact, so no ledger says that it is the run's")
    if claims is not None and claims.artifact_sha256:
        named.append(("the report", "", 0, claims.artifact_sha256, claims.model_bytes))
    for who, title, rank, digest, count in named if artifact else ():
        assert artifact is not None
        if digest != artifact.sha256 or count not in (None, artifact.bytes):
            named_, counted = short(digest), short(count)
            detail = f"{who} names {named_} of {counted} bytes, the artifact is {artifact.sha256} of {artifact.bytes}"
            about = {"named": named_, "artifact": artifact.sha256}
            seen.add("artifact-differs", title, detail, rank=rank, witness=about)
