"""The camera's detectors, the tract and its patches on the sky."""

import numpy as np
import pytest
from astropy.wcs import WCS
from lsst.sphgeom import LonLat, UnitVector3d

from lsst.ctrl.bps.panda.demo.geometry import PIXEL_SCALE, FocalPlane, SkyLayout, make_wcs, offset, region

_CENTRE = 359.9, -37.0


def test_offsets_go_there_and_back() -> None:
    east, north = np.array([-600.0, 0.0, 33.3, 900.0]), np.array([500.0, 0.0, -20.0, -900.0])
    x, y = make_wcs(*_CENTRE, size=17).wcs_world2pix(*offset(*_CENTRE, east, north), 0)
    np.testing.assert_allclose((8.0 - x, y - 8.0), (east / PIXEL_SCALE, north / PIXEL_SCALE), atol=3e-6)


def test_offsets_are_true_to_scale_and_direction() -> None:
    ra, dec = offset(*_CENTRE, 0.0, 3600.0)
    assert (float(ra), float(dec)) == pytest.approx((359.9, -36.0), abs=1e-3)
    ra, dec = offset(*_CENTRE, 720.0, 0.0)
    assert float(ra) == pytest.approx((359.9 + 0.2 / np.cos(np.radians(37.0))) % 360.0, abs=1e-4)


def test_an_image_turns_from_north_to_east() -> None:
    for rotation, east, north in ((0.0, 0.0, 30.0), (90.0, 30.0, 0.0)):
        up = make_wcs(*_CENTRE, rotation=rotation).wcs_pix2world(0.0, 30.0 / PIXEL_SCALE, 0)
        np.testing.assert_allclose(up, offset(*_CENTRE, east, north), atol=1e-9)


@pytest.mark.parametrize("detectors", [1, 2, 4, 7, 9])
def test_detectors_do_not_overlap_and_are_centred(detectors: int) -> None:
    plane, sky = FocalPlane(detectors), make_wcs(*_CENTRE)

    def place(detector: int, pixel: float) -> tuple[float, float]:
        there = plane.wcs(detector, *_CENTRE, 0.0).wcs_pix2world(pixel, pixel, 0)
        x, y = sky.wcs_world2pix(*there, 0)
        return round(float(x), 5), round(float(y), 5)

    starts = {place(n, 0.0) for n in range(detectors)}
    assert len(starts) == detectors
    xs = sorted({x for x, _ in starts})
    assert all(b - a == pytest.approx(plane.size + plane.gap) for a, b in zip(xs, xs[1:], strict=False))
    assert plane.wcs(0, *_CENTRE, 0.0).array_shape == (plane.size, plane.size)
    full = [place(n, plane.size / 2 - 0.5) for n in range(plane.per_row**2)]
    np.testing.assert_allclose(np.mean(full, axis=0), 0.0, atol=1e-5)


def test_a_header_holds_the_wcs_exactly() -> None:
    wcs = FocalPlane(4).wcs(2, *_CENTRE, 17.0)
    again = WCS(dict(wcs.to_header()))
    pixels = np.array([[1.0, 7.0], [250.5, -3.0]])
    np.testing.assert_allclose(again.wcs_world2pix(wcs.wcs_pix2world(pixels, 0), 0), pixels, atol=1e-6)


def test_patches_own_the_pixels_of_the_tract_once() -> None:
    layout = SkyLayout(*_CENTRE, patches=3, inner=10, border=2)
    assert layout.wcs.array_shape == (34, 34)
    y, x = np.mgrid[:34, :34]
    owners = layout.owner(x, y)
    inside = np.zeros((34, 34), dtype=bool)
    inside[2:-2, 2:-2] = True
    np.testing.assert_array_equal(owners >= 0, inside)
    for patch in range(9):
        own_y, own_x = np.nonzero(owners == patch)
        assert own_y.size == 100
        rows, columns = layout.image(patch)
        assert (rows.start, rows.stop) == (own_y.min() - 2, own_y.max() + 3)
        assert (columns.start, columns.stop) == (own_x.min() - 2, own_x.max() + 3)
    assert owners[2, 31] == 2  # Along a row first.


def test_positions_belong_to_the_patch_whose_pixel_they_are_on() -> None:
    layout = SkyLayout(*_CENTRE, patches=2, inner=10, border=2)
    edges = [1.49, 1.5, 11.49, 11.5, 21.49, 21.5]
    assert layout.owner(edges, [5.0] * 6).tolist() == [-1, 0, 0, 1, 1, -1]
    assert layout.owner([5.0] * 6, edges).tolist() == [-1, 0, 0, 2, 2, -1]


def test_the_centre_of_the_tract_is_in_its_middle() -> None:
    layout = SkyLayout(*_CENTRE, patches=3)
    np.testing.assert_allclose(layout.wcs.wcs_world2pix(*_CENTRE, 0), [469.5, 469.5], atol=1e-6)
    assert layout.width == pytest.approx(270.0)


def test_regions_hold_what_they_should() -> None:
    layout = SkyLayout(*_CENTRE, patches=2)
    wcs = layout.wcs

    def holds(x: float, y: float, margin: float) -> bool:
        ra, dec = wcs.wcs_pix2world(x, y, 0)
        part = region(wcs[layout.image(1)], margin=margin)
        return bool(part.contains(UnitVector3d(LonLat.fromDegrees(float(ra), float(dec)))))

    # The image of patch 1 has the columns from 300 to 639, and the rows from 0 to 339.
    for margin, x, y, is_held in (
        (0.0, 450, 150, True),
        (0.0, 300, 339, True),
        (0.0, 298, 150, False),
        (0.0, 450, 342, False),
        (5.0, 296, 343, True),
        (5.0, 293, 150, False),
        (-5.0, 306, 333, True),
        (-5.0, 303, 150, False),
    ):
        assert holds(x, y, margin) is is_held
