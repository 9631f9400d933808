"""What the step would do if it ran now."""

from __future__ import annotations

__all__ = ["Forecast", "ForecastFile", "make_forecast"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import RucioError
from .client import rucio_errors
from .program import Found, Held, Registration, look_at_rucio


@dataclass(frozen=True, slots=True)
class ForecastFile:
    """A file that would be registered, or is."""

    name: str
    """Without the scope."""

    dataset_type: str
    size: int
    """Bytes."""

    pfn: str
    """Where transfers would find it."""

    is_registered: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would be registered."""

    registration: Registration
    files: tuple[ForecastFile, ...]
    absent: tuple[str, ...]
    """Dataset types of which the run has nothing."""

    without_file: int
    held: Held | None
    """What Rucio holds; `None` if it was not asked."""

    rule_exists: bool

    @property
    def new(self) -> tuple[ForecastFile, ...]:
        """Files that would be added."""
        return tuple(file for file in self.files if not file.is_registered)


def make_forecast(
    client: Any | None,
    registration: Registration,
    found: Found,
    *,
    measure: Callable[[Any], int] = lambda uri: int(uri.size()),
) -> Forecast:
    """Find out what the step would do.

    Parameters
    ----------
    client : `rucio.client.Client` or `None`
        Rucio; without it, nothing is taken to be registered.
    registration : `Registration`
        What is to be registered.
    found : `Found`
        What the Butler has.
    measure : callable, optional
        Gives the size of a file, bytes.

    Raises
    ------
    RucioError
        Raised if Rucio does not answer, or a file is not there.
    """
    held, rule_exists = None, False
    if client is not None:
        with rucio_errors(f"tell about {registration.scope}:{registration.dataset}"):
            held = look_at_rucio(client, registration)
            rule_exists = held.dataset is not None and _has_rule(client, registration)
    base = f"{registration.dtn_url.rstrip('/')}/{registration.scope}"
    try:
        files = tuple(
            ForecastFile(
                name=output.name,
                dataset_type=output.dataset_type,
                size=measure(output.uri),
                pfn=f"{base}/{output.name}",
                is_registered=held is not None and output.name in held.at_rse,
            )
            for output in found.outputs
        )
    except OSError as error:
        raise RucioError(f"A file that the Butler names is not there: {error}") from error
    return Forecast(registration, files, found.absent, found.without_file, held, rule_exists)


def _has_rule(client: Any, registration: Registration) -> bool:
    """Whether the wanted rule is there already."""
    wanted = registration.rule
    rules = client.list_did_rules(registration.scope, registration.dataset)
    return wanted is not None and any(
        (rule["rse_expression"], rule["account"]) == (wanted.rse_expression, client.account) for rule in rules
    )
