"""Writes the goldens of the present version anew: python -m tests.trainer.goldens"""

from __future__ import annotations

from tests.trainer.goldens import CODECS, FACTS, FOLDER, late
from trainer import artifact

for name, codec in CODECS.items():
    size = artifact.write(FOLDER / name, late(), metadata=FACTS, codec=codec)
    print(f"{name:24}{size:6} bytes")
