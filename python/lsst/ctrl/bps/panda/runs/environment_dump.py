"""The environment that BPS writes into the submit directory, readable by
everybody: secrets are taken out, and the file is made private.

BPS writes ``<run>.env.info.yaml`` before it calls this plugin, and on a
restart after it; see `protect_dumps` and `reserve_dump`.
"""

from __future__ import annotations

__all__ = ["hide_secrets", "protect_dumps", "reserve_dump", "settle_dump"]

import atexit
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from ..rest.credentials import redact
from .record import write_text

_LOG = logging.getLogger(__name__)

_SUFFIX = ".env.info.yaml"

_HIDDEN = "[hidden]"

# Names of variables whose value is a secret whatever it looks like.
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(?:ACCESS|API|PRIVATE|AUTH|SIGNING|ACCOUNT|ENCRYPTION)_?KEY"
    r"|PGPASS|COOKIE|SIGNATURE",
    re.IGNORECASE,
)
# ... unless they say where it is.
_PLACE_NAME = re.compile(r"(?:FILE|PATH|DIR|DIRECTORY|URL|URI|ENDPOINT|EXPIRES?|LIFETIME)$", re.IGNORECASE)


def hide_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Replace the values of variables that hold secrets.

    Parameters
    ----------
    environment : mapping of `str` to `str`
        Names and values.

    Returns
    -------
    hidden : `dict` [`str`, `str`]
        The same names; a secret, by its variable's name or by its form
        (JSON web tokens, keys, passwords in URLs), is ``[hidden]``.
    """
    return {name: _hide(name, value) for name, value in environment.items()}


def _hide(name: str, value: str) -> str:
    if value and _SECRET_NAME.search(name) and not _PLACE_NAME.search(name):
        return _HIDDEN
    return redact(value) if isinstance(value, str) else value


def protect_dumps(directory: str | os.PathLike[str]) -> None:
    """Hide the secrets in all environment dumps of a submit directory, and
    make those files readable for their owner only.

    Parameters
    ----------
    directory : path
        The submit directory.
    """
    for path in sorted(Path(directory).glob(f"*{_SUFFIX}")):
        try:
            # First of all, in case the rest fails.
            path.chmod(0o600)
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            hidden = hide_secrets(content)
            if hidden != content:
                write_text(path, [yaml.safe_dump(hidden)], mode=0o600)
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            _LOG.warning("Secrets in %s could not be hidden: %s. Remove the file.", path, error)


def reserve_dump(directory: str | os.PathLike[str], name: str) -> None:
    """Make an empty private file where BPS is about to write a dump: it keeps
    the permissions of a file that is there.  When the program ends, secrets
    in it are hidden, or it is removed if BPS wrote nothing.

    Parameters
    ----------
    directory : path
        The submit directory.
    name : `str`
        Name of the run.
    """
    path = Path(directory).absolute() / f"{name}{_SUFFIX}"
    atexit.register(settle_dump, path)
    try:
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError as error:
        _LOG.warning("%s cannot be made private: %s", path, error)


def settle_dump(path: Path) -> None:
    """End what `reserve_dump` began.

    Parameters
    ----------
    path : `~pathlib.Path`
        The reserved file.
    """
    try:
        if not path.stat().st_size:
            path.unlink()
    except OSError:
        return  # somebody has removed it
    protect_dumps(path.parent)
