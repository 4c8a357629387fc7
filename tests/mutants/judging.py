"""What the verifier says of a run that the harness made.

    judgement = judge(run)          reads RUN/ledger, data, identity and out

Evidence is put together as `golf-audit verify` does it: the ledgers of the stages in order, every record's content read
again, the data held against their manifest, the files and claims that the run left.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from audit import identity, rules
from audit.contents import check_contents
from audit.evidence import Artifact, ClaimedScore, Claims, Evidence
from audit.files import sha256_file
from audit.kept import read_kept
from audit.ruleset import Ruleset, read_ruleset
from audit.splits import open_data
from audit.verdicts import Judgement
from audit.verify import open_stages, streams

STAGES = ("train", "quantize", "evaluate")
PROFILE = "pipeline"


def judge(run: Path) -> Judgement:
    """All rules on one run, under the profile of the pipeline."""
    evidence = evidence_of(run)
    return Judgement(
        subject={"run": run.name},
        profile=PROFILE,
        required=evidence.ruleset.profile(PROFILE),
        rulings=rules.rulings(evidence),
    )


def evidence_of(run: Path) -> Evidence:
    """What is known of a run."""
    ruleset, data = _ruleset(), open_data([run / "data"])
    stages = open_stages([run / "ledger" / stage for stage in STAGES])
    kept = {"self": read_kept(run / "out" / "self", "self")} if (run / "out" / "self").exists() else {}
    artifact = run / "out" / "artifact"
    return Evidence(
        ruleset=ruleset,
        stages=stages,
        streams=streams(data),
        contents=check_contents(stages, data, kept=kept),
        identity=identity.read(run / "identity", [run / "data"], ruleset, facts=run / "data" / "data.json"),
        claims=claims_of(run),
        artifact=Artifact(sha256=sha256_file(artifact, remedy="run it again"), bytes=artifact.stat().st_size),
    )


@functools.cache
def _ruleset() -> Ruleset:
    """Read once: it takes longer than all the rules together."""
    return read_ruleset()


def claims_of(run: Path) -> Claims:
    """What the program wrote about itself."""
    sizes, score = (json.loads((run / "out" / f"{name}.json").read_text()) for name in ("sizes", "score"))
    claimed = ClaimedScore(**{name: score[name] for name in ("nats", "targets", "bytes", "bpb")})
    return Claims(
        seed=1,
        track=score["track"],
        headline=score["label"],
        scores={score["label"]: claimed},
        artifact_sha256=sizes["sha256"],
        model_bytes=sizes["model_bytes"],
        code_bytes=sizes["code_bytes"],
    )
