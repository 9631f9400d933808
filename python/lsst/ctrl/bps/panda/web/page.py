"""A run as one web page that needs nothing else: tables, the graph of tasks,
jobs over time, memory, errors with verdicts, links.
"""

from __future__ import annotations

__all__ = ["RunPage", "render_page"]

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from urllib.parse import urlsplit

from lsst.ctrl.bps.wms_service import WmsStates

from ..insight.digest import ErrorGroup
from ..insight.overview import Overview
from ..insight.resources import LabelResources, render_suggestions
from ..insight.task_graph import (
    STATE_COLOURS,
    TaskGraph,
    colour_of,
    draw_graph,
    draw_histogram,
    draw_timeline,
)
from ..status.jobs import JobDetail, number_of

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif;
  color: var(--ink); background: var(--desk);
  --ink: #202428; --faint: #5f656b; --zero: #b4b9bf; --desk: #f4f5f7; --card: #fff; --line: #dfe2e6;
  --advice: #fff8e1; --link: #0b57b0; --edge: #9aa0a6; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e3e6e9; --faint: #a5abb2; --zero: #5c636b; --desk: #15181b; --card: #1e2327; --line: #343b42;
  --advice: #3a3420; --link: #7fb6f5; --edge: #6d747c; } }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem; }
a { color: var(--link); }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 0; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem;
  margin: 0 0 1rem; }
