"""What BPS prints about runs: a report of one run, the list of runs, and the
state of one run, made of what iDDS and PanDA replied.

Nothing here asks a server, a clock or a file.  What could not be fetched is
said in the report; it never prevents it.
"""

from __future__ import annotations

__all__ = [
    "FILTER_KEYS",
    "RunFilters",
    "describe_counts",
    "get_status_of",
    "list_notes",
    "make_run_list",
    "make_run_report",
    "parse_filters",
]

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lsst.ctrl.bps.wms_service import WmsRunReport, WmsSpecificInfo, WmsStates

from ..errors import SettingsError
from ..plan.naming import printable_label
from ..status.evidence import RunEvidence, RunTally
from ..status.failures import exit_codes
from ..status.states import Counts, sum_counts
from ..status.vocabulary import TERMINAL
from .notes import MonitorLinks, add_notes

FILTER_KEYS = {
    "name": "name of the run",
    "operator": "who submitted it",
    "project": "project (25 characters are kept)",
    "campaign": "campaign (50 characters are kept)",
    "payload": "name of the payload",
    "state": "state of the run, for instance RUNNING or FAILED",
    "site": "computing site",
}
"""Documented filters and what they look at."""

_ALIASES = {"run": "name", "user": "operator"}
# BPS has the field since 30.2026.4300.
_HAS_SITE = "site" in {field.name for field in dataclasses.fields(WmsRunReport)}


