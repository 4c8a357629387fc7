"""Run a stage of the toy recipe with N processes and note what each announced.

    python -m tests.trainer.ranks_program RUNS N STAGE [KEY=VALUE …]        what STAGE reads is there below RUNS

Imports once and forks, since importing torch N times is most of what a toy stage would cost. Writes
RUNS/heard.STAGE.<rank>.json: every step with its sequences, as (shard, start), and every counted score with its
windows, in order, with the counter of collectives of each.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from tests.toy import TOY
from trainer import recipe as recipes
from trainer import stages
from trainer.layout import Layout


def rank(runs: Path, number: int, size: int, port: int, stage: str, overrides: dict[str, str]) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    drawn: dict[int, list[tuple[int, int]]] = {}
    heard: list[dict[str, Any]] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "golf.draw":
            drawn[arguments[0]] = list(zip(arguments[2].tolist(), arguments[3].tolist(), strict=True))
        elif event == "golf.step":
            sequences = [row for draw in arguments[1] for row in drawn[draw]]
            about = {"step": arguments[0], "sequences": sequences, "looped": arguments[3], "order": arguments[4]}
            heard.append(about | {"draws": arguments[1]})
        elif event == "golf.score" and arguments[1]:
            windows = list(zip(arguments[2].tolist(), arguments[3].tolist(), strict=True))
            heard.append({"score": arguments[0], "windows": windows, "order": arguments[7]})

    sys.addaudithook(hook)
    recipe = recipes.resolve(TOY | {"dist.ranks": size} | overrides)
    getattr(stages, stage)(Layout(runs), recipe, 5)
    (runs / f"heard.{stage}.{number}.json").write_text(json.dumps(heard))


def main(runs: Path, size: int, stage: str, overrides: dict[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for number in range(size):
        child = os.fork()
        if child == 0:
            try:
                rank(runs, number, size, port, stage, overrides)
                os._exit(0)
            except BaseException as error:
                print(f"rank {number}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        children.append(child)
    ended = [os.waitpid(child, 0)[1] for child in children]
    if any(ended):
        sys.exit(1)


if __name__ == "__main__":
    settings = dict(argument.split("=", 1) for argument in sys.argv[4:])
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], settings)
