"""The typed, frozen settings of a run and of the service; on the submit side only this module reads the
environment.
"""

from __future__ import annotations

__all__ = [
    "RunSettings",
    "ServiceSettings",
    "StagingSettings",
    "default_configuration",
    "check_area_form",
    "complete_area",
    "find_area",
    "find_run_broker",
    "is_loopback",
    "read_run_settings",
    "read_service_settings",
    "site_staging_area",
    "use_run_broker",
    "wants_provenance",
]

import getpass
import ipaddress
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files as package_files
from typing import Any
from urllib.parse import urlsplit

from lsst.daf.butler import Config

from lsst.ctrl.bps import BPS_DEFAULTS, BpsConfig, GenericWorkflow

from ..errors import SettingsError
from ..files import user_directory
from ..local.endpoint import state_directory
from ..plan.commands import make_shell_safe
from ..plan.graph import labels_of, levels_of
from ..plan.model import LabelSettings, NamingKind, PlanSettings, RunIdentity, StagedFile
from ..version import __version__, bps_version
from . import sites
from .configuration import RunConfiguration
from .keys import KEYS, LabelKeys, RunKeys, ServiceKeys
from .search import KeyLookup
from .sites import fill_area, site_names, staging_areas_of, variables_in

AREA_KEY = "fileDistributionEndPoint"

RUNNER_KEY = "runner"
RUNNER_NAME = "cmd_line_decoder.py"

_ENVIRONMENT_KEYS = ("PANDA_URL_SSL", "PANDA_URL")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What the service class needs to reach PanDA."""

    url: str
    """URL of PanDA, ending in ``/server/panda``; empty if none is known."""

    cache_url: str
    user: str
    """Name of the user on this machine."""

    monitor_url: str
    idds_server: str | None
    token_lifetime: float
    """Hours that a log-in must still be valid at submission."""

    state_directory: str
    """Where the list of own runs is kept."""

    environment: Mapping[str, str]
    """The environment as it was when the settings were read."""

    warm_workers: bool | None = None
    """Whether an embedded PanDA that is started is to have warm workers; `None` leaves it as it was."""

    messages: Mapping[str, str] = field(default_factory=dict)
    """Keys of the configuration about PanDA's message broker."""

    def require_url(self) -> str:
        """Return the URL of PanDA; raise `SettingsError` if it is not known."""
        if not self.url:
            raise SettingsError(
                "PANDA_URL_SSL and PANDA_URL are not set, so it is not known where PanDA is. Set them, for "
                "instance to https://HOST:8443/server/panda (at a facility: source its PanDA set-up), or use "
                "the service class lsst.ctrl.bps.panda.LocalPanDAService to run on this machine."
            )
        return self.url


def read_service_settings(
    config: BpsConfig | Mapping[str, Any] | None,
    environment: Mapping[str, str] | None = None,
    *,
    site: str = "",
) -> ServiceSettings:
    """Read where PanDA is and who we are.

    BPS gives ``{}`` as configuration for report, cancel, restart, ping and status; then the profile of the
    site counts. The environment is by default that of the process.
    """
    env = dict(os.environ if environment is None else environment)
    if not isinstance(config, BpsConfig):
        config = BpsConfig({"computeSite": site}) if site else None
    keys = KeyLookup(config, env).read(ServiceKeys)
    url = next((env[name].rstrip("/") for name in _ENVIRONMENT_KEYS if env.get(name)), "")
    is_local = is_loopback(urlsplit(url).hostname or "")  # which no site's monitor shows
    return ServiceSettings(
        url=url,
        cache_url=env.get("PANDACACHE_URL", "").rstrip("/"),
        user=_user(env),
        monitor_url=env.get("PANDA_MONITOR_URL") or ("" if is_local else keys.panda_monitor_url),
        idds_server=keys.idds_server or None,
        token_lifetime=keys.token_lifetime,
        state_directory=user_directory(env),
        environment=env,
        warm_workers=keys.warm_workers,
        messages={
            "pandaMessagesUrl": keys.panda_messages_url,
            "pandaMessagesDestination": keys.panda_messages_destination,
            "pandaMessagesVhost": keys.panda_messages_vhost,
        },
    )


