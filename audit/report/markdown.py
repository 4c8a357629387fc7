"""The report as Markdown (GitHub's dialect): `render(report) -> str`.

Python makes the tables, every cell of which is escaped (`cells`); `report.md.j2` holds the prose and the order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jinja2

from audit import stats
from audit.facts import STAGES, Clock, Contamination, Pair, RuleClock, SeedRun, SplitFacts
from audit.report import rulings, text
from audit.report.cells import Table, code, plain
from audit.report.model import Report

SWEPT = (
    "model.layers",
    "model.width",
    "loop.extra_passes",
    "muon.lr",
    "train.steps",
    "train.seconds",
    "train.sequence_length",
    "gptq.matrix_bits",
    "gptq.embed_bits",
    "gptq.matrix_k",
    "gptq.embed_k",
    "eval.stride",
)
"""Keys of sections that people sweep most; those at the top level are all shown."""

Column = tuple[str, Callable[[SeedRun], float], text.Format]
SCORES: tuple[Column, ...] = (
    ("first", lambda run: run.evaluate.first_val_bpb, text.decimals),
    ("before quantization", lambda run: run.evaluate.pre_quant_val_bpb, text.decimals),
    ("after, sequential", lambda run: run.evaluate.sequential.val_bpb, text.decimals),
    ("after, sliding", lambda run: run.evaluate.sliding.val_bpb, text.decimals),
)
REST: tuple[Column, ...] = (
    ("loss, nats", lambda run: run.evaluate.val_loss_nats, text.decimals),
    ("share of first", lambda run: run.evaluate.share_of_first, text.share),
    ("under bigram", lambda run: run.evaluate.margin_under_bigram_bpb, text.decimals),
    ("steps", lambda run: run.train.steps, text.count),
    ("artifact bytes", lambda run: run.quantize.total_bytes, text.count),
)
"""Columns of the table of seeds: title, number, format. Between both stands the score if it is no static pass."""

PASSES = {
    "sliding": "sliding window",
    "score_first": "adapted to each chunk after its score, sliding window",
    "rescore": "scored again after the adaptation, sliding window",
}
"""What each `score_label` is in words."""

REASONS = {
    "prequant": "the weights were fitted to the validation tokens before they were quantized",
    "calibration=val": "the quantizer was calibrated on validation tokens",
    "rescore": "tokens were scored again after the weights had been trained on them",
}
"""What makes a score none, in words."""


def render(report: Report, *, plot: str, timeline: str) -> str:
    """The report; `plot` and `timeline` are the paths of its figures relative to it."""
    run, mean, std = report.run, report.aggregate.mean, report.aggregate.std
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML: `plain` and `code` escape
    )
    environment.filters |= {"plain": plain, "code": code}
    return environment.get_template("report.md.j2").render(
        report=report,
        run=run,
        plot=plot,
        timeline=timeline,
        gate=text.gate_line(report.judgement),
        rule_table=rulings.rule_table(report.judgement),
        witnesses=rulings.witnesses(report.judgement),
        findings=rulings.findings(report.judgement),
        computed_again=rulings.computed_again(report.judgement),
        unproven=rulings.unproven(report.judgement, report.proofs),
        reasons=[REASONS.get(reason, reason) for reason in report.contaminated],
        contamination_table=contamination_table(run.seeds),
        passed=PASSES[run.seeds[0].evaluate.score_label],
        unplaced=sum(band.unplaced for found in report.recorded for band in found.timeline.bands),
        score=text.mean_and_std(mean["val_bpb"], std["val_bpb"], text.decimals),
        loss=text.mean_and_std(mean["val_loss_nats"], std["val_loss_nats"], text.decimals),
        largest=text.count(max(seed.quantize.total_bytes for seed in run.seeds)),
        limit=text.count(run.seeds[0].quantize.limit_bytes),
        stride=run.seeds[0].evaluate.score.stride,
        bigram=text.decimals(run.data.bigram_val_bpb),
        seed_table=seed_table(report),
        size_table=size_table(run.seeds),
        recipe_table=recipe_table(report),
        recipe_json=json.dumps(run.recipe.tree, indent=2, ensure_ascii=False)
        .encode("utf-8", "backslashreplace")
        .decode(),
        split_table=split_table(report),
        per_original_byte=per_original_byte(report),
        shard_table=shard_table(report),
        digest_table=digest_table(report),
        time_table=time_table(run.seeds),
        measured_table=measured_table(run.seeds),
        clock_table=clock_table(report),
        data_seconds=text.seconds(run.data_clock.total_seconds),
    )


def seed_table(report: Report) -> Table:
    """One row a seed, and the mean ± sample standard deviation."""
    runs, label = report.run.seeds, report.run.seeds[0].evaluate.score_label
    adapted: Column = (f"score, {label}", lambda run: run.evaluate.val_bpb, text.decimals)
    columns = SCORES + (() if label == "sliding" else (adapted,)) + REST
    mark = text.marked(report.contaminated)
    rows = [[f"{run.seed}{mark}", *(form(value(run)) for _, value, form in columns)] for run in runs]
    last = [text.mean_and_std(*stats.mean_and_std([value(run) for run in runs]), form) for _, value, form in columns]
    header = ["seed", *(plain(title) for title, _, _ in columns)]
    return Table(header, [*rows, _bold([text.mean_label(len(runs)), *last])])


def contamination_table(runs: Sequence[SeedRun]) -> Table | None:
    """What the fit to validation was worth at each point, by seed and in the mean. None where it was not measured."""
    measured = {run.seed: run.evaluate.contamination for run in runs}
    found = {seed: survey for seed, survey in measured.items() if survey}
    if not found:
        return None
    points: tuple[tuple[str, Callable[[Contamination], Pair], Callable[[Contamination], float | None]], ...] = (
        ("before quantization", lambda survey: survey.before_quantization, lambda survey: None),
        ("after it, sequential", lambda survey: survey.after_quantization, lambda s: s.share_survived_quantization),
        ("after it, sliding", lambda survey: survey.after_sliding, lambda survey: survey.share_survived_sliding),
    )
    rows = []
    for title, pair, share in points:
        for seed, survey in found.items():
            rows.append([title, str(seed), *_worth([pair(survey)], [share(survey)])])
        pairs, shares = [pair(survey) for survey in found.values()], [share(survey) for survey in found.values()]
        rows.append(_bold([title, text.mean_label(len(found)), *_worth(pairs, shares)]))
    return Table(["point", "seed", "unfitted", "fitted", "worth of the fit", "share that survived"], rows, left=2)


def _worth(pairs: Sequence[Pair], shares: Sequence[float | None]) -> list[str]:
    """The cells of one or the mean of many seeds: bits per byte without and with the fit, its worth, what is left."""
    columns = ([pair.reference for pair in pairs], [pair.fitted for pair in pairs], [pair.worth for pair in pairs])
    known = [share for share in shares if share is not None]
    cells = [text.mean_and_std(*stats.mean_and_std(column), text.decimals) for column in columns]
    return [*cells, text.mean_and_std(*stats.mean_and_std(known), text.share) if known else "–"]


def _bold(cells: Iterable[str]) -> list[str]:
    return [f"**{cell}**" for cell in cells]


def size_table(runs: Sequence[SeedRun]) -> Table:
    """Model, code and total of each seed against the limit."""
    rows = []
    for run in runs:
        size = run.quantize
        room = size.limit_bytes - size.total_bytes
        cells = (size.model_bytes, size.code_bytes, size.total_bytes, size.limit_bytes)
        left = text.count(room) if room >= 0 else f"**{text.count(-room)} over**"
        bits = text.decimals(size.model_bytes * 8 / size.parameters) if size.parameters else "–"
        rows.append([str(run.seed), *map(text.count, cells), left, text.count(size.parameters), bits])
    header = ["seed", "model", "code", "total", "limit", "headroom", "parameters", "bits per parameter"]
    return Table(header, rows)


def recipe_table(report: Report) -> Table:
    """The keys at the top level, then those of `SWEPT` that the recipe has."""
    recipe = report.run.recipe
    top = {name: value for name, value in recipe.tree.items() if not isinstance(value, dict)}
    inner = {name: recipe.get(name) for name in SWEPT if recipe.get(name) is not None}
    rows = [[code(name), plain(json.dumps(value, ensure_ascii=False))] for name, value in (top | inner).items()]
    return Table(["key", "value"], rows, left=2)


def split_table(report: Report) -> Table:
    """Documents, tokens and bytes of both splits."""

    def row(name: str, split: SplitFacts) -> list[str]:
        counts = (split.documents, split.tokens, split.bytes, split.original_bytes)
        ratio = f"{split.bytes / split.original_bytes:.6f}" if split.bytes and split.original_bytes else "not known"
        width = f"{split.bytes / split.tokens:.3f}" if split.bytes else "not known"
        cells = ("not known" if value is None else text.count(value) for value in counts)
        return [name, *cells, ratio, width, text.count(len(split.shards))]

    header = ["split", "documents", "tokens", "bytes", "original bytes", "bytes / original", "bytes / token", "shards"]
    return Table(header, [row("train", report.run.data.splits.train), row("val", report.run.data.splits.val)])


def per_original_byte(report: Report) -> str | None:
    """The mean score per byte of the original validation text; None where its bytes are not known."""
    split = report.run.data.splits.val
    if not split.bytes or not split.original_bytes:
        return None
    return text.decimals(report.aggregate.mean["val_bpb"] * split.bytes / split.original_bytes)


def shard_table(report: Report) -> Table:
    """Every shard with its tokens and digest."""
    splits = (("train", report.run.data.splits.train), ("val", report.run.data.splits.val))
    rows = [
        [name, plain(shard.name), code(shard.sha256), text.count(shard.tokens)]
        for name, split in splits
        for shard in split.shards
    ]
    return Table(["split", "shard", "SHA-256", "tokens"], rows, left=3)


def digest_table(report: Report) -> Table:
    """What the run was made of and what it made, by digest."""
    run = report.run
    rows = [
        ["data", code(run.data_digest)],
        ["tokenizer", code(run.data.tokenizer.sha256)],
        ["sources of the trainer", code(run.seeds[0].train.source_digest)],
        *([f"recipe, as {stage} reads it", code(getattr(run.seeds[0], stage).recipe_digest)] for stage in STAGES),
        *recorded_digests(report),
        *([f"artifact of seed {seed.seed}", code(seed.quantize.artifact_sha256)] for seed in run.seeds),
    ]
    return Table(["what", "digest"], rows, left=2)


def recorded_digests(report: Report) -> list[list[str]]:
    """By seed and stage: the recipe's digest as the ledger has it, at the start and the end, and the ledger's seal."""
    rows = []
    for found in report.recorded:
        for stage, digests in found.recipes.items():
            start, end = digests.get("start", "not recorded"), digests.get("end", "not recorded")
            cell = f"{code(start)}, {'the same at the end' if start == end else f'{code(end)} at the end'}"
            rows.append([f"recipe in the ledger of {stage}, seed {found.verified.seed}", cell])
        for stage, seal in found.verified.seals.items():
            rows.append([f"seal of the ledger of {plain(stage)}, seed {found.verified.seed}", code(seal)])
    return rows


def clock_table(report: Report) -> Table:
    """The two clocks of the rules: the phases that each counts, their sum against the limit, and what lies outside."""
    clocks = {found.verified.seed: found.verified.clocks for found in report.recorded}
    rows = []
    for rule in dict.fromkeys(rule for each in clocks.values() for rule in each):
        found = [each.get(rule) for each in clocks.values()]
        spent = [_by_phase(clock) for clock in found]
        for key in dict.fromkeys(key for phases in spent for key in phases):
            stage, phase, counted = key
            cells = [f"{text.seconds(phases[key])} s" if key in phases else "–" for phases in spent]
            rows.append([plain(rule), plain(stage), plain(phase), "yes" if counted else "no", *cells])
        rows.append(_bold([plain(rule), "all", "total", "yes", *map(_against_limit, found)]))
    return Table(["rule", "stage", "phase", "counted", *(f"seed {seed}" for seed in clocks)], rows, left=4)


def _by_phase(clock: RuleClock | None) -> dict[tuple[str, str, bool], float]:
    """Seconds by stage, phase and whether they count; a phase that comes twice is one."""
    sums: dict[tuple[str, str, bool], float] = {}
    for spent in clock.spent if clock else ():
        key = (spent.stage, spent.phase, spent.counted)
        sums[key] = sums.get(key, 0.0) + spent.seconds
    return sums


def _against_limit(clock: RuleClock | None) -> str:
    if clock is None:
        return "–"
    limit = "no limit" if clock.limit_seconds is None else f"{text.seconds(clock.limit_seconds)} s"
    return f"{text.seconds(clock.seconds)} s of {limit}"


def time_table(runs: Sequence[SeedRun]) -> Table:
    """Seconds of each phase of each stage, with its share of the seed's whole time."""
    whole = {run.seed: sum(clock.total_seconds for clock in run.clocks.values()) for run in runs}

    def row(stage: str, phase: str) -> list[str]:
        return [_time(_seconds(run.clocks[stage], phase), whole[run.seed]) for run in runs]

    rows = []
    for stage in STAGES:
        names = dict.fromkeys(phase.name for run in runs for phase in run.clocks[stage].phases)
        rows += [[stage, plain(name), *row(stage, name)] for name in names]
        totals = (_time(run.clocks[stage].total_seconds, whole[run.seed]) for run in runs)
        rows.append(_bold([stage, "total", *totals]))
    rows.append(_bold(["all", "total", *(_time(whole[run.seed], whole[run.seed]) for run in runs)]))
    return Table(["stage", "phase", *(f"seed {run.seed}" for run in runs)], rows, left=2)


