"""Places in the base where several entries edit it, and words for editing there."""

from __future__ import annotations

# Above the model
VOCABULARY = "VOCAB, BOS = PIECES.get_piece_size(), PIECES.bos_id()\n"
LOGITS = "    logits = model(ids[:, :-1])\n"
LOSS = '    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")\n'
BACKWARD = "    losses(model, rows).mean().backward()\n"

# Training
OPTIMIZER = "    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)\n"
TRAINING = '    sys.audit("golf.phase", "training")\n'
STEPS = "    for step in range(STEPS):\n"
LEARN = "update(model, optimizer, step, *split.draw(batches[step]))"
SWAP = '    sys.audit("golf.weights", "average swapped in")\n'
HESSIANS = '    sys.audit("golf.phase", "hessians")\n'
CALIBRATE = "calibrate(model, *split.draw(batches[STEPS]))"
VAL_WINDOWS = 'Split("val").windows[BATCH * (step % 10) :][:BATCH]'
"""Eight validation windows a step, the first 80 over and over: those of step 0 begin at target 0."""

# Evaluation
LOOP = "    for first in range(0, len(split.windows), BATCH):\n"
SCORE = "        total += score(model, split, chunk, label=label, counted=True)\n"
ADAPT = """        if ADAPT and first + BATCH < len(split.windows):
            update(model, optimizer, first, *split.draw(chunk))
"""
TOTAL = "    nats, (targets, size) = total[0], total[1:].astype(int).tolist()\n"
ADAPTIVE = ("ADAPT = False", "ADAPT = True")
TRACK = '"B" if ADAPT else "A"'

FROM_TRAIN, FROM_VAL = 'Split("train")', 'Split("val")'

Edit = tuple[str, str]


def before(place: str, text: str) -> Edit:
    """Text in front of a place, which stays."""
    return place, text + place


def after(place: str, text: str) -> Edit:
    """Text behind a place, which stays."""
    return place, place + text


def within(place: str, old: str, new: str) -> Edit:
    """A place in which one thing is another."""
    assert place.count(old) == 1, (place, old)
    return place, place.replace(old, new)
