"""The commands: the only part of the package that prints."""

from __future__ import annotations

__all__ = ["INTERRUPTED"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C has ended: 128 and the number of the signal, as a shell has it."""
