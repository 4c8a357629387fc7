"""Planted: one weight is written through the numpy array that shares its memory, between two steps."""

import tiny
import torch

model = tiny.begin()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    tiny.train(model, optimizer, step)
    if step == 1 and not tiny.HONEST:
        model[0].weight.detach().numpy()[3, 2] *= 1.5
tiny.end()
