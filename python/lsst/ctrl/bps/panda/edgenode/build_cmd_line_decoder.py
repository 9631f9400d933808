#!/usr/bin/env python3
"""The command of the task of a remote build, on the worker::

    python3 build_cmd_line_decoder.py ARCHIVE CONFIGURATION [SITE]

``ARCHIVE``        URL of an archive ``jobO.*.tar.gz`` in PanDA's file cache
``CONFIGURATION``  name of the BPS configuration in it
``SITE``           compute site, as ``bps submit --compute-site`` has it

It makes a plan with BPS, so this plugin has to be installed at the site.
"""

__all__ = ["main"]

import importlib
import os
import sys

# By name: this file has to start, and to give its message, where the plugin is not installed.
_PROGRAM = "lsst.ctrl.bps.panda.remote.site"


def main() -> int:
    """Build the run; the exit code."""
    try:
        build = importlib.import_module(_PROGRAM).main
    except ImportError as error:
        sys.stderr.write(
            "a remote build needs lsst.ctrl.bps.panda at the site (%s); %s does not have it: set up "
            "lsst_distrib, or what has it, in setupLSSTEnv or custom_lsst_setup\n" % (error, sys.executable)
        )
        return 1
    return int(build(sys.argv[1:], os.environ))


if __name__ == "__main__":
    if os.path.dirname(os.path.abspath(__file__)) == os.path.abspath(sys.path[0]):
        # What lies beside this file is not meant to be imported by its name.
        del sys.path[0]
    sys.exit(main())
