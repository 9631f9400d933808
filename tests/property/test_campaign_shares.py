"""Values divided among sites, for every input."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsst.ctrl.bps.panda.campaign.parts import divide_values, render_condition
from lsst.ctrl.bps.panda.errors import SettingsError

SITES = st.dictionaries(
    st.text("ABCDEFab-_.", min_size=1, max_size=6),
    st.one_of(st.integers(1, 100), st.floats(0.01, 100, allow_nan=False)),
    min_size=1,
    max_size=6,
)
NUMBERS = st.lists(st.integers(-5, 100_000), unique=True, max_size=40)
TEXTS = st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=20)
VALUES = st.one_of(NUMBERS, TEXTS)


@st.composite
def with_pins(draw):
    """Values, shares, and some values that sites name themselves."""
    values, shares = draw(VALUES), draw(SITES)
    owners = draw(st.lists(st.sampled_from([None, *sorted(shares)]), max_size=len(values)))
    pinned = {}
    for value, owner in zip(values, owners, strict=False):
        if owner is not None:
            pinned.setdefault(owner, []).append(value)
    return values, shares, pinned


@st.composite
def with_weights(draw):
    values, shares, pinned = draw(with_pins())
    weights = draw(st.lists(st.integers(1, 1000), min_size=len(values), max_size=len(values)))
    return values, shares, pinned, dict(zip(values, weights, strict=True))


def quotas(total, shares):
    """What each site is to get, exactly."""
    exact = {site: Fraction(str(share)) for site, share in shares.items()}
    return {site: total * share / sum(exact.values()) for site, share in exact.items()}


@given(with_weights())
def test_each_value_goes_to_exactly_one_site(case):
    values, shares, pinned, weights = case
    for given_weights in (None, weights):
        parts = divide_values(values, shares, pinned=pinned, weights=given_weights)
        assert sorted(parts) == sorted(shares)
        assert sorted(value for part in parts.values() for value in part) == sorted(values)
        for site, named in pinned.items():
            assert set(named) <= set(parts[site])


@given(with_weights(), st.randoms(use_true_random=False))
def test_the_order_of_values_and_sites_does_not_matter(case, chance: random.Random):
    values, shares, pinned, weights = case

    def shuffled(mapping):
        items = list(mapping.items())
        chance.shuffle(items)
        return dict(items)

    again = chance.sample(values, len(values))
    for given_weights in ({}, weights):
        first = divide_values(values, shares, pinned=pinned, weights=given_weights)
        second = divide_values(
            again, shuffled(shares), pinned=shuffled(pinned), weights=shuffled(given_weights)
        )
        assert list(first.items()) == list(second.items())


@given(VALUES, SITES)
def test_each_site_gets_its_share_rounded_up_or_down(values, shares):
    parts = divide_values(values, shares)
    wanted = quotas(len(values), shares)
    for site, part in parts.items():
        assert abs(len(part) - wanted[site]) < 1
    # Those that are rounded up have the largest remainders.
    up = [wanted[site] % 1 for site, part in parts.items() if len(part) > wanted[site]]
    down = [wanted[site] % 1 for site, part in parts.items() if len(part) < wanted[site]]
    assert not up or not down or min(up) >= max(down)


@given(with_weights())
def test_with_weights_a_site_is_off_by_one_value_at_most(case):
    values, shares, _, weights = case
    parts = divide_values(values, shares, weights=weights)
    wanted = quotas(sum(weights.values()), shares)
    for site, part in parts.items():
        assert abs(sum(weights[value] for value in part) - wanted[site]) <= max(weights.values(), default=0)


@given(VALUES, SITES)
def test_each_site_gets_neighbours(values, shares):
    ordered = sorted(values)
    for part in divide_values(values, shares).values():
        if part:
            start = ordered.index(part[0])
            assert tuple(ordered[start : start + len(part)]) == part


@given(NUMBERS)
def test_a_condition_holds_the_values_and_no_other(values):
    if not values:
        return
    text = render_condition("visit", sorted(values))
    inside = text.removeprefix("visit IN (").removesuffix(")")
    found = []
    for term in inside.split(", "):
        first, _, last = term.partition("..")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(values)


@given(SITES, st.sampled_from([0, -1, float("nan"), float("inf"), True, "many", None]))
def test_a_share_that_is_no_positive_number_is_refused(shares, wrong):
    site = sorted(shares)[0]
    with pytest.raises(SettingsError, match="share of site"):
        divide_values([1, 2], {**shares, site: wrong})
