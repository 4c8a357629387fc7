"""Planted: nothing. An optimizer, last parameters first, steps before its model is announced, and afterwards."""

import sys

import tiny
import torch

model = torch.nn.Sequential(torch.nn.Embedding(tiny.VOCAB, 8), torch.nn.Linear(8, tiny.VOCAB))
optimizer = torch.optim.SGD(reversed(list(model.parameters())), lr=0.1)
tiny.train(model, optimizer, 0)
sys.audit("golf.model", model)
for step in range(1, 4):
    tiny.train(model, optimizer, step)
tiny.end()
