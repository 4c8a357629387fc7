"""The pipeline as a user types it: repro, experiments, seeds, the queue, 8 processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ruamel.yaml

from tests.pipeline.conftest import BIN, Project, copy_project
from tests.toy import TOY_8

STAGES = [
    "resolve",
    "data",
    "identity",
    *(f"{stage}@{seed}" for stage in ("train", "quantize", "evaluate", "verify") for seed in (1, 2)),
    "aggregate",
    "report",
]


def skipped(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if "didn't change, skipping" in line}


def ran(output: str) -> set[str]:
    """Stages whose command was executed (a restored one says that it is cached)."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")}


def locked(project: Project) -> dict[str, dict[str, str]]:
    """Stage → path → hash of every out in dvc.lock."""
    lock = ruamel.yaml.YAML(typ="safe").load(project.folder / "dvc.lock")
    return {
        stage: {out["path"]: out.get("md5", out.get("hash")) for out in entry["outs"]}
        for stage, entry in lock["stages"].items()
    }


def metrics(project: Project) -> dict[str, Any]:
    return json.loads((project.folder / "runs" / "aggregate" / "metrics.json").read_text())


def test_nothing_changed_nothing_runs(project: Project) -> None:
    """A second repro skips every stage but the one that reads the machine."""
    output = project.dvc("repro")
    assert ran(output) == {"resolve"}
    assert skipped(output) == set(STAGES) - {"resolve"}


def test_forced_again_every_out_that_is_no_clock_has_the_same_hash(project: Project) -> None:
    """`dvc repro --force` gives the same bytes for all outs but clock.* and the report, and other clocks."""
    before = locked(project)
    output = project.dvc("repro", "--force")
    assert ran(output) == set(STAGES)
    after = locked(project)
    named_clock = {path for outs in after.values() for path in outs if Path(path).name.startswith("clock.")}
    assert len(named_clock) == 1 + (4 + 3) * 2  # times of data and of four stages, ledgers of three
    for stage, outs in before.items():
        for path, digest in outs.items():
            if path in named_clock:
                assert after[stage][path] != digest, f"{path} is said to depend on the clock and does not"
            elif stage != "report":
                assert after[stage][path] == digest, path


def test_an_experiment_on_the_query_gain_trains_again_and_is_kept(project: Project) -> None:
    """`dvc exp run -S qk_gain=5.0` re-runs what reads the gain, shows in `dvc exp show`, and names the new scores."""
    before = metrics(project)
    output = project.dvc("exp", "run", "-n", "gain5", "-S", "qk_gain=5.0")
    assert "data" in skipped(output)
    assert {"train@1", "quantize@1", "evaluate@1", "aggregate"} <= ran(output)
    assert metrics(project)["mean"]["val_bpb"] != before["mean"]["val_bpb"]
    shown = project.dvc("exp", "show", "--csv", "--no-pager")
    assert "gain5" in shown
    assert "qk_gain" in shown
    assert json.loads((project.folder / "runs" / "recipe.json").read_text())["qk_gain"] == 5.0
    difference = project.dvc("exp", "diff")
    assert "mean.val_bpb" in difference


def test_a_key_of_the_evaluation_leaves_training_alone(project: Project) -> None:
    """-S eval.stride=64 re-scores; neither data, training nor quantization runs."""
    output = project.dvc("exp", "run", "-S", "eval.stride=64")
    assert {f"{stage}@{seed}" for stage in ("train", "quantize") for seed in (1, 2)} <= skipped(output)
    assert {"evaluate@1", "evaluate@2", "aggregate"} <= ran(output)


def test_other_seeds_are_run_and_old_ones_are_named_and_not_read(project: Project) -> None:
    """-S seeds=[2,3] trains only the new seed; the mean is over exactly the declared two; a stale folder is a note."""
    output = project.dvc("exp", "run", "-S", "seeds=[2,3]")
    assert "train@2" in skipped(output)
    assert "train@3" in ran(output)
    found = metrics(project)
    assert found["seeds"] == [2, 3]
    assert set(found["seed"]) == {"2", "3"}


