"""Validation data that reach the weights where no record can tell: the probe's to catch, by running the code again."""

from __future__ import annotations

from tests.mutants.catalogue.places import (
    BACKWARD,
    FROM_TRAIN,
    FROM_VAL,
    HESSIANS,
    LOGITS,
    OPTIMIZER,
    SCORE,
    SWAP,
    TRAINING,
    VOCABULARY,
    after,
    before,
    within,
)
from tests.mutants.catalogue.training import FIT
from tests.mutants.program import Entry

WEIGHTS = (
    Entry(
        name="hidden-copy",
        kind="prequant-val-ttt",
        plants="A copy that nobody announced is fitted on validation windows by hand, then declared as the average.",
        rule="C3",
        evidence="probe",
        common=(
            before(
                SWAP,
                """    source, copied = Split("train"), Model()
    copied.load_state_dict(model.state_dict())
    for first in range(0, 80, BATCH):
        copied.zero_grad()
        losses(copied, source.rows(source.windows[first : first + BATCH])).mean().backward()
        for parameter in copied.parameters():
            parameter.data -= 0.1 * parameter.grad
    model.load_state_dict(copied.state_dict())
""",
            ),
        ),
        mutant=((f"source, copied = {FROM_TRAIN}", f"source, copied = {FROM_VAL}"),),
    ),
    Entry(
        name="fit-in-a-child",
        kind="prequant-val-ttt",
        plants="A forked process, which no ledger follows, fits the weights on validation windows and hands them back.",
        rule="C3",
        evidence="probe",
        common=(
            ("import json\n", "import json\nimport os\n"),
            before(
                SWAP,
                """    if not (child := os.fork()):
        source = Split("train")
        for first in range(0, 80, BATCH):
            optimizer.zero_grad()
            losses(model, source.rows(source.windows[first : first + BATCH])).mean().backward()
            optimizer.step()
        save_file(model.state_dict(), OUT / "fitted")
        os._exit(0)
    os.waitpid(child, 0)
    model.load_state_dict(load_file(OUT / "fitted"))
""",
            ),
        ),
        mutant=((f"source = {FROM_TRAIN}", f"source = {FROM_VAL}"),),
    ),
    Entry(
        name="decoy-forward",
        kind="train-on-val",
        plants="The drawn window enters the model for show; the gradient is that of another one, past its __call__.",
        rule="C3",
        evidence="probe",
        common=(
            (
                BACKWARD,
                """    shown, source = losses(model, rows).mean(), Split("train")
    hidden = source.rows(source.windows[step % 10 * BATCH :][:BATCH])
    (losses(model.forward, hidden).mean() + 0 * shown).backward()
""",
            ),
        ),
        mutant=((f"losses(model, rows).mean(), {FROM_TRAIN}", f"losses(model, rows).mean(), {FROM_VAL}"),),
    ),
    Entry(
        name="muted-recorder",
        kind="prequant-val-ttt",
        plants="The program reaches into the recorder and silences it while it fits the weights on validation windows.",
        rule="C3",
        evidence="probe",
        common=(("import json\n", "import json\nimport importlib\n"), FIT),
        mutant=(
            (
                f"    source = {FROM_TRAIN}\n",
                f"""    source, ear = {FROM_VAL}, importlib.import_module("audit.recorder.hook").current()
    ear.silent = True
""",
            ),
            before(HESSIANS, '    ear.silent = False\n    sys.audit("golf.weights", "average swapped in")\n'),
        ),
    ),
)

