"""Planted: each chunk is trained on from a first forward, and what is recorded as its score is a second one's loss.

Honest: the second forward, of the trained weights, is looked at and enters no score.
"""

import sys

import tiny
import torch

model = tiny.begin("evaluate")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for chunk in range(5):
    starts = tiny.windows(4 * chunk)
    number, found = tiny.draw("val", starts)
    nats = tiny.losses(model, found)
    if tiny.HONEST:
        tiny.score(found, starts, nats, label="score_first")
    optimizer.zero_grad()
    nats.mean().backward()
    sys.audit("golf.step", chunk, (number,), 1.0, False, 0)
    optimizer.step()
    with torch.no_grad():
        after = tiny.losses(model, found)
    if not tiny.HONEST:
        tiny.score(found, starts, after, label="score_first")
tiny.end("evaluate")
