"""Where things are: the camera's detectors, and the tract with its patches, on the sky as astropy's WCS.

Pixels count from 0; the centre of the first one is at (0, 0).
"""

from __future__ import annotations

__all__ = [
    "PIXEL_SCALE",
    "FloatArray",
    "FocalPlane",
    "Image",
    "SkyLayout",
    "make_wcs",
    "match",
    "offset",
    "region",
    "resample",
]

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from astropy.wcs import WCS  # type: ignore[import-untyped]
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.floating]

PIXEL_SCALE = 0.3
"""Size of a pixel of the detectors and of the patches, arcseconds."""

_LANCZOS = 3
"""Half width of the kernel by which images are resampled, pixels."""


def make_wcs(ra: float, dec: float, *, size: int = 1, rotation: float = 0.0) -> WCS:
    """Make the WCS of a square image in the plane that touches the sky at the image's middle, in degrees.

    East is left and north is up, turned by ``rotation`` degrees from north to east.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = ra, dec
    wcs.wcs.crpix = (size + 1) / 2.0, (size + 1) / 2.0  # FITS counts from 1.
    angle, scale = math.radians(rotation), PIXEL_SCALE / 3600.0
    across, along = scale * math.cos(angle), scale * math.sin(angle)
    wcs.wcs.cd = np.array([[-across, along], [along, across]])
    wcs.array_shape = size, size
    return wcs


def offset(ra: float, dec: float, east: npt.ArrayLike, north: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Give the points that are so many arcseconds east and north of a point, in its tangent plane."""
    x, y = -np.asarray(east, dtype=float) / PIXEL_SCALE, np.asarray(north, dtype=float) / PIXEL_SCALE
    there, up = make_wcs(ra, dec).wcs_pix2world(x, y, 0)
    return there, up


def region(wcs: WCS, *, margin: float = 0.0) -> ConvexPolygon:
    """Give the part of the sky that an image shows, and so many pixels around it."""
    rows, columns = wcs.array_shape
    left, right, top = -0.5 - margin, columns - 0.5 + margin, rows - 0.5 + margin
    corners = wcs.wcs_pix2world([(left, left), (right, left), (right, top), (left, top)], 0)
    return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(*corner)) for corner in corners])


def match(
    x: npt.ArrayLike, y: npt.ArrayLike, to_x: npt.ArrayLike, to_y: npt.ArrayLike, *, radius: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Pair points that are each other's nearest, and near."""
    ax, ay, bx, by = (np.asarray(values, dtype=float) for values in (x, y, to_x, to_y))
    if ax.size == 0 or bx.size == 0:
        return np.array([], np.intp), np.array([], np.intp)
    square = (ax[:, np.newaxis] - bx) ** 2 + (ay[:, np.newaxis] - by) ** 2
    nearest, back = np.argmin(square, axis=1), np.argmin(square, axis=0)
    own = np.arange(ax.size)
    good = (back[nearest] == own) & (square[own, nearest] <= radius**2)
    return own[good], nearest[good]


def resample(planes: Image, wcs: WCS, to: WCS) -> FloatArray:
    """Interpolate image and variance at the pixels of another WCS, by the Lanczos kernel of order three.

    Both are NaN nearer to the image's edge than the kernel reaches.  The variance is that of each pixel; its
    neighbours are correlated.
    """
    rows, columns = planes.shape[1:]
    result = np.full((2, *to.array_shape), np.nan)
    corners = to.wcs_world2pix(wcs.calc_footprint(axes=(columns, rows)), 0)
    left, bottom = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    right, top = np.minimum(np.ceil(corners.max(axis=0)) + 1, result.shape[:0:-1]).astype(int)
    x, y = (each.ravel() for each in np.meshgrid(np.arange(left, right), np.arange(bottom, top)))
    if x.size == 0:
        return result
    at_x, at_y = wcs.wcs_world2pix(*to.wcs_pix2world(x, y, 0), 0)
    low_x, low_y = np.floor(at_x).astype(int) - _LANCZOS + 1, np.floor(at_y).astype(int) - _LANCZOS + 1
    inside = (low_x >= 0) & (low_y >= 0) & (low_x + 2 * _LANCZOS <= columns) & (low_y + 2 * _LANCZOS <= rows)
    low_x, low_y = low_x[inside], low_y[inside]
    across, along = _lanczos(at_x[inside] - low_x), _lanczos(at_y[inside] - low_y)
    image, variance = planes.astype(float).reshape(2, -1)
    first = low_y * columns + low_x
    total, noise = np.zeros(first.shape), np.zeros(first.shape)
    for j in range(2 * _LANCZOS):
        for i in range(2 * _LANCZOS):
            weight, pixel = across[i] * along[j], first + (j * columns + i)
            total += weight * image.take(pixel)
            noise += weight**2 * variance.take(pixel)
    result[:, y[inside], x[inside]] = total, noise
    return result


def _lanczos(offset: FloatArray) -> list[FloatArray]:
    """Weights, of sum 1, of the pixels from the first on, ``offset`` away."""
    raw = [np.sinc(offset - n) * np.sinc((offset - n) / _LANCZOS) for n in range(2 * _LANCZOS)]
    total = np.sum(raw, axis=0)
    return [weight / total for weight in raw]


@dataclass(frozen=True, slots=True)
class FocalPlane:
    """Square detectors laid out on a square, row by row from its lower left corner."""

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

    def wcs(self, detector: int, ra: float, dec: float, rotation: float) -> WCS:
        """Give the WCS of a detector of a camera that points to a place on the sky."""
        row, column = (n * (self.size + self.gap) for n in divmod(detector, self.per_row))
        whole = make_wcs(ra, dec, size=round(self.width / PIXEL_SCALE), rotation=rotation)
        return whole[row : row + self.size, column : column + self.size]


@dataclass(frozen=True, slots=True)
class SkyLayout:
    """One square tract with a border, cut in patches whose images overlap by theirs."""

    ra: float  # The tract's centre, degrees.
    dec: float
    patches: int  # Patches on a side of the tract.
    inner: int = 300  # Pixels on a side of the part of a patch that is its own.
    border: int = 20  # Pixels that the image of a patch reaches farther.

    @property
    def width(self) -> float:
        """Side of the tract without its border, arcseconds."""
        return self.patches * self.inner * PIXEL_SCALE

    @property
    def wcs(self) -> WCS:
        """WCS of the tract."""
        return make_wcs(self.ra, self.dec, size=self.patches * self.inner + 2 * self.border)

    def image(self, patch: int) -> tuple[slice, slice]:
        """Give the rows and columns of the tract that the image of a patch has."""
        row, column = (n * self.inner for n in divmod(patch, self.patches))
        length = self.inner + 2 * self.border
        return slice(row, row + length), slice(column, column + length)

    def owner(self, x: npt.ArrayLike, y: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Tell which patch has each of the tract's pixels as its own; -1 is none."""
        # The other side of the sky has no pixels.
        x, y = (np.nan_to_num(v, nan=-1.0) for v in (x, y))
        column, row = (np.floor((np.asarray(v) + 0.5 - self.border) / self.inner).astype(int) for v in (x, y))
        inside = (np.minimum(row, column) >= 0) & (np.maximum(row, column) < self.patches)
        return np.where(inside, row * self.patches + column, -1)
