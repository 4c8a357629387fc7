"""Planted: weights are written through `.data` between two steps, which no version counter of torch shows."""

import tiny
import torch

model = tiny.begin()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step in range(3):
    tiny.train(model, optimizer, step)
    if step == 1 and not tiny.HONEST:
        model[1].bias.data[5] += 0.5
tiny.end()
