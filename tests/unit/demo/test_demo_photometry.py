"""Finding and measuring stars, against made-up images."""

import numpy as np
import pytest

from lsst.ctrl.bps.panda.demo.geometry import FocalPlane, make_wcs, match, resample
from lsst.ctrl.bps.panda.demo.photometry import (
    AB_ZERO_POINT,
    Psf,
    calibrate,
    compare_with_galaxy,
    depth,
    find_cosmic_rays,
    find_peaks,
    fit_background,
    fit_fluxes,
    matched_filter,
    measure_sigma,
)
from lsst.ctrl.bps.panda.demo.simulate import make_catalog

_PSF = Psf.gaussian(1.4)


def _image(x, y, flux, *, noise=2.0, seed=1, size=120):
    image = np.random.default_rng(seed).normal(0.0, noise, (size, size))
    _PSF.add_to(image, np.array(x, float), np.array(y, float), np.array(flux, float))
    return image, np.full(image.shape, noise**2)


def _draw(psf, x, y):
    image = np.zeros((41, 41))
    psf.add_to(image, np.array([x]), np.array([y]), np.ones(1))
    return image


def test_a_psf_holds_all_the_light() -> None:
    for psf in (_PSF, Psf(((0.3, 1.2), (0.7, 2.0)))):
        assert _draw(psf, 20.3, 19.6).sum() == pytest.approx(1.0, abs=1e-4)
        assert psf.stamp().sum() == pytest.approx(1.0, abs=1e-4)
    half, middle = _draw(Psf.gaussian(3.0 / 2.0 / np.sqrt(2.0 * np.log(2.0))), 20.5, 20.0), 20
    # 3 pixels from half of the maximum to half of it.
    assert half[middle, middle + 2] / half[middle, middle] == pytest.approx(2.0 ** -(1.0**2 - (1 / 3) ** 2))


def test_stars_off_the_edge_are_cut_not_wrapped() -> None:
    image = np.zeros((20, 20))
    _PSF.add_to(image, np.array([-7.0, 0.0, 26.0, 10.0]), np.array([5.0, 0.0, 5.0, -7.0]), np.ones(4))
    assert image.sum() == pytest.approx(0.413, abs=0.005)  # what of a star at a corner is inside
    assert image[:, 10:].sum() == pytest.approx(0.0, abs=1e-5)


def test_isolated_stars_are_found_where_they_are() -> None:
    x, y = [30.3, 80.7, 55.0], [40.6, 22.1, 90.45]
    image, variance = _image(x, y, [900, 2000, 500])
    found_x, found_y, height = find_peaks(matched_filter(image, variance, _PSF), 8.0)
    assert len(found_x) == 3
    order = np.argsort(found_x)
    np.testing.assert_allclose(found_x[order], sorted(x), atol=0.15)
    np.testing.assert_allclose(found_y[order], [40.6, 90.45, 22.1], atol=0.15)
    expected = 900 * np.sqrt(np.sum(_PSF.stamp() ** 2)) / 2.0
    assert height[order][0] == pytest.approx(expected, rel=0.1)


def test_noise_alone_gives_hardly_a_star() -> None:
    image, variance = _image([], [], [])
    assert len(find_peaks(matched_filter(image, variance, _PSF), 5.0)[0]) == 0


def test_significance_is_zero_without_data() -> None:
    image, variance = _image([60], [60], [5000])
    image[:, :50], variance[:, :50] = np.nan, np.nan
    significance = matched_filter(image, variance, _PSF)
    assert np.isfinite(significance).all()
    assert (significance[:, :50] == 0).all()


def test_a_few_pixels_without_data_hide_no_star() -> None:
    image, variance = _image([60.3, 30.0], [60.1, 80.0], [5000, 3000])
    image[59:62, 60:62] = np.nan
    x, y, _ = find_peaks(matched_filter(image, variance, _PSF), 8.0)
    assert len(x) == 2
    np.testing.assert_allclose(sorted(x), [30.0, 60.3], atol=0.3)


def test_a_sloping_background_is_taken_off() -> None:
    image, _ = _image([60, 30], [60, 80], [50000, 30000])
    y, x = np.mgrid[:120, :120] / 119.0 - 0.5
    image[:5] = np.nan
    plane = 300.0 + 20.0 * x - 40.0 * y
    np.testing.assert_allclose(fit_background(image + plane), plane, atol=1.0)


def test_cosmic_rays_are_found_and_stars_are_not() -> None:
    image, variance = _image([60.3, 30.0], [60.1, 80.0], [5000, 90000])
    variance += np.maximum(image, 0.0)
    # One along a row, one across, and one in the wing of a star.
    tracks = np.zeros(image.shape, bool)
    tracks[20, 10:19] = tracks[np.arange(90, 97), np.arange(70, 77)] = tracks[82:86, 33] = True
    image[tracks] += 800.0
    variance[tracks] += 800.0
    hit = find_cosmic_rays(image, variance, sharpest=0.9, threshold=6.0)
    assert hit[tracks].all()
    assert np.count_nonzero(hit & ~tracks) <= 2


