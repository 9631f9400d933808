"""What campaigns and prompt processings keep on a user's machine, without running any."""

from __future__ import annotations

from pathlib import Path

from lsst.ctrl.bps.panda.campaign.record import CampaignIndex, CampaignRecord, PartRecord
from lsst.ctrl.bps.panda.prompt.catalog import Catalog, ProcessingIndex, StageTime
from lsst.ctrl.bps.panda.prompt.process import CATALOG_NAME, state_directory
from lsst.ctrl.bps.panda.runs.record import RunEntry


def _part(site: str, run: str, number: int | None) -> PartRecord:
    return PartRecord(
        site=site,
        compute_site=site,
        share=0.5,
        values=["1", "2"],
        file="/f",
        submit_path="/s",
        run=run,
        output_run="o",
        butler="b",
        state="submitted" if number else "prepared",
        request_id=number,
    )


def write_campaigns(state: Path, server: str, request_id: int, run: str, *, words: str = "") -> None:
    """Write a campaign with one run on a server, and one whose run is on another; ``state`` stands for
    ``XDG_STATE_HOME``, and ``words`` are a part of all names.
    """
    directory = state / "panda_bps"
    index = CampaignIndex(str(directory))
    for name, number in ((f"here{words}", request_id), ("elsewhere", request_id + 1)):
        home = state / name[:4]
        home.mkdir()
        record = CampaignRecord(
            name=name,
            directory=str(home),
            config="/c.yaml",
            digest="0",
            service_class="lsst.ctrl.bps.panda.PanDAService",
            partition="tract",
            prepared_at="2026-12-01T00:00:00+00:00",
            parts=[_part(f"A{words}", run, number), _part("B", "other", None)],
        )
        record.write()
        index.add(record)
    entry = RunEntry(request_id=request_id, server=server, submit_path="/s", name=run)
    with (directory / "runs.jsonl").open("a") as entries:
        entries.write(entry.model_dump_json() + "\n")


def write_night(state: Path, *, words: str = "") -> None:
    """Write what a processing keeps: two nights, with a group that failed, one that is late and one to do."""
    config = state / "night.yaml"
    section = "{directory: /in, ingest: os.listdir, collection: raws, deadline: 10}"
    config.write_text(f"wmsServiceClass: lsst.ctrl.bps.panda.PanDAService\nprompt: {section}\n")
    ProcessingIndex(str(state / "panda_bps")).add(config)
    directory = state_directory(config)
    directory.mkdir()
    catalog = Catalog(directory / CATALOG_NAME)
    groups = [("old", "1", 3.0), ("good", "2", 4.0), ("late", "2", 40.0), ("bad", "2", 5.0), ("new", "", 0.0)]
    for number, (kind, night, seconds) in enumerate(groups):
        name, arrived = f"{kind}{words}", 1000.0 + number
        catalog.add(name, ["a"], arrived)
        if seconds:
            ends = {"state": "failed", "error": f"no {words}"} if kind == "bad" else {"state": "done"}
            catalog.update(name, chain=f"u/n/{night}", run="r", attempt=1, ended=arrived + seconds, **ends)
            catalog.note([StageTime(name, 1, "isr", arrived + 1, arrived + seconds)])
    catalog.close()
