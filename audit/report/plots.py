"""The curves of a run as SVG bytes: `loss_curves(run)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from audit.facts import Run, SeedRun, Series
from audit.report.style import COLOURS, DASHES, DOTS, FAINT, INK, image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def loss_curves(run: Run, *, form: str = "svg") -> bytes:
    """Loss over steps, twice: the whole run, and its second half at its own scale. `form` is svg or png."""
    return image(lambda: _figure(run), form=form)


def _figure(run: Run) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    whole, late = figure.subplots(1, 2, width_ratios=(1.1, 1.0))
    last = max(1, *(seed.train_loss_nats.steps[-1] for seed in run.seeds))
    loop_step = _loop_step(run.seeds, last)
    for axes in (whole, late):
        for index, seed in enumerate(run.seeds):
            _draw_seed(axes, seed, COLOURS[index % len(COLOURS)])
        if loop_step:
            axes.axvline(loop_step, color=FAINT, linewidth=0.9, linestyle=DOTS, zorder=1)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}" if step == round(step) else "")
    whole.set_ylabel("loss, nats per token")
    whole.set_title("The whole run")
    whole.set_xlim(-last * 0.02, last * 1.03)
    bigram_nats = run.data.bigram_val_bpb / _bits_per_nat(run.seeds[0])
    whole.axhline(bigram_nats, color=FAINT, linewidth=1.0, linestyle=DASHES, zorder=1)
    whole.legend(loc="upper right", fancybox=False, edgecolor="white", framealpha=0.9)
    late.set_title("The second half")
    late.set_xlim(last * 0.485, last * 1.03)
    late.set_ylim(*_limits(run.seeds, last / 2))
    _bits_axis(late, run.seeds[0])
    _legend(figure, loops=bool(loop_step))
    return figure


def _draw_seed(axes: Axes, run: SeedRun, colour: str) -> None:
    """Training as a line, validations of the running weights as rings, that of the averaged weights as a diamond."""
    train, validation = run.train_loss_nats, run.val_loss_nats
    smooth = _smooth(train)
    if smooth != train:
        axes.plot(train.steps, train.values, color=colour, linewidth=0.6, alpha=0.15)
    axes.plot(smooth.steps, smooth.values, color=colour, linewidth=1.2, alpha=0.85, label=f"seed {run.seed}")
    axes.plot(validation.steps[:-1], validation.values[:-1], "o", markersize=5, mfc="white", mec=colour, mew=1.3)
    axes.plot(validation.steps[-1:], validation.values[-1:], "D", markersize=6, mfc=colour, mec="white", mew=0.8)


def _smooth(series: Series) -> Series:
    """A long series as means over windows of a fortieth of it, each drawn at its middle; a short one as it is."""
    width = len(series.steps) // 40
    if width < 2:
        return series
    starts = range(0, len(series.steps) - width + 1, max(1, width // 4))
    means = tuple(math.fsum(series.values[start : start + width]) / width for start in starts)
    return Series(steps=tuple(series.steps[start + width // 2] for start in starts), values=means)


def _loop_step(runs: Sequence[SeedRun], last: int) -> int | None:
    """The step at which the recurrence was switched on, if it is the same one for every seed."""
    first, *others = (run.train.loop_step for run in runs)
    return first if first and first < last and all(step == first for step in others) else None


def _bits_per_nat(run: SeedRun) -> float:
    """Bits per byte for each nat per token, on the validation split."""
    score = run.evaluate.sequential
    return score.tokens / score.bytes / math.log(2)


def _limits(runs: Sequence[SeedRun], start: float) -> tuple[float, float]:
    """The range of losses from step `start` on, with a little air."""

    def late(series: Series) -> list[float]:
        return [value for step, value in zip(series.steps, series.values, strict=True) if step >= start]

    found = [value for run in runs for series in (run.train_loss_nats, run.val_loss_nats) for value in late(series)]
    low, high = min(found), max(found)
    air = 0.06 * (high - low) or 0.05
    return low - air, high + air


def _bits_axis(axes: Axes, run: SeedRun) -> None:
    """A second scale: what a validation loss is in bits per byte."""
    factor = _bits_per_nat(run)

    def to_bits(nats: Any) -> Any:
        return nats * factor

    def to_nats(bpb: Any) -> Any:
        return bpb / factor

    bits = axes.secondary_yaxis("right", functions=(to_bits, to_nats))
    bits.set_ylabel("validation, bits per byte")


def _legend(figure: Figure, *, loops: bool) -> None:
    """What the shapes mean, below both panels; the colours are told inside the left one."""
    from matplotlib.lines import Line2D

    shapes = [
        Line2D([], [], color=INK, linewidth=1.1, label="training"),
        Line2D([], [], linestyle="", marker="o", mfc="white", mec=INK, mew=1.3, label="validation"),
        Line2D([], [], linestyle="", marker="D", mfc=INK, mec="white", label="validation, averaged weights"),
        Line2D([], [], color=FAINT, linestyle=DASHES, label="bigram model"),
    ]
    if loops:
        shapes.append(Line2D([], [], color=FAINT, linestyle=DOTS, label="loops switched on"))
    figure.legend(handles=shapes, loc="outside lower center", ncols=len(shapes), frameon=False)
