"""Positions, fluxes and background of the demo and of SEP, the library of Source Extractor, on one image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.stats import gaussian_fwhm_to_sigma

from lsst.ctrl.bps.panda.demo.geometry import PIXEL_SCALE, make_wcs, match
from lsst.ctrl.bps.panda.demo.photometry import Psf, find_peaks, fit_background, fit_fluxes, matched_filter
from lsst.ctrl.bps.panda.demo.simulate import make_catalog

sep = pytest.importorskip("sep", reason="SEP is not installed; it has no wheel for this Python")

CHECKOUT = Path(__file__).resolve().parents[3]
PAGE = CHECKOUT / "doc" / "lsst.ctrl.bps.panda" / "demo.rst"
CENTRE = 62.0, -37.0
SIGMA = 3.0 * gaussian_fwhm_to_sigma
PSF = Psf.gaussian(SIGMA)
NOISE = 20.0
SIZE = 1200
"""Pixels on a side."""


@dataclass(frozen=True)
class Both:
    """An image as we and as SEP see it."""

    found: float
    """Fraction of our objects of ten times their error that SEP finds, too."""

    position: float
    """Root mean square distance along an axis of bright objects without neighbours, pixels."""

    ratio: float
    """Median of our flux by theirs, of the same ones."""

    scatter: float
    """Standard deviation of that."""

    background: float
    """Root mean square difference of the backgrounds, in standard deviations of a pixel."""

    number: int
    """Objects that are compared."""


@pytest.fixture(scope="module")
def both() -> Both:
    rng = np.random.default_rng(7)
    stars = make_catalog(*CENTRE, SIZE * PIXEL_SCALE / 2.0, rng=rng, density=0.008)
    wcs = make_wcs(*CENTRE, size=SIZE)
    wcs.wcs.crpix += 0.5
    image = np.linspace(300.0, 330.0, SIZE) + rng.normal(0.0, NOISE, (SIZE, SIZE))
    places = wcs.wcs_world2pix(stars["ra"], stars["dec"], 0)
    PSF.add_to(image, *places, 10.0 ** (0.4 * (29.0 - np.asarray(stars["r"]))))

    variance = np.full(image.shape, NOISE**2)
    background = fit_background(image)
    x, y, _ = find_peaks(matched_filter(image - background, variance, PSF), 5.0)
    flux, error, _ = fit_fluxes(image - background, variance, PSF, x, y)

    their_background = sep.Background(image, bw=75, bh=75).back()
    theirs = image - their_background
    found = sep.extract(theirs, 1.5, err=NOISE, filter_kernel=PSF.stamp())
    their_x, their_y, _ = sep.winpos(theirs, found["x"], found["y"], SIGMA)
    # A circle of 4 sigma holds all of the light but 0.03 per cent.
    their_flux, _, _ = sep.sum_circle(theirs, their_x, their_y, 4.0 * SIGMA)

    own, other = match(x, y, their_x, their_y, radius=2.0)
    seen = np.isin(np.arange(len(x)), own)
    nearest = np.sort(np.hypot(x[own, np.newaxis] - x, y[own, np.newaxis] - y), axis=1)[:, 1]
    inside = (np.minimum(x[own], y[own]) > 15) & (np.maximum(x[own], y[own]) < SIZE - 16)
    chosen = inside & (nearest > 12.0) & (flux[own] > 100.0 * error[own])
    own, other = own[chosen], other[chosen]
    ratio = flux[own] / their_flux[other]
    return Both(
        found=float(np.mean(seen[flux > 10.0 * error])),
        position=float(np.sqrt(np.mean(np.square([x[own] - their_x[other], y[own] - their_y[other]])))),
        ratio=float(np.median(ratio)),
        scatter=float(np.std(ratio)),
        background=float(np.sqrt(np.mean(np.square(background - their_background)))) / NOISE,
        number=len(own),
    )


def _page(pattern: str) -> float:
    """Read a number from the page on the demo."""
    (number,) = re.findall(pattern, re.sub(r"\s+", " ", PAGE.read_text()))
    return float(number)


def test_both_find_the_same_objects(both: Both) -> None:
    assert both.number == pytest.approx(_page(r"for the (\d+) bright ones without neighbours"), abs=2)
    assert 100.0 * both.found == pytest.approx(_page(r"SEP finds ([\d.]+) % of the objects"), abs=0.5)


def test_places_fluxes_and_backgrounds_agree_as_the_page_says(both: Both) -> None:
    assert both.position == pytest.approx(_page(r"positions differ by ([\d.]+) pixels"), abs=0.0005)
    assert both.ratio == pytest.approx(_page(r"fluxes by a median factor of ([\d.]+)"), abs=0.001)
    assert 100.0 * both.scatter == pytest.approx(_page(r"with a standard deviation of ([\d.]+) %"), abs=0.1)
    assert 100.0 * both.background == pytest.approx(_page(r"backgrounds differ by ([\d.]+) %"), abs=0.2)
