"""Serve Rucio on loopback: a program for the environment of the Rucio server.

``python -P rucio_program.py PORT``, with the server's configuration named by
``RUCIO_CONFIG``.  (Without ``-P`` Python would take the file ``rucio.py`` next
to this one for the package.)  It makes the tables, the base VO and the root
account where the database is empty.
"""

import sys
import warnings

warnings.filterwarnings("ignore")

from rucio.db.sqla import models, util  # noqa: E402
from rucio.db.sqla.session import get_engine  # noqa: E402
from sqlalchemy import inspect  # noqa: E402

# Rucio says that SQLite has no JSON, and then cannot keep metadata; its own queries work there.
util.json_implemented = lambda **_: True
engine = get_engine()
if not inspect(engine).has_table("accounts"):
    models.register_models(engine)
    util.create_base_vo()
    util.create_root_account()

# The database has to be there, and the word about JSON given, when the application is imported.
from rucio.web.rest.flaskapi.v1.main import application  # noqa: E402
from waitress import serve  # noqa: E402

serve(application, host="127.0.0.1", port=int(sys.argv[1]), threads=8)
