"""The directive ``panda-keys``: all keys of the BPS configuration that the
plugin reads, from the table that it reads them by; with the argument ``rucio``,
those of that section.
"""

import sys

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from lsst.ctrl.bps.panda.settings.keys import KEYS, Key
from lsst.ctrl.bps.panda.settings.rucio import RUCIO_KEYS

_TABLES = {
    "": (KEYS, "lsst.ctrl.bps.panda.settings.keys"),
    "rucio": (RUCIO_KEYS, "lsst.ctrl.bps.panda.settings.rucio"),
}


def _literal(value: object) -> str:
    """Render a default as it would be written in YAML."""
    if value is None or value in ("", []):
        return "(none)"
    if isinstance(value, bool):
        return "``yes``" if value else "``no``"
    return f"``{value}``"


def render_key(key: Key) -> list[str]:
    """Render one key as an entry of a definition list."""
    meaning = key.meaning.replace("`", "``")
    where = "  Also for a label, site or cloud." if key.per_label else ""
    return [f"``{key.name}`` : {key.kind}, default {_literal(key.default)}", f"   {meaning}{where}", ""]


class PandaKeys(SphinxDirective):
    """Puts the keys in, in the order of the table or of the alphabet."""

    optional_arguments = 1
    option_spec = {"sorted": lambda argument: True}

    def run(self) -> list[nodes.Node]:
        """Make the definition list."""
        table, module = _TABLES["".join(self.arguments)]
        self.env.note_dependency(sys.modules[module].__file__)
        keys = sorted(table.values(), key=lambda key: key.name.lower()) if self.options else table.values()
        lines = [line for key in keys for line in render_key(key)]
        return self.parse_text_to_nodes(StringList(lines, source="keys.py"))


def setup(app):
    """Register the directive."""
    app.add_directive("panda-keys", PandaKeys)
    return {"parallel_read_safe": True, "version": "1"}
