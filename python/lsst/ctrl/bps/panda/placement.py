"""Labels of one run at several sites: whether these can share its files."""

from __future__ import annotations

__all__ = ["find_separated"]

import re

from lsst.ctrl.bps import BpsConfig

from . import sites
from .plan.model import TaskPlan, WorkflowPlan

_AREA_KEYS = ("stagingArea", "stagingAreaDefault")


def find_separated(
    plan: WorkflowPlan, config: BpsConfig, *, share_files: bool
) -> tuple[list[str], list[str]]:
    """Find labels that go to another site than the run, where its files may
    not be.

    A run has one staging area and one Butler: its quantum graph is made from
    that Butler, a job reads there what jobs of other labels have written, and
    the final job registers all of it.  PanDA and iDDS release a job at one
    site by the end of a job at another, but move no data.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of the run.
    share_files : `bool`
        Whether the configuration says that all sites see the same files.

    Returns
    -------
    problems : `list` [`str`]
        What cannot work.
    doubts : `list` [`str`]
        What may not work: nothing is known of one of the sites.
    """
    tasks = (*plan.tasks, *plan.final)
    elsewhere = _elsewhere(tasks, plan.run.site)
    butlers = {task.label: _butler(config, task) for task in tasks}
    different = _different_butlers(butlers, plan)
    needed = [f"the staging area {plan.run.staging_area}"] if _is_path(plan.run.staging_area) else []
    needed += [f"the Butler {butler}" for butler in sorted(set(butlers.values())) if _is_path(butler)]
    problems = [different] if different else []
    doubts: list[str] = []
    for site, labels in elsewhere.items() if needed and not share_files else ():
        text = (
            f"Labels {', '.join(labels)} go to {site}, the run to {plan.run.site}, and all its jobs need "
            f"{' and '.join(needed)}: a path, which another site may not see. Give URIs that both sites "
            "reach, or, if they see the same files, set sitesShareFiles: yes. For data at separate "
            "facilities use a run for each site: panda_bps campaign."
        )
        (problems if _are_apart(site, plan.run.site) else doubts).append(text)
    return problems, doubts


def _elsewhere(tasks: tuple[TaskPlan, ...], run_site: str) -> dict[str, list[str]]:
    """Return the labels at each site that is not the run's."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        site = task.placement.site
        if site and site.lower() != run_site.lower() and task.label not in found.setdefault(site, []):
            found[site].append(task.label)
    return found


def _butler(config: BpsConfig, task: TaskPlan) -> str:
    """Return the Butler of a label."""
    current = {
        "curr_cluster": task.label,
        "curr_pipetask": task.label,
        "curr_site": task.placement.site,
        "curr_cloud": task.placement.cloud,
    }
    return str(config.search("butlerConfig", opt={"curvals": current, "default": ""})[1] or "")


def _different_butlers(butlers: dict[str, str], plan: WorkflowPlan) -> str:
    """Say which labels use another Butler than others; empty if none."""
    by_butler: dict[str, list[str]] = {}
    for label, butler in butlers.items():
        by_butler.setdefault(butler, []).append(label)
    if len(by_butler) < 2:
        return ""
    listed = "; ".join(f"{butler or '(none)'}: {', '.join(labels)}" for butler, labels in by_butler.items())
    return (
        f"Labels of run {plan.run.name} use different Butlers ({listed}), so that jobs do not find what "
        "others have written. A run has one butlerConfig; use a run for each site: panda_bps campaign."
    )


def _is_path(place: str) -> bool:
    """Tell whether a place is a path or a ``file:`` URI; a name without
    slashes is an alias, of which nothing is known.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", place)
    return scheme[1].lower() == "file" if scheme else "/" in place


def _are_apart(site: str, other: str) -> bool:
    """Tell whether two sites are known to stage to different places."""
    profiles = [sites.profile_of(name) for name in (site, other)]
    areas = [[str(profile.get(key, "")) for key in _AREA_KEYS] for profile in profiles]
    return all(profiles) and areas[0] != areas[1]
