"""Settings are looked up as BPS itself looks them up: by
`~lsst.ctrl.bps.BpsConfig.search`, with the current label, site and cloud.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lsst.ctrl.bps import BPS_SEARCH_ORDER, BpsConfig
from lsst.ctrl.bps.panda.settings import sites
from lsst.ctrl.bps.panda.settings.keys import KEYS
from lsst.ctrl.bps.panda.settings.search import KeyLookup

KEY_NAMES = ("queue", "computeCloud", "computeSite", "taskType", "vo")
LABELS = ("isr", "coadd", "finalJob", "customJob")
SITES = ("here", "there")
VALUES = st.sampled_from(
    ["plain", "with space", "here", "there", "", "{other}", "{vo}-x", "$HOME/x", "${NONE}", "<ENV:HOME>", "7"]
)
SECTION = st.dictionaries(st.sampled_from(KEY_NAMES[:-1]), VALUES | st.none(), max_size=4)
"""Without ``vo`` and ``other``: BPS fails on values that refer to themselves."""


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """A configuration with the same keys in many places."""
    content: dict[str, Any] = dict(draw(SECTION))
    content["vo"] = draw(st.sampled_from(["rubin", "{other}"]))
    content["other"] = "o"
    for section, names in (
        ("pipetask", LABELS[:2]),
        ("cluster", LABELS[:2]),
        ("site", SITES),
        ("cloud", ("here", "US")),
        ("payload", ()),
        ("bps_cmdline", ()),
        ("current", ()),
    ):
        if draw(st.booleans()):
            own = draw(SECTION)
            content[section] = own | {name: draw(SECTION) for name in names if draw(st.booleans())}
    for label in LABELS[2:]:
        if draw(st.booleans()):
            content[label] = draw(SECTION)
    return content


def searched(config: BpsConfig, name: str, label: str) -> Any:
    """Search a key as BPS's transform does it."""
    current = {"curr_cluster": label, "curr_pipetask": label} if label else {}
    for key, section in (("computeSite", "curr_site"), ("computeCloud", "curr_cloud")):
        _, value = config.search(key, opt={"curvals": dict(current), "default": None})
        if value:
            current[section] = str(value)
    options: dict[str, Any] = {"curvals": current, "default": None}
    if label in LABELS[2:] and label in config and name in dict(config[label]):
        options["searchobj"] = config[label]
    return config.search(name, opt=options)[1]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(contents())
def test_a_key_is_found_where_bps_finds_it(content: dict[str, Any]) -> None:
    config = BpsConfig(content, search_order=BPS_SEARCH_ORDER)
    site = str(config.get("computeSite") or "")
    whole = BpsConfig(
        {**sites.base_profile(), **sites.profile_of(site), **content}, search_order=BPS_SEARCH_ORDER
    )
    lookup = KeyLookup(config, {})
    for label in ("", *LABELS, "unheard-of"):
        for name in KEY_NAMES:
            expected = searched(whole, name, label)
            assert lookup.get(name, label) == (KEYS[name].default if expected is None else expected)
