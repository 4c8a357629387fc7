"""Every violation that we know how to plant, by the place in a run where it happens."""

from __future__ import annotations

from tests.mutants.catalogue import evaluation, hidden, predictors, surroundings, training
from tests.mutants.program import Entry

ENTRIES: tuple[Entry, ...] = (
    training.ENTRIES + evaluation.ENTRIES + surroundings.ENTRIES + hidden.ENTRIES + predictors.ENTRIES
)
