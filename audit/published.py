"""The contest's published splits, recognised by their counts.

Data flow: the section `published_splits` of a rule set → `read_published` → `recognise` holds a manifest against each
of them → `Recognition`: the one whose counts are all met, or the nearest one and every count that differs. Counts are
no digests: they say that nobody cut, mixed or re-tokenized the split, and not that no token was changed in place; the
manifest's roots say that, once they are published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audit.errors import ManifestError, RunError
from audit.manifest import Manifest
from audit.trees import parse as parse_tree


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of one published export; what is null is unknown and not compared. All of the validation split
    but for `train_*`.
    """

    status: str
    """`current`, or `superseded` where records were once scored on it."""
    vocab_size: int | None = None
    documents: int | None = None
    tokens: int | None = None
    """All tokens of the split."""
    scored_tokens: int | None = None
    """The targets of whole sequences: the largest multiple of `sequence_length` below `tokens`."""
    sequence_length: int | None = None
    bytes_per_token: float | None = None
    """Bytes of text per scored token (val_loss / ln 2 / val_bpb of the published logs)."""
    bytes_per_token_tolerance: float = 0.0
    """Relative; covers the tail that is not scored and the modes of evaluation."""
    train_shard_tokens: int | None = None
    """Tokens of every training shard but the export's last."""
    overlap_share: float | None = None
    """Share of validation tokens in runs of ≥ 50 tokens that also stand in training, where it was measured."""


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The published split that a manifest's counts are those of; if `differences` is empty, that is what it is."""

    name: str
    status: str
    compared: tuple[str, ...]
    """The counts that were compared and are equal."""
    differences: tuple[str, ...]
    """`documents is 10,000, published 50,000` for each one that is not."""
    overlap_share: float | None

    @property
    def recognised(self) -> bool:
        """Whether every published count is met, at least the number of tokens among them."""
        return not self.differences and bool({"tokens", "scored_tokens"} & set(self.compared))


def read_published(tree: Any, *, where: str) -> dict[str, Published]:
    """The published splits by name from a rule set's section. Raises ManifestError if it is damaged or empty."""
    remedy = "mend the rule set"
    if not isinstance(tree, Mapping) or not tree:
        raise ManifestError(f"{where}: got no published splits, expected an object of at least one; {remedy}")
    try:
        return {
            str(name): parse_tree(Published, facts, where=f"{where}: {name}", remedy=remedy)
            for name, facts in tree.items()
        }
    except RunError as cause:
        raise ManifestError(str(cause)) from None


def recognise(manifest: Manifest, published: Mapping[str, Published]) -> Recognition:
    """The published split with the fewest differing counts, of several the one with most equal ones.

    Raises ManifestError if the manifest has no validation split.
    """
    if "val" not in manifest.splits:
        raise ManifestError("the manifest has no split val, which is what the published counts are of; name its folder")
    held = [_hold(manifest, name, facts) for name, facts in published.items()]
    return min(held, key=lambda one: (len(one.differences), -len(one.compared)))


def _hold(manifest: Manifest, name: str, facts: Published) -> Recognition:
    """A manifest against one published split."""
    val, train = manifest.splits["val"], manifest.splits.get("train")
    got: dict[str, Any] = {"documents": val.documents, "tokens": val.tokens}
    if facts.sequence_length:
        got["scored_tokens"] = max(val.tokens - 1, 0) // facts.sequence_length * facts.sequence_length
    if manifest.tokenizer:
        got["vocab_size"] = manifest.tokenizer.vocab_size
    if val.bytes is not None and val.tokens:
        got["bytes_per_token"] = val.bytes / val.tokens
    whole = {shard.tokens for shard in train.shards[:-1]} if train else set()
    if whole:
        got["train_shard_tokens"] = whole.pop() if len(whole) == 1 else f"one of {sorted(whole)}"
    compared, differences = [], []
    for key, value in got.items():
        expected = getattr(facts, key)
        if expected is None:
            continue
        slack = facts.bytes_per_token_tolerance * expected if key == "bytes_per_token" else 0
        if value == expected or (not isinstance(value, str) and abs(value - expected) <= slack):
            compared.append(key)
        else:
            differences.append(f"{key} is {_number(value)}, published {_number(expected)}")
    return Recognition(
        name=name,
        status=facts.status,
        compared=tuple(compared),
        differences=tuple(differences),
        overlap_share=facts.overlap_share,
    )


def _number(value: Any) -> str:
    return f"{value:.7f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
