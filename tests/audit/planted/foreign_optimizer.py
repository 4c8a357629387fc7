"""Planted: an optimizer that torch does not know moves the weights, and no step is announced (honest: it is)."""

import sys

import tiny
import torch


class Descent:
    """Plain gradient descent, not a `torch.optim.Optimizer`."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.parameters = parameters

    def step(self) -> None:
        with torch.no_grad():
            for parameter in self.parameters:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None


model = tiny.begin()
descent = Descent(list(model.parameters()))
for step in range(3):
    number, found = tiny.draw("train", tiny.windows(4 * step))
    tiny.losses(model, found).mean().backward()
    if tiny.HONEST:
        sys.audit("golf.step", step, (number,), 1.0, False, 0)
    descent.step()
tiny.end()
