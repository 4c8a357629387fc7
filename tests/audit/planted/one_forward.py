"""Planted: nothing. The loss of one forward is recorded as the score and then back-propagated, chunk by chunk."""

import sys

import tiny
import torch

model = tiny.begin("evaluate")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for chunk in range(5):
    starts = tiny.windows(4 * chunk)
    number, found = tiny.draw("val", starts)
    nats = tiny.losses(model, found)
    tiny.score(found, starts, nats, label="score_first")
    optimizer.zero_grad()
    nats.mean().backward()
    sys.audit("golf.step", chunk, (number,), 1.0, False, 0)
    optimizer.step()
tiny.end("evaluate")
