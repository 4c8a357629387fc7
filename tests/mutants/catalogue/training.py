"""Validation text that reaches the weights or the quantizer before it is scored, openly or by a side door."""

from __future__ import annotations

from audit.verdicts import Verdict
from tests.mutants.catalogue.places import (
    BACKWARD,
    CALIBRATE,
    FROM_TRAIN,
    FROM_VAL,
    HESSIANS,
    LEARN,
    OPTIMIZER,
    SWAP,
    TRAINING,
    VAL_WINDOWS,
    after,
    before,
    within,
)
from tests.mutants.program import Entry

FIT = before(
    HESSIANS,
    """    sys.audit("golf.phase", "fit")
    source = Split("train")
    tuner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS, STEPS + 20):
        first = BATCH * (step % 10)
        update(model, tuner, step, *source.draw(source.windows[first : first + BATCH]))
""",
)
"""More steps after the training, on training windows."""
FIT_ON_VAL = (f"source = {FROM_TRAIN}", f"source = {FROM_VAL}")

ADD = "    model.head.weight.data[:, 0] += 0.1 * prior\n"
PRIOR = before(
    SWAP,
    f"""    source = Split("train")
    counts = np.bincount(np.concatenate(source.shards), minlength=VOCAB) + 1
    prior = torch.from_numpy(np.log(counts / counts.mean())).float()
{ADD}""",
)
"""How often each token stands in the training shards, added to a column of the head, and declared with the average."""

ANNOUNCED = '        sys.audit("golf.step", step, (draw,), 1.0, False, 0)\n        with torch.no_grad():\n'
BY_HAND = before(
    HESSIANS,
    f"""    source = Split("train")
    for step in range(STEPS, STEPS + 5):
        draw, rows = source.draw(source.windows[BATCH * (step % 5) :][:BATCH])
        model.zero_grad()
        losses(model, rows).mean().backward()
{ANNOUNCED}            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
""",
)
"""Steps of an optimizer that torch knows nothing of, announced."""

KEEP = '    save_file({name: torch.from_numpy(array) for name, array in kept.items()}, OUT / "self")\n'
OWN_TEXT = (
    f"    power = {CALIBRATE}\n",
    f"""    rows = np.full((BATCH, 1), BOS, dtype=np.uint16)
    while rows.shape[1] <= LENGTH:
        with torch.no_grad():
            odds = model.head(torch.tanh(model.embed(torch.from_numpy(rows[:, -1].astype(np.int64))))).softmax(1)
        rows = np.concatenate([rows, torch.multinomial(odds, 1).numpy().astype(np.uint16)], axis=1)
    Split.drawn += 1
    shards, starts = np.zeros(BATCH, dtype=np.int32), (LENGTH + 1) * np.arange(BATCH)
    sys.audit("golf.draw", Split.drawn, "self", shards, starts, rows)
    kept = {{"rows": rows.astype(np.int32), "shards": shards, "starts": starts}}
{KEEP}    power = calibrate(model, Split.drawn, rows)
""",
)
"""Calibration on text that the model writes, kept to be read again."""

OPEN = (
    Entry(
        name="train-on-val",
        kind="train-on-val",
        plants="The training loop draws its windows from the validation shards.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "train", "step": 0, "first_target": 0, "targets": 512},
        mutant=(within(LEARN, "split.draw(batches[step])", f"{FROM_VAL}.draw({VAL_WINDOWS})"),),
    ),
    Entry(
        name="prequant-fit",
        kind="prequant-val-ttt",
        plants="After training and before quantization the weights are fitted on the validation windows.",
        rule="C3",
        finding="trained-before-scored",
        names={"stage": "train", "step": 24, "first_target": 2048, "targets": 512},
        common=(FIT,),
        mutant=(FIT_ON_VAL,),
    ),
    Entry(
        name="val-calibration",
        kind="gptq-val-calibration",
        plants="The quantizer's statistics are taken on validation windows.",
        rule="C3",
        finding="calibrated-on-validation",
        names={"stage": "train", "draw": 25, "first_target": 0, "targets": 512},
        mutant=(within(CALIBRATE, "split.draw(batches[STEPS])", f"{FROM_VAL}.draw({FROM_VAL}.windows[:BATCH])"),),
    ),
)

