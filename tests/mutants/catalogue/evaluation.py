"""Adaptation that learns from what it has not scored yet, scores that replace scores, totals that leave out targets."""

from __future__ import annotations

from audit.verdicts import Verdict
from tests.mutants.catalogue.places import ADAPT, ADAPTIVE, LOGITS, LOOP, SCORE, TOTAL, TRACK, VOCABULARY, after, before
from tests.mutants.program import Edits, Entry

SECOND_PASS = before(
    TOTAL,
    """    counted, again = False, np.zeros(3)
    for first in range(0, len(split.windows), BATCH):
        again += score(model, split, split.windows[first : first + BATCH], label="rescore", counted=counted)
    if counted:
        total, label = again, "rescore"
""",
)
"""All windows once more with the adapted weights, for the log."""

DELTA: Edits = (
    after(VOCABULARY, "DELTA = torch.zeros(VOCAB, requires_grad=True)\n"),
    (LOGITS, "    logits = model(ids[:, :-1]) + DELTA\n"),
    ("torch.optim.SGD(model.parameters(), lr=0.01)", "torch.optim.SGD([DELTA], lr=10.0)"),
    (TRACK, '"B"'),
    before(
        SCORE,
        """        context = split.windows[max(first - BATCH, 0) : first]
        if len(context):
            update(model, optimizer, first, *split.draw(context))
""",
    ),
)
"""A vector on the logits, optimized on the chunk before; an adaptive predictor."""

WARM_UP: Edits = (
    (TRACK, '"B"'),
    before(
        LOOP,
        """    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draw, nowhere = 900, np.zeros(BATCH, dtype=np.int64)
    rows = np.random.default_rng(SEED).integers(VOCAB, size=(BATCH, LENGTH + 1)).astype(np.uint16)
    sys.audit("golf.draw", draw, "random", nowhere.astype(np.int32), nowhere, rows)
    update(model, optimizer, -1, draw, rows)
    model.load_state_dict(fresh)
    sys.audit("golf.weights", "warm-up restored")
""",
    ),
)
"""A step on random ids before the scored loop, undone."""

