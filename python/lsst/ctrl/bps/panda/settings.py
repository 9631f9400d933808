"""The only place that searches the BPS configuration or reads the environment
on the submit side; everything else gets typed, frozen settings.
"""

from __future__ import annotations

__all__ = [
    "RunSettings",
    "ServiceSettings",
    "default_configuration",
    "read_run_settings",
    "read_service_settings",
    "site_staging_area",
]

import getpass
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as distribution_version
from importlib.resources import files as package_files
from typing import Any

from lsst.daf.butler import Config

from lsst.ctrl.bps import BPS_DEFAULTS, BpsConfig, GenericWorkflow

from . import sites
from .errors import SettingsError
from .keys import KEYS, closest_key, convert
from .local.endpoint import state_directory
from .plan.commands import inert
from .plan.labels import LabelSettings, NamingKind, PlanSettings
from .plan.model import RunIdentity, StagedFile
from .staging import StagingSettings
from .version import __version__

RUNNER_KEY = "runner"
RUNNER_NAME = "cmd_line_decoder.py"

_ENVIRONMENT_KEYS = ("PANDA_URL_SSL", "PANDA_URL")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What the service class needs to reach PanDA."""

    url: str
    """URL of PanDA, ending in ``/server/panda``; empty if none is known."""

    cache_url: str
    """URL of PanDA's file cache."""

    user: str
    """Name of the user here, for servers without authentication."""

    monitor_url: str
    idds_server: str | None
    token_lifetime: float
    """Hours that a log-in must still be valid at submission."""

    state_directory: str
    """Where the list of own runs is kept."""

    environment: Mapping[str, str]
    """The environment as it was when the settings were read."""

    def require_url(self) -> str:
        """Return the URL of PanDA.

        Raises
        ------
        SettingsError
            Raised if it is not known.
        """
        if not self.url:
            raise SettingsError(
                "PANDA_URL_SSL and PANDA_URL are not set, so it is not known where PanDA is. Set them, for "
                "instance to https://HOST:8443/server/panda (at a facility: source its PanDA set-up), or use "
                "the service class lsst.ctrl.bps.panda.LocalPanDAService to run on this machine."
            )
        return self.url


def read_service_settings(
    config: BpsConfig | Mapping[str, Any] | None, environment: Mapping[str, str] | None = None
) -> ServiceSettings:
    """Read where PanDA is and who we are.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig` or mapping, optional
        Configuration; BPS gives ``{}`` for report, cancel, restart, ping
        and status.
    environment : mapping of `str` to `str`, optional
        The environment; that of the process by default.
    """
    env = dict(os.environ if environment is None else environment)
    reader = _Reader(config if isinstance(config, BpsConfig) else None, env)
    url = next((env[name].rstrip("/") for name in _ENVIRONMENT_KEYS if env.get(name)), "")
    return ServiceSettings(
        url=url,
        cache_url=env.get("PANDACACHE_URL", "").rstrip("/"),
        user=_user(env),
        monitor_url=env.get("PANDA_MONITOR_URL") or reader.get("pandaMonitorUrl"),
        idds_server=reader.get("iddsServer") or None,
        token_lifetime=reader.get("tokenLifetime"),
        state_directory=_state_directory(env),
        environment=env,
    )


def _user(env: Mapping[str, str]) -> str:
    """Name of the user, as well as it can be found out."""
    named = env.get("PANDA_LOCAL_USER") or env.get("USER") or env.get("LOGNAME")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid{os.getuid()}"


def _state_directory(env: Mapping[str, str]) -> str:
    """Directory for what is remembered between commands (XDG base
    directories).
    """
    base = env.get("XDG_STATE_HOME") or os.path.join(
        env.get("HOME") or os.path.expanduser("~"), ".local", "state"
    )
    return os.path.join(base, "panda_bps")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """All settings of one submission."""

    plan: PlanSettings
    staging: StagingSettings
    max_request_length: int
    hints: tuple[str, ...]
    """Misspelt keys and the like, one text each."""


