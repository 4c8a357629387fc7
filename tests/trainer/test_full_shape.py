"""The real recipe's shape goes through the whole chain on a CPU."""

from __future__ import annotations

from pathlib import Path

from benchmarks import full_shape


def test_the_full_shape_goes_from_training_to_a_score_read_back_from_disk(tmp_path: Path) -> None:
    """35.9 M parameters: a step, Hessians, GPTQ of 67 matrices, pack, read back from disk, windows scored.

    The codec is ans for time (brotli 11 takes half a minute); benchmarks/full_shape.py measures both.
    """
    found = full_shape.run(tmp_path, steps=1, codec="ans", threads=1)
    assert found["parameters"] == 35_943_512
    assert found["matrices"] == 67
    assert abs(found["pre_quant_val_loss_nats"] - found["val_loss_nats"]) < 0.2
    # Near the entropy of the codes and near the contest's limit, which is what the recipe's bits and clips are for.
    assert 0.95 < found["model_bytes"] / found["order0_bytes"] < 1.02
    assert 0.9 < (found["model_bytes"] + found["code_bytes"]) / found["limit_bytes"] < 1.1
