"""Look for everything that would keep a run from working, before anything is
staged or sent, and say all of it at once.
"""

from __future__ import annotations

__all__ = ["check_run", "check_service"]

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from .errors import PandaBpsError, PlanError, SettingsError
from .inquiry import connect
from .plan.model import WorkflowPlan
from .rest.diagnosis import diagnose
from .settings import RunSettings, ServiceSettings
from .staging import check_area

_LOG = logging.getLogger(__name__)

MAX_NAME = 255
"""Longest name of a request in iDDS (PostgreSQL column)."""


def check_service(settings: ServiceSettings, config: Mapping[str, Any] | None) -> None:
    """Check that PanDA can be reached with a log-in that lives long enough.

    Parameters
    ----------
    settings : `ServiceSettings`
        Where PanDA is and who we are.
    config : mapping
        Configuration of the run.

    Raises
    ------
    PandaBpsError
        Raised if there is a problem; the text lists all of them.
    """
    problems = []
    try:
        connection = connect(settings)
        connection.relay.ping()
        connection.credentials.ensure_lifetime(timedelta(hours=settings.token_lifetime))
    except SettingsError as error:
        problems.append(str(error))
    except PandaBpsError as error:
        problems.append(diagnose(error))
    _raise_all(problems, "PanDA cannot be used as it is set up")


def check_run(plan: WorkflowPlan, settings: RunSettings) -> None:
    """Check a plan and its staging area.

    Parameters
    ----------
    plan : `WorkflowPlan`
        The plan.
    settings : `RunSettings`
        Settings of the run.

    Raises
    ------
    PlanError
        Raised if there is a problem; the text lists all of them.
    """
    problems = list(check_area(settings.staging))
    if len(plan.run.name) > MAX_NAME:
        problems.append(
            f"The run's name has {len(plan.run.name)} characters and iDDS takes {MAX_NAME}: {plan.run.name!r}. "
            "Use a shorter outputRun."
        )
    bad = sorted(set(plan.run.name) & set("?#%*^/"))
    if bad:
        problems.append(
            f"The run's name {plan.run.name!r} holds {' '.join(bad)}, with which iDDS cannot look it up. "
            "Use another outputRun."
        )
    if problems:
        raise PlanError("The run cannot be submitted as it is:\n- " + "\n- ".join(problems))


def _raise_all(problems: list[str], head: str) -> None:
    """Raise one error that lists all problems."""
    if problems:
        raise PandaBpsError(f"{head}:\n- " + "\n- ".join(problems))
