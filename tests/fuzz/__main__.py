"""`python -m tests.fuzz`: mutants of artifacts against the reader; exit code 1 if it does what it must not.

    python -m tests.fuzz --count 1000000 --seed 1 --workers 2
    python -m tests.fuzz --seconds 60                   as many as a minute allows
    python -m tests.fuzz --seed 1 --only 123            one mutant: what it is, and what becomes of it
    python -m tests.fuzz --atheris --seconds 600        led by coverage

The bytes of each finding lie in --out afterwards. A whole campaign fails, too, if it reaches less than 95 % of the
reader's lines.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.campaign import Tally, campaign, run
from tests.fuzz.lines import coverage
from tests.fuzz.mutants import mutant
from tests.fuzz.oracle import ACCEPTED, REFUSED, SPELLINGS

NEEDED = 0.95
COLUMNS = [REFUSED, ACCEPTED, *SPELLINGS, "finding"]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if nothing was found, else 1. The command line's own arguments if none are given."""
    options = _options(arguments)
    if options.atheris:
        guided = [sys.executable, "-m", "tests.fuzz.guided", f"--seconds={options.seconds:.0f}"]
        return subprocess.run([*guided, f"--seed={options.seed}", f"--out={options.out}"]).returncode
    if options.only is not None:
        subject, tally = mutant(options.seed, options.only), Tally()
        print(f"{subject.mutation} of {subject.origin.name}, {len(subject.data)} bytes: {subject.data.hex()}")
        run(options.seed, [options.only], tally)
        print(*(outcome for _, outcome in tally.outcomes), *tally.refusals)
        return _print_findings(tally, options.out)
    began = time.perf_counter()
    tally = campaign(options.seed, options.count, options.workers, options.seconds, _progress)
    _print_outcomes(tally, time.perf_counter() - began)
    reached = _print_lines(tally)
    failed = _print_findings(tally, options.out)
    return failed or int(tally.count() == options.count and reached < NEEDED)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="mutants, half of them resealed")
    parser.add_argument("--seed", type=int, default=1, help="another seed is another million")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=86_400, help="stop before the count after so long")
    parser.add_argument("--only", type=int, metavar="N", help="the mutant of this number alone")
    parser.add_argument("--atheris", action="store_true", help="led by coverage; needs the extra `fuzz`")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for the bytes of findings")
    return parser.parse_args(arguments)


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line}", end="", file=sys.stderr, flush=True)


def _print_outcomes(tally: Tally, seconds: float) -> None:
    """Counts by mutation and outcome, time, memory."""
    count, sums = tally.count(), dict.fromkeys(COLUMNS, 0)
    resealed = sum(number for (mutation, _), number in tally.outcomes.items() if "," not in mutation)
    print(f"\n{count:,} mutants, {resealed:,} of them resealed, in {seconds:.0f} s: {count / seconds:,.0f} a second")
    print("accepted means with content of its own; what is left of it, with the content that it had, otherwise written")
    print(f"{'':26}" + "".join(f"{column:>12}" for column in COLUMNS))
    for mutation in sorted({mutation for mutation, _ in tally.outcomes}):
        row = {column: tally.outcomes[mutation, column] for column in COLUMNS}
        sums = {column: sums[column] + row[column] for column in COLUMNS}
        print(f"{mutation:26}" + "".join(f"{row[column]:12,}" for column in COLUMNS))
    print(f"{'all':26}" + "".join(f"{sums[column]:12,}" for column in COLUMNS))
    print(f"refused by {len(tally.refusals)} different lines of the reader")
    print(f"slowest: {tally.slowest[0]:.2f} s of processor for the reader, number {tally.slowest[1]}")
    print(f"memory: at most {tally.peak / 1e6:.0f} MB resident in a worker, with Python, torch and the oracle")


def _print_lines(tally: Tally) -> float:
    """The part of the reader's lines that ran."""
    ran = total = 0
    for module, (hit, missed) in coverage(tally.hit).items():
        ran, total = ran + len(hit), total + len(hit) + len(missed)
        print(f"{module.__name__:26}{len(hit):5} of {len(hit) + len(missed):4} lines ran; not {sorted(missed)}")
    print(f"{'the reader':26}{ran:5} of {total:4} lines ran: {ran / total:.1%}; {NEEDED:.0%} are needed")
    return ran / total


def _print_findings(tally: Tally, folder: Path) -> int:
    """1 if there are any, whose bytes are written."""
    for (kind, _), (text, subject) in tally.findings.items():
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{kind.replace(' ', '-')}-{subject.number}.golf"
        path.write_bytes(subject.data)
        print(f"FINDING {text}; number {subject.number}, {subject.mutation} of {subject.origin.name}: {path}")
    print(f"{len(tally.findings)} findings")
    return int(bool(tally.findings))


if __name__ == "__main__":
    sys.exit(main())