ORDER = (
    Entry(
        name="update-before-score",
        kind="multi-epoch-ttt-last-score",
        plants="Each chunk is trained on before it is scored instead of afterwards.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "evaluate", "step": 0, "first_target": 0, "targets": 512},
        common=(ADAPTIVE,),
        mutant=((SCORE + ADAPT, "        update(model, optimizer, first, *split.draw(chunk))\n" + SCORE),),
    ),
    Entry(
        name="last-epoch-counts",
        kind="multi-epoch-ttt-last-score",
        plants="Each chunk gets three epochs, and the loss of the last enters the total instead of the first.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "evaluate", "step": 0, "first_target": 0, "targets": 512},
        common=(
            ADAPTIVE,
            (
                SCORE + ADAPT,
                """        kept = 0
        for epoch in range(3):
            name = label if epoch == kept else f"epoch {epoch}"
            total += score(model, split, chunk, label=name, counted=epoch == kept) * (epoch == kept)
            if first + BATCH < len(split.windows):
                update(model, optimizer, 3 * first + epoch, *split.draw(chunk))
""",
            ),
        ),
        mutant=(("        kept = 0\n", "        kept = 2\n"),),
    ),
    Entry(
        name="rescore",
        kind="rescore-after-ttt",
        plants="After a score-first pass all windows are scored again, and the second total is the one that counts.",
        rule="C4",
        finding="rescored-after-update",
        names={"stage": "evaluate", "label": "rescore", "first_target": 0},
        common=(ADAPTIVE, SECOND_PASS),
        mutant=(("counted, again = False", "counted, again = True"),),
    ),
    Entry(
        name="best-of-two-passes",
        kind="hindsight-selection",
        plants="Two passes both count, and of each chunk the smaller loss enters the total.",
        rule="C4",
        finding="rescored-after-update",
        names={"stage": "evaluate", "label": "score_first again", "first_target": 0},
        common=(
            ADAPTIVE,
            ("        total += score(", "        parts.append(score("),
            ("label=label, counted=True)\n", "label=label, counted=True))\n"),
            before(LOOP, "    parts, counted = [], False\n"),
            before(
                TOTAL,
                """    for number, first in enumerate(range(0, len(split.windows), BATCH)):
        again = score(model, split, split.windows[first : first + BATCH], label=f"{label} again", counted=counted)
        parts[number] = min(parts[number], again, key=lambda part: part[0]) if counted else parts[number]
    total = sum(parts)
""",
            ),
        ),
        mutant=(("parts, counted = [], False", "parts, counted = [], True"),),
    ),
    Entry(
        name="slot",
        kind="slot-scored-region",
        plants="A vector on the logits is optimized on the very chunk that is scored next, instead of the one before.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "evaluate", "step": 0, "first_target": 0, "targets": 512},
        common=DELTA,
        mutant=(("split.windows[max(first - BATCH, 0) : first]", "chunk"),),
    ),
    Entry(
        name="slot-unannounced",
        kind="slot-scored-region",
        plants="The same, in an inner loop that announces neither draw nor step.",
        rule="C3",
        finding="unannounced-validation-tokens",
        names={"stage": "evaluate", "step": -1, "first_target": 512, "targets": 512},
        common=DELTA,
        mutant=(
            (
                "            update(model, optimizer, first, *split.draw(context))\n        total",
                """            optimizer.zero_grad()
            losses(model, split.rows(chunk)).mean().backward()
            optimizer.step()
        total""",
            ),
        ),
    ),
    Entry(
        name="recorded-after-the-step",
        kind="multi-epoch-ttt-last-score",
        plants="The loss of the forward that is back-propagated is recorded after the step instead of before it.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "evaluate", "step": 0, "first_target": 0, "targets": 512},
        common=(
            ADAPTIVE,
            (
                SCORE + ADAPT,
                """        draw, rows = split.draw(chunk)
        nats, sizes = losses(model, rows), octets(rows).sum(1)
        optimizer.zero_grad()
        nats.mean().backward()
        each, count = nats.detach().double().sum(1).numpy(), np.full(len(rows), LENGTH)
        sys.audit("golf.score", label, True, chunk[:, 1].copy(), count, each, sizes, rows, 0)
        sys.audit("golf.step", first, (draw,), 1.0, False, 0)
        optimizer.step()
        total += (each.sum(), count.sum(), sizes.sum())
""",
            ),
        ),
        mutant=(
            (
                """        sys.audit("golf.score", label, True, chunk[:, 1].copy(), count, each, sizes, rows, 0)
        sys.audit("golf.step", first, (draw,), 1.0, False, 0)
        optimizer.step()
""",
                """        sys.audit("golf.step", first, (draw,), 1.0, False, 0)
        optimizer.step()
        sys.audit("golf.score", label, True, chunk[:, 1].copy(), count, each, sizes, rows, 0)
""",
            ),
        ),
    ),
    Entry(
        name="a-chunk-ahead",
        kind="prequant-val-ttt",
        plants="After each chunk the weights are trained on the next one instead of on it.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "evaluate", "step": 0, "first_target": 512, "targets": 512},
        common=(ADAPTIVE,),
        mutant=(
            (
                "*split.draw(chunk))",
                "*split.draw(split.windows[first + BATCH : first + 2 * BATCH]))",
            ),
        ),
    ),
    Entry(
        name="warm-up-on-val",
        kind="eval-warmup-on-val",
        plants="The warm-up steps on validation windows instead of random ids; the weights come back.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "evaluate", "step": -1, "first_target": 0, "targets": 512},
        common=WARM_UP,
        mutant=(
            (
                '    sys.audit("golf.draw", draw, "random", nowhere.astype(np.int32), nowhere, rows)\n',
                "    draw, rows = split.draw(split.windows[:BATCH])\n",
            ),
        ),
    ),
    Entry(
        name="random-in-name-only",
        kind="eval-warmup-on-val",
        plants="The warm-up's rows are announced as random ids, and are validation windows; the weights come back.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "evaluate", "step": -1, "first_target": 0, "targets": 512},
        common=WARM_UP,
        mutant=(
            (
                "np.random.default_rng(SEED).integers(VOCAB, size=(BATCH, LENGTH + 1)).astype(np.uint16)",
                "split.rows(split.windows[:BATCH])",
            ),
        ),
    ),
    Entry(
        name="adaptive-track-a",
        plants="A fixed predictor is claimed, and chunks are trained on after they were scored.",
        rule="TRACK",
        finding="state-changed",
        names={"stage": "evaluate", "label": "score_first"},
        mutant=(ADAPTIVE, (TRACK, '"A"')),
    ),
)

