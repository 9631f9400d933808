"""What would keep the outputs of a run from being registered, and what Rucio would refuse, told before the
run is submitted.

They are those of the schema that Rubin's server runs with; the rules of other
experiments differ.
"""

from __future__ import annotations

__all__ = ["Verdict", "check_registration", "check_server", "find_name_problems", "find_prefix_problems"]

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lsst.ctrl.bps import BpsConfig

from ..edgenode.rucio_program import Refused, Registration, name_of
from ..errors import PandaBpsError, RucioError, SettingsError
from ..settings.rucio import RegistrationSettings, read_registration_settings
from .client import open_butler, open_client, rucio_errors

_MAX_NAME = 500
_SCOPE = re.compile(r"[a-zA-Z_\-.0-9]{1,25}")
_NAME = re.compile(r"[\w.\-+/]{1,500}", re.ASCII)
_RSE = re.compile(r"[A-Z0-9]+([_-][A-Z0-9]+)*")
# The Butler's own names, the first with its wildcards.
_DATASET_TYPE = re.compile(r"[A-Za-z_*?\[][\w.*?\[\]!-]*", re.ASCII)
_COLLECTION = re.compile(r"[^\s{}*?]+")

_KEYS_OF_PLACE = {"scope": "scope", "rse": "rse", "rse_root": "rseRoot", "dtn_url": "dtnUrl"}


def find_name_problems(registration: Registration) -> list[str]:
    """Check a registration against Rubin's rules.

    Parameters
    ----------
    registration : `Registration`
        What is to be registered.

    Returns
    -------
    problems : `list` [`str`]
        A sentence each.
    """
    missing = [key for name, key in _KEYS_OF_PLACE.items() if not getattr(registration, name)]
    problems = [f"rucio.{key} is not set, and neither is it in a registerConfig." for key in missing]
    if not registration.dataset_types:
        problems.append("rucio.datasetTypes is empty; name the dataset types to register.")
    for wanted in registration.dataset_types:
        if not _DATASET_TYPE.fullmatch(wanted):
            problems.append(
                f"rucio.datasetTypes holds {wanted!r}, which is no name of a dataset type ('*' in it stands "
                "for anything)."
            )
    if not _COLLECTION.fullmatch(registration.collection):
        problems.append(
            f"rucio.collection is {registration.collection!r}; it must name one collection, with variables "
            "that have values."
        )
    checks = (
        ("scope", registration.scope, _SCOPE, "1 to 25 letters, digits, '_', '-' or '.'"),
        ("rse", registration.rse, _RSE, "capital letters and digits, in parts joined by '_' or '-'"),
        ("datasetName", registration.dataset, _NAME, _rule_of_names()),
    )
    for key, value, pattern, rule in checks:
        if key not in missing and not pattern.fullmatch(value):
            problems.append(f"rucio.{key} is {value!r}; Rubin's Rucio takes {rule}.")
    if registration.rse_root and not registration.rse_root.startswith(("/", "$")):
        problems.append(
            f"rucio.rseRoot is {registration.rse_root!r}; it is compared with the paths of the Butler's "
            "files, and must begin with '/' (for an object store: the path after the bucket's host)."
        )
    if registration.dtn_url and "://" not in registration.dtn_url and "$" not in registration.dtn_url:
        problems.append(
            f"rucio.dtnUrl is {registration.dtn_url!r}; it must be a URL such as davs://HOST:1094/PATH."
        )
    return problems


def _rule_of_names() -> str:
    return f"1 to {_MAX_NAME} letters, digits, '_', '.', '-', '+' or '/'"


def find_prefix_problems(registration: Registration, roots: list[str]) -> list[str]:
    """Check that the Butler writes below the folder of the scope.

    Parameters
    ----------
    registration : `Registration`
        What is to be registered.
    roots : `list` [`str`]
        Paths of the Butler's datastores; one that fits is enough.

    Returns
    -------
    problems : `list` [`str`]
        A sentence each.
    """
    refusals = []
    for root in roots:
        # What Butler's default templates make of a dataset's path begins with its collection.
        path = f"{root.rstrip('/')}/{registration.collection}/file"
        try:
            name = name_of(path, registration)
        except Refused as error:
            refusals.append(f"The Butler writes to {root}; {error}")
            continue
        if not _NAME.fullmatch(name):
            return [f"Outputs would be called {name!r} in Rucio; Rubin's Rucio takes {_rule_of_names()}."]
        return []
    return refusals


_ADMINISTRATOR = ("admin", True)

_PATIENCE = 30
"""Seconds for an answer: a server that is down must not hold up a
submission."""


@dataclass(slots=True)
class Verdict:
    """What was found."""

    problems: list[str] = field(default_factory=list)
    """What is wrong with the configuration."""

    outside: list[str] = field(default_factory=list)
    """What Rucio's server would refuse."""

    notes: list[str] = field(default_factory=list)
    """What could not be found out here."""


def check_registration(
    config: BpsConfig,
    environment: Mapping[str, str],
    *,
    open_rucio: Callable[[], Any] = lambda: open_client(_PATIENCE),
) -> Verdict:
    """Check the section ``rucio`` of a configuration.

    Parameters
    ----------
    config : `~lsst.ctrl.bps.BpsConfig`
        Configuration of a run.
    environment : mapping of `str` to `str`
        The environment.
    open_rucio : callable, optional
        Gives a client of Rucio.

    Returns
    -------
    verdict : `Verdict`
        Empty if no registration is asked for.
    """
    try:
        settings = read_registration_settings(config, environment)
    except SettingsError as error:
        return Verdict([str(error)])
    if settings is None:
        return Verdict()
    registration = settings.registration.expanded()
    verdict = Verdict(find_name_problems(registration))
    if verdict.problems:
        return verdict
    _ask_butler(registration, verdict)
    if settings.ask_rucio:
        _ask_rucio(settings, verdict, open_rucio)
    else:
        verdict.notes.append("Rucio was not asked about the registration (rucio.askRucio is no).")
    return verdict