def read_run_settings(
    config: BpsConfig,
    workflow: GenericWorkflow,
    *,
    submit_path: str,
    environment: Mapping[str, str] | None = None,
) -> RunSettings:
    """Read the settings of a submission.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of the run.
    workflow : `~lsst.ctrl.bps.GenericWorkflow`
        Workflow whose labels are looked up.
    submit_path : `str`
        Submit directory.
    environment : mapping of `str` to `str`, optional
        The environment; that of the process by default.

    Raises
    ------
    SettingsError
        Raised if a value is missing or cannot be used.
    """
    env = dict(os.environ if environment is None else environment)
    reader = _Reader(config, env)
    area, area_variables = _staging_area(reader, env)
    labels = _labels_of(workflow)
    reader.check_variables("runnerCommand", labels)
    stage_runner = reader.get("stageRunner")
    identity = _identity(config, workflow, reader, submit_path, area)
    plan = PlanSettings(
        run=identity,
        labels={label: _label_settings(reader, label) for label in ["", *labels]},
        naming=_naming(reader),
        max_jobs_per_task=_at_least(reader, "maxJobsPerTask", 1),
        max_wms_job_walltime=_at_least(reader, "maxWmsJobWalltime", 0),
        placeholder_params=tuple(reader.get("placeholderParams")),
        submit_environment=_submit_environment(reader, env),
        area_variables=area_variables,
        order_id_map_name=reader.get("orderIdMapFilename"),
        runner=_runner_file() if stage_runner else None,
        directories=frozenset(_directories(workflow)),
        attempt_codes=reader.get("rememberExitCodes"),
    )
    staging = StagingSettings(
        area=area,
        max_workers=_at_least(reader, "maxCopyWorkers", 1),
        group_permissions=reader.get("groupPermissions"),
    )
    return RunSettings(
        plan=plan,
        staging=staging,
        max_request_length=_at_least(reader, "maxRequestLength", 10_000),
        hints=tuple(_hints(config)),
    )


def _submit_environment(reader: _Reader, env: Mapping[str, str]) -> dict[str, str]:
    """Variables in commands that have the values of the submit side.

    ``USER`` is always known, also to a cron job that has no such variable.
    """
    known = {"USER": _user(env), **env}
    return {name: known[name] for name in reader.get("submitSideResolvedParams") if name in known}


def _identity(
    config: BpsConfig, workflow: GenericWorkflow, reader: _Reader, submit_path: str, area: str
) -> RunIdentity:
    """What the run is called and whose it is."""
    attributes = workflow.run_attrs

    def attribute(name: str) -> str:
        return str(attributes.get(f"bps_{name}") or config.get(name) or "")

    return RunIdentity(
        name=workflow.name,
        operator=attribute("operator"),
        project=attribute("project"),
        campaign=attribute("campaign"),
        payload=str(attributes.get("bps_payload") or config.get("payloadName") or ""),
        output_run=str(config.get("outputRun") or ""),
        site=reader.get("computeSite"),
        submit_path=os.path.abspath(submit_path),
        staging_area=area,
        plugin_version=__version__,
        bps_version=_bps_version(),
    )


def _bps_version() -> str:
    """Version of ``lsst.ctrl.bps``; empty in a checkout without metadata."""
    try:
        return distribution_version("lsst-ctrl-bps")
    except ModuleNotFoundError:
        return ""


class _Reader:
    """Looks keys up: in the configuration of the run, then in the profile of
    the site, then in the packaged base, then in the table of keys.
    """

    def __init__(self, config: BpsConfig | None, env: Mapping[str, str]) -> None:
        self._config = config
        self._env = env

    @cached_property
    def _beneath(self) -> dict[str, Any]:
        """Profile of the run's site over the packaged base."""
        site = str(self._config.get("computeSite") or "") if self._config is not None else ""
        beneath = sites.base()
        beneath.update(sites.profile_of(site))
        return beneath

    @cached_property
    def _merged(self) -> BpsConfig:
        """The configuration over the profile, for values with variables."""
        merged = Config(self._beneath)
        if self._config is not None:
            # A BpsConfig would put variables in while it is copied.
            merged.update(Config(self._config))
        order = self._config.search_order if self._config is not None else None
        return BpsConfig(merged, search_order=order)

    def get(self, name: str, label: str = "", *, raw: bool = False) -> Any:
        """Return the value of a key, of its kind.

        Parameters
        ----------
        name : `str`
            Key.
        label : `str`, optional
            Label to search it for.
        raw : `bool`, optional
            Whether environment variables stay as they are.
        """
        key = KEYS[name]
        value, source = self._find(name, label, raw=raw)
        return convert(key, key.default if value is None else value, source=source)

    def check_variables(self, name: str, labels: Iterable[str]) -> None:
        """Check that all ``{variables}`` in a value have a value themselves.

        Raises
        ------
        SettingsError
            Raised if one has none; names it and where it stands.
        """
        options: dict[str, Any] = {"replaceVars": False, "expandEnvVars": False, "replaceEnvVars": False}
        missing: dict[str, str] = {}
        for label in ["", *labels]:
            current = self._current(label)
            pending, seen = [name], {name}
            while pending:
                key = pending.pop()
                _, text = self._merged.search(key, opt={**options, "curvals": dict(current), "default": None})
                for variable in _FORMAT_VARIABLE.findall(text) if isinstance(text, str) else ():
                    found, _ = self._merged.search(variable, opt={**options, "curvals": dict(current)})
                    if not found:
                        missing.setdefault(variable, key)
                    elif variable not in seen:
                        seen.add(variable)
                        pending.append(variable)
        if missing:
            listed = ", ".join(f"{variable} (in {key})" for variable, key in sorted(missing.items()))
            raise SettingsError(
                f"{name} uses variables that the configuration does not set: {listed}. Set them; LSST_VERSION, "
                "for instance, is the release to use, such as w_2026_45."
            )

    def _find(self, name: str, label: str, *, raw: bool) -> tuple[Any, str]:
        """Return a value and where it is from, or `None`."""
        if self._config is None:
            return None, "default"
        options: dict[str, Any] = {"curvals": self._current(label), "default": None}
        if raw:
            options |= {"expandEnvVars": False, "replaceEnvVars": False}
        section = self._merged[label] if label in ("finalJob", "customJob") else None
        if isinstance(section, Config) and Config.__contains__(section, name):
            options["searchobj"] = section
        _, value = self._merged.search(name, opt=options)
        return value, f"label {label}" if label else "BPS configuration"

    def _current(self, label: str) -> dict[str, str]:
        """Values that tell BPS in which sections to look."""
        current = {"curr_cluster": label, "curr_pipetask": label} if label else {}
        for key, section in (("computeSite", "curr_site"), ("computeCloud", "curr_cloud")):
            _, value = self._merged.search(key, opt={"curvals": dict(current), "default": None})
            if value:
                current[section] = str(value)
        return current


