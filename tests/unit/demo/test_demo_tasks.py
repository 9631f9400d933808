"""The demo's tasks, by their ``run`` with plain values."""

from dataclasses import asdict

import numpy as np
import pytest
from astropy.table import Table
from lsst.pipe.base import NoWorkFound

from lsst.ctrl.bps.panda.demo.geometry import SkyLayout
from lsst.ctrl.bps.panda.demo.photometry import Psf
from lsst.ctrl.bps.panda.demo.star_task import datasets
from lsst.ctrl.bps.panda.demo.tasks import (
    AssembleCoaddTask,
    CharacterizeTask,
    IsrTask,
    MakeWarpTask,
    MeasureObjectsTask,
    ObjectTableTask,
    VisitSummaryTask,
)

_LAYOUT = SkyLayout(62.0, -37.0, patches=2, inner=80, border=10)


def _task(task_class):
    return task_class(config=task_class.ConfigClass())


def test_isr_takes_bias_and_flat_off_tells_the_noise_and_leaves_bad_pixels_out() -> None:
    raw = np.full((9, 9), 1100, np.uint16)
    raw[2, 3] = 51000  # saturated
    raw[6, 6] = 2000  # hit by a cosmic ray
    result = _task(IsrTask).run(
        raw=raw,
        header={"gain": 2.0, "read_noise": 5.0, "full_well": 100000.0},
        bias=np.full((9, 9), 1000, np.float32),
        flat=np.full((9, 9), 0.5, np.float32),
    )
    good = np.ones((9, 9), bool)
    good[2, 3] = good[6, 6] = False
    np.testing.assert_array_equal(np.isfinite(result.image), [good, good])
    np.testing.assert_allclose(result.image[0][good], 400.0)
    np.testing.assert_allclose(result.image[1][good], (200.0 + 25.0) / 0.25)


def test_an_empty_image_is_no_work() -> None:
    noise = np.random.default_rng(1).normal(100.0, 10.0, (60, 60))
    with pytest.raises(NoWorkFound):
        _task(CharacterizeTask).run(
            images={1: np.stack([noise, np.full(noise.shape, 100.0)])},
            headers={1: {}},
            reference=Table(),
            band="r",
        )


def test_a_cloudy_detector_is_marked() -> None:
    info = {
        "psf_sigma": 1.5, "zero_point": 30.0, "background": 100.0, "depth": 23.0, "sources": 50, "matches": 9,
        "astrometric_scatter": 0.05,
    }  # fmt: skip
    table = _task(VisitSummaryTask).run(infos={0: info, 1: info | {"zero_point": 29.0}, 2: info}).summary
    assert table["detector"].tolist() == [0, 1, 2]
    assert table["good"].tolist() == [True, False, True]


def _warp_inputs(**changes):
    # The detector sees the tract without its border.
    info = {"wcs": dict(_LAYOUT.wcs[10:170, 10:170].to_header()), "psf_sigma": 1.4}
    image = np.zeros((2, 160, 160), np.float32)
    image[1] = 4.0
    stamp = np.zeros((160, 160))
    Psf.gaussian(1.4).add_to(stamp, np.array([40.0]), np.array([50.0]), np.array([1000.0]))
    image[0] = stamp
    summary = Table({"detector": [7], "good": [True]})
    return {
        "images": {7: image}, "infos": {7: info}, "summary": summary, "layout": asdict(_LAYOUT), "patch": 0
    } | changes  # fmt: skip


def test_a_warp_has_the_star_where_the_sky_has_it() -> None:
    result = _task(MakeWarpTask).run(**_warp_inputs())
    warp = result.warp[0]
    assert warp.shape == (100, 100)
    y, x = np.unravel_index(np.nanargmax(warp), warp.shape)
    assert (x, y) == (50, 60)
    assert np.nansum(warp) == pytest.approx(1000.0, rel=1e-3)
    assert np.isnan(warp[:10]).all()
    assert result.info["variance"] == pytest.approx(4.0, rel=0.01)


@pytest.mark.parametrize(
    "changes", [{"summary": Table({"detector": [7], "good": [False]})}, {"patch": 3, "images": {}}]
)
def test_without_a_good_pixel_there_is_no_warp(changes) -> None:
    with pytest.raises(NoWorkFound):
        _task(MakeWarpTask).run(**_warp_inputs(**changes))


