"""The project in a folder of its own, at toy scale, driven the way a user drives it: by typing commands."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml

from tests.toy import TOY

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclasses.dataclass
class Project:
    """A committed copy of the working tree. `activated` decides how DVC's stages find the environment."""

    folder: Path
    activated: bool = True

    def dvc(self, *arguments: str, fails: bool = False) -> str:
        return self.sh([str(BIN / "dvc"), *arguments], fails=fails)

    def sh(self, command: Sequence[str], *, fails: bool = False) -> str:
        """Run a command here; its output. The environment is a user's: activated, or not."""
        environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CI", "PYTHONPATH")}
        if self.activated:
            environment |= {"VIRTUAL_ENV": str(BIN.parent), "PATH": f"{BIN}{os.pathsep}{environment['PATH']}"}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert (done.returncode != 0) == fails, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def set(self, values: dict[str, Any]) -> None:
        """Write values into params.yaml as a user would, and commit."""
        yaml = ruamel.yaml.YAML()
        path = self.folder / "params.yaml"
        tree = yaml.load(path)
        for name, value in values.items():
            section, dot, inner = name.partition(".")
            if dot:
                tree[section][inner] = value
            else:
                tree[section] = value
        yaml.dump(tree, path)
        self.commit("change the recipe")

    def commit(self, message: str) -> None:
        self.sh(["git", "add", "--all"])
        self.sh(["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", message])


def copy_project(folder: Path) -> Project:
    """The files that git would commit, in a new repository at toy scale."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    project = Project(folder)
    project.sh(["git", "init", "--quiet", "--initial-branch=main"])
    project.sh(["git", "config", "user.name", "test"])
    project.sh(["git", "config", "user.email", "test@example.org"])
    project.set(TOY)
    return project


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A toy project after its first `dvc repro`. Tests that change it take a copy."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    project.dvc("repro")
    project.commit("first run")
    return project


@pytest.fixture
def project(reproduced: Project, tmp_path: Path) -> Project:
    """A copy of the reproduced project, cache and all, for one test to change."""
    folder = tmp_path / "project"
    shutil.copytree(reproduced.folder, folder, symlinks=True)
    return Project(folder)
