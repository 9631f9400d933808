"""Staging: the files of a run reach the place where its workers find them,
whole, verified, and with a manifest that is written last.
"""

from .area import check_area, read_manifest, remove_marker, stage, write_marker
from .manifest import Digest, Manifest
from .session import StagingReport, StagingSettings

__all__ = [
    "Digest",
    "Manifest",
    "StagingReport",
    "StagingSettings",
    "check_area",
    "read_manifest",
    "remove_marker",
    "stage",
    "write_marker",
]
