"""The directive ``panda-picture``: a picture of a run of the demo, made by
``doc/pictures.py`` before the pages are read.

Pictures are kept in ``_build/pictures`` with a digest of the sources that they
show, and made again when it differs.  ``-D panda_pictures=0`` makes none.
Where they cannot be made, the build says why on standard error.
"""

import hashlib
import sys
from pathlib import Path

import pictures
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

_FOLDER = Path("_build", "pictures")
_SOURCES = ("*.py", "*.yaml", "*.html", "*.css", "*.js")


def _digest() -> str:
    """Return the digest of the package and of what draws its pictures."""
    package = pictures.DOC.parent / "python"
    found = sorted(path for pattern in _SOURCES for path in package.rglob(pattern))
    digest = hashlib.sha256(str(pictures.browser_programs()).encode())
    for path in (*found, Path(pictures.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def make_pictures(app) -> None:
    """Make the pictures unless those of these sources are there."""
    folder, digest = app.srcdir / _FOLDER, _digest()
    mark = folder / "digest"
    if app.builder.format != "html" or (mark.exists() and mark.read_text() == digest):
        return
    for path in folder.glob("*"):
        path.unlink()
    if not app.config.panda_pictures:
        return
    try:
        missing = pictures.make_pictures(folder)
    except pictures.PictureError as error:
        missing = [str(error)]
    else:
        mark.write_text(digest)
    for reason in missing:
        sys.stderr.write(f"pictures: {reason}\n")


class PandaPicture(SphinxDirective):
    """Shows a picture by its file name, or says how to get it."""

    required_arguments = 1
    option_spec = {"alt": directives.unchanged_required, "width": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Make the image."""
        path = _FOLDER / self.arguments[0]
        whole = self.env.srcdir / path
        self.env.note_dependency(str(whole))
        alt, width = self.options["alt"], self.options.get("width", "100%")
        if whole.exists():
            return [nodes.image("", uri=f"/{path.as_posix()}", alt=alt, width=width)]
        if whole.name not in pictures.NAMES:
            raise self.error(f"doc/pictures.py makes no picture {whole.name}")
        text = f"(No picture in this build of the pages: {alt})"
        return [nodes.paragraph("", "", nodes.emphasis(text, text))]


def setup(app):
    """Register the directive, and the making of the pictures."""
    app.add_config_value("panda_pictures", True, "")
    app.add_directive("panda-picture", PandaPicture)
    app.connect("builder-inited", make_pictures)
    return {"parallel_read_safe": True, "version": "1"}