def find_run_broker(settings: ServiceSettings, site: str) -> dict[str, str]:
    """Find the settings of the message broker that a run brings itself, to be remembered with the run:
    whoever watches it has no configuration.

    What differs from the profile of the run's site counts, unless there is a password in the address.
    """
    profile = read_service_settings(None, settings.environment, site=site).messages
    own = {name: value for name, value in settings.messages.items() if value != profile[name]}
    return own if "@" not in own.get("pandaMessagesUrl", "") else {}


def use_run_broker(settings: ServiceSettings, remembered: Mapping[str, Any]) -> ServiceSettings:
    """Add the message broker that a run brought itself, as its record has it;
    names that are not known do not count.
    """
    own = {name: str(remembered[name]) for name in settings.messages if remembered.get(name)}
    return replace(settings, messages={**settings.messages, **own})


def _user(env: Mapping[str, str]) -> str:
    """Name of the user, as well as it can be found out."""
    named = env.get("PANDA_LOCAL_USER") or env.get("USER") or env.get("LOGNAME")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid{os.getuid()}"


@dataclass(frozen=True, slots=True)
class StagingSettings:
    """Where and how to stage."""

    area: str
    """URI of the staging area of the run, or an absolute path; ends in ``/``."""

    max_workers: int = 10
    """Most transfers at a time (YAML: ``maxCopyWorkers``)."""

    group_permissions: bool = False
    """Whether the group gets ``rws`` on directories and ``rw`` on files (areas in a file system only)."""

    retries: int = 3
    """Further attempts after one that failed."""

    timeout: float = 300
    """Seconds for all attempts at one file, and one more a megabyte."""

    def __post_init__(self) -> None:
        if self.max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {self.max_workers}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative: {self.retries}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, not {self.timeout}")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """All settings of one submission."""

    plan: PlanSettings
    staging: StagingSettings
    max_request_length: int
    sites_share_files: bool = False
    """Whether all sites that labels name see the same files."""

    clusters: tuple[str, ...] = ()
    """Labels that are clusters, with settings in the section ``cluster``."""


def wants_provenance(config: BpsConfig, environment: Mapping[str, str]) -> bool:
    """Whether a run gets a job that puts its provenance into its Butler."""
    return KeyLookup(config, environment).read(RunKeys).ingest_provenance


def read_run_settings(
    config: BpsConfig,
    workflow: GenericWorkflow,
    *,
    submit_path: str,
    environment: Mapping[str, str] | None = None,
) -> RunSettings:
    """Read the settings of a submission, by default in the environment of the process."""
    env = dict(os.environ if environment is None else environment)
    run = RunConfiguration(config)
    lookup = KeyLookup(config, env)
    keys, site = lookup.read(RunKeys), lookup.read(LabelKeys).compute_site
    executable = getattr(workflow.get_final(), "executable", None)
    if executable is not None and executable.transfer_executable:
        # A script that BPS has written.
        check_area_form(lookup)
    area, area_variables = find_area(lookup, env)
    levels = list(levels_of(workflow))
    labels = labels_of(levels)
    lookup.check_variables("runnerCommand", labels)
    plan = PlanSettings(
        run=_identity(run, workflow, site=site, submit_path=submit_path, area=area),
        labels={
            label: _label_settings(label, lookup.read(LabelKeys, label), keys) for label in ["", *labels]
        },
        naming=_naming(keys),
        max_jobs_per_task=keys.max_jobs_per_task,
        max_wms_job_walltime=keys.max_wms_job_walltime,
        placeholder_params=tuple(keys.placeholder_params),
        submit_environment=_submit_environment(keys.submit_side_resolved_params, env),
        area_variables=area_variables,
        order_id_map_name=_map_name(keys.order_id_map_filename),
        runner=_runner_file() if keys.stage_runner else None,
        directories=frozenset(_directories(current for current, _ in levels)),
        attempt_codes=keys.remember_exit_codes,
    )
    staging = StagingSettings(
        area=area, max_workers=keys.max_copy_workers, group_permissions=keys.group_permissions
    )
    return RunSettings(
        plan=plan,
        staging=staging,
        max_request_length=keys.max_request_length,
        sites_share_files=keys.sites_share_files,
        clusters=tuple(label for label in labels if label in run.clusters),
    )


def find_area(lookup: KeyLookup, env: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the staging area that a configuration means, a URI or absolute path that ends in ``/``, and the
    environment variables in it with their values.

    The default counts if a variable in the setting is not set.
    """
    text = lookup.get(AREA_KEY).strip()
    default = lookup.get("fileDistributionEndPointDefault").strip()
    if not text:
        raise SettingsError(
            "fileDistributionEndPoint is not set and the profile of computeSite "
            f"{lookup.get('computeSite') or '(none)'!r} has none. Set it to a directory or URI that the "
            f"workers see, ending in '/'. Sites with a profile: {', '.join(site_names())}."
        )
    missing = sorted(name for name in variables_in(text) if not env.get(name))
    if missing and not default:
        raise SettingsError(
            f"fileDistributionEndPoint is {text!r} but the environment variable {missing[0]} is not set. "
            "Set it, or set fileDistributionEndPointDefault."
        )
    chosen = default if missing else text
    return fill_area(chosen, env), {name: env.get(name, "") for name in sorted(variables_in(chosen))}


