"""The plugin's package under a second name, by which the console commands start.

Python imports ``lsst.ctrl.bps`` before anything below it, which takes more than a second of CPU.  Help and
completion need nothing of it: under this name they are found without it, and a command imports the rest
under its own name when it runs.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent / "lsst" / "ctrl" / "bps" / "panda")]
