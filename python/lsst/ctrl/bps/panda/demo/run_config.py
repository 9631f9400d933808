"""BPS configurations of the demo for a repository that lies anywhere."""

from __future__ import annotations

__all__ = ["BASE", "render_run_config"]

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

BASE = "resource://lsst.ctrl.bps.panda.demo/bps_demo.yaml"


def render_run_config(repo: str | os.PathLike[str], *, settings: Mapping[str, object] | None = None) -> str:
    """Give a BPS configuration as text.

    Parameters
    ----------
    repo : path-like
        Butler repository.
    settings : `~collections.abc.Mapping` [`str`, `object`], optional
        More keys of BPS, with their values.

    Returns
    -------
    text : `str`
        YAML.  The repository is named by a URI, which no blank or quote in
        its path can break.
    """
    keys = {
        "includeConfigs": [BASE],
        "butlerConfig": Path(repo).absolute().as_uri(),
        **(settings or {}),
    }
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
