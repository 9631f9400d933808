"""What is said and drawn of a run."""

from __future__ import annotations

import numpy as np
from astropy.table import Table

from lsst.ctrl.bps.panda.demo.geometry import SkyLayout
from lsst.ctrl.bps.panda.demo.summary import colour_picture, compare_with_truth, render_summary, seen_by_all


def test_margins_that_a_band_has_not_seen_are_cut_off_and_gaps_inside_are_not() -> None:
    first, second = np.ones((46, 56)), np.ones((46, 56))
    first[:7] = first[:, 50:] = second[:, :5] = np.nan
    first[23, 13:17] = np.nan
    assert seen_by_all([first, second], 3) == (slice(7, 43), slice(5, 50))


def test_the_picture_is_red_where_the_last_band_is_bright_and_has_no_holes() -> None:
    rng = np.random.default_rng(1)
    green, red = rng.normal(0.0, 1.0, (2, 60, 60))
    red[20:24, 20:24] += 100.0
    green[40:44, 40:44] += 100.0
    green[20:24, 30:34] = red[20:24, 30:34] = 100.0
    green[20:24, 32:34] = np.nan
    green[50], red[50] = np.nan, np.nan
    picture = colour_picture([green, red]).astype(int)
    assert picture.shape == (60, 60, 3)
    assert (picture[20:24, 20:24, 0] > picture[20:24, 20:24, 2] + 50).all()
    assert (picture[40:44, 40:44, 2] > picture[40:44, 40:44, 0] + 50).all()
    # One band alone is grey, and a row without data is like those beside it.
    assert (np.ptp(picture[20:24, 32:34], axis=2) < 10).all()
    assert abs(picture[50].mean() - picture[49:52].mean()) < 20


def test_stars_are_judged_by_place_and_brightness_and_galaxies_by_their_mark() -> None:
    layout = SkyLayout(62.0, -37.0, patches=1)
    ra, dec = layout.wcs.wcs_pix2world(np.linspace(40.0, 300.0, 12), np.linspace(50.0, 270.0, 12), 0)
    truth = Table(
        {"ra": ra, "dec": dec, "r": np.linspace(18.0, 21.0, 12), "half_light_radius": [0.0] * 9 + [1.0] * 3}
    )
    found = truth[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10]]
    flux = 10.0 ** (0.4 * (31.4 - np.asarray(found["r"])))
    objects = Table(
        {
            "ra": found["ra"], "dec": found["dec"] + 0.1 / 3600.0, "snr": [100.0] * 10,
            "extended": [False] * 7 + [True, True, False], "r_flux": flux,
            "r_flux_err": np.append(flux[:8] / 50.0, flux[8:] / 20.0),
            "r_mag": np.where(found["half_light_radius"] > 0, 99.0, found["r"] + 0.02),
        }
    )  # fmt: skip
    image = np.ones(layout.wcs.array_shape)
    summary = compare_with_truth(objects, truth, layout, {"r": image})
    assert (summary.objects, summary.matched, summary.galaxies) == (10, 10, 2)
    assert (summary.galaxies_extended, summary.stars_extended) == (1, 1)
    assert abs(summary.position_scatter - 100.0) < 1.0
    (band,) = summary.bands
    assert abs(band["magnitude_offset"] - 0.02) < 1e-6
    assert abs(band["completeness"] - 8 / 9) < 1e-6
    assert "extended: 1 of 2 galaxies, and 1 of 8 stars" in render_summary(summary)
    # A star that no image shows is not missed.
    image[205:] = np.nan
    assert compare_with_truth(objects, truth, layout, {"r": image}).bands["completeness"] == [1.0]
