"""Simulated raw images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from astropy.table import Table

from lsst.ctrl.bps.panda.demo.geometry import FocalPlane, offset
from lsst.ctrl.bps.panda.demo.instrument import StarCam
from lsst.ctrl.bps.panda.demo.simulate import is_galaxy, make_catalog
from lsst.ctrl.bps.panda.demo.tasks import SimulateTask

_CENTRE = 62.0, -37.0
_POINTING: dict[str, Any] = {
    "exposure": 260315001, "band": "r", "ra": _CENTRE[0], "dec": _CENTRE[1], "recorded_ra": 62.0001,
    "recorded_dec": -37.0, "rotation": 0.0, "seeing": 0.9, "sky": 21.2, "transparency": 1.0,
    "exposure_time": 30.0, "detectors": 1, "seed": 3,
}  # fmt: skip
_SIZE = FocalPlane(1).size


def _expose(
    catalog: Table, *, changes: dict[str, Any] | None = None, **options: float
) -> npt.NDArray[np.float64]:
    """Electrons of the image of the first detector, less bias and the median sky."""
    config = SimulateTask.ConfigClass()
    for name, value in {"cosmicRays": 0.0, "gradient": 0.0, **options}.items():
        setattr(config, name, value)
    bias = np.full((_SIZE, _SIZE), 1000.0, np.float32)
    flat = np.ones((_SIZE, _SIZE), np.float32)
    made = SimulateTask(config=config).run(
        catalog=catalog, pointing=_POINTING | (changes or {}), bias=bias, flat=flat, detector=0
    )
    assert made.raw.dtype == np.uint16
    assert made.header["wcs"]["CRVAL1"] == 62.0001
    electrons = (made.raw - 1000.0) * StarCam.gain
    return electrons - np.median(electrons)


def _one(magnitude: float, **columns: float) -> Table:
    ra, dec = offset(*_CENTRE, 6.0, -9.0)
    shape = {"half_light_radius": 0.0, "axis_ratio": 1.0, "position_angle": 0.0}
    row = {"ra": float(ra), "dec": float(dec), "r": magnitude} | shape | columns
    return Table(rows=[row])


def test_a_star_is_where_and_as_bright_as_it_should_be() -> None:
    image = _expose(_one(18.0))
    y, x = np.unravel_index(np.argmax(image), image.shape)
    middle = (_SIZE - 1) / 2.0
    assert abs(x - (middle - 20)) <= 1
    assert abs(y - (middle - 30)) <= 1
    assert image[y - 10 : y + 11, x - 10 : x + 11].sum() == pytest.approx(
        30.0 * 10.0 ** (0.4 * (26.4 - 18.0)), rel=0.01
    )


def test_a_longer_exposure_saturates_and_a_gradient_tilts_the_sky() -> None:
    assert _expose(_one(16.0)).max() < StarCam.full_well - 1000
    assert _expose(_one(16.0), changes={"exposure_time": 300.0}).max() == pytest.approx(
        StarCam.full_well, rel=0.1
    )
    image = _expose(_one(24.0), gradient=0.5)
    corners = [
        np.median(part) for part in (image[:50, :50], image[:50, -50:], image[-50:, :50], image[-50:, -50:])
    ]
    assert max(corners) - min(corners) > 20.0


def test_cosmic_rays_come_with_time() -> None:
    dark = _one(25.0)
    hits = [
        np.count_nonzero(_expose(dark, changes={"exposure_time": time}, cosmicRays=1.0) > 400.0)
        for time in (0.001, 20.0, 100.0)
    ]
    assert hits[0] == 0
    assert 0 < hits[1] < hits[2]


def test_the_same_seed_exposure_and_detector_make_the_same_pixels() -> None:
    stars = make_catalog(*_CENTRE, 50.0, rng=np.random.default_rng(1))
    first = _expose(stars, cosmicRays=0.1, gradient=0.1)
    np.testing.assert_array_equal(first, _expose(stars, cosmicRays=0.1, gradient=0.1))
    assert (first != _expose(stars, changes={"seed": 4}, cosmicRays=0.1, gradient=0.1)).any()
    assert (first != _expose(stars, changes={"exposure": 5}, cosmicRays=0.1, gradient=0.1)).any()


def test_galaxies_are_wider_than_stars_and_as_bright() -> None:
    pytest.importorskip("galsim", reason="the extra [galaxies] is not installed")
    star, galaxy = (
        _expose(_one(18.0, half_light_radius=size, axis_ratio=0.5, position_angle=90.0))
        for size in (0.0, 1.0)
    )
    assert galaxy.max() < 0.4 * star.max()
    y, x = np.unravel_index(np.argmax(star), star.shape)
    box = np.s_[y - 25 : y + 26, x - 25 : x + 26]
    assert galaxy[box].sum() == pytest.approx(star[box].sum(), rel=0.03)
    row, column = galaxy[box].sum(axis=0), galaxy[box].sum(axis=1)
    axis = np.arange(-25, 26) ** 2
    # Its long axis lies east to west.
    assert np.sum(row * axis) > 2.0 * np.sum(column * axis)


def test_a_made_up_catalogue_has_as_many_galaxies_as_asked_for() -> None:
    catalog = make_catalog(*_CENTRE, 50.0, rng=np.random.default_rng(1), galaxies=0.01)
    assert np.count_nonzero(is_galaxy(catalog)) == 100
    assert len(catalog) == 400
    assert not is_galaxy(make_catalog(*_CENTRE, 50.0, rng=np.random.default_rng(1))).any()
