"""Where documents come from: the embedded generator, or a file of `{"text": …}` lines.

The embedded corpus is a made-up language with the properties that a trainer and its byte counting have to cope with:
words of several pieces with a Zipf distribution, topics, set phrases, people, places, dates and numbers that come back
within a document, quotations that are repeated, lists, accents, other scripts, emoji, characters and whitespace that
normalization changes, and now and then a document that occurred before. Context far beyond the last token tells what
comes next, so that a model that uses it beats a bigram clearly.

It is whole-number arithmetic on SHA-256 and nothing else: the same bytes on every machine. The language is fixed;
`corpus.seed` draws the documents, and document `i` doesn't depend on how many are drawn.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainer.errors import DataError
from trainer.settings import Corpus
from trainer.tokenizer import clean

T = TypeVar("T")

MAX_LINE_BYTES = 1 << 28
FIRST_COPY, COPY_EVERY = 100, 128
"""Documents from the 100th on are copies of an earlier one, one in 128."""

ONSETS, VOWELS, CODAS, EMOJI, ODDITIES, MONTHS = (
    line.split(" ")
    for line in """
b br c d dr f g gr h k l m n p r s st t tr v
a e i o u a e i o ai ou é ö å
    l n r s nd rt
🌊 🌲 🔥 🎻 🚲 🐟 🌙 🏔️ 👩\u200d🌾 🧵 🍞 🛶
… ½ ﬁ № x² e\u0301 a\u00a0b \u200b ＡＢ ™
January February March April May June July August September October November December
""".strip("\n").splitlines()
)
SCRIPTS = [
    str.maketrans("abcdefghiklmnoprstuvéöå", letters)
    for letters in ("αβκδεφγχικλμνοπρστυβέόά", "абцдефгхиклмнопрстувэёя")
]
SENTENCES, ITEMS, TITLES, SAYINGS, FIRST, LAST = (
    part.split("\n")
    for part in """
The {a} {n} of {l} was {v} by {p} in {y}.
According to {p}, the {n} had been {v} long before the {n} was {v} for the first time.
In the course of the following year {p} and {p} {v} the {a} {n} together.
It is not known whether {p} ever {v} the {n}, but {k} was never {v} again.
On {d} the people of {l} gathered in front of the {a} {n} to see {k}.
As far as anyone in {l} could remember, {k} had always been {v} by hand.
At least {q} of the {n}s were {v} between the {n} and the {a} {n} of {l}.
{p} wrote to {p} that "{s}", and nothing more was said about the {n}.
"{s}", said {p}, and {v} the {n} once more.
Most of the {n}s that {p} {v} can still be seen in the {a} {n} near {l}.
For this reason {k} is kept apart from the {n}s and is {v} only on {d}.
When the {n} was {v}, {p} asked for {q} {a} {n}s in return.
There is a {a} {n} in {l} which, on the other hand, has not been {v} since {y}.
Nobody but {p} knew how {k} could be {v} without a {n}.
The {n} and the {n} are {v} at the same time, because {k} does not last.
Until {y} the road from {l} to the {n} was {v} by {q} {n}s.
They say in {l} that a {n} should be {v} twice: once for {k}, and once for {p}.
After {y} no {n} was {a} enough for {p}.
{p} counted {q} {n}s, {q} {n}s and a single {a} {n}.
If the {n} is {a}, it has to be {v} with a {n} and left in the {n} until {d}.

- {a} {n}: {q}
- {n} ({l}, {y})
- {k}
- {p}, {a} {n}
- {f}

The {n} of {l}
{p} and the {a} {n}
How {k} was {v}
{l}, {d}
Notes on the {n}

the {n} is {v} and the {n} is {a}
never {a}, always {v} for {k}
a {n} without a {n} is {a}

{p} was born in {l} on {d} and {v} the {n} there for {q} years.
This is about {p}, who {v} {k} in {l} and had {q} {n}s.

