"""Images that arrive: which files are complete, and which groups of them."""

from __future__ import annotations

__all__ = ["Arrival", "Arrivals", "CollectionArrivals", "DirectoryArrivals", "ImageGroups", "LineArrivals"]

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from lsst.daf.butler import Butler, MissingCollectionError, MissingDatasetTypeError

from ..settings.prompt import PromptSection

_LOG = logging.getLogger(__name__)

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
COLLECTION_SECONDS = 0.5
"""Time between two questions for the datasets of a collection."""

RETRY_SECONDS = 1.0
"""Time after which a file that could not be opened is tried again, unless it has changed."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A group that is complete, or that waits no longer for the rest."""

    name: str
    inputs: tuple[str, ...]
    arrived: float


class Arrivals(Protocol):
    """What tells of groups as they arrive."""

    def poll(self) -> list[Arrival]:
        """Return the groups that have arrived since the last call."""

    @property
    def is_over(self) -> bool:
        """Whether nothing can arrive any more."""


@dataclass
class ImageGroups:
    """Puts images into groups."""

    images: int
    patience: float
    taken: set[str] = field(default_factory=set)
    """Names of groups that have arrived: one more image of such a group makes another one."""

    _waiting: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, group: str, image: str, at: float) -> None:
        """Note an image that is complete since a moment."""
        self._waiting.setdefault(_UNSAFE.sub("_", group), {})[image] = at

    def take(self, now: float, *, all_of_them: bool = False) -> list[Arrival]:
        """Take the groups that are complete, or whose patience is over."""
        ready = [
            name
            for name, images in self._waiting.items()
            if all_of_them or len(images) >= self.images or now - max(images.values()) >= self.patience
        ]
        return [self._take(name) for name in ready]

    def _take(self, group: str) -> Arrival:
        images = self._waiting.pop(group)
        name, number = group, 2
        while name in self.taken:
            name, number = f"{group}-{number}", number + 1
        self.taken.add(name)
        return Arrival(name, tuple(sorted(images)), max(images.values()))


@dataclass
class _Seen:
    """A file as it was seen last."""

    state: tuple[int, int]
    since: float
    tried: float = 0.0


class DirectoryArrivals:
    """Files in a directory.

    A file is complete if its size and time have not changed for a while, and if it can be opened whole.
    """

    is_over = False

    def __init__(
        self,
        section: PromptSection,
        groups: ImageGroups,
        known: Iterable[str],
        *,
        opens: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = os.path.abspath(section.directory)
        self._pattern = re.compile(section.pattern)
        self._settle = section.settle
        self._groups = groups
        self._opens = opens
        self._clock = clock
        self._known = {os.path.basename(path) for path in known}
        self._seen: dict[str, _Seen] = {}
        self._is_gone = False

    def poll(self) -> list[Arrival]:
        """Return the groups that have arrived since the last call."""
        now = self._clock()
        for name in self._list():
            if name not in self._known and (match := self._pattern.fullmatch(name)):
                path = os.path.join(self._directory, name)
                if (at := self._complete_since(name, path, now)) is not None:
                    self._known.add(name)
                    self._seen.pop(name, None)
                    self._groups.add(match["group"], path, at)
        return self._groups.take(now)

    def _list(self) -> list[str]:
        try:
            names = os.listdir(self._directory)
        except OSError as error:
            if not self._is_gone:
                _LOG.warning("%s cannot be looked into; this goes on when it can: %s", self._directory, error)
            self._is_gone = True
            return []
        self._is_gone = False
        return names

    def _complete_since(self, name: str, path: str, now: float) -> float | None:
        """Return when a file was last changed or renamed, once it is complete."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        state = (found.st_size, found.st_mtime_ns)
        seen = self._seen.get(name)
        if seen is None or seen.state != state:
            seen = self._seen[name] = _Seen(state, now)
        if now - seen.since < self._settle or now - seen.tried < RETRY_SECONDS:
            return None
        seen.tried = now
        if self._opens is not None:
            try:
                self._opens(path)
            except Exception as error:  # whatever the user's function raises
                _LOG.info("%s is not complete yet: %s", path, error)
                return None
        return found.st_ctime


class LineArrivals:
    """Paths of files on lines of a stream; a line says that the file is complete."""

    def __init__(
        self,
        section: PromptSection,
        groups: ImageGroups,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pattern = re.compile(section.pattern)
        self._groups = groups
        self._clock = clock
        self._lines: queue.SimpleQueue[tuple[str, float] | None] = queue.SimpleQueue()
        self.is_over = False
        threading.Thread(target=self._read, args=(stream,), daemon=True, name="lines").start()

    def _read(self, stream: TextIO) -> None:
        for line in stream:
            self._lines.put((line.strip(), self._clock()))
        self._lines.put(None)

    def poll(self) -> list[Arrival]:
        """Return the groups that have arrived since the last call."""
        while not self._lines.empty():
            item = self._lines.get()
            if item is None:
                self.is_over = True
            elif match := self._pattern.fullmatch(os.path.basename(item[0])):
                self._groups.add(match["group"], os.path.abspath(item[0]), item[1])
            elif item[0]:
                _LOG.warning("Line %r is no path of a file that prompt.pattern matches", item[0])
        return self._groups.take(self._clock(), all_of_them=self.is_over)


class CollectionArrivals:
    """Datasets that appear in a collection of a Butler."""

    is_over = False

    def __init__(
        self,
        section: PromptSection,
        groups: ImageGroups,
        known: Iterable[str],
        butler: Butler,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._section = section
        self._groups = groups
        self._known = set(known)
        self._butler = butler
        self._clock = clock
        self._asked = 0.0

    def poll(self) -> list[Arrival]:
        """Return the groups that have arrived since the last call."""
        now = self._clock()
        if now - self._asked >= COLLECTION_SECONDS:
            self._asked = now
            self._ask(now)
        return self._groups.take(now)

    def _ask(self, now: float) -> None:
        section = self._section
        try:
            found = self._butler.query_datasets(
                section.dataset_type, collections=section.collection, explain=False, limit=None
            )
        except (MissingCollectionError, MissingDatasetTypeError):
            # Whoever makes them is another process.
            self._butler.registry.refresh()
            return
        for ref in found:
            data_id = dict(ref.dataId.required)
            text = json.dumps(data_id, sort_keys=True)
            if text not in self._known:
                self._known.add(text)
                self._groups.add(str(ref.dataId[section.dimension]), text, now)
