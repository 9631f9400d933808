"""What Rucio would refuse, told before it is asked: Rubin's rules for names.

They are those of the schema that Rubin's server runs with; the rules of other
experiments differ.
"""

from __future__ import annotations

__all__ = ["find_name_problems", "find_prefix_problems"]

import re

from .program import Refused, Registration, name_of

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