def complete_area(config: BpsConfig) -> None:
    """Make the staging area of a configuration, wherever it is set, an absolute directory that ends in ``/``.

    BPS puts a file's name behind the text as it is, in the script of the final job for instance; so this has
    to happen before BPS makes its scripts.
    """
    for names in config.nameTuples():
        text = Config.__getitem__(config, names)
        if names[-1] == AREA_KEY and isinstance(text, str) and text.strip():
            options = {"searchobj": {"area": text}, "expandEnvVars": False}
            try:
                value = str(config.search("area", opt=options)[1]).strip()
            except (KeyError, ValueError):
                # Something in it is not known yet; `check_area_form` sees what becomes of it.
                continue
            text = os.path.expanduser(text.strip())
            if value and not _is_absolute(value):
                text = os.path.join(os.getcwd(), text)
            text = text if value.endswith("/") or not value else f"{text}/"
            # BPS puts it into scripts as it is, too.
            config[names] = text if "bpsEval" in text else make_shell_safe(text)


def check_area_form(lookup: KeyLookup) -> None:
    """Check that the staging area has the form that `complete_area` gives it; raise `SettingsError` if it
    has not.
    """
    area = lookup.get(AREA_KEY).strip()
    if area and not (_is_absolute(area) and area.endswith("/")):
        raise SettingsError(
            f"{AREA_KEY} is {area!r}; BPS puts names of files behind it as it is, so it has to be an "
            "absolute path or a URI that ends in '/'.",
            key=AREA_KEY,
        )


def _is_absolute(area: str) -> bool:
    """Tell whether an area is a URI or an absolute path, or depends on a variable."""
    return "://" in area or area.startswith(("/", "~", "$", "<ENV:"))


def _submit_environment(names: Iterable[str], env: Mapping[str, str]) -> dict[str, str]:
    """Variables in commands that have the values of the submit side.

    ``USER`` is always known, also to a cron job that has no such variable.
    """
    known = {"USER": _user(env), **env}
    return {name: known[name] for name in names if name in known}


def _identity(
    run: RunConfiguration, workflow: GenericWorkflow, *, site: str, submit_path: str, area: str
) -> RunIdentity:
    """What the run is called and whose it is."""
    attributes = workflow.run_attrs
    return RunIdentity(
        name=workflow.name,
        operator=str(attributes.get("bps_operator") or run.operator),
        project=str(attributes.get("bps_project") or run.project),
        campaign=str(attributes.get("bps_campaign") or run.campaign),
        payload=str(attributes.get("bps_payload") or run.payload),
        output_run=run.output_run,
        site=site,
        submit_path=os.path.abspath(submit_path),
        staging_area=area,
        plugin_version=__version__,
        bps_version=bps_version(),
    )