def _label_settings(reader: _Reader, label: str) -> LabelSettings:
    """Settings of one label."""
    processing_type = reader.get("processingType", label)
    if not processing_type and label == "finalJob":
        processing_type = "Rubin_Merge"
    return LabelSettings(
        site=reader.get("computeSite", label),
        cloud=reader.get("computeCloud", label),
        queue=reader.get("queue", label),
        priority=reader.get("priority", label),
        processing_type=processing_type,
        task_type=reader.get("taskType", label),
        prod_source_label=reader.get("prodSourceLabel", label),
        vo=reader.get("vo", label),
        runner_command=reader.get("runnerCommand", label, raw=True),
        payloads_per_job=_payloads_per_job(reader, label),
        prmon=reader.get("prmon", label),
        keep_tokens=reader.get("keepTokens", label),
    )


def _payloads_per_job(reader: _Reader, label: str) -> int:
    """Payloads in a PanDA job of a label, from ``enableEventService``."""
    text = reader.get("enableEventService")
    for item in text.split(",") if label else ():
        name, _, number = item.strip().partition(":")
        if name.strip() != label:
            continue
        if not number.strip():
            return _at_least(reader, "maxPayloadsPerPandaJob", 1)
        if not number.strip().isdecimal() or int(number) < 1:
            raise SettingsError(
                f"enableEventService is {text!r}: {number!r} after label {name!r} must be a whole number of "
                "at least 1."
            )
        return int(number)
    return 1


def _at_least(reader: _Reader, name: str, least: int) -> int:
    """Return a whole number that must not be too small."""
    value = int(reader.get(name))
    if value < least:
        raise SettingsError(f"{name} is {value} (BPS configuration); it must be at least {least}.")
    return value


def _naming(reader: _Reader) -> NamingKind:
    """How jobs are named."""
    if reader.get("enableJobNameMap"):
        return NamingKind.ORDER_ID_MAP
    if reader.get("enableQnodeMap"):
        return NamingKind.QNODE_MAP
    value = reader.get("jobNaming")
    try:
        return NamingKind(value)
    except ValueError:
        choices = ", ".join(kind.value for kind in NamingKind)
        raise SettingsError(f"jobNaming is {value!r} (BPS configuration); choose one of {choices}.") from None


def _labels_of(workflow: GenericWorkflow) -> list[str]:
    """Return all labels of a workflow, its groups and its final job."""
    labels: dict[str, None] = {}
    stack: list[Any] = [workflow]
    while stack:
        current = stack.pop()
        for _, attributes in current.nodes(data=True):
            node = attributes.get("job")
            if isinstance(node, GenericWorkflow):
                stack.append(node)
            elif node is not None:
                labels[node.label] = None
        final = current.get_final()
        if isinstance(final, GenericWorkflow):
            stack.append(final)
        elif final is not None:
            labels[final.label] = None
    return sorted(labels)


def _directories(workflow: GenericWorkflow) -> Iterable[str]:
    """Return the sources of files that are directories."""
    stack: list[GenericWorkflow] = [workflow]
    while stack:
        current = stack.pop()
        for gwfile in current.get_files(data=True, transfer_only=True):
            source = str(gwfile.src_uri or "")
            if source and "://" not in source and os.path.isdir(source):
                yield source
        nodes = [attributes.get("job") for _, attributes in current.nodes(data=True)]
        nodes.append(current.get_final())
        stack += [node for node in nodes if isinstance(node, GenericWorkflow)]


