"""Planted: validation tokens are read by `torch.from_file`, which Python does not see, and trained on unannounced.

Honest: the tokens are of the training shard, read the same way, and announced as a draw.
"""

import sys

import numpy as np
import tiny
import torch

model = tiny.begin()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
tiny.train(model, optimizer, 0)
path = tiny.shard("train" if tiny.HONEST else "val")
words = torch.from_file(str(path), size=path.stat().st_size // 2, dtype=torch.int16)[512:].numpy().view(np.uint16)
starts = tiny.windows(8)
found = words[starts[:, None] + np.arange(tiny.LENGTH + 1)]
if tiny.HONEST:
    sys.audit("golf.draw", 100, "train", np.zeros(len(starts), dtype=np.int32), starts, found)
optimizer.zero_grad()
tiny.losses(model, found).mean().backward()
if tiny.HONEST:
    sys.audit("golf.step", 1, (100,), 1.0, False, 0)
optimizer.step()
tiny.end()