Whoever has {v} {k} remembers what {p} used to say: "{s}".
Since {d} nothing has been {v} in {l}, where they still say that "{s}".
""".strip().split("\n\n")
)


class Draws:
    """Whole numbers from SHA-256 in counter mode: a label gives the same ones everywhere."""

    def __init__(self, label: str) -> None:
        self._words = self._stream(label)

    @staticmethod
    def _stream(label: str) -> Iterator[int]:
        for block in itertools.count():
            yield from struct.unpack(">8I", hashlib.sha256(f"{label}/{block}".encode()).digest())

    def below(self, bound: int) -> int:
        """A number from 0 to bound - 1, bound ≤ 2^24 (bias below 2^-8 of a share)."""
        return next(self._words) * bound >> 32

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[self.below(len(items))]

    def zipf(self, items: Sequence[T]) -> T:
        """One of the items, the first most likely, after Zipf's law."""
        steps = _zipf(len(items))
        return items[bisect.bisect_right(steps, self.below(steps[-1]))]


@functools.cache
def _zipf(count: int) -> list[int]:
    """Running sums of 1/(rank + 2), in units of 2^-20."""
    return list(itertools.accumulate((1 << 20) // (rank + 2) for rank in range(1, count + 1)))


@dataclasses.dataclass(frozen=True)
class Topic:
    """The words and set phrases that documents of a topic prefer."""

    nouns: list[str]
    adjectives: list[str]
    verbs: list[str]
    phrases: list[str]
    sentences: list[str]


@dataclasses.dataclass(frozen=True)
class Language:
    """Everything that is the same in all documents."""

    topics: list[Topic]
    nouns: list[str]
    adjectives: list[str]
    verbs: list[str]
    names: list[str]
    surnames: list[str]
    places: list[str]
    foreign: list[str]


def _words(draws: Draws, count: int, syllables: int, ending: str = "") -> list[str]:
    """Different words, the frequent ones (first) a syllable shorter."""
    found: dict[str, None] = {}
    while len(found) < count:
        length = syllables - (len(found) < count // 8) + (draws.below(4) == 0)
        parts = [draws.pick(ONSETS) + draws.pick(VOWELS) + draws.pick(CODAS) for _ in range(max(length, 1))]
        found["".join(parts) + ending] = None
    return list(found)


@functools.cache
def language() -> Language:
    """The made-up language: its lexicon and its topics."""
    draws = Draws("golf-audit language 1")
    nouns, adjectives, verbs = _words(draws, 800, 2), _words(draws, 300, 2, "ic"), _words(draws, 300, 1, "ed")
    names, surnames, places = (
        [word.capitalize() for word in _words(draws, 150, syllables, ending)]
        for syllables, ending in ((1, "a"), (2, "sen"), (2, ""))
    )
    foreign = ["".join(chr(0x4E00 + draws.below(300)) for _ in range(2 + draws.below(3))) for _ in range(40)]
    foreign += [word.translate(letters) for letters in SCRIPTS for word in _words(draws, 40, 2)]
    return Language(
        [_topic(draws, nouns, adjectives, verbs) for _ in range(32)],
        nouns, adjectives, verbs, names, surnames, places, foreign + EMOJI + ODDITIES,
    )  # fmt: skip


def _topic(draws: Draws, nouns: list[str], adjectives: list[str], verbs: list[str]) -> Topic:
    own = [draws.zipf(nouns) for _ in range(20)]
    own_adjectives = [draws.zipf(adjectives) for _ in range(10)]
    phrases = [f"the {draws.pick(own_adjectives)} {draws.pick(own)} of the {draws.pick(own)}" for _ in range(4)]
    return Topic(
        own, own_adjectives, [draws.zipf(verbs) for _ in range(8)], phrases, [draws.pick(SENTENCES) for _ in range(6)]
    )


class Document:
    """One embedded document: its topic, its cast, and the text that they give."""

    def __init__(self, draws: Draws) -> None:
        self.draws, words = draws, language()
        topic = draws.zipf(words.topics)
        self.sentences = topic.sentences
        self.lexicon = {
            "n": (topic.nouns, words.nouns),
            "a": (topic.adjectives, words.adjectives),
            "v": (topic.verbs, words.verbs),
        }
        self.people = [f"{draws.pick(words.names)} {draws.pick(words.surnames)}" for _ in range(3)]
        self.met: set[str] = set()
        dates = [f"{1 + draws.below(28)} {draws.pick(MONTHS)} {1800 + draws.below(220)}" for _ in range(2)]
        self.choices = {
            "d": dates,
            "y": [date[-4:] for date in dates],
            "l": [draws.zipf(words.places) for _ in range(2)],
            "q": [f"{2 + draws.below(98)}", f"{1 + draws.below(99)},{100 + draws.below(900)}"],
            "k": topic.phrases,
            "f": words.foreign,
        }
        self.choices["s"] = [self.fill(saying) for saying in SAYINGS]

    def slot(self, kind: str) -> str:
        """A word or phrase for a slot of a template: the topic's or the document's own more often than not."""
        if kind in self.lexicon:
            own, general = self.lexicon[kind]
            return self.draws.zipf(own if self.draws.below(8) else general)
        if kind == "p":
            person = self.draws.zipf(self.people)
            known = person in self.met
            self.met.add(person)
            return person.rpartition(" ")[2] if known else person
        return self.draws.pick(self.choices[kind])

    def fill(self, template: str) -> str:
        """A template with its slots filled, from left to right."""
        head, *rest = template.split("{")
        return head + "".join(self.slot(part[0]) + part[2:] for part in rest)

    def paragraph(self) -> str:
        """Sentences of the topic, or a list of items."""
        draws = self.draws
        if draws.below(6) == 0:
            return "\n".join(self.fill(draws.pick(ITEMS)) for _ in range(2 + draws.below(4)))
        sentences = []
        for _ in range(2 + draws.below(4)):
            sentence = self.fill(draws.zipf(self.sentences) if draws.below(4) else draws.pick(SENTENCES))
            if draws.below(12) == 0:
                sentence += f" ({self.slot('f')})"
            sentences.append(sentence + ("  " if draws.below(16) == 0 else " "))
        return "".join(sentences).rstrip()

    def text(self) -> str:
        """Title, introduction, paragraphs, closing."""
        paragraphs = [self.fill(self.draws.pick(TITLES)), self.fill(self.draws.pick(FIRST))]
        paragraphs += [self.paragraph() for _ in range(2 + self.draws.below(5))]
        return "\n\n".join([*paragraphs, self.fill(self.draws.pick(LAST))])


def _embedded(seed: int, index: int) -> str:
    """Document `index` of a seed; copies are those of the document they repeat."""
    draws = Draws(f"golf-audit document {seed} {index}")
    if index >= FIRST_COPY and draws.below(COPY_EVERY) == 0:
        return _embedded(seed, draws.below(index))
    return Document(draws).text()


def documents(corpus: Corpus) -> Iterator[str]:
    """The documents of an `embedded` or `jsonl` source in order, at most `corpus.documents` of them (0 = all).

    NUL becomes a space, whitespace at the ends is dropped, and so are documents that are empty then. Raises DataError
    for a source without documents (fineweb is tokens: `trainer.hub`), a file that can't be read, and a bad line.
    """
    if corpus.source == "embedded":
        return (_embedded(corpus.seed, index) for index in range(corpus.documents))
    if corpus.source == "jsonl":
        return itertools.islice(filter(None, _jsonl(Path(corpus.path))), corpus.documents or None)
    raise DataError(f"corpus.source {corpus.source} has no documents, only tokens; use embedded or jsonl")


def _jsonl(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as stream:
            for number in itertools.count(1):
                line = stream.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                yield _text_of(line, where=f"{path}, line {number}")
    except OSError as error:
        raise DataError(
            f'can\'t read corpus.path = {path}: {error.strerror}; give a file of {{"text": …}} lines'
        ) from None


def _text_of(line: bytes, *, where: str) -> str:
    """The text of one line. Lone surrogates are refused, because they have no UTF-8 form."""
    if len(line) > MAX_LINE_BYTES:
        raise DataError(f"{where}: longer than {MAX_LINE_BYTES} bytes, expected one document a line")
    try:
        value: Any = json.loads(line)
        text = value["text"]
        text.encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f'{where}: expected {{"text": "…"}}, got {line[:40]!r} ({reason}); mend or drop the line'
        ) from None
    return clean(text)
