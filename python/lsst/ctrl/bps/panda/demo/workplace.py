"""A directory to try things in: the repository, the embedded PanDA, the runs,
and the environment that commands need there.
"""

from __future__ import annotations

__all__ = ["LOCAL_SERVICE", "Workplace", "find_run"]

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import SettingsError
from ..files import write_text
from .repository import create_repo, is_current, render_run_config

LOCAL_SERVICE = "lsst.ctrl.bps.panda.LocalPanDAService"

_OPERATOR = "quickstart"
_FOREIGN = ("PANDA_", "PANDACACHE_", "OIDC_", "X509_", "IDDS_", "BPS_", "CTRL_BPS_PANDA_")
"""Variables that would lead to another PanDA, or take a credential along."""

_FAILURE = "visit IN (260315002) AND detector IN (1)"


def find_run(text: str) -> str:
    """Find the id of the run that was submitted in the output of ``bps submit``; empty if there is none."""
    match = re.search(r"^Run Id: (\d+)$", text, re.MULTILINE)
    return match[1] if match else ""


class Workplace:
    """The directory, and where things are in it.

    Parameters
    ----------
    directory : `~pathlib.Path`
        Absolute.
    """

    output = f"u/{_OPERATOR}/starcam"
    """Collection of the outputs of all runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.repo = directory / "repo"  # Butler repository.
        self.panda = directory / "panda"  # State of the embedded PanDA.
        self.config = directory / "demo.yaml"  # BPS configuration of the demo.
        self.failing_config = directory / "failing.yaml"  # The same with a quantum that fails.
        self.script = directory / "env.sh"  # Shell script that sets the environment.
        self.picture = directory / "sky.png"  # The sky with its objects.
        self.submit_log = directory / "submit.log"  # What bps submit wrote.
        self.lock = directory / "lock"  # To lock while working here.

    def output_run(self, submit_directory: Path) -> str:
        """Tell the collection of the outputs of one run."""
        return submit_directory.relative_to(self.directory / "submit").as_posix()

    def ensure_repo(self) -> bool:
        """Make the repository unless it is there; tell whether it was not.

        Raises
        ------
        .SettingsError
            Raised if it is there, but not for the pipeline of today.
        """
        if not (self.repo / "butler.yaml").is_file():
            create_repo(self.repo)
            return True
        if not is_current(self.repo):
            repo, kept = (shlex.quote(str(self.directory / name)) for name in ("repo", "repo-old"))
            raise SettingsError(
                f"{self.repo} was made by another version of the demo, and the pipeline of this one cannot "
                "use it. Move it away, with the results of its runs, and start again to have a new one made:"
                f"\n\n    mv {repo} {kept}\n"
            )
        return False

    def write_files(self) -> None:
        """Write the configurations and the script, in their present form."""
        settings: dict[str, object] = {
            "wmsServiceClass": LOCAL_SERVICE,
            "operator": _OPERATOR,
            "submitPath": f"{self.directory}/submit/{{outputRun}}",
        }
        write_text(self.config, [render_run_config(self.repo, settings=settings)])
        failing = {"campaign": "failing", "extraQgraphOptions": f'-c "characterize:failIf={_FAILURE}"'}
        write_text(self.failing_config, [render_run_config(self.repo, settings=settings | failing)])
        write_text(self.script, [self._render_script()])

    def _render_script(self) -> str:
        """Give the script that makes commands work in another shell."""
        lines = ["# Source this file to use the embedded PanDA of this directory by hand."]
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
        lines.append("unset PANDA_URL PANDA_URL_SSL PANDACACHE_URL")
        lines += [f"export {name}={shlex.quote(value)}" for name, value in self._variables().items()]
        return "\n".join(lines) + "\n"

    def _variables(self) -> dict[str, str]:
        return {"PANDA_LOCAL_DIR": str(self.panda), "BPS_WMS_SERVICE_CLASS": LOCAL_SERVICE}

    def environment(self, outside: Mapping[str, str] | None = None) -> dict[str, str]:
        """Give the environment for commands, from that of this process or another one."""
        variables = os.environ if outside is None else outside
        kept = {name: value for name, value in variables.items() if not name.startswith(_FOREIGN)}
        kept.setdefault("HOME", str(self.directory))
        path = kept.get("PATH") or os.defpath
        return {**kept, **self._variables(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}"}

    def enter(self) -> None:
        """Make the environment that of this process."""
        variables = self.environment()
        os.environ.clear()
        os.environ.update(variables)
