"""What a stage is made from, by digest, and its announcement to whoever listens (PEP 578).

`golf.run` opens a stage and says which it is; `golf.identity` follows with the digests of recipe, sources and data,
and comes again, taken anew, when the work is done; `golf.end` is the last word of a stage that did not fail.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer import recipe as recipes
from trainer import source
from trainer.data import FACTS
from trainer.errors import DataError
from trainer.files import sha256_file
from trainer.layout import Layout
from trainer.settings import Recipe


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a stage works with. Equal at its start and end, or the run is not what it says."""

    recipe_digest: str
    source_digest: str
    data_digest: str

    @classmethod
    def of(cls, recipe: Recipe, *, stage: str, data_digest: str) -> Identity:
        return cls(recipes.digest(recipe, stage=stage), source.digest(), data_digest)


@contextmanager
def announced(
    layout: Layout, recipe: Recipe, *, stage: str, seed: int, rank: int = 0, ranks: int = 1
) -> Iterator[None]:
    """Around the work of one rank of a stage: who it is before it, and after it that it is still the same.

    Raises DataError if there is no data set to name.
    """
    facts = {
        "rank": rank,
        "ranks": ranks,
        "device": recipe.device,
        "length": recipe.train.sequence_length,
        "vocab_size": recipe.tokens.vocab_size,
        "corpus": recipe.corpus.source,
        "data": str(layout.data),
    }
    sys.audit("golf.run", stage, seed, facts)
    _announce("start", recipe, stage, layout.data / FACTS)
    yield
    _announce("end", recipe, stage, layout.data / FACTS)
    sys.audit("golf.end", stage)


def _announce(when: str, recipe: Recipe, stage: str, data: Path) -> None:
    try:
        found = Identity.of(recipe, stage=stage, data_digest=sha256_file(data))
    except OSError as error:
        raise DataError(f"can't read {data}: {error.strerror}; run the data stage") from None
    digests = {"recipe": found.recipe_digest, "sources": found.source_digest, "data": found.data_digest}
    sys.audit("golf.identity", when, digests)
