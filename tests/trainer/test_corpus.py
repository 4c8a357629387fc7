"""Document sources: the embedded generator is fixed to the byte, lines of JSON are read or refused by number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import corpus
from trainer.corpus import Draws, documents
from trainer.errors import DataError
from trainer.settings import Corpus


def embedded(count: int, *, seed: int = 1) -> list[str]:
    return list(documents(Corpus(source="embedded", documents=count, seed=seed)))


@pytest.fixture(scope="module")
def many() -> list[str]:
    return embedded(1500)


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def test_the_documents_are_the_same_bytes_everywhere(many: list[str]) -> None:
    """The first documents of seed 1 have this digest on every machine and Python; a change of it is a new corpus."""
    assert digest(many[:300]) == "b4cdb384470eec22672045c0e9a3fe6d7fa39c00c721ee7027fbafa8e0661f58"


def test_draws_are_sha256_in_counter_mode() -> None:
    """The numbers are big-endian words of SHA-256(label/block), scaled to the bound: an independent form agrees."""
    draws, label = Draws("label"), b"label"
    stream = b"".join(hashlib.sha256(label + b"/%d" % block).digest() for block in range(3))
    words = [int.from_bytes(stream[i : i + 4], "big") for i in range(0, 96, 4)]
    assert [draws.below(1000) for _ in range(24)] == [word * 1000 // 2**32 for word in words]


@given(label=st.text(), bound=st.integers(1, 2**24))
def test_draws_stay_below_their_bound(label: str, bound: int) -> None:
    """Every draw is a whole number from 0 to bound - 1."""
    draws = Draws(label)
    assert all(0 <= draws.below(bound) < bound for _ in range(20))


def test_zipf_prefers_low_ranks_and_reaches_all() -> None:
    """Item frequencies fall with rank as 1/(rank + 2), and the last item is drawn too."""
    draws = Draws("zipf")
    counts = Counter(draws.zipf(range(8)) for _ in range(20_000))
    total = sum(1 / (rank + 3) for rank in range(8))
    for rank in range(8):
        assert counts[rank] == pytest.approx(20_000 / (rank + 3) / total, rel=0.1)


def test_a_document_depends_on_seed_and_index_alone(many: list[str]) -> None:
    """Fewer documents are a prefix of more, and another seed gives other documents."""
    assert embedded(150) == many[:150]
    assert not set(embedded(150, seed=2)) & set(many)


def test_some_documents_repeat_but_none_of_the_first_hundred(many: list[str]) -> None:
    """Exact duplicates exist, so that dropping them is exercised; the first hundred documents are all new."""
    repeated = [i for i, text in enumerate(many) if text in set(many[:i])]
    assert 3 <= len(repeated) <= len(many) // 40
    assert min(repeated) >= 100


def test_documents_exercise_normalization_and_byte_counting(many: list[str]) -> None:
    """There are accents, other scripts, emoji, line breaks, double spaces and characters that NFKC changes."""
    text = "\n".join(many)
    scripts = {unicodedata.name(char, "?").split()[0] for char in set(text) if char.isalpha()}
    assert {"LATIN", "GREEK", "CYRILLIC", "CJK"} <= scripts
    assert re.search("[\U0001f300-\U0001faff]", text)
    assert "\u200d" in text
    assert re.search(r"[a-z.]  [A-Z]", text)
    assert "\n\n" in text
    assert unicodedata.normalize("NFKC", text) != text
    assert all(text == text.strip() for text in many)
    assert 800 < sum(len(text.encode()) for text in many) / len(many) < 2500


def test_names_and_sayings_come_back_within_a_document(many: list[str]) -> None:
    """A document's closing repeats, far from where it stood first, a person or saying that is the document's own."""
    surnames = [re.findall(r"\w+sen\b", text) for text in many]
    assert sum(len(names) > len(set(names)) for names in surnames) > 0.9 * len(many)
    sayings = [re.findall('"([^"]+)"', text) for text in many]
    assert sum(len(said) > len(set(said)) for said in sayings) > 0.3 * len(many)


def test_frequent_words_are_few(many: list[str]) -> None:
    """Words follow a steep law: a tenth of the lexicon makes up most of the text, and half is rare."""
    counts = sorted(Counter(re.findall(r"\w+", "\n".join(many))).values(), reverse=True)
    assert sum(counts[: len(counts) // 10]) > 0.75 * sum(counts)


def write(path: Path, lines: list[str]) -> Corpus:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return Corpus(source="jsonl", path=str(path), documents=0)


@given(texts=st.lists(st.text(max_size=20), max_size=8), limit=st.integers(0, 4))
def test_lines_of_json_are_read_in_order(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], limit: int
) -> None:
    """Each line's text comes out with NUL as a space and stripped; empty ones are left out; 0 means all."""
    source = write(
        tmp_path_factory.mktemp("jsonl") / "a.jsonl", [json.dumps({"id": 1, "text": text}) for text in texts]
    )
    expected = [clean for text in texts if (clean := text.replace("\0", " ").strip())]
    found = list(documents(dataclasses.replace(source, documents=limit)))
    assert found == (expected[:limit] if limit else expected)


@pytest.mark.parametrize(
    "line",
    ["", "{", '{"words": "a"}', '["text"]', '{"text": 5}', '{"text": null}', '"text"', "[" * 100_000,
     r'{"text": "\ud800"}'],
)  # fmt: skip
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    """What isn't an object with a text, or has no UTF-8 form, is refused with file and line, in one short line."""
    source = write(tmp_path / "a.jsonl", ['{"text": "good"}', line])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: expected") as caught:
        list(documents(source))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    """A line in another encoding is refused with its number, not decoded to something else."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match="line 2"):
        list(documents(Corpus(source="jsonl", path=str(path))))


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line beyond the limit is refused without being read to its end."""
    monkeypatch.setattr(corpus, "MAX_LINE_BYTES", 50)
    source = write(tmp_path / "a.jsonl", [json.dumps({"text": "a" * 100})])
    with pytest.raises(DataError, match="line 1: longer than 50 bytes"):
        list(documents(source))


def test_a_missing_file_and_a_source_of_tokens_are_refused(tmp_path: Path) -> None:
    """corpus.path must exist, and fineweb has no documents to give."""
    with pytest.raises(DataError, match=r"corpus\.path = .*gone"):
        list(documents(Corpus(source="jsonl", path=str(tmp_path / "gone"))))
    with pytest.raises(DataError, match="fineweb has no documents"):
        list(documents(Corpus(source="fineweb")))
