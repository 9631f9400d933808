"""Files of a submit directory: their names, how they are written and read,
and the environment that BPS leaves there, without its secrets.

BPS writes ``<run>.env.info.yaml``, readable by everybody, before it calls this
plugin, and on a restart after it; see `protect_dumps` and `reserve_dump`.
"""

from __future__ import annotations

__all__ = [
    "PARAMETERS_DIRECTORY",
    "PLAN_NAME",
    "RECORD_NAME",
    "REGISTRATION_NAME",
    "hide_secrets",
    "names_directory",
    "protect_dumps",
    "read_model",
    "read_plan",
    "replacing",
    "reserve_dump",
    "settle_dump",
    "write_text",
]

import atexit
import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import PandaBpsError, RunNotFoundError
from ..plan.document import parse_plan
from ..plan.model import WorkflowPlan
from ..rest.credentials import redact

_LOG = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=BaseModel)

RECORD_NAME = "panda_run.json"
PLAN_NAME = "panda_plan.json"
REGISTRATION_NAME = "panda_rucio.json"
PARAMETERS_DIRECTORY = "panda_files"

_DUMP_SUFFIX = ".env.info.yaml"
_HIDDEN = "[hidden]"

# Names of variables whose value is a secret whatever it looks like.
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(?:ACCESS|API|PRIVATE|AUTH|SIGNING|ACCOUNT|ENCRYPTION)_?KEY"
    r"|PGPASS|COOKIE|SIGNATURE",
    re.IGNORECASE,
)
# ... unless they say where it is.
_PLACE_NAME = re.compile(r"(?:FILE|PATH|DIR|DIRECTORY|URL|URI|ENDPOINT|EXPIRES?|LIFETIME)$", re.IGNORECASE)


def names_directory(run: str) -> bool:
    """Tell whether a user means a directory, rather than the id or the name
    of a run.
    """
    return not run.isdecimal() and (os.path.sep in run or os.path.isdir(run))


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Give a temporary file that takes the place of another in the end, or is
    removed if there is an exception: a reader never sees half a file.

    Parameters
    ----------
    path : `~pathlib.Path`
        The file to replace; its directory is made.
    mode : `int`, optional
        Permissions, of which the umask takes some away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        yield Path(name)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, mode & ~mask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def write_text(path: Path, pieces: Iterable[str], *, mode: int = 0o666) -> None:
    """Write a text file, whole or not at all.

    Parameters
    ----------
    path : `~pathlib.Path`
        The file.
    pieces : iterable of `str`
        Its content.
    mode : `int`, optional
        Permissions, of which the umask takes some away.
    """
    with replacing(path, mode=mode) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        stream.writelines(pieces)


def read_model(directory: str | os.PathLike[str], name: str, model: type[_Model], *, holder: str) -> _Model:
    """Read a record of a submit directory.

    Parameters
    ----------
    directory : path
        The directory, or a file in it.
    name : `str`
        Name of the record.
    model : `type`
        What it is; has a field ``format`` with the version that is read.
    holder : `str`
        What has such a record, for the text of an error.

    Raises
    ------
    RunNotFoundError
        Raised if there is no such file.
    PandaBpsError
        Raised if it is damaged, naming the key, or of another version.
    """
    given = Path(directory)
    path = (given if given.is_dir() else given.parent) / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunNotFoundError(
            f"{directory} holds no {name}, so it is not the submit directory of {holder}."
        ) from None
    except ValueError as error:
        raise PandaBpsError(f"{path} is damaged: {error}.") from error
    known = model.model_fields["format"].default
    version = content.get("format", known) if isinstance(content, dict) else known
    if version != known:
        raise PandaBpsError(
            f"{path} has format {version!r} and this version of the plugin reads {known}; use the "
            "version that wrote it."
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise PandaBpsError(f"{path} is damaged: {key}: {first['msg']}.") from error


def read_plan(directory: str | os.PathLike[str]) -> WorkflowPlan:
    """Read the plan of a submit directory.

    Parameters
    ----------
    directory : path
        The directory.

    Raises
    ------
    RunNotFoundError
        Raised if it holds none.
    PlanError
        Raised if the plan is not understood.
    """
    path = Path(directory) / PLAN_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunNotFoundError(
            f"{directory} holds no {PLAN_NAME}, which is needed to restart a run."
        ) from None
    return parse_plan(text, source=os.fspath(path))


def hide_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Replace secrets by ``[hidden]``: what a variable's name calls one, and
    what looks like one (JSON web tokens, keys, passwords in URLs).
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
    for path in sorted(Path(directory).glob(f"*{_DUMP_SUFFIX}")):
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
    """Make an empty private file where BPS is about to write the environment
    of the run ``name``: BPS keeps the permissions of an existing file.  It is
    cleaned up when the program ends.
    """
    path = Path(directory).absolute() / f"{name}{_DUMP_SUFFIX}"
    atexit.register(settle_dump, path)
    try:
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError as error:
        _LOG.warning("%s cannot be made private: %s", path, error)


def settle_dump(path: Path) -> None:
    """Hide the secrets in a file made by `reserve_dump`, or remove it if BPS
    wrote nothing.
    """
    try:
        if not path.stat().st_size:
            path.unlink()
    except OSError:
        return  # somebody has removed it
    protect_dumps(path.parent)
