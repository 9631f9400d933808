"""What BPS prints about runs: a report of one run, the list of runs, and the
state of one run, made of what iDDS and PanDA replied.

Nothing here asks a server, a clock or a file.  What could not be fetched is
said in the report; it never prevents it.
"""

from __future__ import annotations

__all__ = [
    "describe_counts",
    "get_status_of",
    "list_notes",
    "make_run_list",
    "make_run_report",
    "needs_contents",
]

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from lsst.ctrl.bps.wms_service import WmsRunReport, WmsSpecificInfo, WmsStates

from ..status.evidence import RunEvidence, RunTally, tally_run
from ..status.failures import Failure, exit_codes, failures_of
from ..status.states import TERMINAL, Counts, Phase, is_aborted, no_jobs, phase_of
from .filters import RunFilters
from .notes import MonitorLinks, add_notes

# BPS has the field since 30.2026.4300.
_HAS_SITE = "site" in {field.name for field in dataclasses.fields(WmsRunReport)}
_SEPARATORS = str.maketrans({":": "_", ";": "_"})


def needs_contents(evidence: RunEvidence) -> tuple[int, ...]:
    """List the transforms whose contents explain failures.

    Parameters
    ----------
    evidence : `RunEvidence`
        What is known of the run.

    Returns
    -------
    transform_ids : `tuple` [`int`, ...]
        Transforms with failed jobs, and those that ended and left jobs
        undone; those with most failures first.  A row costs 3 kB, so a
        caller may take the first few only.
    """
    aborted = is_aborted(evidence.request)
    found = []
    for transform in evidence.transforms or ():
        outputs = transform.outputs
        if outputs is None:
            continue
        failed = outputs.failed
        if phase_of(transform.status, aborted) is Phase.OVER:
            failed += max(0, outputs.total - outputs.processed - outputs.missing - outputs.failed)
        if failed > 0:
            found.append((-failed, transform.transform_id))
    return tuple(transform_id for _, transform_id in sorted(found))


def make_run_report(
    evidence: RunEvidence, *, monitor_url: str = "", return_exit_codes: bool = True
) -> WmsRunReport:
    """Make the report of one run.

    Parameters
    ----------
    evidence : `RunEvidence`
        What is known of the run.
    monitor_url : `str`, optional
        Address of the PanDA monitor, for links.
    return_exit_codes : `bool`, optional
        Whether to give an exit code for each failed job; those that no
        server could tell are `~.wire.failures.UNKNOWN_EXIT_CODE`.

    Returns
    -------
    report : `lsst.ctrl.bps.WmsRunReport`
        The report: all 11 states for each label, labels in pipeline order,
        and in ``specific_info`` errors, links and what to do next.
    """
    tally = tally_run(evidence)
    failures = _failures(evidence, tally)
    report = _bare_report(evidence, tally)
    report.job_summary = _job_summary(tally)
    if return_exit_codes:
        report.exit_code_summary = exit_codes(_failed_by_label(tally), failures)
    info = WmsSpecificInfo()
    add_notes(info, evidence, tally, failures, MonitorLinks(monitor_url))
    report.specific_info = info
    return report


def make_run_list(
    evidences: Iterable[RunEvidence], *, filters: RunFilters | None = None
) -> list[WmsRunReport]:
    """Make the list of runs.

    Parameters
    ----------
    evidences : `~collections.abc.Iterable` [`RunEvidence`]
        What is known of each run.
    filters : `RunFilters`, optional
        Which runs are wanted; all if not given.

    Returns
    -------
    reports : `list` [`lsst.ctrl.bps.WmsRunReport`]
        One for each wanted run, newest last.
    """
    reports = []
    for evidence in sorted(evidences, key=lambda item: item.request.request_id):
        report = _bare_report(evidence, tally_run(evidence))
        if filters is None or filters.matches(_filter_fields(evidence, report)):
            reports.append(report)
    return reports


def list_notes(evidences: Sequence[RunEvidence], *, days: float, user: str | None = None) -> list[str]:
    """Say what the columns of the list of runs have no room for.

    Parameters
    ----------
    evidences : `~collections.abc.Sequence` [`RunEvidence`]
        What is known of each run.
    days : `float`
        How far back was looked.
    user : `str`, optional
        Whose runs were asked for.

    Returns
    -------
    notes : `list` [`str`]
        Which run completes which, and what could not be found out; where to
        look further if there are no runs.
    """
    if not evidences:
        whose = f" of {user}" if user else ""
        return [
            f"No runs{whose} in the last {days:g} days. Look further back with --hist DAYS, for one run with "
            "--id, for those of others with --user or --global."
        ]
    notes = []
    for evidence in sorted(evidences, key=lambda item: item.request.request_id):
        number = evidence.request.request_id
        if origin := evidence.attributes.origin:
            notes.append(f"Run {number} completes run {origin}.")
        notes += [f"Run {number}: {problem}" for problem in evidence.problems]
    return notes