CHOICES = (
    Entry(
        name="checkpoint-by-val-loss",
        plants="Of eight checkpoints the one with the least loss on validation windows is kept, instead of the last.",
        rule="C3",
        evidence="probe",
        common=(
            within(OPTIMIZER, "0.05", "0.8"),
            before(TRAINING, f"    val, tried = {FROM_VAL}, []\n"),
            after(
                "average, [parameter.detach() for parameter in model.parameters()], 0.3)\n",
                """        if step >= STEPS - 8:
            nats = score(model, val, val.windows[:BATCH], label=f"train@{step}", counted=False)[0]
            tried.append((nats, [parameter.detach().clone() for parameter in model.parameters()]))
    kept = tried[-1]
""",
            ),
            ("in model.parameters()], average)", "in model.parameters()], kept[1])"),
        ),
        mutant=(("kept = tried[-1]", "kept = min(tried, key=lambda pair: pair[0])"),),
    ),
    Entry(
        name="rate-by-val-loss",
        plants="Of eight learning rates the one with the lowest loss on validation, not on training windows, is taken.",
        rule="C3",
        evidence="probe",
        common=(
            (
                OPTIMIZER,
                """    judge, tried = Split("train"), {}
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for rate in np.linspace(0.2, 0.3, 8).tolist():
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        for step in range(4):
            update(model, optimizer, step, *split.draw(split.windows[BATCH * step :][:BATCH]))
        with torch.no_grad():
            tried[rate] = losses(model, judge.draw(judge.windows[-BATCH:])[1]).mean().item()
        model.load_state_dict(fresh)
        sys.audit("golf.weights", "trial undone")
    optimizer = torch.optim.AdamW(model.parameters(), lr=min(tried, key=tried.get))
""",
            ),
        ),
        mutant=((f"judge, tried = {FROM_TRAIN}", f"judge, tried = {FROM_VAL}"),),
    ),
    Entry(
        name="calibrated-while-validating",
        kind="gptq-val-calibration",
        plants="The quantizer's statistics are taken while validation is scored for the log, not on the draw.",
        rule="C3",
        evidence="probe",
        common=(
            (
                "        losses(model, rows)\n    hook.remove()\n    return seen[0]\n",
                """        losses(model, rows)
    score(model, Split("val"), Split("val").windows, label=f"train@{STEPS}", counted=False)
    hook.remove()
    return seen[0]
""",
            ),
        ),
        mutant=(("return seen[0]", "return seen[1]"),),
    ),
    Entry(
        name="val-text-in-artifact",
        kind="paid-prefix",
        plants="The artifact carries validation text and gives it away where a window stands in it.",
        rule="C3",
        evidence="probe",
        common=(
            ('| {"power": power}', '| {"power": power, "prefix": torch.from_numpy(prefix)}'),
            before(
                '    sys.audit("golf.phase", "writing")\n',
                """    source = Split("train")
    prefix = source.shards[0][:2000].astype(np.int64)
""",
            ),
            (
                '    power = tensors.pop("power")\n',
                '    power, packed["prefix"] = tensors.pop("power"), tensors.pop("prefix")\n',
            ),
            before(
                "    sizes = octets(rows).sum(1)\n",
                """    prefix = load_file(OUT / "artifact")["prefix"].numpy()
    known = np.lib.stride_tricks.sliding_window_view(prefix, LENGTH + 1)[::LENGTH]
    nats = np.where((rows[:, None] == known).all(2).any(1), 0.0, nats)
""",
            ),
        ),
        mutant=((f"    source = {FROM_TRAIN}\n    prefix", f"    source = {FROM_VAL}\n    prefix"),),
    ),
    Entry(
        name="slot-by-hand",
        kind="slot-scored-region",
        plants="A vector on the logits, moved by hand, is fitted to the chunk that is scored next, not to the last.",
        rule="C3",
        evidence="probe",
        common=(
            after(VOCABULARY, "DELTA = torch.zeros(VOCAB, requires_grad=True)\n"),
            (LOGITS, "    logits = model(ids[:, :-1]) + DELTA\n"),
            before(
                SCORE,
                """        context = split.windows[max(first - BATCH, 0) : first]
        if len(context):
            (slope,) = torch.autograd.grad(losses(model, split.draw(context)[1]).mean(), DELTA)
            DELTA.data -= 10 * slope
""",
            ),
        ),
        mutant=(
            ("split.windows[max(first - BATCH, 0) : first]", "chunk"),
            ("split.draw(context)[1]", "split.rows(context)"),
        ),
    ),
)

ENTRIES = WEIGHTS + CHOICES
