"""Where things are: tangent planes, detectors in the focal plane, and the
tract with its patches.

Positions on the sky are right ascension and declination in degrees, positions
in a tangent plane are arcseconds east (``xi``) and north (``eta``) of its
tangent point, positions on an image are pixels with the centre of the first
pixel at (0, 0).
"""

from __future__ import annotations

__all__ = ["PIXEL_SCALE", "Affine", "Box", "FocalPlane", "SkyLayout", "TangentPoint", "polygon"]

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

FloatArray = npt.NDArray[np.float64]

PIXEL_SCALE = 0.3
"""Size of a pixel of the detectors and of the patches, arcseconds."""

_ARCSEC = math.pi / 180.0 / 3600.0


@dataclass(frozen=True, slots=True)
class TangentPoint:
    """Centre of a gnomonic projection."""

    ra: float  # Right ascension, degrees.
    dec: float  # Declination, degrees.

    def project(self, ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Give the tangent plane positions of points of the sky, nearer than 90 degrees."""
        lon = np.radians(np.asarray(ra, dtype=float) - self.ra)
        lat = np.radians(np.asarray(dec, dtype=float))
        lat0 = math.radians(self.dec)
        cosine = np.sin(lat) * math.sin(lat0) + np.cos(lat) * math.cos(lat0) * np.cos(lon)
        xi = np.cos(lat) * np.sin(lon) / cosine
        eta = (np.sin(lat) * math.cos(lat0) - np.cos(lat) * math.sin(lat0) * np.cos(lon)) / cosine
        return xi / _ARCSEC, eta / _ARCSEC

    def deproject(self, xi: npt.ArrayLike, eta: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Give the points of the sky at tangent plane positions."""
        x = np.asarray(xi, dtype=float) * _ARCSEC
        y = np.asarray(eta, dtype=float) * _ARCSEC
        lat0 = math.radians(self.dec)
        along = math.cos(lat0) - y * math.sin(lat0)
        ra = self.ra + np.degrees(np.arctan2(x, along))
        dec = np.degrees(np.arctan2(math.sin(lat0) + y * math.cos(lat0), np.hypot(x, along)))
        return np.mod(ra, 360.0), dec


@dataclass(frozen=True, slots=True)
class Affine:
    """Linear map from pixels to a tangent plane: ``xi = x0 + xx*x + xy*y``,
    ``eta = y0 + yx*x + yy*y``.
    """

    x0: float
    xx: float
    xy: float
    y0: float
    yx: float
    yy: float

    def forward(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Pixels to arcseconds."""
        px, py = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        return self.x0 + self.xx * px + self.xy * py, self.y0 + self.yx * px + self.yy * py

    def inverse(self, xi: npt.ArrayLike, eta: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Arcseconds to pixels."""
        dx, dy = np.asarray(xi, dtype=float) - self.x0, np.asarray(eta, dtype=float) - self.y0
        determinant = self.xx * self.yy - self.xy * self.yx
        return (self.yy * dx - self.xy * dy) / determinant, (self.xx * dy - self.yx * dx) / determinant

    def to_dict(self) -> dict[str, float]:
        """Give the six numbers by their names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels ``x0 <= x < x1``, ``y0 <= y < y1``."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0

    def contains(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Whether positions lie on the pixels of the box."""
        px, py = np.asarray(x, dtype=float) + 0.5, np.asarray(y, dtype=float) + 0.5
        return (px >= self.x0) & (px < self.x1) & (py >= self.y0) & (py < self.y1)

    def corners(self) -> tuple[tuple[float, float], ...]:
        """Outer corners of the corner pixels, counter-clockwise."""
        left, bottom, right, top = self.x0 - 0.5, self.y0 - 0.5, self.x1 - 0.5, self.y1 - 0.5
        return (left, bottom), (right, bottom), (right, top), (left, top)

    def grow(self, pixels: int) -> Box:
        """Give a box that is larger on each side."""
        return Box(self.x0 - pixels, self.y0 - pixels, self.x1 + pixels, self.y1 + pixels)


@dataclass(frozen=True, slots=True)
class FocalPlane:
    """Square detectors laid out on a square, row by row from the south-west
    corner, centred on the boresight.
    """

    detectors: int  # Number of detectors.
    size: int = 300  # Pixels on a side of a detector.
    gap: int = 12  # Pixels between neighbours.

    @property
    def per_row(self) -> int:
        """Detectors in a row."""
        return math.ceil(math.sqrt(self.detectors))

    @property
    def width(self) -> float:
        """Side of the square that holds all detectors, arcseconds."""
        return (self.per_row * (self.size + self.gap) - self.gap) * PIXEL_SCALE

    def names(self, detector: int) -> tuple[str, str]:
        """Give the names of a detector's raft, of two by two, and of its place there: row and column."""
        row, column = divmod(detector, self.per_row)
        return f"R{row // 2}{column // 2}", f"S{row % 2}{column % 2}"

    def box(self) -> Box:
        """All pixels of one detector."""
        return Box(0, 0, self.size, self.size)

    def affine(self, detector: int, rotation: float) -> Affine:
        """Give the map from a detector's pixels to the tangent plane of the
        boresight.
        """
        pitch = self.size + self.gap
        start = 0.5 - (self.per_row * pitch - self.gap) / 2.0
        x = start + (detector % self.per_row) * pitch
        y = start + (detector // self.per_row) * pitch
        c, s = math.cos(math.radians(rotation)) * PIXEL_SCALE, math.sin(math.radians(rotation)) * PIXEL_SCALE
        return Affine(x0=c * x - s * y, xx=c, xy=-s, y0=s * x + c * y, yx=s, yy=c)


@dataclass(frozen=True, slots=True)
class SkyLayout:
    """One square tract, its centre at the tangent point, cut in patches that
    overlap by their borders.
    """

    centre: TangentPoint
    patches: int  # Patches on a side of the tract.
    inner: int = 300  # Pixels on a side of the part of a patch that is its own.
    border: int = 20  # Pixels that a patch reaches into its neighbours.

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make a layout of what `to_dict` gave."""
        return cls(**{**values, "centre": TangentPoint(**values["centre"])})

    def to_dict(self) -> dict[str, Any]:
        """Give plain values that YAML can hold."""
        return asdict(self)

    @property
    def width(self) -> float:
        """Side of the tract, arcseconds."""
        return self.patches * self.inner * PIXEL_SCALE

    def affine(self) -> Affine:
        """Give the map from the tract's pixels to its tangent plane."""
        first = (0.5 - self.patches * self.inner / 2.0) * PIXEL_SCALE
        return Affine(x0=first, xx=PIXEL_SCALE, xy=0.0, y0=first, yx=0.0, yy=PIXEL_SCALE)

    def tract_box(self) -> Box:
        """All pixels of the tract."""
        return Box(0, 0, self.patches * self.inner, self.patches * self.inner)

    def inner_box(self, patch: int) -> Box:
        """Pixels of the tract that are a patch's own."""
        x, y = (patch % self.patches) * self.inner, (patch // self.patches) * self.inner
        return Box(x, y, x + self.inner, y + self.inner)

    def outer_box(self, patch: int) -> Box:
        """Pixels of the tract that a patch's images have."""
        return self.inner_box(patch).grow(self.border)

    def sky(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Pixels of the tract to degrees."""
        return self.centre.deproject(*self.affine().forward(x, y))

    def pixel(self, ra: npt.ArrayLike, dec: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Degrees to pixels of the tract."""
        return self.affine().inverse(*self.centre.project(ra, dec))


def polygon(corners: Iterable[tuple[float, float]], affine: Affine, tangent: TangentPoint) -> ConvexPolygon:
    """Make the region of the sky that has the given corners."""
    points = []
    for x, y in corners:
        ra, dec = tangent.deproject(*affine.forward(x, y))
        points.append(UnitVector3d(LonLat.fromDegrees(float(ra), float(dec))))
    return ConvexPolygon(points)
