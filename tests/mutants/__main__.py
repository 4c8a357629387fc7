"""`python -m tests.mutants` runs every mutant and its neighbour and writes docs/kill-table.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.mutants import table
from tests.mutants.catalogue import ENTRIES
from tests.mutants.harness import Bench


def main() -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for entry in ENTRIES:
            rows[entry.name] = table.row(entry, *bench.pair(entry))
            print(rows[entry.name], end="", flush=True)
    table.PATH.write_text(table.document(ENTRIES, rows), encoding="utf-8")
    print(f"wrote {table.PATH}")


if __name__ == "__main__":
    main()