TOTALS = (
    Entry(
        name="a-fifth-of-validation",
        kind="partial-val-coverage",
        plants="Only the first fifth of the windows is scored.",
        rule="COVERAGE",
        finding="targets-not-scored",
        names={"stage": "evaluate", "first_target": 1024, "covered": 1024},
        mutant=((LOOP, "    for first in range(0, len(split.windows) // 5, BATCH):\n"),),
    ),
    Entry(
        name="hard-windows-left-out",
        kind="partial-val-coverage",
        plants="Windows with a loss far above the mean do not enter the total.",
        rule="COVERAGE",
        finding="targets-not-scored",
        names={"stage": "evaluate", "label": "sequential"},
        mutant=(
            (
                SCORE,
                """        for window in chunk:
            seen = score(model, split, window[None], label="look", counted=False)
            if seen[0] < 4.2 * LENGTH:
                total += score(model, split, window[None], label=label, counted=True)
""",
            ),
        ),
    ),
    Entry(
        name="overlapping-chunks",
        plants="Every chunk scores the last window of the one before again.",
        rule="C4",
        finding="scored-twice",
        names={"stage": "evaluate", "first_target": 448, "targets": 64},
        mutant=(("split.windows[first : first + BATCH]", "split.windows[max(first - 1, 0) : first + BATCH]"),),
    ),
    Entry(
        name="easy-windows-again",
        plants="Every chunk announces its own place and scores the first chunk.",
        rule="C4",
        finding="forged-score",
        names={"stage": "evaluate"},
        mutant=(("rows, scored = split.rows(windows),", "rows, scored = split.rows(split.windows[: len(windows)]),"),),
    ),
    Entry(
        name="nothing-counted",
        plants="A total is reported, and no score is announced as part of it.",
        rule="COVERAGE",
        finding="reported-score-not-counted",
        names={"stage": "evaluate"},
        mutant=(("label=label, counted=True)", "label=label, counted=False)"),),
    ),
    Entry(
        name="rounded-total",
        plants="The reported total is three percent below what the scored windows add up to.",
        rule="COVERAGE",
        finding="total-differs",
        names={"stage": "evaluate", "label": "sequential", "targets": 5312},
        mutant=(after(TOTAL, "    nats *= 0.97\n"),),
    ),
    Entry(
        name="space-counted-twice",
        kind="byte-lut-double-count",
        plants="A piece's own bytes keep its leading space, which is then counted again.",
        rule="BYTES",
        finding="bytes-differ",
        names={"stage": "evaluate", "first_target": 0},
        mutant=(('piece.removeprefix("▁")', 'piece.replace("▁", " ")'),),
    ),
    Entry(
        name="byte-pieces-of-three",
        kind="byte-meta-inflated",
        plants="Byte pieces count as three bytes each.",
        rule="BYTES",
        finding="bytes-differ",
        names={"stage": "evaluate"},
        mutant=(("if PIECES.is_byte(i)]] = 1\n", "if PIECES.is_byte(i)]] = 3\n"),),
    ),
    Entry(
        name="score-of-other-rows",
        plants="The rows that are announced as scored are not those that entered the model, which sees the targets.",
        rule="C4",
        finding="score-without-forward",
        verdict=Verdict.UNPROVEN,
        names={"stage": "evaluate", "windows": 8},
        mutant=(
            (
                "        nats = losses(model, rows).double().sum(1).numpy()\n",
                """        ids = torch.from_numpy(rows[:, 1:].astype(np.int64))
        nats = F.cross_entropy(model(ids).transpose(1, 2), ids, reduction="none").double().sum(1).numpy()
""",
            ),
        ),
    ),
)

ENTRIES = ORDER + TOTALS
