"""A judgement as people read it: failed rules with their witnesses, open ones with their reason, nothing to obey."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from audit.report import cells, rulings, text
from audit.verdicts import SEVERITIES, Finding, Judgement, Ruling, Verdict

anything = st.text(st.characters(exclude_categories=[]), max_size=30)
EVIL = "\n\n# owned\n\n- [x](javascript:1) <script> ![i](u) | `a` ***b*** $x$ \x1b[2J\u202e\ud800"
hostile = anything | st.just(EVIL)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | hostile,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hostile, inner, max_size=4),
    max_leaves=20,
)


def ruling(rule: str, verdict: Verdict, **fields: Any) -> Ruling:
    return Ruling(id=rule, verdict=verdict, evidence="ledger", **({"summary": f"about {rule}"} | fields))


def judged(*found: Ruling, required: tuple[str, ...] = ("C3", "DATA")) -> Judgement:
    return Judgement(subject={}, profile="pipeline", required=required, rulings=found)


def tokens(source: str) -> list[Token]:
    """All tokens, those inside lines too."""
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(source)
    return [inner for token in found for inner in (token, *(token.children or []))]


def seen(source: str) -> str:
    """The text that a reader sees."""
    return "".join(token.content for token in tokens(source) if token.type in ("text", "text_special"))


@given(st.dictionaries(hostile, values, max_size=5), hostile, hostile)
@settings(max_examples=100)
def test_nothing_in_a_judgement_becomes_markup(witness: dict[str, Any], summary: str, kind: str) -> None:
    """Whatever stands in a witness, a summary or a finding is text: no heading, link, image, HTML or formula."""
    finding = Finding(kind=kind, severity="error", where=summary, detail=summary)
    judgement = judged(ruling("C3", Verdict.FAIL, witness=witness, summary=summary, findings=(finding,)))
    source = "\n\n".join(
        [str(rulings.rule_table(judgement)), rulings.witnesses(judgement), rulings.findings(judgement)]
    )
    found = tokens(source)
    assert [token.tag for token in found if token.type == "heading_open"] == ["h4"]
    assert {token.content for token in found if token.type.startswith("html")} <= {"<code>", "</code>"}
    made = {token.type for token in found}
    assert not made & {"link_open", "image", "fence", "code_block", "code_inline", "em_open", "s_open", "html_block"}
    assert "$" not in source
    assert all(line.isprintable() for line in source.split("\n"))
    assert cells.visible(summary) in seen(rulings.rule_table(judgement).rows[0][4])


def test_a_witness_is_told_in_full() -> None:
    """Steps, ranges and what is nested in them each stand beside their key, at their depth."""
    witness = {
        "step": 5,
        "ranges": [[0, 2048], [4096, 6144]],
        "first": {"rank": 1, "record": 17, "where": {"shard": "val_000000.bin"}},
        "records": [{"at": 3}, {"at": 4}],
        "none": {},
        "empty": "",
        "counted": True,
        "loss": 2.5,
    }
    assert cells.nested(witness) == "\n".join(
        [
            "- <code>step</code>: 5",
            "- <code>ranges</code>: (0, 2048), (4096, 6144)",
            "- <code>first</code>:",
            "  - <code>rank</code>: 1",
            "  - <code>record</code>: 17",
            "  - <code>where</code>:",
            "    - <code>shard</code>: val\\_000000.bin",
            "- <code>records</code>:",
            "  - <code>no. 1</code>:",
            "    - <code>at</code>: 3",
            "  - <code>no. 2</code>:",
            "    - <code>at</code>: 4",
            "- <code>none</code>: none",
            "- <code>empty</code>: “”",
            "- <code>counted</code>: true",
            "- <code>loss</code>: 2.5",
        ]
    )


def test_a_long_witness_says_what_it_left_out() -> None:
    """Long texts, lists and objects are cut, with the number of what there is; a deep one is shown flat at the end."""
    assert "(5,000 characters)" in cells.nested({"x": "y" * 5000})
    assert cells.nested({"x": list(range(1000))}).endswith(", 23, … (1,000 in all)")
    lines = cells.nested({str(i): i for i in range(500)}).split("\n")
    assert len(lines) == cells.MOST_LINES + 1
    assert f"{500 - cells.MOST_LINES} more lines" in lines[-1]
    deep: Any = {"end": 7}
    for _ in range(30):
        deep = {"in": deep}
    assert 'end": 7' in cells.nested(deep)
    assert len(cells.nested(deep).split("\n")) == cells.MOST_DEPTH + 1


def test_the_table_has_a_row_for_every_rule() -> None:
    """Required rules first, each with verdict, evidence and summary; only what is not a PASS is bold."""
    judgement = judged(ruling("C1", Verdict.UNPROVEN), ruling("C3", Verdict.FAIL), ruling("DATA", Verdict.PASS))
    assert rulings.rule_table(judgement).rows == [
        ["C3", "yes", "**FAIL**", "ledger", "about C3"],
        ["DATA", "yes", "PASS", "ledger", "about DATA"],
        ["C1", "no", "**UNPROVEN**", "ledger", "about C1"],
    ]


def test_only_failed_rules_have_witnesses() -> None:
    """A witness belongs to a FAIL; one without says that none was given."""
    judgement = judged(
        ruling("C3", Verdict.FAIL),
        ruling("DATA", Verdict.PASS, witness={"x": 1}),
        ruling("C1", Verdict.UNPROVEN, witness={"x": 1}),
        ruling("C4", Verdict.FAIL, witness={"y": 2}),
    )
    source = rulings.witnesses(judgement)
    assert re.findall("#### (.*)", source) == ["C3", "C4"]
    assert "No witness was given." in source
    assert "<code>y</code>: 2" in source
    assert "<code>x</code>" not in source
    assert rulings.witnesses(judged(ruling("C3", Verdict.PASS))) == ""


def test_findings_are_sorted_and_bounded() -> None:
    """The worst come first, and beyond a hundred only their number is told."""
    found = [
        Finding(kind=f"k{i}", severity=severity, where="w", detail="d")
        for severity in reversed(SEVERITIES)
        for i in range(40)
    ]
    lines = rulings.findings(judged(ruling("C3", Verdict.PASS, findings=tuple(found)))).split("\n")
    assert len(lines) == rulings.MOST_FINDINGS + 1
    assert [line.split("**")[1] for line in lines[:-1]] == ["error"] * 40 + ["warning"] * 40 + ["note"] * 20
    assert "20 more" in lines[-1]
    assert rulings.findings(judged(ruling("C3", Verdict.PASS))) == ""


def test_what_is_unproven_says_what_would_prove_it() -> None:
    """Every unproven rule, required ones first and marked, with its reason and, where known, its proof."""
    judgement = judged(
        ruling("C1", Verdict.UNPROVEN),
        ruling("C2", Verdict.UNPROVEN, summary="it would be proven by a probe"),
        ruling("DATA", Verdict.UNPROVEN),
        ruling("C3", Verdict.PASS),
    )
    assert rulings.unproven(judgement, {"C1": "a probe", "C2": "a probe"}).split("\n") == [
        "- **DATA** (required): about DATA",
        "- **C1**: about C1. Proof: a probe",
        "- **C2**: it would be proven by a probe",
    ]
    assert rulings.unproven(judged(ruling("C3", Verdict.PASS)), {}) == ""


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            [ruling("C3", Verdict.PASS), ruling("DATA", Verdict.PASS), ruling("C1", Verdict.UNPROVEN)],
            "PASS (profile pipeline): all 2 required rules pass; not required: C1 UNPROVEN",
        ),
        (
            [ruling("C3", Verdict.FAIL), ruling("DATA", Verdict.UNPROVEN), ruling("TRACK", Verdict.FAIL)],
            "FAIL (profile pipeline): failed: C3, TRACK; required and unproven: DATA; not required: TRACK FAIL",
        ),
        ([ruling("C3", Verdict.PASS)], "UNPROVEN (profile pipeline): required and unproven: DATA"),
        (
            [ruling("C3", Verdict.FAIL), ruling("C3", Verdict.PASS), ruling("DATA", Verdict.PASS)],
            "failed: C3",
        ),
    ],
)
def test_the_gates_line_names_what_matters(found: list[Ruling], line: str) -> None:
    """One line: every failed and every unproven required rule, absent ones too, and the rules that are not required."""
    assert line in text.gate_line(judged(*found))


def test_a_profile_without_rules_passes_nothing() -> None:
    """Where nothing is required nothing is proven, and the line says so."""
    line = text.gate_line(judged(ruling("C3", Verdict.PASS), required=()))
    assert line == "UNPROVEN (profile pipeline): no rule is required; not required: C3 PASS"


def test_the_terminal_gets_the_open_rules() -> None:
    """Below the gate's line: the failed rules, then the required ones that are unproven, each in a line of its own."""
    judgement = judged(
        ruling("C1", Verdict.UNPROVEN),
        ruling("DATA", Verdict.UNPROVEN),
        ruling("C3", Verdict.FAIL, summary=f"bad {EVIL}"),
    )
    lines = text.verdict_lines(judgement).split("\n")
    assert [line.split()[:2] for line in lines[1:]] == [["C3", "FAIL"], ["DATA", "UNPROVEN"]]
    assert all(line.isprintable() for line in lines)