def test_fluxes_of_blended_stars_are_shared_rightly() -> None:
    x, y, flux = np.array([50.0, 52.5, 90.0]), np.array([50.0, 51.0, 20.0]), np.array([3000.0, 1500.0, 800.0])
    image, variance = _image(x, y, flux)
    measured, error, residual = fit_fluxes(image, variance, _PSF, x, y)
    assert (np.abs(measured - flux) < 5 * error).all()
    alone = 2.0 / np.sqrt(np.sum(_PSF.stamp() ** 2))
    assert error[2] == pytest.approx(alone, rel=0.05)
    assert np.std(residual) == pytest.approx(2.0, rel=0.05)


def test_a_wide_object_is_more_like_a_wider_model() -> None:
    wider = Psf.gaussian(np.hypot(1.4, 1.5))
    image, variance = _image([30.0], [40.0], [2000.0])
    wider.add_to(image, np.array([80.0]), np.array([70.0]), np.array([2000.0]))
    x, y = np.array([30.0, 80.0]), np.array([40.0, 70.0])
    flux, _, residual = fit_fluxes(image, variance, _PSF, x, y)
    growth = compare_with_galaxy(residual, variance, _PSF, x, y, flux)
    assert growth[0] < -9.0
    assert growth[1] > 9.0


def test_stars_without_data_have_no_flux() -> None:
    image, variance = _image([20, 80], [60, 60], [900, 900])
    image[:, :50] = np.nan
    flux, error, _ = fit_fluxes(image, variance, _PSF, np.array([20.0, 80.0]), np.array([60.0, 60.0]))
    assert np.isnan([flux[0], error[0]]).all()
    assert abs(flux[1] - 900) < 5 * error[1]


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
def test_width_of_stars() -> None:
    x, y = np.array([30.3, 80.7, 55.0]), np.array([40.6, 22.1, 90.45])
    image, _ = _image(x, y, [9000, 20000, 7000])
    assert measure_sigma(image, x, y) == pytest.approx(1.4, rel=0.03)
    with pytest.raises(ValueError, match="0 stars"):
        measure_sigma(image, x[:0], y[:0])


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_depth_is_that_of_five_sigma() -> None:
    noise = 5.0 * 2.0 / np.sqrt(np.sum(_PSF.stamp() ** 2))
    assert depth(np.full((9, 9), 4.0), _PSF) == pytest.approx(AB_ZERO_POINT - 2.5 * np.log10(noise))
    assert np.isnan(depth(np.full((3, 3), np.nan), _PSF))


def test_resampling_keeps_place_and_flux() -> None:
    image, variance = _image([60.0], [60.0], [5000.0], noise=1e-3)
    wcs, to = make_wcs(62.0, -37.0, size=120), make_wcs(62.0, -37.0, size=120)
    to.wcs.crpix += -0.37, 0.21
    x, y = np.meshgrid(np.arange(120) + 0.37, np.arange(120) - 0.21)
    moved, moved_variance = resample(np.stack([image, variance]), wcs, to)
    assert np.nansum(moved) == pytest.approx(5000.0, rel=2e-3)
    assert np.nansum(moved * x) / np.nansum(moved) == pytest.approx(60.0, abs=0.03)
    assert np.nansum(moved * y) / np.nansum(moved) == pytest.approx(60.0, abs=0.03)
    assert np.isnan(moved[0, 0])
    assert np.nanmax(moved_variance) <= 1.2e-6


def test_pairs_are_mutual_and_near() -> None:
    own, other = match([0.0, 0.3, 9.0], [0.0, 0.0, 0.0], [0.1, 20.0], [0.0, 0.0], radius=1.0)
    assert (own.tolist(), other.tolist()) == ([0], [0])
    assert len(match([], [], [1.0], [1.0], radius=1.0)[0]) == 0


def test_calibration_finds_pointing_and_zero_point() -> None:
    plane = FocalPlane(1)
    true, recorded = plane.wcs(0, 62.0, -37.0, 3.0), plane.wcs(0, 62.0005, -36.9996, 3.0)
    reference = make_catalog(62.0, -37.0, 80.0, rng=np.random.default_rng(3))
    reference = reference[reference["r"] < 20.0]
    x, y = true.wcs_world2pix(reference["ra"], reference["dec"], 0)
    flux = 10.0 ** (-0.4 * (np.asarray(reference["r"]) - 27.25))
    fit = calibrate(x, y, flux, reference, band="r", wcs=recorded)
    assert fit.matches == len(reference)
    assert fit.zero_point == pytest.approx(27.25, abs=1e-6)
    assert fit.scatter < 1e-3
    ra, dec = fit.wcs.wcs_pix2world(x, y, 0)
    np.testing.assert_allclose(dec, reference["dec"], atol=1e-6)
    np.testing.assert_allclose(ra, reference["ra"], atol=1e-6)


def test_calibration_without_matches_says_so() -> None:
    from astropy.table import Table

    far = Table({"ra": [10.0] * 9, "dec": [-37.0] * 9, "r": [18.0] * 9})
    with pytest.raises(ValueError, match="0 stars match"):
        calibrate(
            np.arange(9.0), np.arange(9.0), np.ones(9), far, band="r", wcs=make_wcs(62.0, -37.0, size=300)
        )
