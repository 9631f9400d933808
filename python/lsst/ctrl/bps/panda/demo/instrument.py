"""The instrument: a camera with a square of small detectors, in rafts of two by two."""

from __future__ import annotations

__all__ = ["BANDS", "Band", "StarCam", "filter_name"]

from dataclasses import dataclass
from typing import Any

from lsst.daf.butler.formatters.pickle import PickleFormatter
from lsst.pipe.base import Instrument

from .geometry import FocalPlane


@dataclass(frozen=True, slots=True)
class Band:
    """How the camera sees a band."""

    zero_point: float  # Magnitude that gives one electron a second.
    sky: float  # Brightness of the dark sky, magnitudes per square arcsecond.


BANDS = {
    "g": Band(zero_point=26.5, sky=22.2),
    "r": Band(zero_point=26.4, sky=21.2),
    "i": Band(zero_point=26.1, sky=20.5),
    "z": Band(zero_point=25.6, sky=19.6),
}
"""The camera's filters, by band."""


def filter_name(band: str) -> str:
    """Name of the physical filter of a band."""
    return f"star_{band}"


class StarCam(Instrument):
    """A camera of the demo's own; it exists nowhere."""

    policyName = "starCam"

    gain = 1.6  # Electrons a count.
    read_noise = 5.0  # Electrons.
    full_well = 80_000.0  # Electrons that a pixel holds.

    @classmethod
    def getName(cls) -> str:  # noqa: D102
        return "StarCam"

    def getRawFormatter(self, dataId: Any) -> type[PickleFormatter]:  # noqa: D102
        return PickleFormatter

    def register(self, registry: Any, *, update: bool = False, detectors: int = 4) -> None:
        """Insert the dimension records of the camera."""
        name, plane = self.getName(), FocalPlane(detectors)
        camera = {
            "name": name,
            "visit_max": 2**31,
            "exposure_max": 2**31,
            "detector_max": max(detectors, 1000),
            "class_name": f"{StarCam.__module__}.{StarCam.__qualname__}",
            "visit_system": 0,
        }
        rows: list[tuple[str, dict[str, Any]]] = [("instrument", camera)]
        for detector in range(detectors):
            raft, place = plane.names(detector)
            names = {"full_name": f"{raft}_{place}", "name_in_raft": place, "raft": raft}
            rows.append(("detector", {"instrument": name, "id": detector, "purpose": "SCIENCE", **names}))
        for band in BANDS:
            rows.append(("physical_filter", {"instrument": name, "name": filter_name(band), "band": band}))
        with registry.transaction():
            for element, row in rows:
                registry.syncDimensionData(element, row, update=update)
