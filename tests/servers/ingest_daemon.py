"""A stand-in for Rubin's ctrl_ingestd, which enters files that Rucio has
brought to a site into the Butler there.

What is the same: the file's metadata ``rubin_butler`` and ``rubin_sidecar``
say what it is (the latter is a ``DatasetRef`` as JSON), its place below the
RSE's folder is where the Butler finds it, dataset types and run collections
that the Butler does not know are registered, datasets that it has are left
out, and the Butler's own ``ingest`` does the rest.

What is not: the real one is a daemon that is told of each file by a message
(Rucio's event of a finished transfer, which another daemon, hermesK, passes on
through Kafka); this one is called, and asks Rucio which files of a dataset are
at the RSE.  Dimension records are not brought along: the receiving Butler has
to know visits and tracts already.  Raw images, zip files and dimension files
are left out.
"""

from __future__ import annotations

from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, FileDataset

DATA_PRODUCT = "data_product"


class IngestDaemon:
    """Enters what has come to one RSE into the Butler of its site.

    Parameters
    ----------
    client : `rucio.client.Client`
        Rucio.
    repo : `pathlib.Path`
        The Butler.
    rse : `str`
        The RSE.
    folder : `pathlib.Path`
        Its folder, in which a folder of the scope's name lies.
    """

    def __init__(self, client, repo: Path, *, rse: str, folder: Path) -> None:
        self._client = client
        self._repo = repo
        self._rse = rse
        self._folder = folder

    def ingest(self, scope: str, dataset: str) -> list[DatasetRef]:
        """Enter what has come of a dataset of Rucio.

        Parameters
        ----------
        scope, dataset : `str`
            The dataset.

        Returns
        -------
        refs : `list` [`lsst.daf.butler.DatasetRef`]
            What was entered; what the Butler had is left out.
        """
        arrived = self._arrived(scope, dataset)
        with Butler.from_config(str(self._repo), writeable=True) as butler:
            files = []
            for path, sidecar in arrived:
                ref = DatasetRef.from_json(sidecar, universe=butler.dimensions)
                if butler.get_dataset(ref.id) is None:
                    files.append(FileDataset(path=str(path), refs=[ref]))
            refs = [ref for file in files for ref in file.refs]
            for kind in sorted({ref.datasetType for ref in refs}):
                butler.registry.registerDatasetType(kind)
            for run in sorted({ref.run for ref in refs}):
                butler.collections.register(run)
            butler.ingest(*files, transfer="auto")
        return refs

    def _arrived(self, scope: str, dataset: str) -> list[tuple[Path, str]]:
        """Return the files that are at the RSE, with what they are."""
        found = []
        for replica in self._client.list_replicas([{"scope": scope, "name": dataset}], all_states=True):
            if replica["states"].get(self._rse) != "AVAILABLE":
                continue
            metadata = self._client.get_metadata(scope, replica["name"], plugin="ALL")
            if metadata.get("rubin_butler") == DATA_PRODUCT:
                found.append((self._folder / scope / replica["name"], metadata["rubin_sidecar"]))
        return found
