"""Rucio's client and the Butler, imported only when they are opened: both are
slow to import, and Rucio's clients are an extra.
"""

from __future__ import annotations

__all__ = ["find_outputs_of_run", "open_butler", "open_client", "rucio_errors"]

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..edgenode.rucio_program import ButlerOutputs, Registration, RegistrationError, find_outputs
from ..errors import RucioError, SettingsError

_CONNECT = 10
"""Seconds to wait for a connection; Rucio's client tries three times."""

REPLY_TIMEOUT = 600
"""Seconds that Rucio's own client waits for a reply: lists may be long."""

_EXTRA = "pip install 'lsst-ctrl-bps-panda[rucio]'"


def _describe(error: Exception) -> str:
    """Return kind and text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def rucio_errors(what: str) -> Iterator[None]:
    """Raise what goes wrong in Rucio, or on the way to it, as `RucioError` with
    the text "Rucio did not ``what``".
    """
    from rucio.common.exception import RucioException

    try:
        yield
    except (RucioException, OSError) as error:  # those of requests are an OSError
        raise RucioError(f"Rucio did not {what}: {_describe(error)}") from error


def open_client(timeout: int = REPLY_TIMEOUT) -> Any:
    """Log in to the Rucio server that the environment names, and wait at most ``timeout`` seconds for each
    reply.

    It is a `SettingsError` if Rucio's clients are not installed or no server is set up, and a `RucioError` if
    the server cannot be reached or refuses the log-in.
    """
    try:
        from rucio.common.exception import ConfigLoadingError, ConfigNotFound, MissingClientParameter
    except ImportError as error:
        raise SettingsError(f"This needs Rucio's clients (no module {error.name}): {_EXTRA}.") from error
    program = sys.argv[0]
    try:
        with rucio_errors(f"take the log-in{_host()}"):
            # It reads its configuration when it is imported.
            from rucio.client import Client

            return Client(timeout=(_CONNECT, timeout))  # as requests takes it
    except RucioError as error:
        if isinstance(error.__cause__, ConfigLoadingError | ConfigNotFound | MissingClientParameter):
            raise SettingsError(
                f"Rucio's clients are not set up ({error}). Set RUCIO_CONFIG to a rucio.cfg with a section "
                "[client], and what it does not hold: RUCIO_ACCOUNT, X509_USER_PROXY."
            ) from error
        raise
    finally:
        # The client cuts the folder off the program's name.
        sys.argv[0] = program


def _host() -> str:
    """Return the address of the server, which errors of the log-in leave out."""
    from rucio.common.config import config_get
    from rucio.common.exception import RucioException

    try:
        host = config_get("client", "rucio_host", raise_exception=False, default="")
    except (RucioException, OSError):  # the log-in fails of the same, with more words
        return ""
    return f" at {host}" if host else ""


def open_butler(repo: str) -> Any:
    """Open a Butler for reading; `RucioError` if that is not possible here."""
    from lsst.daf.butler import Butler

    try:
        return Butler.from_config(repo, writeable=False)
    except Exception as error:  # each registry and store has errors of its own
        raise RucioError(f"The Butler {repo} cannot be opened here: {_describe(error)}") from error


def find_outputs_of_run(butler: Any, registration: Registration) -> ButlerOutputs:
    """Find the outputs of a run in the Butler; `RucioError` if the Butler
    fails, or if an output must not be registered.
    """
    try:
        return find_outputs(butler, registration)
    except RegistrationError as error:
        raise RucioError(str(error)) from error
    except Exception as error:  # each registry and store has errors of its own
        raise RucioError(
            f"The Butler {registration.butler} did not list the outputs: {_describe(error)}"
        ) from error
