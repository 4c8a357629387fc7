"""The passes over the validation stream that the stage evaluate makes, and the one of them that is the score.

| label | weights | counted |
| --- | --- | --- |
| sequential, sliding | the artifact's | sliding, unless an adapting mode is on |
| score_first | adapted chunk by chunk, each after its score | yes |
| rescore | as score_first left them: every token again, after it was trained on (contaminates) | yes, in its place |
| reference sequential, reference sliding | the unfitted checkpoint's, quantized alike (with prequant) | no |

The counted pass that was made last is the score: `golf.total` names it.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from trainer import adapt, checkpoint, contamination
from trainer.distributed import World, check_replicas
from trainer.model import GPT, called
from trainer.runlog import RunLog
from trainer.scoring import Score, Targets, describe, score
from trainer.settings import Recipe, Ttt


def score_label(ttt: Ttt) -> str:
    """The pass that is the score."""
    return "rescore" if ttt.rescore else "score_first" if ttt.score_first else "sliding"


class Evaluation:
    """A model, the stream that it is scored on, and the scores so far by label."""

    def __init__(self, gpt: GPT, targets: Targets, recipe: Recipe, world: World, log: RunLog, *, seed: int) -> None:
        self.gpt, self.targets, self.recipe, self.world, self.log, self.seed = gpt, targets, recipe, world, log, seed
        self.forward = called(gpt, compiled=recipe.train.compile and world.device.type == "cuda")
        self.found: dict[str, Score] = {}

    def run(self, reference: Path | None) -> dict[str, Score]:
        """All passes of the recipe, and those of the reference in that file; announces the sums of the score."""
        length, stride, ttt = self.recipe.train.sequence_length, self.recipe.eval.stride, self.recipe.ttt
        self.windows("sequential", stride=length)
        self.windows("sliding", stride=stride, counted=not ttt.score_first)
        if ttt.score_first:
            self.adapt()
        if ttt.rescore:
            self.windows("rescore", stride=stride, counted=True)
        total = self.found[score_label(ttt)]
        sys.audit("golf.total", score_label(ttt), total.loss_nats, total.tokens, total.bytes)
        if reference is not None:
            weights, _ = checkpoint.load(reference)
            checkpoint.put(self.gpt, weights, where=reference, why="reference loaded")
            self.windows(contamination.REFERENCE + "sequential", stride=length)
            self.windows(contamination.REFERENCE + "sliding", stride=stride)
        return self.found

    def windows(self, label: str, *, stride: int, counted: bool = False) -> None:
        """One pass with the weights as they are."""
        with self.log.phase(label):
            found = score(
                self.forward,
                self.targets,
                length=self.recipe.train.sequence_length,
                stride=stride,
                batch=self.recipe.eval.batch_windows,
                world=self.world,
                label=label,
                counted=counted,
                progress=functools.partial(self.log.progress, what=f"{label}, seed {self.seed}"),
            )
        self._keep(label, found)

    def adapt(self) -> None:
        """The pass that adapts; at its end all ranks must hold the same weights."""
        label = "score_first"
        with self.log.phase(label):
            progress = functools.partial(self.log.progress, what=f"{label}, seed {self.seed}")
            found = adapt.score_first(self.forward, self.gpt, self.targets, self.recipe, self.world, progress=progress)
            check_replicas(self.gpt, self.world)
        self._keep(label, found)

    def _keep(self, label: str, found: Score) -> None:
        self.found[label] = found
        self.log.event("score", label=label, **found.as_dict())
        self.log.line(f"{label}: {describe(found)}")
