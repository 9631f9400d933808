"""Run the demo's command: ``python -m lsst.ctrl.bps.panda.demo``."""

from lsst.ctrl.bps.panda.demo.command import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
