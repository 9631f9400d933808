"""Rucio's client and the Butler, opened when they are needed: both are slow to
import, and the first is an extra.
"""

from __future__ import annotations

__all__ = ["open_butler", "open_client", "rucio_errors"]

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import RucioError, SettingsError

_EXTRA = "pip install 'lsst-ctrl-bps-panda[rucio]'"


@contextmanager
def rucio_errors(what: str) -> Iterator[None]:
    """Turn what Rucio's client raises into errors of this plugin.

    Parameters
    ----------
    what : `str`
        What was asked, for the text.

    Raises
    ------
    RucioError
        Raised instead of an error of Rucio, or of the way to it.
    """
    from rucio.common.exception import RucioException

    try:
        yield
    except (RucioException, OSError) as error:  # those of requests are an OSError
        text = " ".join(str(error).split())
        raise RucioError(f"Rucio did not {what}: {type(error).__name__}: {text}") from error


def open_client() -> Any:
    """Log in to the Rucio server that the environment names.

    Returns
    -------
    client : `rucio.client.Client`
        The client.

    Raises
    ------
    SettingsError
        Raised if Rucio's clients are not installed, or no server is set up.
    RucioError
        Raised if the server cannot be reached or refuses the log-in.
    """
    try:
        from rucio.common.exception import ConfigLoadingError, ConfigNotFound, MissingClientParameter
    except ImportError as error:
        raise SettingsError(f"This needs Rucio's clients (no module {error.name}): {_EXTRA}.") from error
    program = sys.argv[0]
    try:
        with rucio_errors("take the log-in"):
            # It reads its configuration when it is imported.
            from rucio.client import Client

            return Client()
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


def open_butler(repo: str) -> Any:
    """Open a Butler for reading.

    Parameters
    ----------
    repo : `str`
        Path, URI or alias.

    Raises
    ------
    RucioError
        Raised if it cannot be opened here.
    """
    from lsst.daf.butler import Butler

    try:
        return Butler.from_config(repo, writeable=False)
    except Exception as error:  # each registry and store has errors of its own
        text = " ".join(str(error).split())
        raise RucioError(
            f"The Butler {repo} cannot be opened here: {type(error).__name__}: {text}"
        ) from error
