"""Which values of a dimension a campaign has, by the configuration or by the
Butler, and how they are written in a data query.
"""

from __future__ import annotations

__all__ = ["ask_butler", "check_values", "fixed_in", "render_condition"]

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from lsst.daf.butler import Butler, DimensionUniverse

from ..errors import SettingsError
from ..settings.campaign import Value, sort_key

_QUOTED = re.compile(r"'[^']*'")


def _kind(partition: str, universe: DimensionUniverse) -> type:
    """Return what values of a dimension are: `int` or `str`."""
    if partition not in universe.dimensions.names:
        known = ", ".join(sorted(universe.dimensions.names))
        raise SettingsError(f"campaignSites.partition is {partition!r}; dimensions are {known}.")
    kind: type = universe.dimensions[partition].primaryKey.getPythonType()
    return kind


def check_values(
    partition: str, values: Iterable[Value], universe: DimensionUniverse | None = None
) -> tuple[Value, ...]:
    """Check that values fit a dimension, and give them its type.

    Parameters
    ----------
    partition : `str`
        Name of the dimension.
    values : iterable of `int` or `str`
        Values.
    universe : `~lsst.daf.butler.DimensionUniverse`, optional
        All dimensions; the Butler's default ones if not given.

    Raises
    ------
    SettingsError
        Raised if there is no such dimension, or a value is of another type.
    """
    kind = _kind(partition, universe or DimensionUniverse())
    checked: list[Value] = []
    for value in values:
        if kind is not int:
            # YAML takes unquoted names such as 0123 or 2024 for numbers.
            checked.append(str(value))
            continue
        try:
            checked.append(int(value))
        except ValueError:
            raise SettingsError(
                f"campaignSites holds the value {value!r}, but {partition} has whole numbers."
            ) from None
    return tuple(checked)


def ask_butler(
    butler: Butler,
    partition: str,
    *,
    data_query: str,
    collections: Sequence[str] = (),
    dataset_type: str = "",
) -> dict[Value, int]:
    """Ask a Butler for the values of a dimension.

    Parameters
    ----------
    butler : `~lsst.daf.butler.Butler`
        The Butler.
    partition : `str`
        Name of the dimension.
    data_query : `str`
        The payload's data query; may be empty.
    collections : sequence of `str`, optional
        Where inputs are looked for.
    dataset_type : `str`, optional
        Input without which a value is none.

    Returns
    -------
    values : `dict` [`int` or `str`, `int`]
        Values, sorted; for each, the number of its inputs of that type, or 1.

    Raises
    ------
    SettingsError
        Raised if the question makes no sense or has no answer.
    """
    _kind(partition, butler.dimensions)
    dimensions = butler.dimensions.conform([partition])
    question = "dimension records"
    with butler.query() as query:
        if dataset_type:
            question = f"datasets {dataset_type} in {', '.join(collections)}"
            dimensions = dimensions.union(butler.get_dataset_type(dataset_type).dimensions)
            query = query.join_dataset_search(dataset_type, collections=list(collections))
        if data_query.strip():
            query = query.where(data_query)
        rows = [dict(row.required) for row in query.data_ids(dimensions)]
    others = [name for name in butler.dimensions.conform([partition]).required if name != partition]
    for name in others:
        found = sorted({str(row[name]) for row in rows})
        if len(found) > 1:
            raise SettingsError(
                f"Values of {partition} belong to {len(found)} different values of {name} "
                f"({', '.join(found[:3])}, ...), so {partition} alone divides nothing. Name one of them in "
                f"dataQuery, which is {data_query!r}."
            )
    counted = Counter(row[partition] for row in rows)
    if not counted:
        raise SettingsError(
            f"The Butler has no value of {partition} for dataQuery {data_query!r} ({question}). Correct the "
            "query, or give campaignSites.values."
        )
    return {value: counted[value] for value in sorted(counted, key=sort_key)}


def fixed_in(partition: str, data_query: str) -> str:
    """Return the part of a data query that gives a dimension one value.

    Parameters
    ----------
    partition : `str`
        Name of the dimension.
    data_query : `str`
        The query.

    Returns
    -------
    condition : `str`
        Such as ``tract = 9813``; empty if there is none.
    """
    # Texts are blanked first: a name in quotes is no dimension.
    bare = _QUOTED.sub(lambda match: "'" + "_" * (len(match[0]) - 2) + "'", data_query)
    match = re.search(rf"(?<![\w.]){re.escape(partition)}(?:\.id|\.name)?\s*=\s*(?:'[^']*'|-?\w+)", bare)
    return data_query[match.start() : match.end()] if match else ""


def render_condition(partition: str, values: Sequence[Value]) -> str:
    """Write the condition that a dimension has one of some values.

    Parameters
    ----------
    partition : `str`
        Name of the dimension.
    values : sequence of `int` or `str`
        Values, sorted.

    Returns
    -------
    condition : `str`
        ``tract IN (4, 7..9)``.
    """
    return f"{partition} IN ({', '.join(_terms(values))})"


def _terms(values: Sequence[Value]) -> list[str]:
    """Write values, and at least three numbers in a row as a range."""
    terms: list[str] = []
    run: list[int] = []

    def close() -> None:
        terms.extend([f"{run[0]}..{run[-1]}"] if len(run) > 2 else map(str, run))
        run.clear()

    for value in values:
        if isinstance(value, str):
            terms.append(_quote(value))
            continue
        if run and value != run[-1] + 1:
            close()
        run.append(value)
    close()
    return terms


def _quote(value: str) -> str:
    """Write a text as a literal of the Butler's query language."""
    if not re.fullmatch(r"[^'\"{}$\\\x00-\x1f]+", value):
        raise SettingsError(
            f"campaignSites holds the value {value!r}, which cannot be written in a data query of BPS."
        )
    return f"'{value}'"
