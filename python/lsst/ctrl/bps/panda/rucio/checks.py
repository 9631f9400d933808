"""Checks of a registration before the run is submitted: names by Rubin's rules, paths by its Butler, and what
the Rucio server would refuse.

The rules for names are those of the schema that Rubin's server runs with; those of other experiments differ.
"""

from __future__ import annotations

__all__ = ["check_names", "check_prefix", "check_registration", "check_server"]

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from lsst.ctrl.bps import BpsConfig

from ..edgenode.rucio_program import Registration, RegistrationError, name_of
from ..errors import PandaBpsError, RucioError, SettingsError
from ..findings import Finding, Severity
from ..settings.rucio import RegistrationSettings, read_registration_settings
from .client import open_butler, open_client, rucio_errors

_SCOPE = re.compile(r"[a-zA-Z_\-.0-9]{1,25}")
_NAME = re.compile(r"[\w.\-+/]{1,500}", re.ASCII)
_RSE = re.compile(r"[A-Z0-9]+([_-][A-Z0-9]+)*")
_RULE_OF_NAMES = "1 to 500 letters, digits, '_', '.', '-', '+' or '/'"
# The Butler's own names, the first with its wildcards.
_DATASET_TYPE = re.compile(r"[A-Za-z_*?\[][\w.*?\[\]!-]*", re.ASCII)
_COLLECTION = re.compile(r"[^\s{}*?]+")

_error = partial(Finding, Severity.ERROR)
_refusal = partial(Finding, Severity.NEEDS_SERVER)
_warning = partial(Finding, Severity.WARNING)

_KEYS_OF_PLACE = {"scope": "scope", "rse": "rse", "rse_root": "rseRoot", "dtn_url": "dtnUrl"}

_PATIENCE = 30
"""Seconds for an answer: a server that is down must not hold up a submission."""


def check_registration(
    config: BpsConfig,
    environment: Mapping[str, str],
    *,
    open_rucio: Callable[[], Any] = lambda: open_client(_PATIENCE),
) -> list[Finding]:
    """Check the section ``rucio`` of a configuration, if it asks for a registration.

    What Rucio's server would refuse has the severity needs-server; what could not be checked here is a
    warning.
    """
    try:
        settings = read_registration_settings(config, environment)
    except SettingsError as error:
        return [Finding.from_error(error)]
    if settings is None:
        return []
    registration = settings.registration.expanded()
    if findings := [*check_names(registration)]:
        return findings
    findings += _ask_butler(registration)
    if settings.ask_rucio:
        findings += _ask_rucio(settings, open_rucio)
    else:
        findings.append(
            _warning("Rucio was not asked about the registration (rucio.askRucio is no).", "rucio.askRucio")
        )
    return findings


def check_names(registration: Registration) -> Iterator[Finding]:
    """Check a registration against Rubin's rules for names."""
    missing = [key for name, key in _KEYS_OF_PLACE.items() if not getattr(registration, name)]
    for key in missing:
        yield _error(f"rucio.{key} is not set, and neither is it in a registerConfig.", f"rucio.{key}")
    if not registration.dataset_types:
        yield _error("rucio.datasetTypes is empty; name the dataset types to register.", "rucio.datasetTypes")
    for wanted in registration.dataset_types:
        if not _DATASET_TYPE.fullmatch(wanted):
            yield _error(
                f"rucio.datasetTypes holds {wanted!r}, which is not the name of a dataset type ('*' "
                "stands for anything).",
                "rucio.datasetTypes",
            )
    if not _COLLECTION.fullmatch(registration.collection):
        yield _error(
            f"rucio.collection is {registration.collection!r}; it must name one collection, with variables "
            "that have values.",
            "rucio.collection",
        )
    checks = (
        ("scope", registration.scope, _SCOPE, "1 to 25 letters, digits, '_', '-' or '.'"),
        ("rse", registration.rse, _RSE, "capital letters and digits, in parts joined by '_' or '-'"),
        ("datasetName", registration.dataset, _NAME, _RULE_OF_NAMES),
    )
    for key, value, pattern, rule in checks:
        if key not in missing and not pattern.fullmatch(value):
            yield _error(f"rucio.{key} is {value!r}; Rubin's Rucio takes {rule}.", f"rucio.{key}")
    if registration.rse_root and not registration.rse_root.startswith(("/", "$")):
        yield _error(
            f"rucio.rseRoot is {registration.rse_root!r}; it is compared with the paths of the Butler's "
            "files, and must begin with '/' (for an object store: the path after the bucket's host).",
            "rucio.rseRoot",
        )
    if registration.dtn_url and "://" not in registration.dtn_url and "$" not in registration.dtn_url:
        yield _error(
            f"rucio.dtnUrl is {registration.dtn_url!r}; it must be a URL such as davs://HOST:1094/PATH.",
            "rucio.dtnUrl",
        )


def check_prefix(registration: Registration, roots: list[str]) -> list[Finding]:
    """Check that the Butler writes below the folder of the scope.

    The roots are the paths of the Butler's datastores; one that fits is enough.
    """
    refusals = []
    for root in roots:
        # What Butler's default templates make of a dataset's path begins with its collection.
        path = f"{root.rstrip('/')}/{registration.collection}/file"
        try:
            name = name_of(path, registration)
        except RegistrationError as error:
            refusals.append(_error(f"The Butler writes to {root}; {error}", "rucio.rseRoot"))
            continue
        if _NAME.fullmatch(name):
            return []
        return [
            _error(
                f"Outputs would be called {name!r} in Rucio; Rubin's Rucio takes {_RULE_OF_NAMES}.",
                "rucio.collection",
            )
        ]
    return refusals


