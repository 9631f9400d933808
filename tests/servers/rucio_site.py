"""A data facility in a folder: a small Butler below an RSE of a Rucio server."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from lsst.daf.butler import Butler, DatasetType

from lsst.ctrl.bps.panda.edgenode import rucio_program as program
from lsst.ctrl.bps.panda.edgenode.rucio_program import Registration, RuleWanted

PROGRAM = Path(program.__file__)


class RucioSite:
    """A Butler whose files lie in the folder of a scope, below an RSE.

    Parameters
    ----------
    server : `panda_servers.rucio.RucioServer`
        Where the RSE is entered.
    folder : `pathlib.Path`
        Folder of the RSE, in which the Butler is made.
    scope, rse : `str`
        Their names; both are new.
    """

    def __init__(self, server, folder: Path, *, scope: str, rse: str) -> None:
        self.server = server
        self.folder = folder
        self.scope = scope
        self.rse = rse
        self.repo = folder / scope
        server.add_scope(scope)
        server.add_rse(rse, folder)
        Butler.makeRepo(str(self.repo))
        with Butler.from_config(str(self.repo), writeable=True) as butler:
            butler.registry.insertDimensionData("instrument", {"name": "Cam", "detector_max": 100})
            for detector in range(10):
                butler.registry.insertDimensionData(
                    "detector", {"instrument": "Cam", "id": detector, "full_name": f"d{detector}"}
                )
            for name in ("image", "table", "scratch"):
                kind = DatasetType(
                    name, ("instrument", "detector"), "StructuredDataDict", universe=butler.dimensions
                )
                butler.registry.registerDatasetType(kind)

    def fill(self, collection: str, dataset_type: str, detectors) -> list[Path]:
        """Put datasets into a collection; where their files are."""
        with Butler.from_config(str(self.repo), writeable=True) as butler:
            butler.collections.register(collection)
            refs = [
                butler.put(
                    {"of": [dataset_type, detector]},
                    dataset_type,
                    instrument="Cam",
                    detector=detector,
                    run=collection,
                )
                for detector in detectors
            ]
            return [Path(butler.getURI(ref).ospath) for ref in refs]

    def registration(self, collection: str, **changes) -> Registration:
        """Say what is to be registered of a run."""
        registration = Registration(
            butler=str(self.repo),
            collection=collection,
            dataset_types=("image", "table"),
            scope=self.scope,
            dataset=collection,
            rse=self.rse,
            rse_root=str(self.folder),
            dtn_url=self.server.transfer_url(self.folder),
            chunk=3,
        )
        return replace(registration, **changes)

    def register(self, registration: Registration, *arguments: str, account: str = "root"):
        """Run the program of the step as a worker would, and return the
        finished process.
        """
        path = self.folder / "registration.json"
        path.write_text(registration.to_json())
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("RUCIO_", "PYTHON"))
        }
        return subprocess.run(
            [str(self.server.worker_python), str(PROGRAM), str(path), *arguments],
            env={**environment, **self.server.client_environment(account)},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def names(self, dataset: str) -> set[str]:
        """Return the names of the files in a dataset of Rucio."""
        return {entry["name"] for entry in self.server.client().list_files(self.scope, dataset)}


def rule_for(rse: str, **changes) -> RuleWanted:
    """Say which rule is wanted."""
    return replace(RuleWanted(rse), **changes)