def _label_settings(label: str, own: LabelKeys, run: RunKeys) -> LabelSettings:
    """Settings of one label."""
    numbers = run.enable_event_service
    return LabelSettings(
        site=own.compute_site,
        cloud=own.compute_cloud,
        queue=own.queue,
        priority=own.priority,
        processing_type=own.processing_type or ("Rubin_Merge" if label == "finalJob" else ""),
        task_type=own.task_type,
        prod_source_label=own.prod_source_label,
        vo=own.vo,
        runner_command=own.runner_command,
        payloads_per_job=(numbers[label] or run.max_payloads_per_panda_job) if label in numbers else 1,
        prmon=own.prmon,
        keep_tokens=own.keep_tokens,
        memory_limit=own.memory_limit,
    )


def _naming(keys: RunKeys) -> NamingKind:
    """How jobs are named."""
    if keys.enable_job_name_map:
        return NamingKind.ORDER_ID_MAP
    return NamingKind.QNODE_MAP if keys.enable_qnode_map else keys.job_naming


def _map_name(name: str) -> str:
    """File name of the order-id map."""
    if not name or "/" in name or name in (".", ".."):
        raise SettingsError(
            f"orderIdMapFilename is {name!r}; it must be the name of a file, such as "
            f"{KEYS['orderIdMapFilename'].default}."
        )
    return name


def _directories(workflows: Iterable[GenericWorkflow]) -> Iterable[str]:
    """Return the sources of files that are directories."""
    for current in workflows:
        for gwfile in current.get_files(data=True, transfer_only=True):
            source = str(gwfile.src_uri or "")
            if source and "://" not in source and os.path.isdir(source):
                yield source


def _runner_file() -> StagedFile:
    """The runner of this installation, to be staged."""
    path = package_files("lsst.ctrl.bps.panda.edgenode").joinpath(RUNNER_NAME)
    return StagedFile(RUNNER_KEY, str(path), RUNNER_NAME, executable=True)


def site_staging_area(site: str, folder: str, run: str) -> str:
    """Return the staging area in the profile of a site with environment variables
    replaced; empty for a site without one.

    Called by BPS, through ``bpsEval`` in the default configuration, with the
    values of ``computeSite``, ``payloadFolder`` and ``uniqProcName``.
    """
    text, default = staging_areas_of(site)
    known = {"PANDA_LOCAL_STAGING": str(state_directory(os.environ) / "staging"), **os.environ}
    if any(not known.get(name) for name in variables_in(text)):
        text = default
    if not text:
        return ""
    filled = text.replace("{payloadFolder}", folder or "payload").replace("{uniqProcName}", run)
    # BPS writes it into the script of the final job as it is.
    return make_shell_safe(fill_area(filled, known))


def is_loopback(host: str) -> bool:
    """Tell whether a URL's host is the loopback address, so that nothing sent there leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def default_configuration(environment: Mapping[str, str] | None = None) -> Config:
    """Return the defaults that BPS merges beneath a user's configuration.

    BPS up to 30.2026.300 calls ``${CTRL_MPEXEC_DIR}/bin/pipetask``; where no such variable is set (no EUPS),
    the commands are taken from ``PATH``.
    """
    env = os.environ if environment is None else environment
    defaults, core = Config(sites.defaults()), Config(BPS_DEFAULTS)
    prefixes = [f"${{{name}}}/bin/" for name in ("CTRL_MPEXEC_DIR", "DAF_BUTLER_DIR") if not env.get(name)]
    for names in core.nameTuples():
        for prefix in prefixes:
            if isinstance(value := core[names], str) and prefix in value and names not in defaults:
                defaults[names] = value.replace(prefix, "")
    return defaults
