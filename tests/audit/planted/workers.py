"""Planted: nothing. Two worker processes of a DataLoader read the rows; the loop announces each batch it is given."""

import sys

import numpy as np
import tiny
import torch
from torch.utils.data import DataLoader, Dataset


class Windows(Dataset):
    """Window i of the training shard, read in whatever process asks for it."""

    def __len__(self) -> int:
        return 4 * tiny.ROWS

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        start = index * tiny.LENGTH
        found = tiny.rows("train", np.array([start]))[0]
        sys.audit(
            "golf.draw", -1, "train", np.zeros(1, np.int32), np.array([start]), found[None]
        )  # not heard: a worker
        return start, torch.from_numpy(found.astype(np.int64))


model = tiny.begin()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for step, (starts, ids) in enumerate(DataLoader(Windows(), batch_size=tiny.ROWS, num_workers=2)):
    shards, found = np.zeros(tiny.ROWS, dtype=np.int32), ids.numpy().astype(np.uint16)
    sys.audit("golf.draw", step, "train", shards, starts.numpy(), found)
    optimizer.zero_grad()
    tiny.losses(model, found).mean().backward()
    sys.audit("golf.step", step, (step,), 1.0, False, 0)
    optimizer.step()
tiny.end()
