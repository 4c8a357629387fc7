"""What depends on the device: how token ids get there, mixed precision, how far the host runs ahead of a GPU."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch


def autocast(device: torch.device) -> torch.autocast:
    """bf16 matrix products on GPUs, fp32 on CPUs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def pair(rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """uint16 rows [n, T+1] as inputs and targets, int64 [n, T] each, on the device (they travel as 16 bits)."""
    # torch has few kernels for uint16; int16 has the same bits, and the mask widens them without their sign.
    narrow = torch.from_numpy(rows.view(np.int16))
    if device.type == "cuda":
        narrow = narrow.pin_memory()  # from pageable memory the copy would wait for the GPU's queue
    wide = narrow.to(device, non_blocking=True).long() & 0xFFFF
    return wide[:, :-1], wide[:, 1:]


class Queue:
    """Keeps the host at most two steps ahead of a GPU, so that the clock tells when steps end, not when they start."""

    def __init__(self, device: torch.device) -> None:
        self.events: deque[torch.cuda.Event] = deque()
        self.device = device

    def push(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self.events.append(event)

    def wait(self, ahead: int = 2) -> None:
        while len(self.events) > ahead:
            self.events.popleft().synchronize()

    def drain(self) -> None:
        self.wait(0)
