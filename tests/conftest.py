"""Profiles of hypothesis and what all tests share. `HYPOTHESIS_PROFILE=thorough` searches longer."""

from __future__ import annotations

import os

import hypothesis
import pytest

# Machines are shared and noisy: a deadline would fail tests for their neighbours' work.
hypothesis.settings.register_profile("dev", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests run side by side, one process a core."""
    import torch

    torch.set_num_threads(1)
