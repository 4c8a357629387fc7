"""Train the toy recipe with N processes and note what each announced: `ranks_program.py RUNS N`, RUNS/data made.

Imports once and forks, since importing torch N times is most of what a toy training would cost. Writes
RUNS/heard.<rank>.json: for every step its sequences, as (shard, start), and the draws that the step used.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from tests.toy import toy_recipe
from trainer import stages
from trainer.layout import Layout


def rank(runs: Path, number: int, size: int, port: int) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    drawn: dict[int, list[tuple[int, int]]] = {}
    heard: list[dict[str, Any]] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "golf.draw":
            drawn[arguments[0]] = list(zip(arguments[2].tolist(), arguments[3].tolist(), strict=True))
        elif event == "golf.step":
            sequences = [row for draw in arguments[1] for row in drawn[draw]]
            heard.append({"step": arguments[0], "sequences": sequences, "looped": arguments[3], "order": arguments[4]})

    sys.addaudithook(hook)
    stages.train(Layout(runs), toy_recipe(dist__ranks=size), 5)
    (runs / f"heard.{number}.json").write_text(json.dumps(heard))


def main(runs: Path, size: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(size):
        child = os.fork()
        if child == 0:
            try:
                rank(runs, number, size, port)
                os._exit(0)
            except BaseException as error:
                print(f"rank {number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        children.append(child)
    ended = [os.waitpid(child, 0)[1] for child in children]
    if any(ended):
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
