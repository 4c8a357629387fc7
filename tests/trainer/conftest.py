"""A toy run's data, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy import toy_recipe
from trainer import data
from trainer.data import DataSet
from trainer.layout import Layout


@pytest.fixture(scope="session")
def toy_layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A run's folder that holds toy data and nothing else."""
    layout = Layout(tmp_path_factory.mktemp("toy") / "runs")
    layout.data.mkdir(parents=True)
    data.build(toy_recipe(), layout.data)
    return layout


@pytest.fixture(scope="session")
def toy_data(toy_layout: Layout) -> DataSet:
    return DataSet.open(toy_layout.data, toy_recipe())


@pytest.fixture
def fresh_layout(toy_layout: Layout, tmp_path: Path) -> Layout:
    """A run's folder of this test's own, with the toy data linked into it."""
    layout = Layout(tmp_path / "runs")
    layout.root.mkdir()
    layout.data.symlink_to(toy_layout.data)
    return layout
