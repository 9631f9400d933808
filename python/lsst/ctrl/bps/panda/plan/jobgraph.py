"""The jobs of a workflow by index, what each waits for, and the order of
their labels.
"""

from __future__ import annotations

__all__ = ["JobGraph", "some_of"]

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from lsst.ctrl.bps import GenericWorkflow, GenericWorkflowFile, GenericWorkflowJob

from ..errors import PlanError

_NO_GATES: frozenset[str] = frozenset()


@dataclass(slots=True)
class JobGraph:
    """The jobs of a workflow by index, and what each waits for.

    The lists have one entry a job.
    """

    jobs: list[GenericWorkflowJob] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    label_of: list[str] = field(default_factory=list)
    inputs: list[tuple[GenericWorkflowFile, ...]] = field(default_factory=list)
    outputs: list[tuple[GenericWorkflowFile, ...]] = field(default_factory=list)
    parents: list[list[int]] = field(default_factory=list)
    """Indices of the jobs that must succeed before."""

    groups: list[str] = field(default_factory=list)
    """Path of the ordering group that a job is in; empty for none."""

    gates: list[frozenset[str]] = field(default_factory=list)
    """Paths of the groups that must be terminated before."""

    labels: tuple[str, ...] = ()
    """Labels in pipeline order, once the graph is complete."""

    depths: list[int] | None = None
    """Length of the longest way to each job from one without parents; left
    out where no label depends on itself, be it through others."""

    _files: dict[int | tuple[int, ...], tuple[GenericWorkflowFile, ...]] = field(default_factory=dict)

    def add(self, job: GenericWorkflowJob, workflow: GenericWorkflow | None, *, group: str = "") -> int:
        """Add a job without parents and return its index.

        Parameters
        ----------
        job : `~lsst.ctrl.bps.GenericWorkflowJob`
            The job.
        workflow : `~lsst.ctrl.bps.GenericWorkflow` or `None`
            Where its files are known, if it has any.
        group : `str`, optional
            Path of its group.
        """
        self.extend([job], workflow, group=group)
        return len(self.jobs) - 1

    def extend(
        self, jobs: Sequence[GenericWorkflowJob], workflow: GenericWorkflow | None, *, group: str = ""
    ) -> None:
        """Add jobs without parents."""
        names = [job.name for job in jobs]
        self.jobs += jobs
        self.names += names
        self.label_of += [job.label for job in jobs]
        self.parents += [[] for _ in jobs]
        self.groups += [group] * len(jobs)
        self.gates += [_NO_GATES] * len(jobs)
        if workflow is None:
            self.inputs += [()] * len(jobs)
            self.outputs += [()] * len(jobs)
            return
        shared = self._shared
        self.inputs += [shared(files) if files else () for files in map(workflow.get_job_inputs, names)]
        self.outputs += [shared(files) if files else () for files in map(workflow.get_job_outputs, names)]

    def _shared(self, files: list[GenericWorkflowFile]) -> tuple[GenericWorkflowFile, ...]:
        """Return one tuple for all jobs with the same files: there are few
        different ones in a run of a million jobs.
        """
        key = id(files[0]) if len(files) == 1 else tuple(map(id, files))
        known = self._files.get(key)
        if known is None:
            known = self._files[key] = tuple(files)
        return known

    def complete(self) -> None:
        """Find the order of the labels, once all jobs and edges are there.

        Raises
        ------
        PlanError
            Raised if two jobs have one name, if a job has no label, or if
            jobs wait for each other in a circle.
        """
        if len(set(self.names)) < len(self.names):
            twice = sorted(name for name, count in Counter(self.names).items() if count > 1)
            raise PlanError(f"These names are those of several jobs of the workflow: {some_of(twice)}.")
        for label in set(self.label_of):
            if not isinstance(label, str) or not label:
                name = self.names[self.label_of.index(label)]
                raise PlanError(f"The label of job {name!r} is {label!r}; it must be a text.")
        before = self._labels_before()
        self.labels, straight = _order(before)
        if straight and not any(label in labels for label, labels in before.items()):
            return
        self.depths = self._find_depths()
        if not straight:
            first: dict[str, int] = {}
            for label, depth in zip(self.label_of, self.depths, strict=True):
                first[label] = min(depth, first.get(label, depth))
            self.labels = tuple(sorted(first, key=lambda label: (first[label], label)))

    def _labels_before(self) -> dict[str, set[str]]:
        """Return the labels that each label depends on, by label."""
        label_of = self.label_of.__getitem__
        before: dict[str, set[str]] = {label: set() for label in set(self.label_of)}
        for label, parents in zip(self.label_of, self.parents, strict=True):
            if parents:
                before[label].update(map(label_of, parents))
        return before

    def children(self) -> list[list[int]]:
        """Return the jobs that depend on each job."""
        children: list[list[int]] = [[] for _ in self.jobs]
        for index, parents in enumerate(self.parents):
            for parent in parents:
                children[parent].append(index)
        return children

    def _find_depths(self) -> list[int]:
        """Return the depth of each job; raise if jobs wait for each other in
        a circle.
        """
        missing = [len(parents) for parents in self.parents]
        depths = [0] * len(missing)
        children = self.children()
        ready = [index for index, count in enumerate(missing) if count == 0]
        done = 0
        while ready:
            index = ready.pop()
            done += 1
            for child in children[index]:
                depths[child] = max(depths[child], depths[index] + 1)
                missing[child] -= 1
                if missing[child] == 0:
                    ready.append(child)
        if done < len(missing):
            stuck = sorted(self.names[i] for i, count in enumerate(missing) if count > 0)
            raise PlanError(f"These jobs wait for each other in a circle: {some_of(stuck)}.")
        return depths


def _order(before: dict[str, set[str]]) -> tuple[tuple[str, ...], bool]:
    """Return the labels, each after those it depends on and those of equal
    depth by name, and whether that is possible for all of them.
    """
    depths: dict[str, int] = {}
    remaining = sorted(before)
    straight = True
    depth = 0
    while remaining:
        free = [label for label in remaining if before[label] <= depths.keys() | {label}]
        if not free:  # labels depend on each other in a circle, though jobs do not
            free, straight = remaining, False
        depths.update(dict.fromkeys(free, depth))
        remaining = [label for label in remaining if label not in depths]
        depth += 1
    return tuple(sorted(depths, key=lambda label: (depths[label], label))), straight


def some_of(names: Sequence[str], count: int = 8) -> str:
    """Render a few of many names.

    Parameters
    ----------
    names : sequence of `str`
        All of them.
    count : `int`, optional
        How many to show at most.
    """
    shown = ", ".join(names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"