def test_the_queue_runs_in_a_checkout_of_its_own_with_the_changed_source(project: Project) -> None:
    """`dvc exp run --queue` + `dvc queue start` run the sources of the experiment, in the queue's temporary folder."""
    path = project.folder / "trainer" / "stages.py"
    text = path.read_text()
    assert text.count('"limit_bytes": recipe.artifact.limit_bytes,') == 1
    path.write_text(text.replace('"limit_bytes": recipe.artifact.limit_bytes,', '"limit_bytes": 12345678,'))
    project.set({"seeds": [1]})
    project.dvc("exp", "run", "--queue", "-n", "queued", "-S", "train.steps=2")
    project.dvc("queue", "start")
    log = project.dvc("queue", "logs", "--follow", "queued")
    assert "train@1" in ran(log)
    assert (project.folder / "runs" / "train" / "1" / "metrics.json").exists()
    shown = project.dvc("exp", "show", "--json")
    assert "queued" in shown
    project.dvc("exp", "apply", "queued")
    quantized = json.loads((project.folder / "runs" / "quantize" / "1" / "metrics.json").read_text())
    assert quantized["limit_bytes"] == 12345678
    assert json.loads((project.folder / "runs" / "train" / "1" / "metrics.json").read_text())["steps"] == 2


def test_without_an_activated_environment_the_stages_find_it(project: Project) -> None:
    """`.venv/bin/dvc repro` works though neither PATH nor VIRTUAL_ENV points to the environment."""
    (project.folder / ".venv").symlink_to(BIN.parent)
    project.activated = False
    output = project.sh([".venv/bin/dvc", "repro", "--force", "--single-item", "quantize@1"])
    assert "quantize@1" in ran(output)


def test_metrics_and_plots_are_readable_pages(project: Project) -> None:
    """`dvc metrics show` has every seed and the mean; `dvc plots show` draws both curves with a line a seed."""
    table = json.loads(project.dvc("metrics", "show", "--json"))[""]["data"]["runs/aggregate/metrics.json"]["data"]
    assert set(table["seed"]) == {"1", "2"}
    assert table["mean"]["val_bpb"] > 0
    project.dvc("plots", "show")
    page = (project.folder / "dvc_plots" / "index.html").read_text()
    for name in ("Training loss", "Validation during training", "train_loss_nats"):
        assert name in page
    drawn = project.dvc("plots", "show", "--json", "runs/aggregate/train_loss.tsv")
    assert all(f'"seed": "{seed}"' in drawn or f'\\"seed\\": \\"{seed}\\"' in drawn for seed in (1, 2))


def test_a_wrong_key_never_starts_anything(project: Project) -> None:
    """DVC refuses an unknown key, ours a wrong value: in both cases no stage after resolve runs."""
    assert "qkgain" in project.dvc("exp", "run", "-S", "qkgain=5.0", fails=True)
    output = project.dvc("exp", "run", "-S", "qk_gain=-5", fails=True)
    assert "error: qk_gain: got -5.0, expected more than 0" in output
    assert ran(output) == {"resolve"}


def test_a_missing_declared_seed_is_an_error_of_the_aggregate(project: Project) -> None:
    """If a declared seed's result is gone, the aggregate says which and does not average the rest."""
    (project.folder / "runs" / "evaluate" / "2" / "metrics.json").unlink()
    output = project.dvc("repro", "--single-item", "--force", "aggregate", fails=True)
    assert "evaluate@2" in output


def test_eight_processes_through_the_pipeline(tmp_path: Path) -> None:
    """scale=8gpu device=cpu: launch, torchrun, 8 gloo processes, sharded optimizer, one log, one score."""
    project = copy_project(tmp_path)
    project.set(TOY_8)
    output = project.dvc("repro")
    assert "47,110 parameters on 8 x cpu" in output
    assert output.count("step 8, 100% done: loss") == 1
    found = metrics(project)
    assert found["seeds"] == [7]
    assert found["seed"]["7"]["val_bpb"] < 0.9 * found["seed"]["7"]["first_val_bpb"]


@pytest.mark.parametrize("command", [["make", "-n", "repro"], ["make", "-n", "test"], ["make", "-n", "venv"]])
def test_the_commands_of_the_readme_exist(reproduced: Project, command: list[str]) -> None:
    """make repro, make test and make venv are targets."""
    reproduced.sh(command)
