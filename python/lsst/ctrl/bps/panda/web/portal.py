"""The portal: a form of what to simulate, what it will cost, and its launch with ``bps submit``.

It is part of the embedded PanDA's pages.  What it makes lies in one directory there: catalogues that were
uploaded, repositories by what is in them, and for each launch its configuration, its log and its submit
directory.
"""

from __future__ import annotations

__all__ = ["Launch", "Portal", "Preview"]

import fcntl
import hashlib
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from markupsafe import Markup
from werkzeug.datastructures import MultiDict

from ..errors import PandaBpsError, RunNotFoundError, SettingsError
from ..files import replacing, write_text
from ..insight.logs import find_exception
from .page import render

if TYPE_CHECKING:
    from ..demo.choices import Choices

_MOST_CATALOGS = 50
_MOST_LAUNCHES = 3
"""Launches that are being prepared at once."""

_LONGEST_TEXT = 4000
"""Characters of a field."""

_CATALOG = re.compile(r"[0-9a-f]{12}-[\w-]{1,40}\.[a-z]{3,7}", re.ASCII)
_LAUNCH = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
_MOST_DRAWN = 196
_LOG_BYTES, _LOG_LINES = 65_536, 40
_HIDDEN = "pointings"
"""The one choice that the form does not have: a file of this machine."""