def _runner_file() -> StagedFile:
    """The runner of this installation, to be staged."""
    path = package_files("lsst.ctrl.bps.panda.edgenode").joinpath(RUNNER_NAME)
    return StagedFile(RUNNER_KEY, str(path), RUNNER_NAME, executable=True)


# --- staging area ----------------------------------------------------------

_FORMAT_VARIABLE = re.compile(r"(?<!\$)\{([A-Za-z_]\w*)\}")
_VARIABLE = re.compile(r"<ENV:([^>]+)>|\$\{(\w+)\}|\$(\w+)")


def _staging_area(reader: _Reader, env: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the staging area, and the variables that its setting uses."""
    text = reader.get("fileDistributionEndPoint", raw=True).strip()
    if not text:
        raise SettingsError(
            "fileDistributionEndPoint is not set and the profile of computeSite "
            f"{reader.get('computeSite') or '(none)'!r} has none. Set it to a directory or URI that the "
            f"workers see, ending in '/'. Sites with a profile: {', '.join(sites.site_names())}."
        )
    used = {next(filter(None, match.groups())) for match in _VARIABLE.finditer(text)}
    missing = sorted(name for name in used if not env.get(name))
    if missing:
        default = reader.get("fileDistributionEndPointDefault", raw=True).strip()
        if not default:
            raise SettingsError(
                f"fileDistributionEndPoint is {text!r} but the environment variable {missing[0]} is not set. "
                "Set it, or set fileDistributionEndPointDefault."
            )
        text, used = default, {next(filter(None, m.groups())) for m in _VARIABLE.finditer(default)}
    values = {name: env.get(name, "") for name in sorted(used)}
    area = _expand(text, env)
    return _as_directory(area), values


def _expand(text: str, env: Mapping[str, str]) -> str:
    """Put in environment variables; an unset one is an error."""

    def value(match: re.Match[str]) -> str:
        name = next(filter(None, match.groups()))
        if not env.get(name):
            raise SettingsError(f"The staging area is {text!r} but the environment variable {name} is not set.")
        return env[name]

    return _VARIABLE.sub(value, text)


def _as_directory(area: str) -> str:
    """Return an area as a URI or absolute path that ends in ``/``."""
    if "://" not in area:
        area = os.path.abspath(os.path.expanduser(area))
    return area if area.endswith("/") else area + "/"


def site_staging_area(site: str, folder: str, run: str) -> str:
    """Return the staging area in the profile of a site.

    Called by BPS, through ``bpsEval`` in the default configuration.

    Parameters
    ----------
    site : `str`
        Value of ``computeSite``.
    folder : `str`
        Value of ``payloadFolder``.
    run : `str`
        Name of the run.

    Returns
    -------
    area : `str`
        With environment variables put in; empty for a site without one.
    """
    profile = sites.profile_of(site)
    text = str(profile.get("stagingArea", "") or "")
    env = {"PANDA_LOCAL_STAGING": str(state_directory(os.environ) / "staging"), **os.environ}
    names = {next(filter(None, match.groups())) for match in _VARIABLE.finditer(text)}
    if any(not env.get(name) for name in names):
        text = str(profile.get("stagingAreaDefault", "") or "")
    if not text:
        return ""
    filled = text.replace("{payloadFolder}", folder or "payload").replace("{uniqProcName}", run)
    # BPS writes it into the script of the final job as it is.
    return inert(_as_directory(_expand(filled, env)))


# --- defaults and hints ----------------------------------------------------


def default_configuration(environment: Mapping[str, str] | None = None) -> Config:
    """Return the defaults that BPS merges beneath a user's configuration.

    Parameters
    ----------
    environment : mapping of `str` to `str`, optional
        The environment; that of the process by default.

    Notes
    -----
    BPS up to 30.2026.300 calls ``${CTRL_MPEXEC_DIR}/bin/pipetask``; where no
    such variable is set (no EUPS), the commands are taken from ``PATH``.
    """
    env = os.environ if environment is None else environment
    defaults = Config(sites.defaults())
    for name in ("CTRL_MPEXEC_DIR", "DAF_BUTLER_DIR"):
        if not env.get(name):
            _drop_variable(defaults, Config(BPS_DEFAULTS), name)
    return defaults


def _drop_variable(defaults: Config, core: Config, name: str) -> None:
    """Take commands from ``PATH`` that the core's defaults look up in an EUPS
    product.
    """
    prefix = f"${{{name}}}/bin/"
    for names in core.nameTuples():
        value = core[names]
        if isinstance(value, str) and prefix in value and names not in defaults:
            defaults[names] = value.replace(prefix, "")


def _hints(config: BpsConfig) -> list[str]:
    """Say which keys look like misspelt ones of ours."""
    hints = []
    for name in config:
        meant = closest_key(str(name))
        if meant is not None:
            hints.append(f"Key {name} of the configuration is not known; did you mean {meant}?")
    return hints
