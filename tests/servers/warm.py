"""Jobs that run below roots of warm workers, without a server, and cold beside them."""

from __future__ import annotations

__all__ = ["WarmJobs"]

import os
import subprocess
from pathlib import Path

from panda_servers.local import wait_for

from lsst.ctrl.bps.panda.local.guard import marked_processes
from lsst.ctrl.bps.panda.warm.pool import Pool, Root

MARK = "PANDA_TEST_WARM"
"""Variable of all processes."""

JOB = "PANDA_TEST_JOB"
"""Variable of the processes of one job."""


class WarmJobs:
    """A pool, and jobs below a folder.

    ``scripts`` are answered, and are in ``folder``; ``variables`` are those of
    each job beside the usual ones.
    """

    def __init__(self, place: Path, scripts: list[str], folder: Path, variables: dict[str, str]) -> None:
        self.place = place
        self.folder = folder
        self.variables = variables
        self.number = 0
        (place / "jobs").mkdir(parents=True)
        self.pool = Pool(
            place / "warm",
            scripts,
            folder=str(folder),
            marks={MARK: str(place)},
            mark_names=[MARK, JOB],
        )

    def environment(self, job: str) -> dict[str, str]:
        """Return the environment of a job."""
        return {
            "PATH": f"{self.folder}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.place),
            MARK: str(self.place),
            JOB: job,
            **self.variables,
        }

    def _folder(self) -> Path:
        self.number += 1
        job = self.place / "jobs" / str(self.number)
        job.mkdir()
        return job

    def begin(self, command: str, *, task: str = "1") -> tuple[Root | None, Path]:
        """Start a job warm; returns its root, if there is one, and its folder."""
        job = self._folder()
        environment = self.environment(str(job))
        template = self.pool.choose(task, command, environment)
        if template is None:
            return None, job
        with (job / "out").open("wb") as out, (job / "err").open("wb") as err:
            root = self.pool.start(
                template, task, ["bash", "-c", command],
                directory=job, environment=environment, umask=0o022, stdout=out, stderr=err,
            )  # fmt: skip
        return root, job

    def warm(self, command: str, *, task: str = "1") -> tuple[int, str, str]:
        """Run a job warm; returns exit code, output and errors."""
        root, job = self.begin(command, task=task)
        if root is None:
            self.settle()
            root, job = self.begin(command, task=task)
        assert root is not None, self.pool.status()
        end = root.wait()
        assert end is not None
        return os.waitstatus_to_exitcode(end.status), (job / "out").read_text(), (job / "err").read_text()

    def cold(self, command: str) -> tuple[int, str, str]:
        """Run a job without warm workers."""
        job = self._folder()
        done = subprocess.run(
            ["bash", "-c", command], cwd=job, env=self.environment(str(job)), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, start_new_session=True, umask=0o022,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    @property
    def hits(self) -> int:
        """Number of calls that were answered."""
        return int(self.pool.status()["hits"])

    @property
    def reasons(self) -> str:
        """Reasons of cold starts."""
        return "; ".join(self.pool.status()["cold"])

    def settle(self) -> None:
        """Wait until no template is loading."""
        wait_for(
            lambda: all(item["state"] == "ready" for item in self.pool.status()["templates"]), "templates"
        )

    def template(self) -> int:
        """Return the process of the template that is ready."""
        templates = self.pool.status()["templates"]
        return int(next(template["pid"] for template in templates if template["state"] == "ready"))

    def stop(self) -> None:
        """End the templates, and see that nothing is left."""
        self.pool.stop()
        wait_for(lambda: not marked_processes(f"{MARK}={self.place}"), "end of all processes", timeout=10)
