"""Named tensors on disk, as safetensors: no pickle, and equal content gives equal bytes.

`save` and `load` are inverse; they carry weights, Hessians and calibration sequences between the stages of a run.
safetensors checks on reading that the tensors cover the file exactly and that no size overflows; it has no checksum
(DVC and the ledger hash these files). It writes several metadata entries in an order that differs from process to
process, so all metadata goes into one entry, as JSON with sorted keys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trainer.errors import ArtifactError, quoted
from trainer.files import atomic

_ENTRY = "golf"
_SHOWN = 3
"""Most tensors that an error names."""


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any shape and dtype, from any device, and a few texts about them, as a whole."""
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        text = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False)
        safetensors.torch.save_file(whole, temporary, metadata={_ENTRY: text})


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the texts of a file that `save` wrote. Raises ArtifactError with the path."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"can't read the checkpoint {path}: {error.strerror}; run the stage that writes it"
        ) from None
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header["__metadata__"][_ENTRY])
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        cause = " ".join(f"{type(error).__name__} {error}".split())
        raise ArtifactError(
            f"{path} is not a whole checkpoint of this trainer ({cause}); remove it and run again"
        ) from None
    return dict(sorted(tensors.items())), metadata


def put(model: nn.Module, state: Mapping[str, Tensor], *, where: Path, why: str) -> None:
    """Make `state` the model's weights and announce it (`golf.weights`). Raises ArtifactError if it does not fit."""
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if differing := sorted(n for n in shapes.keys() | wanted.keys() if shapes.get(n) != wanted.get(n)):
        shown = [
            f"{quoted(n)} is {shapes.get(n, 'missing')}, expected {wanted.get(n, 'none')}" for n in differing[:_SHOWN]
        ]
        if len(differing) > _SHOWN:
            shown.append(f"{len(differing) - _SHOWN} more")
        raise ArtifactError(f"{where} does not fit the recipe: {'; '.join(shown)}; use the recipe it was trained with")
    model.load_state_dict(state)
    sys.audit("golf.weights", why)
