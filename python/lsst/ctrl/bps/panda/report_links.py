"""Addresses of pages of the PanDA monitor."""

from __future__ import annotations

__all__ = ["MonitorLinks"]

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MonitorLinks:
    """Pages of one PanDA monitor.

    Each method gives an address, or an empty text where no monitor is known.
    """

    base: str
    """Address of the monitor, for instance ``https://host:8443``; empty if
    there is none."""

    def tasks_of_run(self, request_id: int) -> str:
        """Page with the tasks of a run."""
        return self._page(f"tasks/?idds_request_id={request_id}")

    def progress_of_run(self, request_id: int) -> str:
        """Page with the progress of a run."""
        return self._page(f"idds/wfprogress/?requestid={request_id}")

    def task(self, task_id: int) -> str:
        """Page of a task."""
        return self._page(f"task/{task_id}/")

    def failed_jobs(self, task_id: int) -> str:
        """Page with the failed jobs of a task."""
        return self._page(f"jobs/?jeditaskid={task_id}&jobstatus=failed")

    def job(self, panda_id: int) -> str:
        """Page of a PanDA job."""
        return self._page(f"job/{panda_id}/")

    def _page(self, path: str) -> str:
        return f"{self.base.rstrip('/')}/{path}" if self.base else ""
