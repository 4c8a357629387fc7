"""Reading a report as a reader of Markdown sees it: `rendered(runs)`, `tables(source)`, `headings(source)`."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

from audit.files import to_json, write_text
from audit.report import markdown, model
from audit.stats import aggregate


def with_aggregate(runs: Path) -> Path:
    """The folder, with what `golf-audit stats` adds."""
    found = aggregate(runs / "recipe.json", runs / "evaluate")
    write_text(runs / "aggregate" / "metrics.json", to_json(found.as_dict()))
    return runs


def rendered(runs: Path) -> str:
    return shown(model.load(with_aggregate(runs)))


def shown(report: model.Report) -> str:
    return markdown.render(report, plot="loss_curves.svg", timeline="timeline.svg")


def headings(source: str) -> list[str]:
    tokens = MarkdownIt("commonmark").enable("table").parse(source)
    return [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]


def tables(source: str) -> list[list[list[str]]]:
    """Every table of a Markdown text as rows of the cells' text, read by a parser of CommonMark with tables."""
    found: list[list[list[str]]] = []
    cell = False
    for token in MarkdownIt("commonmark").enable("table").parse(source):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            cell = True
        elif token.type == "inline" and cell:
            parts = (child.content for child in token.children or [] if child.type in ("text", "text_special"))
            found[-1][-1].append("".join(parts))
            cell = False
    return found
