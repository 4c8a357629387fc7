"""Numbers as text, and the terminal's view of an aggregate and of a judgement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from audit import again
from audit.stats import Aggregate
from audit.verdicts import Judgement, Ruling, Verdict, worst

Format = Callable[[float], str]


def decimals(value: float) -> str:
    """Bits per byte and nats, to the 1e-4 that the contest quotes."""
    return f"{value:.4f}"


def share(value: float) -> str:
    """A share of one as per cent."""
    return f"{value:.1%}".replace("%", " %")


def count(value: float) -> str:
    """Bytes, tokens, steps; a mean of them is rounded to whole ones."""
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """Seconds to a tenth."""
    return f"{value:,.1f}"


def mean_and_std(mean: float, std: float | None, form: Format) -> str:
    """`mean ± sd`; the mean alone where one seed has no deviation."""
    return form(mean) if std is None else f"{form(mean)} ± {form(std)}"


def columns(score_label: str) -> tuple[tuple[str, str, Format], ...]:
    """Of the terminal's table: title, key of the aggregate, format. The pass that is the score is called `val_bpb`."""
    static = () if score_label == "sliding" else (("sliding", "sliding_val_bpb", decimals),)
    return (
        ("first bpb", "first_val_bpb", decimals),
        ("before quant.", "pre_quant_val_bpb", decimals),
        ("sequential", "sequential_val_bpb", decimals),
        *static,
        (f"{score_label} = val_bpb", "val_bpb", decimals),
        ("loss, nats", "val_loss_nats", decimals),
        ("share of first", "share_of_first", share),
        ("artifact bytes", "total_bytes", count),
    )


def seed_table(aggregate: Aggregate) -> str:
    """The seeds and their mean ± sample standard deviation as an aligned table, without colour."""
    shown, mark = columns(aggregate.score_label), marked(aggregate.contaminated)
    head = ["seed", *(title for title, _, _ in shown)]
    rows = [[seed + mark, *(form(row[key]) for _, key, form in shown)] for seed, row in aggregate.seed.items()]
    last = [mean_and_std(aggregate.mean[key], aggregate.std[key], form) for _, key, form in shown]
    return align([head, *rows, [mean_label(len(aggregate.seeds)), *last]])


def marked(contaminated: Sequence[str]) -> str:
    """What stands behind the name of a seed whose score is none."""
    return " (contaminated)" if contaminated else ""


def gate_line(judgement: Judgement) -> str:
    """The verdict in one line: every failed and every unproven required rule, and the rules that are not required."""
    verdicts, required = by_rule(judgement), judgement.required
    failed = [rule for rule, verdict in verdicts.items() if verdict is Verdict.FAIL]
    missing = [rule for rule in required if verdicts[rule] is Verdict.UNPROVEN]
    others = [f"{rule} {verdict}" for rule, verdict in verdicts.items() if rule not in required]
    parts = {"failed": failed, "required and unproven": missing, "not required": others}
    told = [f"{name}: {', '.join(rules)}" for name, rules in parts.items() if rules]
    if not failed and not missing:
        told.insert(0, f"all {len(required)} required rules pass" if required else "no rule is required")
    return visible(f"{judgement.verdict} (profile {judgement.profile}): {'; '.join(told)}")


def by_rule(judgement: Judgement) -> dict[str, Verdict]:
    """The verdict of each rule, required ones first; the worst where there are several, UNPROVEN without one."""
    found: dict[str, Verdict] = {}
    for ruling in judgement.rulings:
        found[ruling.id] = worst((ruling.verdict, found.get(ruling.id, ruling.verdict)))
    return dict.fromkeys(judgement.required, Verdict.UNPROVEN) | found


def verdict_lines(judgement: Judgement) -> str:
    """The gate's line, below it one for each failed rule and each unproven required one, then what was done again."""
    rulings = (f"  {ruling_line(ruling)}" for ruling in open_rulings(judgement))
    done = (f"  computed again, {visible(what)}: {visible(text)}" for what, text in again.lines(judgement))
    return "\n".join([gate_line(judgement), *rulings, *done])


def open_rulings(judgement: Judgement) -> list[Ruling]:
    """What stands between the run and a PASS: the failed rules, then the required ones that are unproven."""
    failed = [ruling for ruling in judgement.rulings if ruling.verdict is Verdict.FAIL]
    return failed + [
        ruling for ruling in judgement.rulings if ruling.verdict is Verdict.UNPROVEN and ruling.id in judgement.required
    ]


def ruling_line(ruling: Ruling) -> str:
    """A rule, its verdict, what that rests on, and why."""
    return visible(f"{ruling.id} {ruling.verdict} ({ruling.evidence}): {ruling.summary}")


def visible(value: object) -> str:
    """Text in one line; what a terminal would obey, or what has no shape, is shown by its number."""
    line = " ".join(str(value).split())
    return "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in line)


def mean_label(seeds: int) -> str:
    """What the last row of a table of seeds is called."""
    return "mean (one seed, no sd)" if seeds == 1 else f"mean ± sample sd, n = {seeds}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines: the first column to the left, the others to the right, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