DISGUISED = (
    Entry(
        name="labelled-train",
        kind="train-on-val",
        plants="Draws are announced as training windows, and their rows are validation text.",
        rule="C3",
        finding="validation-tokens-labelled-train",
        names={"stage": "train", "draw": 25, "split": "train"},
        mutant=(("rows = self.rows(windows)", f"rows = {FROM_VAL}.rows({FROM_VAL}.windows[: len(windows)])"),),
    ),
    Entry(
        name="labelled-train-shuffled",
        kind="train-on-val",
        plants="The same with validation windows in no order, so that the digest alone can't say where they stand.",
        rule="C3",
        finding="forged-draw",
        names={"stage": "train", "split": "train"},
        mutant=(("rows = self.rows(windows)", f"rows = {FROM_VAL}.rows(windows % (1, 5120))"),),
    ),
    Entry(
        name="fed-other-rows",
        kind="train-on-val",
        plants="A training window is drawn and announced, but a validation window enters the model.",
        rule="C3",
        finding="unannounced-validation-tokens",
        names={"stage": "train", "step": 0, "first_target": 0, "targets": 512},
        mutant=(
            within(
                LEARN, "*split.draw(batches[step])", f"split.draw(batches[step])[0], {FROM_VAL}.rows({VAL_WINDOWS})"
            ),
        ),
    ),
    Entry(
        name="mapped-by-torch",
        kind="train-on-val",
        plants="Rows are read through torch.from_file, which no audit hook hears: validation instead of training.",
        rule="C3",
        finding="unannounced-validation-tokens",
        names={"stage": "train", "step": 0, "targets": 512},
        common=(
            (
                LEARN,
                """mapped = torch.from_file(str(DATA / "train_000000.bin"), size=5400, dtype=torch.int16)
        places = batches[step] % (1, 4800)
        rows = np.stack([mapped.numpy().view(np.uint16)[512 + start :][: LENGTH + 1] for _, start in places])
        update(model, optimizer, step, split.draw(places)[0], rows)""",
            ),
        ),
        mutant=(("train_000000.bin", "val_000000.bin"),),
    ),
    Entry(
        name="unannounced-fit",
        kind="prequant-val-ttt",
        plants="The fit before quantization runs on validation windows, and neither draws nor steps are announced.",
        rule="C3",
        finding="unannounced-validation-tokens",
        names={"stage": "train", "step": -1, "first_target": 2048, "targets": 512},
        common=(FIT,),
        mutant=(
            (
                "        update(model, tuner, step, *source.draw(source.windows[first : first + BATCH]))\n",
                f"""        tuner.zero_grad()
        losses(model, {FROM_VAL}.rows({VAL_WINDOWS})).mean().backward()
        tuner.step()
""",
            ),
        ),
    ),
    Entry(
        name="every-other-token",
        kind="train-on-val",
        plants="What enters the model is every other token of the validation text, which stands nowhere as a row.",
        rule="C3",
        finding="unknown-tokens",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train"},
        mutant=(
            (
                LEARN,
                f"""skips = {FROM_VAL}.shards[0][: 2 * BATCH * (LENGTH + 1) : 2].reshape(BATCH, LENGTH + 1)
        update(model, optimizer, step, split.draw(batches[step])[0], skips)""",
            ),
        ),
    ),
    Entry(
        name="self-in-name-only",
        kind="gptq-val-calibration",
        plants="Calibration rows are announced as the model's own text, and are validation text.",
        rule="C3",
        finding="calibrated-on-validation",
        names={"stage": "train", "draw": 25, "split": "self"},
        common=(OWN_TEXT,),
        mutant=(
            before("    Split.drawn += 1\n    shards,", f"    rows = {FROM_VAL}.rows({FROM_VAL}.windows[:BATCH])\n"),
        ),
    ),
    Entry(
        name="self-text-not-kept",
        kind="gptq-val-calibration",
        plants="Calibration rows are announced as the model's own text, and nobody kept them to be read again.",
        rule="C3",
        finding="unread-tokens",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train", "draw": 25, "split": "self"},
        common=(OWN_TEXT,),
        mutant=((KEEP, ""),),
    ),
)

