"""The directive ``panda-keys``: all keys of the BPS configuration that the
plugin reads, from the models that it reads them by; with the name of a section
(``rucio``, ``remoteBuild``, ``queues``, ``prompt``), those of that one, with ``bps`` keys of
BPS itself.
"""

import sys
from enum import Enum

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from lsst.ctrl.bps.panda.settings.keys import CORE_KEYS, KEYS, Key, keys_of
from lsst.ctrl.bps.panda.settings.prompt import PromptSection
from lsst.ctrl.bps.panda.settings.remote import RemoteBuildSection
from lsst.ctrl.bps.panda.settings.rucio import RucioSection, RuleSection
from lsst.ctrl.bps.panda.settings.sites import QueueLimits

_RULE = {f"rule.{name}": key for name, key in keys_of(RuleSection).items()}

_TABLES = {
    "": KEYS,
    "bps": CORE_KEYS,
    "queues": keys_of(QueueLimits),
    "prompt": keys_of(PromptSection),
    "remoteBuild": keys_of(RemoteBuildSection),
    "rucio": {**keys_of(RucioSection), **_RULE},
}


def _literal(value: object) -> str:
    """Render a default as it would be written in YAML."""
    if value is None or value in ("", [], {}):
        return "(none)"
    if isinstance(value, bool):
        return "``yes``" if value else "``no``"
    if isinstance(value, Enum):
        return f"``{value.value}``"
    return f"``{value}``"


def render_key(name: str, key: Key) -> list[str]:
    """Render one key as an entry of a definition list."""
    meaning = key.meaning.replace("`", "``")
    where = "  Also for a label, site or cloud." if key.per_label else ""
    kind = f"{key.kind.name}, {key.kind.unit}" if key.kind.unit else key.kind.name
    return [f"``{name}`` : {kind}, default {_literal(key.default)}", f"   {meaning}{where}", ""]


class PandaKeys(SphinxDirective):
    """Puts the keys in, in the order of the model or of the alphabet."""

    optional_arguments = 1
    option_spec = {"sorted": lambda argument: True}

    def run(self) -> list[nodes.Node]:
        """Make the definition list."""
        keys = _TABLES["".join(self.arguments)]
        for key in keys.values():
            self.env.note_dependency(sys.modules[key.model.__module__].__file__)
        names = sorted(keys, key=str.lower) if self.options else keys
        lines = [line for name in names for line in render_key(name, keys[name])]
        return self.parse_text_to_nodes(StringList(lines, source="keys.py"))


def setup(app):
    """Register the directive."""
    app.add_directive("panda-keys", PandaKeys)
    return {"parallel_read_safe": True, "version": "1"}
