"""Whether parameters changed by anything that the ledger does not tell: fingerprints held against each other.

Fingerprints are sums over parameters modulo 2^64, so they add up. Between two fingerprints of the model lies what the
optimizers in between added to their own parameters, and nothing else, unless the program declared a change (note
`weights`), announced or dropped a model, or announced a step that no torch optimizer made. What an optimizer finds
before a step is what it left after the one before, plus what others did to the same parameters.

Weights that come back: steps on tokens that nobody can place leave no trace if the weights are declared to be restored,
and are then, to the bit, what they were before the first of these steps (a warm-up on random ids).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

WORD = 1 << 64
MOST_OTHERS = 8
"""Optimizers that may have moved the parameters of another one."""

Report = Callable[..., object]
"""(class, record, detail, witness)."""


@dataclass
class _Optimizer:
    """One torch optimizer: the fingerprint that it left, in record `at`."""

    inside: bool = False
    """It is known that all parameters behind its fingerprint belong to announced models."""
    apart: bool = False
    """It is known that none of them does: its steps explain no change of a model."""
    size: int = 0
    """Elements of its parameters."""
    after: int | None = None
    at: int = 0
    sums: dict[int, int] = field(default_factory=dict)
    """What every optimizer had added to its parameters when this one last moved."""


class Weights:
    """The fingerprints of a rank, record by record."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._optimizers: dict[int, _Optimizer] = {}
        self._sums: dict[int, int] = {}
        self._size = 0
        """Elements of the model's parameters."""
        self._state: tuple[int, int] | None = None
        """(record, fingerprint) of the model when it was last taken."""
        self._added = 0
        """What the optimizers added to the model since."""
        self._certain = True
        """Whether nothing else may have moved it since."""
        self._moved = False
        self._waiting = False
        """A step was announced and no optimizer has moved yet."""
        self._stepped: set[int] = set()
        """Optimizers that moved since the last step."""
        self._anchor: int | None = None
        self._restored = False
        self.tainted = False

    def note(self, name: str, facts: Mapping[str, Any]) -> None:
        """A note that declares or explains a change."""
        if name == "weights":
            self._declared()
            self._restored = True
        elif name == "model":
            self._certain = False
            self._size = max(self._size, _number(facts.get("parameters")))
            if facts.get("gone"):
                for optimizer in self._optimizers.values():
                    optimizer.inside = False
        elif name == "optimizer":
            inside, size = facts.get("covers_model") is True, _number(facts.get("parameters"))
            self._optimizers[_number(facts.get("index"))] = _Optimizer(
                inside=inside, apart=facts.get("apart") is True, size=size
            )

    def _declared(self) -> None:
        """Whatever was known of the parameters is so no more."""
        self._certain = False
        for optimizer in self._optimizers.values():
            optimizer.after = None

    def step(self) -> None:
        """A step is announced, or implied by the recorder."""
        self._stepped.clear()
        if self._waiting:  # the step before was made by something that torch does not know
            self._declared()
        self._waiting = True

    def taint(self) -> None:
        """The step that comes now uses tokens that nobody can place."""
        if not self.tainted:
            self.tainted, self._restored = True, False
            clean = self._state is not None and not self._moved and self._certain and not self._added
            self._anchor = self._state[1] if clean and self._state else None

    def update(self, at: int, optimizer: int, before: int, after: int) -> None:
        """A torch optimizer moved its parameters."""
        if optimizer in self._stepped:
            detail = f"optimizer {optimizer} moves its parameters, and no step says what it learned from"
            self._report("update-without-step", at, detail, {"optimizer": optimizer})
        self._stepped.add(optimizer)
        self._waiting, self._moved, self._restored = False, True, False
        one = self._optimizers.setdefault(optimizer, _Optimizer())
        if one.after not in (None, before) and not self._explained(before, one):
            self._report(
                "parameters-changed",
                at,
                f"optimizer {optimizer} found {before:#018x} before its step, and left {one.after or 0:#018x} in "
                f"record {one.at}; something that the ledger does not tell changed its parameters in between",
                {
                    "optimizer": optimizer,
                    "left": f"{one.after or 0:#018x}",
                    "left_in": one.at,
                    "found": f"{before:#018x}",
                },
            )
        added = after - before
        self._sums[optimizer] = self._sums.get(optimizer, 0) + added
        one.after, one.at, one.sums = after, at, self._sums.copy()
        if one.inside:
            self._added += added
        elif not one.apart:
            self._certain = False

    def _explained(self, before: int, one: _Optimizer) -> bool:
        """Whether what an optimizer finds is what it left, and what some of the others added since.

        Their parameters may be the same ones. If they may also be some of the same, this can't be told, and the states
        of the model must show it; they are not where the optimizers together have as many as the model.
        """
        others = [self._sums[number] - one.sums.get(number, 0) for number in self._sums]
        others = [added for added in others if added]
        sizes = sum(other.size for other in self._optimizers.values() if other.inside)
        if others and (not sizes or sizes != self._size):
            return True
        change = before - (one.after or 0)
        return len(others) > MOST_OTHERS or any(
            (change - sum(some)) % WORD == 0
            for count in range(len(others) + 1)
            for some in itertools.combinations(others, count)
        )

    def state(self, at: int, parameters: int) -> bool:
        """The model's fingerprint; returns whether tainted weights are back to what they were."""
        if self._waiting:  # whoever makes an announced step does so at once
            self._declared()
            self._waiting = False
        if self._state is not None and self._certain:
            expected = (self._state[1] + self._added) % WORD
            if parameters != expected:
                self._report(
                    "parameters-changed",
                    at,
                    f"the parameters are {parameters:#018x}, expected {expected:#018x} from record {self._state[0]} on "
                    "and what the optimizers added; something that the ledger does not tell changed them",
                    {"since": self._state[0], "expected": f"{expected:#018x}", "found": f"{parameters:#018x}"},
                )
        self._state, self._added, self._certain, self._moved = (at, parameters), 0, True, False
        if self.tainted and self._restored and parameters == self._anchor:
            self.tainted = False
            return True
        return False


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1
