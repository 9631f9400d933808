"""Tangent planes, detectors, patches."""

import numpy as np
import pytest
from lsst.sphgeom import LonLat, UnitVector3d

from lsst.ctrl.bps.panda.demo.geometry import PIXEL_SCALE, FocalPlane, SkyLayout, TangentPoint, polygon

_CENTRE = TangentPoint(359.9, -37.0)


def test_projection_goes_there_and_back() -> None:
    xi, eta = np.array([-600.0, 0.0, 33.3, 900.0]), np.array([500.0, 0.0, -20.0, -900.0])
    again = _CENTRE.project(*_CENTRE.deproject(xi, eta))
    np.testing.assert_allclose(again, (xi, eta), atol=1e-6)


def test_projection_is_true_to_scale_and_direction() -> None:
    ra, dec = _CENTRE.deproject(0.0, 3600.0)
    assert (float(ra), float(dec)) == pytest.approx((359.9, -36.0), abs=1e-3)
    ra, dec = _CENTRE.deproject(720.0, 0.0)
    assert float(ra) == pytest.approx((359.9 + 0.2 / np.cos(np.radians(37.0))) % 360.0, abs=1e-4)


@pytest.mark.parametrize("detectors", [1, 2, 4, 7, 9])
def test_detectors_do_not_overlap_and_are_centred(detectors: int) -> None:
    plane = FocalPlane(detectors)
    starts = {
        (round(a.x0 / PIXEL_SCALE, 3), round(a.y0 / PIXEL_SCALE, 3))
        for a in (plane.affine(n, 0.0) for n in range(detectors))
    }
    assert len(starts) == detectors
    xs = sorted({x for x, _ in starts})
    assert all(b - a == pytest.approx(plane.size + plane.gap) for a, b in zip(xs, xs[1:], strict=False))
    full = [plane.affine(n, 0.0) for n in range(plane.per_row**2)]
    middle = np.mean([a.forward(plane.size / 2 - 0.5, plane.size / 2 - 0.5) for a in full], axis=0)
    np.testing.assert_allclose(middle, 0.0, atol=1e-9)


def test_affine_maps_have_inverses() -> None:
    affine = FocalPlane(4).affine(2, 17.0)
    np.testing.assert_allclose(
        affine.inverse(*affine.forward([1.0, 250.5], [7.0, -3.0])), [[1, 250.5], [7, -3]]
    )


def test_inner_boxes_tile_the_tract_once() -> None:
    layout = SkyLayout(_CENTRE, patches=3, inner=10, border=2)
    seen = np.zeros(layout.tract_box().shape, dtype=int)
    for patch in range(9):
        box = layout.inner_box(patch)
        seen[box.y0 : box.y1, box.x0 : box.x1] += 1
        assert layout.outer_box(patch) == box.grow(2)
    assert (seen == 1).all()


def test_every_position_belongs_to_one_patch() -> None:
    layout = SkyLayout(_CENTRE, patches=2, inner=10, border=2)
    x, y = np.meshgrid(np.linspace(-0.5, 19.49, 60), np.linspace(-0.5, 19.49, 60))
    owners = np.sum([layout.inner_box(patch).contains(x, y) for patch in range(4)], axis=0)
    assert (owners == 1).all()


def test_layout_survives_yaml_values() -> None:
    layout = SkyLayout(_CENTRE, patches=3)
    assert SkyLayout.from_dict(layout.to_dict()) == layout


def test_regions_hold_what_they_should() -> None:
    layout = SkyLayout(_CENTRE, patches=2)
    region = polygon(layout.inner_box(1).corners(), layout.affine(), layout.centre)

    def holds(x: float, y: float) -> bool:
        ra, dec = layout.sky(x, y)
        return bool(region.contains(UnitVector3d(LonLat.fromDegrees(float(ra), float(dec)))))

    assert holds(450, 150)
    assert holds(300, 299)
    assert not holds(298, 150)
    assert not holds(450, 302)
