"""Planted: the optimizer also moves a parameter of no model, and the model's weights are written after its last step.

Honest: the same optimizer, and nobody writes.
"""

import tiny
import torch

model = tiny.begin()
temperature = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
for step in range(3):
    temperature.grad = torch.ones(1)
    tiny.train(model, optimizer, step)
if not tiny.HONEST:
    with torch.no_grad():
        model[1].bias += 0.25
tiny.end()
