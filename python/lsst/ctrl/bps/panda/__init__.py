"""PanDA plugin of the LSST Batch Production Service (BPS)."""
