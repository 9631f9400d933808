"""Version of the package, and of BPS."""

__all__ = ["__version__", "bps_version"]

from importlib.metadata import PackageNotFoundError, version

__version__ = "31.0.0"


def bps_version() -> str:
    """Version of ``lsst.ctrl.bps``; empty in a checkout without metadata."""
    try:
        return version("lsst-ctrl-bps")
    except PackageNotFoundError:
        return ""
