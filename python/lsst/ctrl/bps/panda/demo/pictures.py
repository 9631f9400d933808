"""Images and tables of a run for whoever looks at them: pixels, their place on the sky, what was found on
them, and what is there in truth.  Nothing is written.
"""

from __future__ import annotations

__all__ = ["Gallery", "Picture"]

import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits  # type: ignore[import-untyped]
from astropy.table import Table  # type: ignore[import-untyped]
from astropy.wcs import WCS  # type: ignore[import-untyped]
from lsst.daf.butler import (
    Butler,
    MissingCollectionError,
    MissingDatasetTypeError,
)
from lsst.daf.butler.formatters.parquet import astropy_to_arrow
from pyarrow import parquet  # type: ignore[import-untyped]

from ..errors import SettingsError
from .geometry import SkyLayout
from .instrument import BANDS, StarCam
from .repository import INPUTS, SKYMAP, is_demo
from .summary import balance_bands, colour_picture, read_coadds

_MOST_PIXELS = 3000**2
_NAME = re.compile(r"(raw|calibrated)-(\d{1,12})-(\d{1,6})|(coadd)-(\d{1,6})-([a-z])|(colour)-(\d{1,6})")
_TABLE = re.compile(r"objects-\d{1,6}|sources-\d{1,12}-\d{1,6}|truth")
_RAW, _CALIBRATED, _COADD = "starcam_raw", "calibrated_image", "coadd"
_INFO = "calibrated_image_info"


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, its first row below."""

    name: str
    title: str
    unit: str
    pixels: npt.NDArray[Any]
    """Numbers, or three bytes a pixel."""

    wcs: WCS
    found: str
    """Name of the table of what was found, empty if there is none."""

    objects: Mapping[str, list[float]]
    """Where those are, and how they stand out: ``x``, ``y``, ``snr``."""

    truth: Mapping[str, list[float]]
    """What was simulated there: ``x``, ``y`` and ``magnitude``."""

    def levels(self) -> tuple[float, float]:
        """Return between which values an image is shown at first."""
        seen = self.pixels[np.isfinite(self.pixels)] if self.pixels.ndim == 2 else self.pixels
        low, high = np.percentile(seen, (2.0, 99.5)) if seen.size else (0.0, 1.0)
        return float(low), float(max(high, low + 1e-6))

    def to_bytes(self) -> bytes:
        """Return the pixels row by row, each in four bytes, or in three of a colour."""
        kind = "<f4" if self.pixels.ndim == 2 else "u1"
        return self.pixels.astype(kind).tobytes()

    def to_fits(self) -> bytes:
        """Return the image as a file."""
        pixels = self.pixels if self.pixels.ndim == 2 else np.moveaxis(self.pixels, 2, 0)
        header = self.wcs.to_header()
        header["BUNIT"] = self.unit
        content = io.BytesIO()
        fits.PrimaryHDU(pixels, header).writeto(content)
        return content.getvalue()


class Gallery:
    """The images and tables of a run, to be used in a ``with`` statement.

    Parameters
    ----------
    repo : `str` or path-like
        Repository that the demo has made; `.SettingsError` is raised for another one.
    run : `str`
        Collection of the run's outputs.
    """

    def __init__(self, repo: str | os.PathLike[str], run: str) -> None:
        if not is_demo(repo):
            raise SettingsError(f"{repo} is no repository of the demo")
        self._butler = Butler.from_config(str(repo), collections=[run, INPUTS], writeable=False)
        self._run = run

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self._butler.close()

    def images(self) -> list[dict[str, str]]:
        """List the images that there are, with name, kind and title, the best first."""
        found = []
        coadds = sorted({(ref["tract"], ref["band"]) for ref in self._find(_COADD)}, key=_by_band)
        for tract in sorted(ref["tract"] for ref in self._find("object_table")):
            found.append(("colour", f"colour-{tract}", f"place {tract} in colour"))
        for tract, band in coadds:
            found.append(("coadd", f"coadd-{tract}-{band}", f"place {tract}, band {band}"))
        for kind, dataset, visit in (("calibrated", _CALIBRATED, "visit"), ("raw", _RAW, "exposure")):
            for ref in sorted(self._find(dataset), key=lambda ref: (ref[visit], ref["detector"])):
                words = f"{visit} {ref[visit]}, detector {ref['detector']}"
                found.append((kind, f"{kind}-{ref[visit]}-{ref['detector']}", words))
        return [dict(zip(("kind", "name", "title"), row, strict=True)) for row in found]

    def tables(self) -> list[str]:
        """List the names of tables that there are."""
        objects = sorted(ref["tract"] for ref in self._find("object_table"))
        sources = sorted((ref["visit"], ref["detector"]) for ref in self._find("source_table"))
        return [
            *(f"objects-{tract}" for tract in objects),
            *(f"sources-{visit}-{detector}" for visit, detector in sources),
            "truth",
        ]

    def _find(self, dataset: str) -> list[Any]:
        try:
            refs = self._butler.query_datasets(dataset, collections=self._run, explain=False, limit=None)
        except (MissingDatasetTypeError, MissingCollectionError):
            return []  # Nothing of it has been made yet.
        return [ref.dataId for ref in refs]

    def read(self, name: str) -> Picture:
        """Read an image; `.SettingsError` says that there is none of that name."""
        match = _NAME.fullmatch(name)
        known = {each["name"]: each for each in self.images()} if match else {}
        if match is None or name not in known:
            raise SettingsError(f"the run has no image {name[:80]!r}")
        words = name.split("-")
        read = self._read_coadd if words[0] in ("coadd", "colour") else self._read_exposure
        pixels, wcs, unit, table, band = read(*words)
        if pixels.shape[0] * pixels.shape[1] > _MOST_PIXELS:
            raise SettingsError(f"{name} has {pixels.shape} pixels, more than are shown here")
        found = self.table(table) if table in self.tables() else None
        return Picture(
            name=name,
            title=f"{words[0]}: {known[name]['title']}",
            unit=unit,
            pixels=pixels,
            wcs=wcs,
            found=table if found is not None else "",
            objects=_place(found, wcs, pixels.shape, {"snr": "snr"}) if found is not None else {},
            truth=_place(self.table("truth"), wcs, pixels.shape, {"magnitude": band}),
        )

    def _read_exposure(self, kind: str, visit: str, detector: str) -> tuple[Any, WCS, str, str, str]:
        place = {"instrument": StarCam.getName(), "detector": int(detector)}
        exposure, calibrated = place | {"exposure": int(visit)}, place | {"visit": int(visit)}
        if kind == "raw":
            pixels, unit = self._butler.get(_RAW, exposure).astype(np.float32), "counts"
        else:
            pixels, unit = self._butler.get(_CALIBRATED, calibrated)[0], "nJy"
        if kind == "raw" and not self._butler.exists(_INFO, calibrated):
            # The telescope's own word on where it points is some pixels off; there is no other yet.
            header = self._butler.get("starcam_header", exposure)
        else:
            header = self._butler.get(_INFO, calibrated)
        band = str(self._butler.registry.expandDataId(exposure)["band"])
        return pixels, WCS(header["wcs"]), unit, f"sources-{visit}-{detector}", band

    def _read_coadd(self, kind: str, tract: str, band: str = "") -> tuple[Any, WCS, str, str, str]:
        number = int(tract)
        layout = SkyLayout(**self._butler.get("sky_layout", skymap=SKYMAP, tract=number))
        images = read_coadds(self._butler, layout, number)
        if kind == "coadd":
            return images[band].astype(np.float32), layout.wcs, "nJy", f"objects-{tract}", band
        picture = colour_picture(balance_bands(images, self.table(f"objects-{tract}")))
        # The picture fills the gaps that all bands have with what is near.
        picture[np.all(np.isnan(list(images.values())), axis=0)] = 0
        middle = list(images)[len(images) // 2]
        return picture, layout.wcs, "red, green, blue", f"objects-{tract}", middle

    def table(self, name: str) -> Table:
        """Read a table; `.SettingsError` says that there is none of that name."""
        if not _TABLE.fullmatch(name) or name not in self.tables():
            raise SettingsError(f"the run has no table {name[:80]!r}")
        kind, *numbers = name.split("-")
        if kind == "truth":
            return self._butler.get("starcam_catalog", instrument=StarCam.getName())
        if kind == "objects":
            return self._butler.get("object_table", skymap=SKYMAP, tract=int(numbers[0]))
        visit, detector = map(int, numbers)
        where = {"instrument": StarCam.getName(), "visit": visit, "detector": detector}
        return self._butler.get("source_table", where)

    def table_file(self, name: str, form: str) -> bytes:
        """Return a table as a file: ``parquet``, ``fits``, or CSV."""
        table, content = self.table(name), io.BytesIO()
        if form == "parquet":
            parquet.write_table(astropy_to_arrow(table), content)
        elif form == "fits":
            table.write(content, format="fits")
        else:
            text = io.StringIO()
            table.write(text, format="ascii.csv")
            content.write(text.getvalue().encode())
        return content.getvalue()


def _by_band(key: tuple[int, str]) -> tuple[int, int]:
    return key[0], list(BANDS).index(key[1])


def _place(
    table: Table, wcs: WCS, shape: tuple[int, ...], columns: Mapping[str, str]
) -> dict[str, list[float]]:
    """Say where on an image the rows of a table are, those that are on it, and more about them."""
    x, y = wcs.wcs_world2pix(table["ra"], table["dec"], 0)
    rows, across = shape[:2]
    inside = (x > -0.5) & (x < across - 0.5) & (y > -0.5) & (y < rows - 0.5)
    found = {"x": x, "y": y, "ra": table["ra"], "dec": table["dec"]}
    found |= {name: table[column] for name, column in columns.items() if column in table.colnames}
    return {
        name: [round(float(value), 6) for value in np.asarray(values)[inside]]
        for name, values in found.items()
    }