def get_status_of(evidence: RunEvidence) -> tuple[WmsStates, str]:
    """Give the state of one run.

    Parameters
    ----------
    evidence : `RunEvidence`
        What is known of the run; contents and PanDA's jobs do not matter.

    Returns
    -------
    state : `lsst.ctrl.bps.WmsStates`
        The same state as the report gives.
    message : `str`
        What is out of the ordinary or not known; empty otherwise, since BPS
        logs it as a warning.
    """
    tally = tally_run(evidence)
    lines: list[str] = []
    if not tally.ended and is_aborted(evidence.request):
        lines.append("It was cancelled and is not over yet.")
    elif not tally.ended and evidence.request.status in TERMINAL:
        lines.append(f"The server calls it {evidence.request.status} already, but it is not over yet.")
    lines += evidence.problems
    return tally.state, "\n".join(lines)


def describe_counts(evidence: RunEvidence) -> str:
    """Say how many jobs are in which state.

    Parameters
    ----------
    evidence : `RunEvidence`
        What is known of the run.

    Returns
    -------
    text : `str`
        One line.
    """
    total = tally_run(evidence).total
    counts = ", ".join(f"{number} {state.name}" for state, number in total.items() if number)
    return f"Run {evidence.request.request_id}: {counts or 'no jobs known yet'}."


def _bare_report(evidence: RunEvidence, tally: RunTally) -> WmsRunReport:
    """Make a report as the list of runs needs it."""
    attributes = tally.attributes
    request_id = str(evidence.request.request_id)
    report = WmsRunReport(
        wms_id=request_id,
        global_wms_id=request_id,
        path=evidence.plan.path if evidence.plan is not None else "",
        label=attributes.payload,
        run=attributes.name,
        project=attributes.project,
        campaign=attributes.campaign,
        payload=attributes.payload,
        operator=attributes.operator,
        run_summary=_run_summary(tally),
        state=tally.state,
        jobs=[],
        total_number_jobs=tally.job_count,
        job_state_counts=tally.total,
        job_summary={},
    )
    if _HAS_SITE:
        report.site = _site(evidence)
    return report


def _label(label: str) -> str:
    """Give a label as BPS can print it: it splits at these characters."""
    return label.translate(_SEPARATORS)


def _job_summary(tally: RunTally) -> dict[str, Counts]:
    """Give the counts by label as BPS can print it; labels that become the
    same are added up.
    """
    summary: dict[str, Counts] = {}
    for label, counts in tally.by_label.items():
        total = summary.setdefault(_label(label), no_jobs())
        for state, number in counts.items():
            total[state] += number
    return summary


def _run_summary(tally: RunTally) -> str:
    numbers: dict[str, int] = {}
    for label, counts in tally.by_label.items():
        numbers[_label(label)] = numbers.get(_label(label), 0) + sum(counts.values())
    return ";".join(f"{label}:{number}" for label, number in numbers.items())


def _site(evidence: RunEvidence) -> str:
    if evidence.plan is not None and evidence.plan.site:
        return evidence.plan.site
    return evidence.request.site or evidence.request.queue


def _failed_by_label(tally: RunTally) -> dict[str, int]:
    return {label: counts[WmsStates.FAILED] for label, counts in _job_summary(tally).items()}


def _failures(evidence: RunEvidence, tally: RunTally) -> list[Failure]:
    aborted = is_aborted(evidence.request)
    failures: list[Failure] = []
    for transform in evidence.transforms or ():
        contents = evidence.contents.get(transform.transform_id, ())
        label = _label(tally.labels.get(transform.transform_id, ""))
        failures += failures_of(transform, label, contents, aborted=aborted)
    return failures


def _filter_fields(evidence: RunEvidence, report: WmsRunReport) -> Mapping[str, str]:
    return {
        "name": report.run or "",
        "operator": report.operator or "",
        "project": report.project or "",
        "campaign": report.campaign or "",
        "payload": report.payload or "",
        "state": report.state.name if report.state is not None else "",
        "site": _site(evidence),
    }
