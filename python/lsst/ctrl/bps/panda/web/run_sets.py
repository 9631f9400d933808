"""The live pages of sets of runs: campaigns, whose runs are at several sites, and prompt processings,
which start a run for each group of images; and the documents behind them.
"""

from __future__ import annotations

__all__ = ["RunSets"]

from collections.abc import Callable, Sequence
from typing import Any

import flask

from ..campaign.runs import make_campaign_document, make_list_document
from ..insight.documents import make_document, make_plain
from .looks import Looks, Sight
from .page import COLUMNS, STEP, count_states, find_shares, render, share_ended

Reply = Callable[[Sequence[Sight[Any] | None], Callable[[Any], str]], flask.Response]
"""Replies with a page of some sights."""


class RunSets:
    """The pages of the campaigns and the prompt processings of one user."""

    def __init__(self, looks: Looks, reply: Reply) -> None:
        self._looks, self._reply = looks, reply

    @property
    def rules(self) -> tuple[tuple[str, Callable[..., Any]], ...]:
        """The addresses, and what is there."""
        return (
            ("/campaigns/", self.campaigns),
            ("/campaigns/<key>/", self.campaign),
            ("/prompt/", self.processings),
            ("/prompt/<key>/", self.night),
            ("/api/campaigns", self.campaigns_document),
            ("/api/campaigns/<key>", self.campaign_document),
            ("/api/prompt", self.processings_document),
            ("/api/prompt/<key>", self.processing_document),
        )

    def campaigns(self) -> flask.Response:
        """Show the user's campaigns."""
        sight = self._looks.campaigns().see()
        return self._reply(
            [sight], lambda live: str(render("campaigns.html", live=live, campaigns=sight.value))
        )

    def campaign(self, key: str) -> flask.Response:
        """Show a campaign: its sites side by side."""
        sight = self._looks.campaign(key).see()
        found = sight.value

        def make(live: object) -> str:
            values = {
                "campaign": found,
                "columns": COLUMNS,
                "total": count_states(found.total),
                "total_bar": find_shares(found.total),
                "sites": [(site, count_states(site.total), find_shares(site.total)) for site in found.sites],
                "labels": {
                    label: [share_ended(site.labels.get(label)) for site in found.sites]
                    for label in found.labels
                },
            }
            return str(render("campaign.html", live=live, key=key, **values))

        return self._reply([sight], make)

    def processings(self) -> flask.Response:
        """Show the user's prompt processings."""
        sight = self._looks.processings().see()
        return self._reply(
            [sight], lambda live: str(render("prompt.html", live=live, processings=sight.value))
        )

    def night(self, key: str) -> flask.Response:
        """Show a night of a prompt processing, by default the newest."""
        wanted = flask.request.args.get("night", "")
        first = max(0, flask.request.args.get("first", 0, type=int))
        if not wanted:
            wanted = next(iter(self._looks.processing(key).see().value.state.nights), "")
        sight = self._looks.processing(key, wanted).see()
        found = sight.value
        groups = found.state.report.groups[::-1]

        def make(live: object) -> str:
            return str(
                render(
                    "night.html",
                    live=live,
                    key=key,
                    found=found,
                    state=found.state,
                    night=wanted,
                    groups=groups[first : first + STEP],
                    first=first,
                    step=STEP,
                    total=len(groups),
                    now=sight.at,
                )
            )

        return self._reply([sight], make)

    def campaigns_document(self) -> dict[str, Any]:
        """Return the list of campaigns, as ``panda_bps campaign list --json`` has it."""
        return make_list_document(self._looks.campaigns().see().value)

    def campaign_document(self, key: str) -> dict[str, Any]:
        """Return a campaign, as ``panda_bps campaign report --json`` has it."""
        return make_campaign_document(self._looks.campaign(key).see().value)

    def processings_document(self) -> dict[str, Any]:
        """Return the list of prompt processings."""
        found = [{"key": e.key, "config": e.config} for e in self._looks.processings().see().value]
        return make_document({"processings": found}, request_id=0, kind="prompts")

    def processing_document(self, key: str) -> dict[str, Any]:
        """Return a prompt processing, as ``panda_bps prompt report --json`` has it, or one of its nights."""
        found = self._looks.processing(key, flask.request.args.get("night", "")).see().value
        return make_document(make_plain(found.state.report), request_id=0, name=found.name, kind="prompt")
