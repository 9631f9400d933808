"""Version of the package."""

__all__ = ["__version__"]

__version__ = "31.0.0"