@dataclasses.dataclass(frozen=True, slots=True)
class RunFilters:
    """Conditions on runs; all keys must match, one pattern of each."""

    patterns: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Key and its patterns, shell-style."""

    def matches(self, fields: Mapping[str, str]) -> bool:
        """Whether a run with these values by filter key is wanted."""
        return all(
            any(fnmatchcase(fields.get(key, ""), pattern) for pattern in patterns)
            for key, patterns in self.patterns
        )

    def __bool__(self) -> bool:
        return bool(self.patterns)


def parse_filters(text: str | None) -> RunFilters:
    """Read the filters of ``--pass-thru``: ``key=value`` pairs with blanks between
    them.

    A value may be quoted and may hold ``*``, ``?`` and ``[...]``; values of the
    same key are alternatives.  What is not understood is a `SettingsError` that
    lists the keys.
    """
    patterns: dict[str, list[str]] = {}
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        raise SettingsError(f"The filters {text!r} are not understood: {error}. {_usage()}") from None
    for word in words:
        key, equals, value = word.partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        if not equals:
            raise SettingsError(f"The filter {word!r} is not of the form key=value. {_usage()}")
        if key not in FILTER_KEYS:
            raise SettingsError(f"There is no filter {key!r}. {_usage()}")
        patterns.setdefault(key, []).append(_state_pattern(value) if key == "state" else value)
    return RunFilters(tuple((key, tuple(values)) for key, values in patterns.items()))


def _state_pattern(value: str) -> str:
    """Check that a pattern for states matches at least one."""
    pattern = value.upper()
    states = [state.name for state in WmsStates]
    if not any(fnmatchcase(state, pattern) for state in states):
        raise SettingsError(f"No state matches {value!r}. States: {', '.join(states)}.")
    return pattern


def _usage() -> str:
    keys = "; ".join(f"{key} ({meaning})" for key, meaning in FILTER_KEYS.items())
    return f"Filters are key=value pairs, values may hold * and ?: {keys}."


def make_run_report(
    evidence: RunEvidence, *, monitor_url: str = "", return_exit_codes: bool = True
) -> WmsRunReport:
    """Make the report of one run: all 11 states for each label, labels in
    pipeline order, and in ``specific_info`` errors, links and what to do next.

    Failed jobs whose exit code no server could tell have
    `~.status.vocabulary.UNKNOWN_EXIT_CODE`.
    """
    report = _bare_report(evidence)
    report.job_summary = _job_summary(evidence.tally)
    if return_exit_codes:
        report.exit_code_summary = _exit_codes(evidence)
    info = WmsSpecificInfo()
    add_notes(info, evidence, MonitorLinks(monitor_url))
    report.specific_info = info
    return report


def make_run_list(
    evidences: Iterable[RunEvidence], *, filters: RunFilters | None = None
) -> list[WmsRunReport]:
    """Make the list of runs, or of those that filters want, newest last."""
    reports = []
    for evidence in sorted(evidences, key=lambda item: item.request_id):
        # Of a copy, so that a long list does not keep what is worked out for each run.
        report = _bare_report(dataclasses.replace(evidence))
        if filters is None or filters.matches(_filter_fields(evidence, report)):
            reports.append(report)
    return reports


def list_notes(evidences: Sequence[RunEvidence], *, days: float, user: str | None = None) -> list[str]:
    """Say what the list of runs has no column for: which run completes which,
    what could not be found out, and where to look further if there are no runs.
    """
    if not evidences:
        whose = f" of {user}" if user else ""
        return [
            f"No runs{whose} in the last {days:g} days. Look further back with --hist DAYS, for one run with "
            "--id, for those of others with --user or --global."
        ]
    notes = []
    for evidence in sorted(evidences, key=lambda item: item.request_id):
        number = evidence.request_id
        if origin := evidence.attributes.origin:
            notes.append(f"Run {number} completes run {origin}.")
        notes += [f"Run {number}: {problem}" for problem in evidence.problems]
    return notes


def get_status_of(evidence: RunEvidence) -> tuple[WmsStates, str]:
    """Return the state of one run, the same as the report gives, and what is out
    of the ordinary or not known: empty where there is nothing to say, since BPS
    logs it as a warning.

    Contents and PanDA's jobs do not matter.
    """
    lines: list[str] = []
    if not evidence.ended and evidence.aborted:
        lines.append("It was cancelled and is not over yet.")
    elif not evidence.ended and evidence.request.status in TERMINAL:
        lines.append(f"The server calls it {evidence.request.status} already, but it is not over yet.")
    lines += evidence.problems
    return evidence.tally.state, "\n".join(lines)


def describe_counts(evidence: RunEvidence) -> str:
    """Say in one line how many jobs are in which state."""
    total = evidence.tally.total
    counts = ", ".join(f"{number} {state.name}" for state, number in total.items() if number)
    return f"Run {evidence.request_id}: {counts or 'no jobs known yet'}."


def _bare_report(evidence: RunEvidence) -> WmsRunReport:
    """Make a report as the list of runs needs it."""
    tally, attributes = evidence.tally, evidence.attributes
    request_id = str(evidence.request_id)
    report = WmsRunReport(
        wms_id=request_id,
        global_wms_id=request_id,
        path=evidence.path,
        label=attributes.payload,
        run=attributes.name,
        project=attributes.project,
        campaign=attributes.campaign,
        payload=attributes.payload,
        operator=attributes.operator,
        run_summary=";".join(
            f"{label}:{sum(counts.values())}" for label, counts in _job_summary(tally).items()
        ),
        state=tally.state,
        jobs=[],
        total_number_jobs=tally.job_count,
        job_state_counts=dict(tally.total),
        job_summary={},
    )
    if _HAS_SITE:
        report.site = evidence.site
    return report


def _job_summary(tally: RunTally) -> dict[str, Counts]:
    """Give the counts by label as BPS can print it; labels that become the
    same are added up.
    """
    summary: dict[str, Counts] = {}
    for label, counts in tally.by_label.items():
        printed = printable_label(label)
        summary[printed] = sum_counts((summary.get(printed, {}), counts))
    return summary


def _exit_codes(evidence: RunEvidence) -> dict[str, list[int]]:
    """Give the exit codes by label as BPS can print it."""
    failed = {label: counts[WmsStates.FAILED] for label, counts in evidence.tally.by_label.items()}
    codes: dict[str, list[int]] = {}
    for label, found in exit_codes(failed, evidence.failures).items():
        codes[printable_label(label)] = sorted(codes.get(printable_label(label), []) + found)
    return codes


def _filter_fields(evidence: RunEvidence, report: WmsRunReport) -> Mapping[str, str]:
    return {
        "name": report.run or "",
        "operator": report.operator or "",
        "project": report.project or "",
        "campaign": report.campaign or "",
        "payload": report.payload or "",
        "state": report.state.name if report.state is not None else "",
        "site": evidence.site,
    }