def _ask_butler(registration: Registration) -> list[Finding]:
    """Compare the prefix with where the Butler writes, and let it parse the expression."""
    unknown = "rucio.rseRoot could not be compared with where the Butler writes."
    try:
        with open_butler(registration.butler) as butler:
            roots = [root.unquoted_path for root in butler.get_datastore_roots().values() if root]
            findings = _check_expression(butler, registration)
    except RucioError as error:
        return [_warning(f"{unknown} {error}", "rucio.rseRoot")]
    if "$" in registration.rse_root:
        text = f"{unknown} It is {registration.rse_root!r}, with variables of the worker."
        return [*findings, _warning(text, "rucio.rseRoot")]
    return findings + check_prefix(registration, roots)


def _check_expression(butler: Any, registration: Registration) -> list[Finding]:
    """Find out whether the Butler understands the expression."""
    from lsst.daf.butler import InvalidQueryError

    where = registration.where
    # An expression may speak of datasets, and there may be none of that type before the run.
    if not where or any(wanted.strip("*") in where for wanted in registration.dataset_types):
        return []
    try:
        with butler.query() as query:
            query.where(where)
    except InvalidQueryError as error:
        reason = " ".join(str(error).split())
        text = f"rucio.where is {where!r}, which the Butler does not understand: {reason}"
        return [_error(text, "rucio.where")]
    return []


def _ask_rucio(settings: RegistrationSettings, open_rucio: Callable[[], Any]) -> list[Finding]:
    """Ask the server, if there is one."""
    try:
        client = open_rucio()
        with rucio_errors("answer"):
            return check_server(client, settings.registration, settings.account or client.account)
    except PandaBpsError as error:
        return [_warning(f"Rucio was not asked whether scope, RSE, dataset and account can be used. {error}")]


def check_server(client: Any, registration: Registration, account: str) -> list[Finding]:
    """Ask Rucio whether it would take what is to be registered from the account of the step."""
    from rucio.common.exception import AccountNotFound

    try:
        state = str(client.get_account(account)["status"])
    except AccountNotFound:
        return [_refusal(f"Rucio has no account {account} (rucio.account, RUCIO_ACCOUNT).", "rucio.account")]
    findings = [
        *_check_rse(client, registration),
        *_check_scope(client, registration, account),
        *_check_rule(client, registration, account),
        *_check_dataset(client, registration),
    ]
    if state != "ACTIVE":
        findings.insert(0, _refusal(f"Rucio's account {account} is {state}.", "rucio.account"))
    return findings


def _check_rse(client: Any, registration: Registration) -> Iterator[Finding]:
    from rucio.common.exception import RSENotFound

    try:
        client.get_rse(registration.rse)
    except RSENotFound:
        yield _refusal(f"Rucio has no RSE {registration.rse} (rucio.rse).", "rucio.rse")


def _check_scope(client: Any, registration: Registration, account: str) -> Iterator[Finding]:
    """Find out whether the account may add to the scope by Rucio's generic policy: its owner may, ``root``,
    and accounts with the attribute ``admin``.
    """
    scope = registration.scope
    if scope not in client.list_scopes():
        yield _refusal(f"Rucio has no scope {scope} (rucio.scope).", "rucio.scope")
    elif account != "root" and scope not in _scopes_of(client, account) and not _is_admin(client, account):
        yield _refusal(
            f"Rucio's account {account} does not own scope {scope} and is no administrator, so it may not "
            "add to it. Set rucio.account to one that may, or rucio.askRucio to no if the server has other "
            "rules.",
            "rucio.account",
        )


def _scopes_of(client: Any, account: str) -> list[str]:
    from rucio.common.exception import AccountNotFound, ScopeNotFound

    try:
        return list(client.list_scopes_for_account(account))
    except (AccountNotFound, ScopeNotFound):
        return []


def _is_admin(client: Any, account: str) -> bool:
    return any(
        (entry["key"], entry["value"]) == ("admin", True)
        for listed in client.list_account_attributes(account)
        for entry in (listed if isinstance(listed, list) else [listed])
    )


def _check_rule(client: Any, registration: Registration, account: str) -> Iterator[Finding]:
    """Find out whether enough RSEs match the rule, and whether the account has quota there."""
    from rucio.common.exception import InvalidRSEExpression

    rule = registration.rule
    if rule is None:
        return
    given = f"rucio.rule.rseExpression is {rule.rse_expression!r}, which names"
    key = "rucio.rule.rseExpression"
    try:
        places = [entry["rse"] for entry in client.list_rses(rule.rse_expression)]
    except InvalidRSEExpression as error:
        yield _refusal(f"{given} no RSE: {' '.join(str(error).split())}", key)
        return
    if len(places) < rule.copies:
        yield _refusal(f"{given} {len(places)} RSEs; {rule.copies} copies need as many.", key)
        return
    limits = {**client.get_local_account_limits(account)}
    if not client.get_global_account_limits(account) and not any(limits.get(place) for place in places):
        yield _refusal(
            f"Rucio's account {account} has no limit (quota) at any of {', '.join(sorted(places))}, so it "
            "may have no rule there.",
            key,
        )


def _check_dataset(client: Any, registration: Registration) -> Iterator[Finding]:
    from rucio.common.exception import DataIdentifierNotFound

    place = f"{registration.scope}:{registration.dataset}"
    key = "rucio.datasetName"
    try:
        did = client.get_did(registration.scope, registration.dataset)
    except DataIdentifierNotFound:
        return
    if did["type"] != "DATASET":
        yield _refusal(
            f"Rucio's {place} is a {did['type'].lower()}, not a dataset; use another rucio.datasetName.", key
        )
    elif not did["open"]:
        yield _refusal(
            f"Rucio's dataset {place} is closed, so nothing can be added; use another rucio.datasetName.", key
        )
