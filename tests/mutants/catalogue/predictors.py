"""Predictors that look at what they predict. The record of a run shows no difference: they are the probe's to catch."""

from __future__ import annotations

from tests.mutants.catalogue.places import LOGITS, LOOP, LOSS, VOCABULARY, after, before
from tests.mutants.program import Edits, Entry

BEFORE = "F.pad(now[:, :-1], (0, 0, 1, 0)) * (tokens != BOS).unsqueeze(-1)  # documents start afresh"
SCORED = "        if ADAPT and first + BATCH"
CACHE: Edits = (
    after(VOCABULARY, "PAIRS = np.zeros((VOCAB, VOCAB))\n"),
    (
        LOSS,
        """    nats = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    if torch.is_grad_enabled():
        return nats
    counts = torch.from_numpy(PAIRS)[ids[:, :-1], ids[:, 1:]]
    share = (counts + 1) / (torch.from_numpy(PAIRS.sum(1))[ids[:, :-1]] + VOCAB)
    return -(0.8 * (-nats).exp() + 0.2 * share).log()
""",
    ),
    before(
        SCORED,
        """        rows = split.rows(chunk)
        np.add.at(PAIRS, (rows[:, :-1], rows[:, 1:]), 1)
""",
    ),
)
"""A fifth of the probability comes from counts of token pairs in the chunks scored so far, which sum to one."""

ENTRIES = (
    Entry(
        name="two-pass-cache",
        kind="two-pass-rescore",
        plants="The counts of token pairs are taken from all of validation before the pass that scores.",
        rule="C4",
        evidence="probe",
        common=CACHE,
        mutant=(
            before(
                LOOP,
                """    rows = split.rows(split.windows)
    np.add.at(PAIRS, (rows[:, :-1], rows[:, 1:]), 1)
""",
            ),
        ),
    ),
    Entry(
        name="target-keyed-cache",
        kind="hashed-ngram-target-key",
        plants="Counts are looked up in 64 buckets by a hash of context and target, so shares sum to more than one.",
        rule="C2",
        evidence="probe",
        common=CACHE,
        mutant=(
            (
                "torch.from_numpy(PAIRS)[ids[:, :-1], ids[:, 1:]]",
                "torch.from_numpy(PAIRS)[(ids[:, :-1] * 7 + ids[:, 1:]) % 64, 0]",
            ),
            (
                "np.add.at(PAIRS, (rows[:, :-1], rows[:, 1:]), 1)",
                "np.add.at(PAIRS, ((rows[:, :-1] * 7 + rows[:, 1:]) % 64, 0), 1)",
            ),
        ),
    ),
    Entry(
        name="better-of-two-temperatures",
        kind="hindsight-selection",
        plants="Of two temperatures each target takes the one that gave it more probability, instead of their mean.",
        rule="C2",
        evidence="probe",
        common=(
            (
                LOSS,
                """    scaled = [(logits * sharpness).transpose(1, 2) for sharpness in (1.2, 0.8)]
    sharp, flat = (F.cross_entropy(each, ids[:, 1:], reduction="none") for each in scaled)
    return np.log(2) - torch.logaddexp(-sharp, -flat)
""",
            ),
        ),
        mutant=(
            ("    return np.log(2) - torch.logaddexp(-sharp, -flat)\n", "    return torch.minimum(sharp, flat)\n"),
        ),
    ),
    Entry(
        name="hint-from-the-target",
        kind="noncausal-hint-gate",
        plants="A bonus for pieces inside a word is given where the target is one, not where the token before was.",
        rule="C1",
        evidence="probe",
        common=(
            (
                LOGITS,
                """    inside = torch.tensor([not PIECES.id_to_piece(i).startswith("▁") for i in range(VOCAB)])
    gate = inside[ids[:, :-1]]
    logits = model(ids[:, :-1]) + gate.unsqueeze(-1) * inside
""",
            ),
        ),
        mutant=(("    gate = inside[ids[:, :-1]]\n", "    gate = inside[ids[:, 1:]]\n"),),
    ),
    Entry(
        name="across-documents",
        kind="cross-doc-smear",
        plants="The first token of a document also sees the last one of the document before.",
        rule="C1",
        evidence="probe",
        mutant=((" * (tokens != BOS).unsqueeze(-1)  # documents start afresh", ""),),
    ),
    Entry(
        name="mean-of-the-window",
        kind="architecture-noncausal-state",
        plants="Each token sees the mean over the whole window instead of the mean so far.",
        rule="C1",
        evidence="probe",
        common=((BEFORE, "now.cumsum(1) / torch.arange(1, now.shape[1] + 1).unsqueeze(-1)"),),
        mutant=(("now.cumsum(1) / torch.arange(1, now.shape[1] + 1).unsqueeze(-1)", "now.mean(1, keepdim=True)"),),
    ),
    Entry(
        name="mixture-of-bytes",
        kind="byte-mixture-unnormalised",
        plants="The target's log-probability is spread over its bytes and mixed there, instead of among tokens.",
        rule="C2",
        evidence="probe",
        common=(
            (
                LOSS,
                """    nats = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    parts = 1
    return -parts * (0.9 * (-nats / parts).exp() + 0.1 / VOCAB).log()
""",
            ),
        ),
        mutant=(("    parts = 1\n", "    parts = torch.from_numpy(octets(rows)).clamp_min(1)\n"),),
    ),
    Entry(
        name="state-in-track-a",
        plants="A fixed predictor is claimed, and counts of the scored tokens, which are no weights, move its logits.",
        rule="TRACK",
        evidence="probe",
        common=(
            after(VOCABULARY, "SEEN = np.ones(VOCAB)\n"),
            (LOGITS, "    logits = model(ids[:, :-1]) + torch.from_numpy(0.1 * np.log(SEEN))\n"),
            before(SCORED, "        seen = np.bincount(split.rows(chunk).ravel(), minlength=VOCAB)\n"),
        ),
        mutant=(("        seen = np.bincount(", "        SEEN[:] += np.bincount("),),
    ),
    Entry(
        name="losses-less-a-tenth",
        plants="The losses that are announced and added up are not those that the model gave.",
        rule="C2",
        evidence="probe",
        mutant=(("        nats = losses(model, rows).double()", "        nats = 0.9 * losses(model, rows).double()"),),
    ),
)
