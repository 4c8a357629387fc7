"""How the report's figures look, and how they become bytes that depend on nothing but the numbers.

White background, so that they read on GitHub's dark theme too; text is drawn as outlines, so that no viewer's fonts
matter. Colours are those of Okabe and Ito, distinct for colour-blind readers.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
INK, FAINT = "#24292f", "#8c959f"
DASHES, DOTS = (0, (5, 3)), (0, (2, 2))
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "golf-audit",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
}


def image(make: Callable[[], Figure], *, form: str = "svg") -> bytes:
    """A figure as the bytes of an svg or png, whatever the user's matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = make()
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, facecolor="white", metadata=metadata, dpi=110)
    return buffer.getvalue()