def test_warps_are_weighted_by_their_noise_and_gaps_left_out() -> None:
    first, second = np.ones((2, 4, 4)), np.full((2, 4, 4), 4.0)
    second[:, 0, 0] = np.nan
    first[:, 3, 3] = second[:, 3, 3] = np.nan
    info = {"psf_sigma": 1.0, "variance": 1.0, "coverage": 1.0}
    result = _task(AssembleCoaddTask).run(
        warps={1: first, 2: second}, infos={1: info, 2: info | {"psf_sigma": 2.0, "variance": 4.0}}
    )
    image, variance = result.coadd
    assert image[1, 1] == pytest.approx((1.0 + 0.25 * 4.0) / 1.25)
    assert variance[1, 1] == pytest.approx((1.0 + 0.0625 * 4.0) / 1.25**2)
    assert (image[0, 0], variance[0, 0]) == (1.0, 1.0)
    assert np.isnan(image[3, 3])
    assert result.info["psf"] == [[0.8, 1.0], [0.2, 2.0]]
    assert result.info["visits"] == [1, 2]


def test_objects_are_measured_in_all_bands_and_only_in_ones_own_part() -> None:
    rng = np.random.default_rng(4)
    psf = Psf.gaussian(1.4)
    coadds, infos = {}, {}
    for band, flux in (("g", 400.0), ("r", 900.0)):
        image = rng.normal(0.0, 2.0, (100, 100))
        # The last one belongs to the neighbour.
        psf.add_to(image, np.array([30.0, 60.0, 95.0]), np.array([30.0, 70.0, 50.0]), np.full(3, flux))
        coadds[band] = np.stack([image, np.full(image.shape, 4.0)])
        infos[band] = {"psf": [[1.0, 1.4]]}
    table = _task(MeasureObjectsTask).run(
        coadds=coadds, infos=infos, layout=asdict(_LAYOUT), tract=0, patch=1
    ).objects  # fmt: skip
    assert len(table) == 2
    np.testing.assert_allclose(table["x"], np.array([30.0, 60.0]) + 80, atol=0.2)
    np.testing.assert_allclose(table["g_flux"], 400.0, atol=60.0)
    np.testing.assert_allclose(table["r_flux"], 900.0, atol=60.0)
    x, y = _LAYOUT.wcs.wcs_world2pix(table["ra"], table["dec"], 0)
    np.testing.assert_allclose(x, table["x"], atol=1e-6)
    assert table["object_id"].tolist() == [1_000_000, 1_000_001]


def test_patches_are_joined_without_doubles_and_lacking_bands_are_nan() -> None:
    first = Table(
        {"patch": [0, 0], "x": [10.0, 79.4], "y": [5.0, 20.0], "r_flux": [1.0, 2.0], "g_flux": [3.0, 4.0]}
    )
    second = Table({"patch": [1, 1], "x": [79.7, 79.6], "y": [20.3, 60.0], "r_flux": [5.0, 6.0]})
    table = _task(ObjectTableTask).run(patches={0: first, 1: second}).table
    assert table["r_flux"].tolist() == [1.0, 2.0, 6.0]
    assert np.isnan(table["g_flux"][2])
    assert table["patch"].dtype.kind == "i"


class _Ref:
    def __init__(self, **values):
        self.dataId = _DataId(values)


class _DataId(dict):
    @property
    def dimensions(self):
        return type("Dimensions", (), {"required": set(self)})


class _Reader:
    def get(self, ref):
        return dict(ref.dataId)


def test_inputs_arrive_in_the_order_of_their_keys_however_they_are_given() -> None:
    refs = [_Ref(instrument="StarCam", visit=5, detector=n) for n in (10, 2, 7)]
    given = datasets(_Reader(), refs, {"instrument", "visit", "skymap", "tract", "patch"})
    assert list(given) == [2, 7, 10]
    assert given[7]["detector"] == 7
    assert datasets(_Reader(), refs[0], ()) == {"instrument": "StarCam", "visit": 5, "detector": 10}
