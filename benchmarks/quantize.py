"""GPTQ of the full shape beside the plain form of the same algorithm: seconds, equal codes, error.

    .venv/bin/python -m benchmarks.quantize [--json FILE] [--threads 2] [--device cuda] [--runs runs]

The plain form (`tests.oracles.plain_gptq`) goes column by column, one matrix at a time, with two Cholesky factors and
an inverse. In fp32 it is today's practice and the baseline; in float64 it says what is exact. Ours and the baseline
take turns, and medians are compared: a shared machine gets slower for both. Weights and Hessians are those of
`benchmarks.shapes`, with `--runs` also those that each seed's training left there.

`gptq_codes_equal_fraction` and `gptq_error_ratio` hold ours, and the baseline, against float64's codes; the error is
Σ tr((W-Ŵ) H (W-Ŵ)ᵀ) over matrices, and `gptq_error_deviation` the worst |ratio - 1| of a single one, beside its bar.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import material
from tests.oracles import plain_gptq
from trainer.clipping import row_scales
from trainer.gptq import Problem, solve
from trainer.quantized import dequantize
from trainer.quantizer import coding
from trainer.settings import Gptq
from trainer.stages import read_trained

BAR_EQUAL, BAR_DEVIATION = 0.999, 1e-4
"""Least share of codes equal to the baseline's, and most relative difference from the exact error."""
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch, for ours and the baseline")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of ours and the baseline")
    parser.add_argument("--block", type=int, default=Gptq().block)
    parser.add_argument("--tails", action="store_true", help="weights with heavy tails and unequal columns")
    parser.add_argument("--runs", type=Path, help="a runs folder whose trained models are quantized too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Gptq(block=options.block)
    made = material(tails=options.tails)
    rows = compare("", problems(made.state, made.hessians, made.sites, settings, options.device), settings, options)
    for folder in sorted((options.runs / "train").iterdir()) if options.runs else []:
        trained, sites = read_trained(folder)
        found = problems(trained.weights, trained.hessians, sites, settings, options.device)
        rows += compare(f"trained {folder.name}: ", found, settings, options)
    for one in rows:
        print(f"{one['figure']:50} {one['ours']:12.8g} {one['baseline']:12.8g} {one['unit']:8} {one['ratio']:9.6f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def problems(
    state: Mapping[str, Tensor], hessians: Mapping[str, Tensor], sites: Mapping[str, str], settings: Gptq, device: str
) -> list[Problem]:
    """What `quantize_model` has solved, on the device."""
    there = {site: hessian.to(device) for site, hessian in hessians.items()}
    made = []
    for name, site in sites.items():
        weight, (bits, k, damping) = state[name].to(device), coding(name, settings)
        scales = row_scales(weight, bits=bits, k=k, name=name)
        made.append(Problem(weight=weight, hessian=there[site], scales=scales, bits=bits, damping=damping, name=name))
    return made


def compare(what: str, given: list[Problem], settings: Gptq, options: argparse.Namespace) -> list[Row]:
    """The rows of one set of problems."""
    clocks: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(options.rounds):
        plain = timed(lambda: one_by_one(given, torch.float32), clocks["plain"], options.device)
        ours = timed(lambda: solve(given, block=settings.block), clocks["ours"], options.device)
    exact = one_by_one(given, torch.float64)
    fast, slow, least = (torch.tensor(errors(given, codes), dtype=torch.float64) for codes in (ours, plain, exact))
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {options.threads} threads"

    def row(figure: str, ours: float | Tensor, baseline: float | Tensor, unit: str) -> Row:
        ours, baseline = float(ours), float(baseline)
        found = {"figure": what + figure, "ours": ours, "baseline": baseline, "ratio": ours / baseline}
        return found | {"unit": unit, "device": device}

    return [
        row("gptq_seconds", statistics.median(clocks["ours"]), statistics.median(clocks["plain"]), "s"),
        row("gptq_codes_equal_fraction", equal(ours, exact), equal(plain, exact), "of codes"),
        row("gptq_codes_equal_to_baseline_fraction", equal(ours, plain), BAR_EQUAL, "of codes"),
        row("gptq_error_ratio", fast.sum() / least.sum(), slow.sum() / least.sum(), "of exact"),
        row("gptq_error_deviation", (fast / least - 1).abs().max(), BAR_DEVIATION, "of exact"),
    ]


def timed(work: Callable[[], list[Tensor]], clock: list[float], device: str) -> list[Tensor]:
    """What `work` gives, and its seconds on the clock."""
    began = time.perf_counter()
    done = work()
    if device == "cuda":
        torch.cuda.synchronize()
    clock.append(time.perf_counter() - began)
    return done


def one_by_one(given: list[Problem], dtype: torch.dtype) -> list[Tensor]:
    """The plain form on every matrix."""
    return [plain_gptq(p.weight, p.hessian, p.scales, bits=p.bits, damping=p.damping, dtype=dtype) for p in given]


def errors(given: list[Problem], codes: list[Tensor]) -> list[float]:
    """tr((W-Ŵ) H (W-Ŵ)ᵀ) of every matrix, in float64."""
    found = []
    for problem, own in zip(given, codes, strict=True):
        lost = problem.weight.double() - dequantize(own, problem.scales).double()
        found.append(float(((lost @ problem.hessian.double()) * lost).sum()))
    return found


def equal(codes: list[Tensor], others: list[Tensor]) -> float:
    """Share of all codes that are equal."""
    same = sum(int((a == b).sum()) for a, b in zip(codes, others, strict=True))
    return same / sum(a.numel() for a in codes)


if __name__ == "__main__":
    main()
