"""Repairs of how iDDS stores what PanDA's messages say about jobs: the newest
news counts, and a job that has finished stays finished.
"""

from __future__ import annotations

__all__ = ["REPAIRS", "newest_news"]

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..pace import Pace
from .record import Repair, module

_CONTENTS = "idds.orm.contents"
_AT_ONCE = 500
"""Ids in a statement; databases limit that."""


def newest_news(
    news: Iterable[Mapping[str, Any]],
    *,
    waiting: Mapping[int, Mapping[str, Any]],
    available: Collection[int],
    good: object,
) -> list[dict[str, Any]]:
    """Choose what of some news about contents is to be stored.

    Parameters
    ----------
    news : `~collections.abc.Iterable` [`~collections.abc.Mapping`]
        With ``content_id``, ``substatus`` and maybe ``content_metadata``, the
        oldest first.
    waiting : `~collections.abc.Mapping`
        News that are stored and not taken up yet, by content.
    available : `~collections.abc.Collection` [`int`]
        Contents that are available.
    good : object
        The state of an available content.

    Returns
    -------
    chosen : `list` [`dict`]
        At most one a content; it replaces what waits.
    """
    chosen: dict[int, dict[str, Any]] = {}
    for item in news:
        content_id = item["content_id"]
        before: Mapping[str, Any] = chosen.get(content_id) or waiting.get(content_id) or {}
        if item["substatus"] != good and (content_id in available or before.get("substatus") == good):
            # Late, or told again after a restart.
            continue
        chosen[content_id] = dict(item)
        # The job's id comes with the first news of it only.
        if metadata := item.get("content_metadata") or before.get("content_metadata"):
            chosen[content_id]["content_metadata"] = metadata
    return list(chosen.values())


def _keep_newest_news(pace: Pace) -> None:
    contents, models = module(_CONTENTS), module("idds.orm.base.models")
    good = module("idds.common.constants").ContentStatus.Available
    stock, update, content = contents.add_contents_update, models.Content_update, models.Content

    def look(ids: list[int], session: Any) -> tuple[dict[int, dict[str, Any]], set[int]]:
        waiting: dict[int, dict[str, Any]] = {}
        available: set[int] = set()
        columns = (update.content_id, update.substatus, update.content_metadata)
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            for row in session.query(*columns).filter(update.content_id.in_(some)):
                waiting[row[0]] = {"substatus": row[1], "content_metadata": row[2]}
            done = session.query(content.content_id).filter(content.content_id.in_(some))
            available.update(row[0] for row in done.filter(content.substatus == good))
        return waiting, available

    def add(news: list[dict[str, Any]], bulk_size: int = 10000, session: Any = None) -> Any:
        waiting, available = look(sorted({item["content_id"] for item in news}), session)
        chosen = newest_news(news, waiting=waiting, available=available, good=good)
        replaced = [item["content_id"] for item in chosen if item["content_id"] in waiting]
        for start in range(0, len(replaced), _AT_ONCE):
            some = replaced[start : start + _AT_ONCE]
            session.query(update).filter(update.content_id.in_(some)).delete(synchronize_session=False)
        return stock(chosen, bulk_size=bulk_size, session=session)

    contents.add_contents_update = module("idds.orm.base.session").transactional_session(add)


REPAIRS = (
    Repair(
        "lost and late news of jobs",
        "of two news about a job the first is kept until it is taken up, and the second ignored; and news "
        "that a job is ready are taken for true when it has finished, as when messages come again after a "
        "restart",
        "a job that is ready and finished within a moment, or has finished before a restart, is taken for "
        "one that waits until it is polled, and if its task ends meanwhile, for ever: what depends on it "
        "never starts",
        (
            f"{_CONTENTS}:add_contents_update",
            "idds.orm.base.models:Content_update.content_metadata",
            "idds.orm.base.models:Content.substatus",
        ),
        _keep_newest_news,
    ),
)