def _ask_butler(registration: Registration, verdict: Verdict) -> None:
    """Compare the prefix with where the Butler writes, and have it read the
    expression.
    """
    unknown = "rucio.rseRoot could not be compared with where the Butler writes."
    try:
        with open_butler(registration.butler) as butler:
            roots = [root.unquoted_path for root in butler.get_datastore_roots().values() if root]
            verdict.problems += _where_problems(butler, registration)
    except RucioError as error:
        verdict.notes.append(f"{unknown} {error}")
        return
    if "$" in registration.rse_root:
        verdict.notes.append(f"{unknown} It is {registration.rse_root!r}, with variables of the worker.")
        return
    verdict.problems += find_prefix_problems(registration, roots)


def _where_problems(butler: Any, registration: Registration) -> list[str]:
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
        text = " ".join(str(error).split())
        return [f"rucio.where is {where!r}, which the Butler does not understand: {text}"]
    return []


def _ask_rucio(settings: RegistrationSettings, verdict: Verdict, open_rucio: Callable[[], Any]) -> None:
    """Ask the server, if there is one."""
    try:
        client = open_rucio()
        with rucio_errors("answer"):
            verdict.outside += check_server(client, settings.registration, settings.account or client.account)
    except PandaBpsError as error:
        verdict.notes.append(
            f"Rucio was not asked whether scope, RSE, dataset and account can be used. {error}"
        )


def check_server(client: Any, registration: Registration, account: str) -> list[str]:
    """Ask Rucio whether it would take what is to be registered.

    Parameters
    ----------
    client : `rucio.client.Client`
        Rucio.
    registration : `Registration`
        What is to be registered.
    account : `str`
        Account of the step.

    Returns
    -------
    problems : `list` [`str`]
        A sentence each.
    """
    from rucio.common.exception import AccountNotFound

    try:
        state = str(client.get_account(account)["status"])
    except AccountNotFound:
        return [f"Rucio has no account {account} (rucio.account, RUCIO_ACCOUNT)."]
    problems = [] if state == "ACTIVE" else [f"Rucio's account {account} is {state}."]
    problems += _rse_problems(client, registration)
    problems += _scope_problems(client, registration, account)
    problems += _rule_problems(client, registration, account)
    return problems + _dataset_problems(client, registration)


def _rse_problems(client: Any, registration: Registration) -> list[str]:
    from rucio.common.exception import RSENotFound

    try:
        client.get_rse(registration.rse)
    except RSENotFound:
        return [f"Rucio has no RSE {registration.rse} (rucio.rse)."]
    return []


def _scope_problems(client: Any, registration: Registration, account: str) -> list[str]:
    """Find out whether the account may add to the scope, as Rucio's generic
    policy has it: its owner may, root, and accounts with the attribute
    ``admin``.
    """
    scope = registration.scope
    if scope not in client.list_scopes():
        return [f"Rucio has no scope {scope} (rucio.scope)."]
    if account == "root" or scope in _scopes_of(client, account) or _is_administrator(client, account):
        return []
    return [
        f"Rucio's account {account} does not own scope {scope} and is no administrator, so it may not add to "
        "it. Set rucio.account to one that may, or rucio.askRucio to no if the server has other rules."
    ]


def _scopes_of(client: Any, account: str) -> list[str]:
    from rucio.common.exception import AccountNotFound, ScopeNotFound

    try:
        return list(client.list_scopes_for_account(account))
    except (AccountNotFound, ScopeNotFound):
        return []


def _is_administrator(client: Any, account: str) -> bool:
    attributes = {
        (entry["key"], entry["value"])
        for listed in client.list_account_attributes(account)
        for entry in (listed if isinstance(listed, list) else [listed])
    }
    return _ADMINISTRATOR in attributes


def _rule_problems(client: Any, registration: Registration, account: str) -> list[str]:
    """Find out whether there is a place for the rule."""
    from rucio.common.exception import InvalidRSEExpression

    rule = registration.rule
    if rule is None:
        return []
    try:
        places = [entry["rse"] for entry in client.list_rses(rule.rse_expression)]
    except InvalidRSEExpression as error:
        text = " ".join(str(error).split())
        return [f"rucio.rule.rseExpression is {rule.rse_expression!r}, which names no RSE: {text}"]
    if len(places) < rule.copies:
        return [
            f"rucio.rule.rseExpression is {rule.rse_expression!r}, which names {len(places)} RSEs; "
            f"{rule.copies} copies need as many."
        ]
    limits = {**client.get_local_account_limits(account)}
    if not client.get_global_account_limits(account) and not any(limits.get(place) for place in places):
        return [
            f"Rucio's account {account} has no limit (quota) at any of {', '.join(sorted(places))}, so it "
            "may have no rule there."
        ]
    return []


def _dataset_problems(client: Any, registration: Registration) -> list[str]:
    from rucio.common.exception import DataIdentifierNotFound

    place = f"{registration.scope}:{registration.dataset}"
    try:
        did = client.get_did(registration.scope, registration.dataset)
    except DataIdentifierNotFound:
        return []
    if did["type"] != "DATASET":
        return [f"Rucio's {place} is a {did['type'].lower()}, not a dataset; use another rucio.datasetName."]
    if not did["open"]:
        return [f"Rucio's dataset {place} is closed, so nothing can be added; use another rucio.datasetName."]
    return []
