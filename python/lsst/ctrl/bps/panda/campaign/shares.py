"""Divide the values of a dimension among sites by share.

Pure: the same values, shares and weights give the same parts, whatever their
order and whatever the seed of hashes.
"""

from __future__ import annotations

__all__ = ["Value", "divide", "sort_key"]

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from ..errors import SettingsError

Value = int | str
"""A value of a dimension."""

_Name = TypeVar("_Name", bound=int | str)


def divide(
    values: Iterable[Value],
    shares: Mapping[str, float],
    *,
    pinned: Mapping[str, Sequence[Value]] | None = None,
    weights: Mapping[Value, float] | None = None,
) -> dict[str, tuple[Value, ...]]:
    """Give each value to one site.

    Each site gets a stretch of the sorted values, since neighbours (tracts,
    visits) read the same inputs.  Without weights the stretches have the
    lengths of the method of largest remainders, so each differs from its share
    by less than one value.  With weights, the weight of a stretch differs from
    its share by at most the largest weight.

    Parameters
    ----------
    values : iterable of `int` or `str`
        All values.
    shares : mapping of `str` to `float`
        Share of each site, more than 0; they need not add up to 100.
    pinned : mapping of `str` to sequence, optional
        Values that go to a site in any case, as part of its share.
    weights : mapping, optional
        How much work a value is; 1 for those that are not named.

    Returns
    -------
    parts : `dict` [`str`, `tuple`]
        Values of each site, sorted; sites in the order of their names.

    Raises
    ------
    SettingsError
        Raised if a share or weight is not positive, or a value is pinned to
        two sites or is none of the values.
    """
    ordered = sorted(set(values), key=sort_key)
    exact = _positive("share of site", shares)
    given = _positive("weight of", weights or {})
    loads = {value: given.get(value, Fraction(1)) for value in ordered}
    fixed = _pinned(pinned or {}, ordered)
    taken = {value for some in fixed.values() for value in some}
    rest = [value for value in ordered if value not in taken]
    quotas = _quotas(exact, fixed, loads)
    lengths = _cut(rest, quotas, loads) if given else _largest_remainders(len(rest), quotas)
    parts: dict[str, tuple[Value, ...]] = {}
    start = 0
    for site in quotas:
        stretch = rest[start : start + lengths[site]]
        start += lengths[site]
        parts[site] = tuple(sorted([*fixed.get(site, ()), *stretch], key=sort_key))
    return parts


def sort_key(value: Value) -> tuple[bool, int, str]:
    """Sort numbers by size, and texts by their characters."""
    return (True, 0, value) if isinstance(value, str) else (False, value, "")


def _positive(what: str, numbers: Mapping[_Name, float]) -> dict[_Name, Fraction]:
    """Return numbers exactly, refusing those that are not more than 0."""
    exact: dict[_Name, Fraction] = {}
    for name, number in numbers.items():
        try:
            value = Fraction(0) if isinstance(number, bool) else Fraction(str(number).strip())
        except (ValueError, ZeroDivisionError):
            value = Fraction(0)
        if value <= 0:
            raise SettingsError(f"The {what} {name} is {number!r}; it must be a number of more than 0.")
        exact[name] = value
    return exact


def _pinned(pinned: Mapping[str, Sequence[Value]], ordered: Sequence[Value]) -> dict[str, set[Value]]:
    """Check which values sites name themselves."""
    owners: dict[Value, str] = {}
    known = set(ordered)
    for site in sorted(pinned):
        for value in pinned[site]:
            if value not in known:
                raise SettingsError(
                    f"Site {site} names the value {value!r}, which is none of the campaign's "
                    f"{len(ordered)} values."
                )
            if owners.setdefault(value, site) != site:
                raise SettingsError(
                    f"Sites {owners[value]} and {site} both name the value {value!r}; each value goes to one."
                )
    return {site: set(some) for site, some in pinned.items()}


def _quotas(
    shares: Mapping[str, Fraction], fixed: Mapping[str, set[Value]], loads: Mapping[Value, Fraction]
) -> dict[str, Fraction]:
    """Return what each site is to get of the values that are not pinned.

    A site with more pinned values than its share gets nothing else; what it
    has too much is taken from the others in proportion.
    """
    sites = sorted(shares)
    pinned = {site: sum((loads[value] for value in fixed.get(site, ())), Fraction(0)) for site in sites}
    total = sum(loads.values(), Fraction(0))
    open_sites = sites
    while True:
        base = sum((shares[site] for site in open_sites), Fraction(0))
        left = total - sum((pinned[site] for site in sites if site not in open_sites), Fraction(0))
        wanted = {site: left * shares[site] / base for site in open_sites} if base else {}
        still_open = [site for site in open_sites if wanted[site] > pinned[site]]
        if len(still_open) == len(open_sites) or not still_open:
            break
        open_sites = still_open
    return {
        site: max(Fraction(0), wanted[site] - pinned[site]) if site in still_open else Fraction(0)
        for site in sites
    }


def _largest_remainders(count: int, quotas: Mapping[str, Fraction]) -> dict[str, int]:
    """Round quotas so that they add up; ties go by name."""
    lengths = {site: int(quota) for site, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda site: (lengths[site] - quotas[site], site))
    for site in by_remainder[: count - sum(lengths.values())]:
        lengths[site] += 1
    return lengths


def _cut(
    rest: Sequence[Value], quotas: Mapping[str, Fraction], loads: Mapping[Value, Fraction]
) -> dict[str, int]:
    """Cut the values where their weight is nearest to what sites are to get."""
    lengths: dict[str, int] = {}
    wanted = reached = Fraction(0)
    position = 0
    for site, quota in quotas.items():
        wanted += quota
        start = position
        # A value belongs to the stretch that holds its middle.
        while position < len(rest) and reached + loads[rest[position]] / 2 <= wanted:
            reached += loads[rest[position]]
            position += 1
        lengths[site] = position - start
    return lengths
