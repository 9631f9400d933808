"""Staging: the files of a run reach the place where its workers find them,
whole, verified, and with a manifest that is written last.
"""

from ..settings.run import StagingSettings
from .area import (
    StagingReport,
    check_area,
    list_area,
    read_manifest,
    remove_area,
    remove_marker,
    stage,
    stage_with_progress,
    write_marker,
)
from .sources import CANCELLED, Digest, Manifest

__all__ = [
    "CANCELLED",
    "Digest",
    "Manifest",
    "StagingReport",
    "StagingSettings",
    "check_area",
    "list_area",
    "read_manifest",
    "remove_area",
    "remove_marker",
    "stage",
    "stage_with_progress",
    "write_marker",
]
