"""Configuration of the documentation: ``sphinx -W -n``, without a network."""

import sys
from importlib.metadata import version as _version_of
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parent)]

project = "lsst.ctrl.bps.panda"
copyright = "the developers of lsst-ctrl-bps-panda"
release = version = _version_of("lsst-ctrl-bps-panda")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "panda_keys",
    "panda_pictures",
    "sphinx_click",
]
exclude_patterns = ["_build", "changes"]
# The captions of this page, and not of the one above it, structure the navigation.
root_doc = "lsst.ctrl.bps.panda/index"
nitpicky = True
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
# A type is written as the reader says it, "str, optional"; only names in backticks are links.
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = f"lsst.ctrl.bps.panda {release}"
html_static_path = ["lsst.ctrl.bps.panda/_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False

# The build works without a network, so there is no inventory of other projects to link to.  What
# is ignored are their names, by pattern; a name of ours that does not resolve is an error.
nitpick_ignore_regex = [
    # Python's own: builtins, and modules of the standard library.
    (r"py:.*", r"(bool|bytes|bytearray|dict|float|frozenset|int|list|object|set|str|tuple|type)"),
    (r"py:.*", r"(None|True|False|NotImplemented|NotImplementedError|KeyboardInterrupt|SystemExit)"),
    (r"py:.*", r"[A-Z]\w*(Error|Exception|ExceptionGroup|Interrupt|Warning)"),
    (r"py:.*", r"(abc|argparse|collections|contextlib|datetime|enum|functools|http|io|json|logging)(\..*)?"),
    (r"py:.*", r"(os|pathlib|queue|re|select|signal|sqlite3|socket|subprocess|sys|threading|time)(\..*)?"),
    (r"py:.*", r"(types|typing|urllib|uuid|wsgiref|xml|random|string|shutil|tempfile|concurrent)(\..*)?"),
    # The packages we build on.
    (r"py:.*", r"lsst\.(ctrl\.bps(?!\.panda)|ctrl\.mpexec|daf|pex|pipe|resources|sphgeom|utils)(\..*)?"),
    (r"py:.*", r"(idds|requests|urllib3|click|numpy|astropy|matplotlib|sqlalchemy|waitress|flask)(\..*)?"),
]


def _resolve_bare_name(app, env, node, contnode):
    """Find a class or function of ours that is named without its module.

    A docstring says `WorkflowPlan`, as its reader does; the name is looked
    up among all that is documented, and must be there exactly once.
    """
    domain = env.get_domain("py")
    name = node.get("reftarget", "")
    ending = "." + name.lstrip(".")
    found = [full for full, entry in domain.objects.items() if full.endswith(ending) and not entry.aliased]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def setup(app):
    """Register the resolver."""
    app.connect("missing-reference", _resolve_bare_name)