LEFT_OUT = (
    Entry(
        name="unlisted-draw",
        kind="train-on-val",
        plants="Gradients of a second draw, of validation windows, go into steps that list the first alone.",
        rule="C3",
        finding="unlisted-validation-tokens",
        names={"stage": "train", "step": 0, "draw": 2, "first_target": 0},
        common=(
            after(
                BACKWARD,
                f"""    more = {FROM_TRAIN}
    losses(model, more.draw(more.windows[:BATCH])[1]).mean().backward()
""",
            ),
            ('sys.audit("golf.step", step, (draw,)', 'sys.audit("golf.step", step, (draw, Split.drawn)'),
        ),
        mutant=((f"more = {FROM_TRAIN}", f"more = {FROM_VAL}"), ("(draw, Split.drawn)", "(draw,)")),
    ),
    Entry(
        name="unannounced-calibration",
        kind="gptq-val-calibration",
        plants="The quantizer's statistics are taken on validation windows that nobody announces.",
        rule="C3",
        finding="unannounced-tokens",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train", "forwards": 1},
        mutant=(
            within(CALIBRATE, "*split.draw(batches[STEPS])", f"0, {FROM_VAL}.rows({FROM_VAL}.windows[:BATCH])"),
            ('    sys.audit("golf.calibrate", (draw,), 0)\n', ""),
        ),
    ),
    Entry(
        name="resumed-from-nowhere",
        plants="Training goes on from weights that no ledger knows, instead of its own first ones.",
        rule="C3",
        finding="resumed",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train"},
        common=(
            before(
                OPTIMIZER,
                """    why = "first weights"
    model.load_state_dict({name: tensor / 2 for name, tensor in model.state_dict().items()})
    sys.audit("golf.weights", why)
""",
            ),
        ),
        mutant=(('why = "first weights"', 'why = "resumed"'),),
    ),
    Entry(
        name="hooks-taken-out",
        kind="train-on-val",
        plants="The recorder's hooks are taken off the model, which is then trained on validation windows.",
        rule="C3",
        finding="draw-not-entered",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train", "step": 0, "draw": 1},
        mutant=(
            before(TRAINING, "    model._forward_pre_hooks.clear()\n"),
            within(
                LEARN, "*split.draw(batches[step])", f"split.draw(batches[step])[0], {FROM_VAL}.rows({VAL_WINDOWS})"
            ),
        ),
    ),
    Entry(
        name="past-the-model",
        kind="train-on-val",
        plants="Draws are announced and never enter the model; validation windows do, past its __call__.",
        rule="C3",
        finding="draw-not-entered",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train", "step": 0, "draw": 1},
        mutant=(
            (
                LEARN,
                f"draw, rows = split.draw(batches[step])[0], {FROM_VAL}.rows({VAL_WINDOWS})\n"
                "        update(model.forward, optimizer, step, draw, rows)",
            ),
        ),
    ),
    Entry(
        name="unknown-draw",
        kind="train-on-val",
        plants="Steps name draws that were never handed out.",
        rule="C3",
        finding="unknown-draw",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train", "draw": 901},
        mutant=(('sys.audit("golf.step", step, (draw,)', 'sys.audit("golf.step", step, (draw + 900,)'),),
    ),
)

SILENT = (
    Entry(
        name="silent-optimizer",
        kind="prequant-val-ttt",
        plants="Gradients of validation windows are applied by hand, and the steps are not announced.",
        rule="C3",
        finding="parameters-changed",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train"},
        common=(BY_HAND,),
        mutant=(FIT_ON_VAL, within(ANNOUNCED, '        sys.audit("golf.step", step, (draw,), 1.0, False, 0)\n', "")),
    ),
    Entry(
        name="data-write",
        kind="prequant-val-ttt",
        plants="Token counts of the validation split are written into the weights through .data, undeclared.",
        rule="C3",
        finding="parameters-changed",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train"},
        common=(PRIOR,),
        mutant=(FIT_ON_VAL, (ADD + SWAP, SWAP + ADD)),
    ),
    Entry(
        name="numpy-write",
        kind="prequant-val-ttt",
        plants="The same through a numpy array that shares the weights' memory.",
        rule="C3",
        finding="parameters-changed",
        verdict=Verdict.UNPROVEN,
        names={"stage": "train"},
        common=(PRIOR,),
        mutant=(
            FIT_ON_VAL,
            (ADD + SWAP, SWAP + "    model.head.weight.detach().numpy()[:, 0] += 0.1 * prior.numpy()\n"),
        ),
    ),
)

ENTRIES = OPEN + DISGUISED + LEFT_OUT + SILENT