.scroll { overflow-x: auto; } .tall { max-height: 42rem; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--card); }
th:first-child, td:first-child, .text { text-align: left; }
.facts td:first-child { width: 10rem; color: var(--faint); }
.wide { white-space: normal; overflow-wrap: anywhere; }
.state { color: #fff; border-radius: 4px; padding: .1rem .45rem; font-size: .85rem; }
.zero { color: var(--zero); }
pre { background: var(--desk); padding: .6rem; font-size: .8rem; white-space: pre-wrap; }
pre, .error { overflow-wrap: anywhere; }
.error { border-left: 4px solid #d1433f; padding-left: .8rem; margin-bottom: 1.2rem; }
.mended { border-left-color: var(--edge); }
.verdict { font-weight: 600; }
.advice { background: var(--advice); padding: .4rem .6rem; border-radius: 4px; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); }
svg text.small { font-size: 11px; fill: var(--faint); } .box { fill: var(--card); stroke-width: 2; }
.edge { fill: none; stroke: var(--edge); } .axis { fill: none; stroke: var(--edge); }
.line { fill: none; stroke-width: 2; } .limit { stroke: #d1433f; stroke-dasharray: 4 3; }
.legend span { display: inline-block; margin-right: 1rem; font-size: .85rem; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem; }
figure { margin: 0; max-width: 300px; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
@media print { .tall { max-height: none; } }
"""
_SHOWN = (
    WmsStates.SUCCEEDED, WmsStates.RUNNING, WmsStates.PENDING, WmsStates.READY, WmsStates.UNREADY,
    WmsStates.FAILED, WmsStates.PRUNED, WmsStates.DELETED,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunPage:
    """What the page shows."""

    overview: Overview
    graph: TaskGraph
    groups: Sequence[ErrorGroup]
    labels: Sequence[LabelResources]
    jobs: Sequence[JobDetail]
    made_at: datetime
    version: str = ""
    left_out: int = 0
    """Kinds of errors that are not in ``groups``."""


def render_page(page: RunPage) -> str:
    """Write the page.

    Parameters
    ----------
    page : `RunPage`
        What it shows.

    Returns
    -------
    html : `str`
        One document; it loads nothing and runs no script.
    """
    found = page.overview
    title = f"Run {found.request_id}: {found.name}"
    sections = (
        ("run", "Run", _facts(found)),
        ("states", "Jobs", _state_table(found)),
        ("errors", "Errors", _errors(page.groups, page.left_out)),
        ("graph", "Tasks", _graph(page.graph)),
        ("time", "Jobs over time", _timeline(page.jobs, None if found.ended else page.made_at)),
        ("memory", "Memory and time", _resources(page)),
        ("tasks", "Tasks in iDDS and PanDA", _task_table(found)),
        ("files", "Files and links", _links(found)),
        ("unknown", "Not known", "".join(f"<p>{escape(text)}</p>" for text in found.problems)),
    )
    body = "".join(
        f'<section id="{key}"><h2>{head}</h2>{content}</section>'
        for key, head, content in sections
        if content
    )
    state = f'<span class="state" style="background:{colour_of(found.state)}">{found.state.name}</span>'
    over = "" if found.ended else " (not over yet)"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)} {state}{over}</h1>{body}"
        f"<p>Made at {page.made_at:%Y-%m-%d %H:%M:%S} UTC by panda_bps {escape(page.version)}.</p>"
        "</body></html>\n"
    )


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], *, text: int = 1) -> str:
    """Write a table; cells are HTML already."""

    def row(cells: Iterable[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=text' if n < text else ''}>{cell}</{tag}>" for n, cell in enumerate(cells)
        )

    lines = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    titles = f"<thead><tr>{row(head, 'th')}</tr></thead>"
    return f'<div class="scroll tall"><table>{titles}<tbody>{lines}</tbody></table></div>'


def _link(address: str, words: str = "") -> str:
    """Write a link; an address of another kind than http stays text."""
    if urlsplit(address).scheme not in ("http", "https"):
        return escape(words or address)
    return f'<a href="{escape(address)}">{escape(words or address)}</a>'


def _facts(found: Overview) -> str:
    facts = {
        "operator": found.operator,
        "project": found.project,
        "campaign": found.campaign,
        "payload": found.payload,
        "site": found.site,
        "completes run": str(found.origin or ""),
        "submitted": f"{found.created:%Y-%m-%d %H:%M:%S} UTC" if found.created else "",
        "last change": f"{found.updated:%Y-%m-%d %H:%M:%S} UTC" if found.updated else "",
        "state in iDDS": found.idds_status,
        "submit directory": found.submit_path,
        "staging area": found.staging_area,
        "server": found.server,
    }
    rows = "".join(
        f'<tr><td>{name}</td><td class="text wide">{escape(value)}</td></tr>'
        for name, value in facts.items()
        if value
    )
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def _state_table(found: Overview) -> str:
    def numbers(label: str, counts: dict[WmsStates, int]) -> list[str]:
        other = sum(counts.values()) - sum(counts[state] for state in _SHOWN)
        values = [sum(counts.values()), *(counts[state] for state in _SHOWN), other]
        return [label, *(str(value) if value else '<span class="zero">0</span>' for value in values)]

    # The total first: below a hundred labels nobody would see it.
    rows = [numbers("<b>total</b>", found.total)]
    rows += [numbers(escape(label), counts) for label, counts in found.labels.items()]
    return _table(("label", "jobs", *(state.name.lower() for state in _SHOWN), "other"), rows)


def _errors(groups: Sequence[ErrorGroup], left_out: int) -> str:
    if not groups:
        return "<p>No failed job is known.</p>"
    more = f"<p>{left_out} more kinds of errors: see panda_bps errors.</p>" if left_out else ""
    advised: set[str] = set()
    return "".join(_error(group, advised) for group in groups) + more


def _error(group: ErrorGroup, advised: set[str]) -> str:
    """Write an error; advice only where it has not been given before."""
    kind = "error" if group.unfinished else "error mended"
    return f'<div class="{kind}">{"".join(_error_parts(group))}{_advice(group, advised)}</div>'


def _error_parts(group: ErrorGroup) -> Iterator[str]:
    error = group.error
    yield f'<div><span class="verdict">{escape(group.label)}: {escape(group.verdict.name)}</span> \u2014 '
    yield f"{escape(error.source)} {error.code}: {escape(error.text or 'no text')}</div>"
    places = ", ".join(f"{name} ({count})" for name, count in (*group.sites, *group.nodes))
    counts = f"{number_of(group.attempts, 'attempt')} of {number_of(group.jobs, 'job')}"
    if recovered := group.jobs - group.unfinished:
        counts += f", {recovered} of which finished in another attempt"
    yield f"<div>{counts}; {escape(places)}</div>"
    if group.first and group.last:
        until = f" to {group.last:%Y-%m-%d %H:%M:%S}" if group.last != group.first else ""
        yield f"<div>{group.first:%Y-%m-%d %H:%M:%S}{until} UTC</div>"
    if group.example is not None:
        example = group.example
        log = _link(example.log_url, "log") if example.log_url else "no log known"
        yield f"<div>for instance {escape(example.name)}, PanDA job {example.panda_id}: {log}</div>"
    if group.log_tail:
        lines = "\n".join(escape(line) for line in group.log_tail)
        yield f"<pre>{lines}</pre>"


def _advice(group: ErrorGroup, advised: set[str]) -> str:
    advice = group.verdict.advice
    if not advice or advice in advised:
        return ""
    advised.add(advice)
    return f'<div class="advice">{escape(advice)}</div>'


def _graph(graph: TaskGraph) -> str:
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{state.name.lower()}</span>'
        for state, colour in STATE_COLOURS.items()
    )
    note = (
        "" if graph.has_edges else "<p>What waits for what is in the plan, which could not be read here.</p>"
    )
    drawing = draw_graph(graph)
    return (
        f'<div class="legend">{legend}</div>{note}<div class="scroll tall">{drawing}</div>' if drawing else ""
    )


def _timeline(jobs: Sequence[JobDetail], until: datetime | None) -> str:
    drawing = draw_timeline(jobs, until=until)
    legend = (
        '<div class="legend"><span><i style="background:#2f7fd1"></i>running</span>'
        '<span><i style="background:#2a9d5c"></i>finished</span>'
        '<span><i style="background:#d1433f"></i>failed</span></div>'
    )
    return f'{legend}<div class="scroll">{drawing}</div>' if drawing else ""


def _resources(page: RunPage) -> str:
    if not page.labels:
        return ""
    head = ("label", "finished", "wall 50 % s", "95 % s", "cpu 50 %", "rss 50 % MB", "95 % MB", "max MB",
            "asked MB", "near limit", "out of memory")  # fmt: skip
    figures = "".join(_figure(found, page.jobs) for found in page.labels)
    suggestions = "\n".join(escape(line) for line in render_suggestions(page.labels))
    advice = f"<p>Suggested for the next run:</p><pre>{suggestions}</pre>" if suggestions else ""
    return f'{_table(head, map(_resource_row, page.labels))}{advice}<div class="plots">{figures}</div>'


def _resource_row(found: LabelResources) -> list[str]:
    wall, cpu, memory = found.wall, found.cpu, found.memory
    return [
        escape(found.label),
        str(found.finished),
        *((f"{wall.half:.0f}", f"{wall.most_of_all:.0f}") if wall else ("-", "-")),
        f"{cpu.half:.0%}" if cpu else "-",
        *(
            (f"{memory.half:.0f}", f"{memory.most_of_all:.0f}", f"{memory.largest:.0f}")
            if memory
            else ("-",) * 3
        ),
        str(found.requested_memory or "-"),
        str(found.near_count),
        str(found.out_of_memory),
    ]


def _figure(found: LabelResources, jobs: Sequence[JobDetail]) -> str:
    values = [job.max_rss / 1024 for job in jobs if job.label == found.label and job.max_rss]
    drawing = draw_histogram(values, limit=found.requested_memory, unit="MB")
    caption = f"{escape(found.label)}: largest resident memory; dashed: asked for"
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>" if drawing else ""


def _task_table(found: Overview) -> str:
    rows = [
        (
            escape(task.label),
            escape(task.name),
            escape(task.idds_status),
            escape(task.panda_status or "-"),
            _link(task.link, str(task.task_id)) if task.link else str(task.task_id or "-"),
            str(task.jobs),
            str(task.finished),
            _link(task.failed_link, str(task.failed)) if task.failed_link else str(task.failed),
            str(task.deleted),
        )
        for task in found.tasks
    ]
    head = ("label", "task", "iDDS", "PanDA", "number", "jobs", "finished", "failed", "deleted")
    return _table(head, rows, text=4) if rows else ""


def _links(found: Overview) -> str:
    links = [f"<li>{escape(what)}: {_link(address)}</li>" for what, address in found.links]
    files = [f"<li>{escape(file.what)}: {escape(file.path)} ({file.size} bytes)</li>" for file in found.files]
    return f"<ul>{''.join([*links, *files])}</ul>" if links or files else ""
