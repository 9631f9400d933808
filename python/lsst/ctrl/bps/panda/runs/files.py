"""Files of a run on the submit host: the plan and other files of the submit directory, the environment that
BPS writes there, without its secrets, and the outputs of ``bps submitcmd``.

BPS writes ``<run>.env.info.yaml``, readable by everybody, before it calls this plugin, and on a restart after
it; see `protect_environment_dumps` and `prepare_environment_dump`.
"""

from __future__ import annotations

__all__ = [
    "PARAMETERS_DIRECTORY",
    "PLAN_NAME",
    "PROVENANCE_GRAPH_NAME",
    "PROVENANCE_REPORT_NAME",
    "RECORD_NAME",
    "REGISTRATION_NAME",
    "REST_NAME",
    "STAGES_NAME",
    "collect_outputs",
    "find_outputs",
    "find_resource",
    "hide_secrets",
    "hold_lock",
    "names_directory",
    "protect_environment_dumps",
    "read_model",
    "read_plan",
    "prepare_environment_dump",
    "clean_environment_dump",
]

import atexit
import contextlib
import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import yaml
from lsst.resources import ResourcePath
from pydantic import BaseModel, ValidationError

from lsst.ctrl.bps import GenericWorkflow

from ..edgenode import cmd_line_decoder as runner
from ..errors import PandaBpsError, PlanError, RunNotFoundError
from ..files import RECORD_NAME, replacing, write_text
from ..plan.document import parse_plan
from ..plan.model import WorkflowPlan
from ..rest.credentials import redact

_LOG = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=BaseModel)

PLAN_NAME = "panda_plan.json"
REGISTRATION_NAME = "panda_rucio.json"
PROVENANCE_GRAPH_NAME = "panda_provenance.qg"
PROVENANCE_REPORT_NAME = "panda_provenance.json"
PARAMETERS_DIRECTORY = "panda_files"
STAGES_NAME = "panda_stages.json"
REST_NAME = "panda_rest.pickle"

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
    """Tell whether a user means a directory, rather than the id or the name of a run."""
    return not run.isdecimal() and (os.path.sep in run or os.path.isdir(run))


@contextlib.contextmanager
def hold_lock(directory: str | os.PathLike[str], name: str, *, busy: str) -> Iterator[None]:
    """Hold the lock of a file of a directory; `PandaBpsError` with the text ``busy`` if another process does.

    A file system without locks has none.
    """
    with open(Path(directory) / f".{name}.lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PandaBpsError(busy) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        yield


def read_model(directory: str | os.PathLike[str], name: str, model: type[_Model], *, holder: str) -> _Model:
    """Read a record from a submit directory, or from that of a file in it.

    The model's field ``format`` is the version that is accepted; ``holder`` names
    what has such a record in an error.  A missing file is a `RunNotFoundError`;
    a damaged one, or another version, a `PandaBpsError` that names the key.
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
    """Read the plan in a submit directory; raise `RunNotFoundError` if there is
    none, and `PlanError` if it cannot be parsed.
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
    """Replace secrets by ``[hidden]``: values of variables with the name of a
    secret, and values that look like one (JSON web tokens, keys, passwords in URLs).
    """
    return {name: _hide(name, value) for name, value in environment.items()}


def _hide(name: str, value: str) -> str:
    if value and _SECRET_NAME.search(name) and not _PLACE_NAME.search(name):
        return _HIDDEN
    return redact(value) if isinstance(value, str) else value


def protect_environment_dumps(directory: str | os.PathLike[str]) -> None:
    """Hide the secrets in all environment dumps of a submit directory, and make
    those files readable by their owner only.
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


def prepare_environment_dump(directory: str | os.PathLike[str], name: str) -> None:
    """Make an empty private file where BPS is about to write the environment of the run ``name``: BPS keeps
    the permissions of an existing file.  It is cleaned up when the program ends.
    """
    path = Path(directory).absolute() / f"{name}{_DUMP_SUFFIX}"
    atexit.register(clean_environment_dump, path)
    try:
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError as error:
        _LOG.warning("%s cannot be made private: %s", path, error)


def clean_environment_dump(path: Path) -> None:
    """Hide the secrets in a file made by `prepare_environment_dump`, or remove it if BPS wrote nothing."""
    try:
        if not path.stat().st_size:
            path.unlink()
    except OSError:
        return  # somebody has removed it
    protect_environment_dumps(path.parent)


def find_outputs(workflow: GenericWorkflow) -> tuple[tuple[str, str], ...]:
    """List the outputs of the job of ``bps submitcmd``: the key and the destination on the submit host of
    each.

    Other runs have outputs in a Butler only.  Two files of one name are a `PlanError`.
    """
    if not workflow.run_attrs.get("bps_iscustom"):
        return ()
    inputs: list[tuple[str, str]] = []
    outputs: list[tuple[str, str]] = []
    for name in workflow:
        job = workflow.get_job(name)
        if job.executable is not None and job.executable.transfer_executable:
            inputs.append(("executable", str(job.executable.src_uri)))
        inputs += [(f.name, str(f.src_uri)) for f in workflow.get_job_inputs(name, transfer_only=True)]
        outputs += [(f.name, str(f.src_uri)) for f in workflow.get_job_outputs(name, transfer_only=True)]
    _refuse_twins(inputs, "executable and inputs (BPS copies them to one directory, over each other)")
    _refuse_twins(outputs, "outputs (the job writes them into its work directory)")
    return tuple(outputs)


def _refuse_twins(files: Sequence[tuple[str, str]], what: str) -> None:
    """Refuse two files that would have one name in one directory."""
    first: dict[str, str] = {}
    for key, path in files:
        name = runner.output_name(path)
        if name in first:
            raise PlanError(
                f"customJob: {first[name]} and {key} are both called {name!r}; {what} must have different "
                "file names. Rename one of them."
            )
        first[name] = key


def collect_outputs(outputs: Iterable[tuple[str, str]], staging_area: str, *, run: str) -> tuple[str, ...]:
    """Move the outputs of ``bps submitcmd`` that a worker without the submit host's directories left in the
    staging area to their destinations; return a sentence for each that exists and cannot be fetched.
    """
    problems = []
    for key, destination in outputs:
        left = runner.left_output(key, destination)
        source = staging_area + (quote(left) if "://" in staging_area else left)
        try:
            if _fetch(source, Path(destination)):
                _LOG.info("Fetched output %s to %s", key, destination)
        except Exception as error:  # each store has errors of its own
            problems.append(f"Output {key} of run {run} cannot be fetched from {source}: {error}")
    return tuple(problems)


def find_resource(place: str, *, directory: bool) -> ResourcePath:
    """Return a place that is given as an absolute path or as a URI.

    A path is not a URI: it may hold '%', '#' and '?'.
    """
    return ResourcePath(place if "://" in place else Path(place).as_uri(), forceDirectory=directory)


def _fetch(source: str, destination: Path) -> bool:
    """Move a file from the staging area; return whether there was one."""
    left = find_resource(source, directory=False)
    if not left.exists():
        return False
    with replacing(destination) as part:
        find_resource(str(part), directory=False).transfer_from(left, "copy", overwrite=True)
    left.remove()
    return True