PREPARATION_SECONDS, QUANTUM_SECONDS = 25.0, 0.5
"""What the time of a run is estimated from: this for a graph, and for a quantum of a core."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What is chosen, and what follows from it."""

    query: str
    """The choices, as an address has them."""

    shown: Mapping[str, Any]
    """The value of each field, or what was written into it."""

    faults: Mapping[str, str]
    """What is wrong, by field; the empty name stands for all together."""

    quanta: Mapping[str, int] = field(default_factory=dict)
    """Quanta by label."""

    configuration: str = ""
    """The YAML that does the same."""

    @property
    def total(self) -> int:
        """All quanta."""
        return sum(self.quanta.values())

    @property
    def minutes(self) -> float:
        """How long it will take on this machine, roughly."""
        cores = len(os.sched_getaffinity(0))
        return (PREPARATION_SECONDS + self.total * QUANTUM_SECONDS / cores) / 60.0

    def document(self) -> dict[str, Any]:
        """Return what programs want to know of it."""
        quanta, minutes = dict(self.quanta), round(self.minutes, 1)
        known = {"choices": self.shown, "faults": self.faults, "query": self.query}
        cost = {"quanta": quanta, "total": self.total, "minutes": minutes}
        return {**known, **cost, "yaml": self.configuration}


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch, which is being prepared, has led to a run, or has failed."""

    name: str
    query: str
    """The choices, as an address has them."""

    run: int
    """The run, 0 as long as there is none."""

    prepares: bool
    cause: str
    """Why there will be none."""

    lines: tuple[str, ...]
    """The end of what ``bps submit`` has written."""


class Portal:
    """What the form knows and does.

    Parameters
    ----------
    directory : `~pathlib.Path`
        Where all that it makes lies.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    # --- choices ----------------------------------------------------------

    def preview(self, arguments: MultiDict[str, str]) -> Preview:
        """Tell what follows from the choices of an address."""
        from ..demo.choices import Choices, ChoicesError, parse_choices, render_values

        written = {name: arguments.getlist(name) for name in arguments}
        shown: dict[str, Any] = {}
        for name, known in Choices.model_fields.items():
            texts = written.get(name, known.default if isinstance(known.default, tuple) else [known.default])
            many = name in ("place", "catalog")
            shown[name] = list(texts)[:20] if many else ",".join(map(_text, texts))[:_LONGEST_TEXT]
        try:
            choices = parse_choices(Choices, dict(self._values(written)))
            quanta, configuration = _count(choices), self._configure(choices)
        except ChoicesError as error:
            return Preview(_query(arguments), shown, error.faults)
        except SettingsError as error:
            text = str(error).replace(f"{self._directory / 'catalogs'}{os.sep}", "")
            return Preview(_query(arguments), shown, {error.key or "catalog": text})
        pairs = [
            (name, Path(text).name if name == "catalog" else text) for name, text in render_values(choices)
        ]
        return Preview(urlencode(pairs), shown, {}, quanta, configuration)

    @staticmethod
    def fields() -> dict[str, dict[str, Any]]:
        """Return what the form shows of each field: title, help, kind and limits."""
        from ..demo.choices import Choices
        from ..demo.simulate import TABLES

        found = {}
        for name, schema in Choices.model_json_schema()["properties"].items():
            # What may be left out is a number, or nothing.
            number = schema.get("anyOf", [schema])[0]
            found[name] = {**number, **schema, "least": number.get("minimum", number.get("exclusiveMinimum"))}
        del found[_HIDDEN]
        found["catalog"]["endings"] = ",".join(TABLES)
        found["only"]["longest"] = _LONGEST_TEXT
        return found

    @staticmethod
    def draw_plane(preview: Preview) -> Markup:
        """Draw the detectors of the camera that is chosen, and mark those that observe."""
        from ..demo.choices import ChoicesError, DemoRepo, parse_choices
        from ..demo.geometry import FocalPlane

        try:
            plane = FocalPlane(parse_choices(DemoRepo, {"detectors": preview.shown["detectors"]}).detectors)
        except ChoicesError:
            return Markup()
        if plane.detectors > _MOST_DRAWN:
            return Markup(f"<small>Cameras of up to {_MOST_DRAWN} detectors are drawn.</small>")
        chosen = {text.strip() for text in str(preview.shown["only"]).split(",")}
        rafts: dict[str, list[dict[str, Any]]] = {}
        for detector in range(plane.detectors):
            row, column = divmod(detector, plane.per_row)
            raft, place = plane.names(detector)
            box = {"x": 46 * column + 8 * (column // 2), "y": 46 * row + 8 * (row // 2)}
            rafts.setdefault(raft, []).append(
                {**box, "detector": detector, "name": f"{raft}_{place}", "on": str(detector) in chosen}
            )
        side = 46 * plane.per_row + 8 * ((plane.per_row - 1) // 2)
        return render("plane.svg", rafts=rafts, side=side, number=plane.detectors)

    def _values(self, written: Mapping[str, list[str]]) -> Iterator[tuple[str, Any]]:
        """Yield the values of fields; those that nothing was written into are left out."""
        for name, texts in written.items():
            values = [text.strip() for text in texts if text.strip()]
            if name == _HIDDEN:
                yield f"({name})", values  # Refused like any name that does not exist.
            elif name == "catalog" and values:
                yield name, [self._find_catalog(value) for value in values]
            elif name == "place" and values:
                yield name, values
            elif values or name == "bands":
                yield name, ",".join(values)

    def _find_catalog(self, name: str) -> Path:
        path = self._directory / "catalogs" / name
        if not _CATALOG.fullmatch(name) or not path.is_file():
            known = ", ".join(self.catalogs()) or "none"
            raise SettingsError(
                f"catalog is {name[:80]}, which was not uploaded here; there is {known}", key="catalog"
            )
        return path

    def catalogs(self) -> list[str]:
        """List the catalogues that were uploaded, the newest first."""
        folder = self._directory / "catalogs"
        paths = [path for path in folder.glob("*") if _CATALOG.fullmatch(path.name)]
        return [path.name for path in sorted(paths, key=lambda path: -path.stat().st_mtime)]

    def add_catalog(self, name: str, content: bytes) -> str:
        """Keep a catalogue; return the name by which it is chosen."""
        from ..demo.simulate import TABLES, read_catalog

        stem, _, ending = name.rpartition("/")[2].rpartition(".")
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:40] or "catalog"
        kept = f"{hashlib.sha256(content).hexdigest()[:12]}-{stem}.{ending.lower()}"
        if Path(kept).suffix not in TABLES:
            raise SettingsError(f"{name[:80]} must end in one of {', '.join(TABLES)}", key="catalog")
        folder = self._directory / "catalogs"
        folder.mkdir(parents=True, exist_ok=True)
        if len(self.catalogs()) >= _MOST_CATALOGS:
            raise SettingsError(f"there are {_MOST_CATALOGS} catalogues in {folder}; remove some")
        with replacing(folder / kept) as partial:
            partial.write_bytes(content)
        try:
            read_catalog(folder / kept, ())
        except SettingsError as error:
            (folder / kept).unlink()
            raise SettingsError(str(error).replace(str(folder / kept), name[:80]), key="catalog") from None
        return kept

    def _configure(self, choices: Choices) -> str:
        from ..demo.repository import name_sky, render_portal_config
        from ..demo.workplace import LOCAL_SERVICE

        repo = self._directory / "skies" / name_sky(choices)
        return render_portal_config(choices, repo, service=LOCAL_SERVICE)

    # --- launches ---------------------------------------------------------

    def launch(self, preview: Preview) -> str:
        """Submit what was chosen, unless that is just being done; return the name of the launch."""
        with self._lock:
            launches = self._directory / "launches"
            busy = [path.parent for path in launches.glob("*/submit.log") if _is_locked(path)]
            for each in busy:
                if (each / "choices.txt").read_text(encoding="utf-8") == preview.query:
                    return each.name
            if len(busy) >= _MOST_LAUNCHES:
                raise PandaBpsError(f"{len(busy)} launches are being prepared; wait for one of them")
            name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
            directory = launches / name
            directory.mkdir(parents=True)
            write_text(directory / "portal.yaml", [preview.configuration])
            write_text(directory / "choices.txt", [preview.query])
            with open(directory / "submit.log", "wb") as log:
                # Whoever reads the log can tell by the lock whether it is still being written.
                fcntl.flock(log, fcntl.LOCK_EX)
                process = subprocess.Popen(
                    # BPS puts its submit directory where this variable says it is.
                    [
                        "env",
                        f"PWD={directory}",
                        Path(sys.executable).with_name("bps"),
                        "submit",
                        "portal.yaml",
                    ],
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        threading.Thread(target=process.wait, daemon=True).start()
        return name

    def read_launch(self, name: str) -> Launch:
        """Tell how far a launch is."""
        from ..demo.workplace import find_run

        log = self._directory / "launches" / name / "submit.log"
        if not _LAUNCH.fullmatch(name) or not log.is_file():
            raise RunNotFoundError(f"There is no launch {name[:80]!r}.")
        prepares = _is_locked(log)
        with open(log, "rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOG_BYTES))
            lines = stream.read().decode("utf-8", "replace").splitlines()
        run = int(find_run("\n".join(lines)) or 0)
        cause = "" if run or prepares else find_exception(lines) or "bps submit did not say why."
        query = (log.parent / "choices.txt").read_text(encoding="utf-8")
        return Launch(name, query, run, prepares and not run, cause, tuple(lines[-_LOG_LINES:]))


def _query(arguments: MultiDict[str, str]) -> str:
    """Return the query of an address as it came, but for blanks."""
    return urlencode(
        [(name, text[:_LONGEST_TEXT]) for name, text in arguments.items(multi=True) if text.strip()][:50]
    )


def _text(value: object) -> str:
    return "" if value is None else str(value)


@lru_cache(maxsize=64)
def _count(choices: Choices) -> Mapping[str, int]:
    from ..demo.repository import count_quanta

    return count_quanta(choices)


def _is_locked(log: Path) -> bool:
    """Tell whether somebody writes a log."""
    with open(log, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