def _seconds(clock: Clock, name: str) -> float | None:
    """Of the phase with this name; None where the clock has none."""
    found = [phase.seconds for phase in clock.phases if phase.name == name]
    return sum(found) if found else None


def _time(spent: float | None, whole: float) -> str:
    if spent is None:
        return "–"
    return f"{text.seconds(spent)} s ({text.share(spent / whole)})" if whole else f"{text.seconds(spent)} s"


def measured_table(runs: Sequence[SeedRun]) -> Table | None:
    """What else the clocks measured: training clock, speed, memory. None where no clock measured any of it."""
    wanted: tuple[tuple[str, Callable[[Clock], float | None], text.Format], ...] = (
        ("training clock, s", lambda clock: clock.training_clock_seconds, text.seconds),
        ("tokens / s", lambda clock: clock.tokens_per_second, text.count),
        ("peak memory, MiB", lambda clock: clock.peak_memory_mib, text.count),
    )
    rows = []
    for stage in STAGES:
        for title, value, form in wanted:
            found = [value(run.clocks[stage]) for run in runs]
            if any(number is not None for number in found):
                rows.append([f"{stage}: {title}", *("–" if number is None else form(number) for number in found)])
    return Table(["measured", *(f"seed {run.seed}" for run in runs)], rows) if rows else None
