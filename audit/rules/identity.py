"""DATA, and what a run is made from: digests of recipe, sources and data at its start, its end, and in its reports.

The data are what they claim to be if their files are those of a manifest, the digest that every stage announces is that
of these data, and a run on the official corpus has the published counts. Validation text in training is a fault where
there is more of it than is known of a published export, or where it lies in one stretch of documents: the mark of a
split that was cut elsewhere. Else the ruling states how much there is, because natural text repeats itself.
"""

from __future__ import annotations

from audit.evidence import Evidence, Identity, Overlap, Stage
from audit.rules.judging import Classes, judge
from audit.rules.sightings import Sightings
from audit.trees import short
from audit.verdicts import Ruling

UNPROVEN = ("changed-while-running", "no-identity")
"""Classes of `changed`."""
CLASSES = Classes(
    fails=(
        "manifest-differs",
        "data-digest-differs",
        "published-counts-differ",
        "train-val-overlap",
        "overlap-above-known",
    ),
    unproven=(*UNPROVEN, "manifest-unchecked", "overlap-unknown", "overlap-high"),
)
DIGESTS = ("recipe", "sources", "data")
SHARED = ("sources", "data")
"""Digests that all stages have in common; that of the recipe covers what a stage reads of it."""


def changed(evidence: Evidence) -> Sightings:
    """Digests that are not the same at the start and the end of a stage, or in two stages."""
    seen, before = Sightings(), dict[str, tuple[str, str]]()
    for stage in evidence.stages:
        _within(stage, seen)
        for rank, note in stage.notes("identity"):
            for name in SHARED:
                if not isinstance(digest := note.facts.get(name), str):
                    continue
                other, where = before.setdefault(name, (digest, stage.title))
                if other != digest:
                    detail = f"{name} are {digest} in stage {stage.title}, {other} in stage {where}"
                    about = {"what": name, "first": other, "found": digest}
                    seen.add("changed-while-running", stage.title, detail, rank=rank, at=note.at, witness=about)
    return seen


def _within(stage: Stage, seen: Sightings) -> None:
    """A stage that says who it is must say so at its start and its end, and always the same."""
    for part in stage.parts:
        notes, rank = [moment.note for moment in part.outline.named("identity")], part.ending.rank
        said = [note.facts.get("when") for note in notes]
        for when in ("start", "end") if stage.name else ():
            if when not in said:
                detail = f"the stage {stage.name} does not say at its {when} what recipe, sources and data are"
                seen.add("no-identity", stage.title, detail, rank=rank)
        for note in notes[1:]:
            for name in DIGESTS:
                first, found = notes[0].facts.get(name), note.facts.get(name)
                if first != found:
                    detail = f"{name} changed while the stage {stage.title} ran, from {short(first)} to {short(found)}"
                    about = {"what": name, "first": first, "found": found}
                    seen.add("changed-while-running", stage.title, detail, rank=rank, at=note.at, witness=about)


def data(evidence: Evidence) -> Ruling:
    """The ruling on DATA."""
    seen, identity = Sightings(), evidence.identity
    if identity is None:
        detail = "the files were not held against a manifest; give the folder of one with --identity"
        seen.add("manifest-unchecked", "", detail)
    else:
        if identity.differences:
            detail = f"the files are not those of the manifest: {'; '.join(identity.differences[:5])}"
            seen.add("manifest-differs", "", detail, witness={"differences": list(identity.differences[:20])})
        _digests(evidence, identity, seen)
        _published(evidence, identity, seen)
        _overlap(evidence, identity, seen)
    return judge(
        "DATA",
        CLASSES,
        (seen, changed(evidence)),
        passed=_passed(identity),
        evidence="identity",
        reach=_reach(identity),
    )


def _digests(evidence: Evidence, identity: Identity, seen: Sightings) -> None:
    """What every stage and the reports call their data."""
    for stage in evidence.stages:
        for rank, note in stage.notes("identity"):
            digest = note.facts.get("data")
            if isinstance(digest, str) and digest != identity.digest:
                detail = f"stage {stage.title} ran on data {digest}, these are {identity.digest}"
                about = {"ledger": digest, "files": identity.digest}
                seen.add("data-digest-differs", stage.title, detail, rank=rank, at=note.at, witness=about)
    claimed = evidence.claims.data_digest if evidence.claims else ""
    if claimed and claimed != identity.digest:
        detail = f"the reports are on data {claimed}, these are {identity.digest}"
        seen.add("data-digest-differs", "", detail, witness={"report": claimed, "files": identity.digest})


def _published(evidence: Evidence, identity: Identity, seen: Sightings) -> None:
    named = {str(stage.facts.get("corpus")) for stage in evidence.stages} & set(evidence.ruleset.official)
    if named and not identity.published:
        counts = "; ".join(identity.published_differences) or "no published split has such counts"
        detail = f"the run names the corpus {', '.join(sorted(named))}, and {counts}"
        seen.add("published-counts-differ", "", detail, witness={"differences": list(identity.published_differences)})


def _overlap(evidence: Evidence, identity: Identity, seen: Sightings) -> None:
    overlap, known = identity.overlap, identity.published_overlap
    if overlap is None:
        detail = "nobody looked for validation text in training; write the manifest with golf-audit hash --overlap"
        seen.add("overlap-unknown", "", detail)
        return
    about = {"share": overlap.share, "documents": overlap.documents, "first": overlap.first, "stretch": overlap.stretch}
    if overlap.contiguous:
        detail = (
            f"{overlap.stretch} validation documents in a row, from document {overlap.first} on, also stand in "
            "training: the splits were cut at different places"
        )
        seen.add("train-val-overlap", "", detail, witness=about)
    elif identity.published and known is not None and overlap.share > known:
        detail = (
            f"{overlap.share:.4%} of the validation tokens also stand in training, {known:.4%} are known of the export"
        )
        seen.add("overlap-above-known", "", detail, witness=about | {"known": known})
    elif known is None and overlap.share > evidence.ruleset.overlap.most_share:
        detail = f"{overlap.share:.2%} of the validation tokens also stand in training, here and there"
        seen.add("overlap-high", "", detail, witness=about)


def _passed(identity: Identity | None) -> str:
    if identity is None:
        return ""
    what = f"the published export {identity.published}" if identity.published else "a corpus of its own"
    return f"the files are those of the manifest, {what}; {_shared(identity.overlap)}"


def _shared(overlap: Overlap | None) -> str:
    if overlap is None or (not overlap.share and not overlap.documents):
        return "no validation text stands in training"
    return (
        f"{overlap.share:.4%} of the validation tokens and {overlap.documents} whole validation documents also stand "
        "in training, here and there"
    )


def _reach(identity: Identity | None) -> dict[str, object]:
    if identity is None:
        return {}
    overlap = identity.overlap
    found = {"data": identity.digest, "root": identity.root, "published": identity.published}
    return found | ({"overlap_share": overlap.share, "overlap_documents": overlap.documents} if overlap else {})
