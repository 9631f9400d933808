"""The documentation, held to the code.

Sphinx checks its own syntax and references (``bin/run-tests`` builds with
``-W -n``); here is what it cannot know: that what is said exists.
"""

from __future__ import annotations

import ast
import configparser
import fnmatch
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from panda_documentation.pages import CHECKOUT, DOC, MARKDOWN, PAGES, RST, table

from lsst.ctrl.bps.panda import errors
from lsst.ctrl.bps.panda.campaign.record import RECORD_NAME as CAMPAIGN_NAME
from lsst.ctrl.bps.panda.edgenode.cmd_line_decoder import ATTEMPTS_FOLDER
from lsst.ctrl.bps.panda.runs.files import (
    PARAMETERS_DIRECTORY,
    PLAN_NAME,
    RECORD_NAME,
    REGISTRATION_NAME,
    REST_NAME,
    STAGES_NAME,
)
from lsst.ctrl.bps.panda.runs.record import RunRecord
from lsst.ctrl.bps.panda.settings.bps_command import LOG_NAME
from lsst.ctrl.bps.panda.settings.keys import KEYS
from lsst.ctrl.bps.panda.settings.sites import site_names
from lsst.ctrl.bps.panda.staging.sources import CANCELLED, MANIFEST_NAME, PARTIAL_NAME, TEMPORARY_FOLDER

PACKAGE = CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"

WORDS = (
    "quantum", "job", "label", "task", "chunk", "work", "transform", "request", "request_id",
    "workload_id", "pseudo-input", "payload", "PanDA job", "queue", "site", "cloud", "staging area",
    "runner", "relay", "sink",
)  # fmt: skip


# --- pages and links --------------------------------------------------------


def toctree_entries(page: Path) -> Iterator[str]:
    """Yield what the toctrees of a page list, relative to its folder."""
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith(".. toctree::"):
            inside = True
        elif inside and line.startswith("   "):
            if not line.strip().startswith(":") and line.strip():
                yield line.strip()
        elif line.strip():
            inside = False


def test_every_page_is_in_a_toctree():
    listed = {DOC / "index.rst"}
    for page in RST:
        for entry in toctree_entries(page):
            pattern = str(page.parent / entry) + ".rst"
            listed |= {other for other in RST if fnmatch.fnmatchcase(str(other), pattern)}
    assert sorted(set(RST) - listed) == []


@pytest.mark.parametrize("page", RST, ids=lambda page: page.name)
def test_pages_that_are_referred_to_exist(page):
    missing = []
    for target in re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", page.read_text(encoding="utf-8")):
        if not (page.parent / f"{target}.rst").is_file():
            missing.append(target)
    for target in re.findall(r"\.\. (?:image|figure|literalinclude|include):: (\S+)", page.read_text()):
        if not (page.parent / target).is_file():
            missing.append(target)
    assert missing == []


@pytest.mark.parametrize("page", RST, ids=lambda page: page.name)
def test_no_row_of_a_table_is_torn(page):
    """In a simple table, a line that has something in the first column begins
    a new row, so a first cell cannot go on in the next line.
    """
    torn, second, inside = [], 0, False
    lines = page.read_text(encoding="utf-8").splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if rule := re.fullmatch(r"(=+ +)=[= ]*", line):
            second, inside = rule.end(1), bool(following.strip())
        elif inside and line[:1].strip() and not line[second:].strip():
            torn.append(line)
    assert torn == []


@pytest.mark.parametrize("page", [*MARKDOWN, DOC / "changes" / "README.md"], ids=lambda page: page.name)
def test_links_of_markdown_pages_resolve(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [name for name in targets if "://" not in name and not (page.parent / name).exists()]
    assert missing == []


def test_files_named_by_the_readme_exist():
    for name in re.findall(r"\bbin/[\w-]+", (CHECKOUT / "README.md").read_text(encoding="utf-8")):
        path = CHECKOUT / name
        assert path.is_file(), name
        assert path.stat().st_mode & 0o111, name


def test_each_picture_of_a_run_is_shown():
    """The build makes them, and refuses a name that it does not make."""
    shown = {name for page in RST for name in re.findall(r"\.\. panda-picture:: (\S+)", page.read_text())}
    (names,) = re.findall(
        r"^NAMES = (\(.*?\))$", (DOC / "pictures.py").read_text(encoding="utf-8"), re.M | re.S
    )
    assert shown == set(ast.literal_eval(names))


def test_the_picture_of_the_readme_is_small():
    (name,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (CHECKOUT / "README.md").read_text(encoding="utf-8"))
    assert (CHECKOUT / name).stat().st_size < 150_000


# --- what must be said ------------------------------------------------------


def error_classes() -> list[str]:
    """Return the names of all classes in the hierarchy of errors."""
    return sorted(
        name
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.PandaBpsError)
    )


@pytest.mark.parametrize("name", error_classes())
def test_each_error_is_explained(name):
    text = (PAGES / "troubleshooting.rst").read_text(encoding="utf-8")
    section = re.search(rf"^`{name}`\n-+\n\n(.+?)(?=\n`\w+`\n-+\n|\n\S.*\n=+\n|\Z)", text, re.M | re.S)
    assert section, f"troubleshooting.rst has no section `{name}`"
    assert len(section[1].split()) >= 8, "say what it means and what to do"


def test_no_error_is_explained_that_does_not_exist():
    text = (PAGES / "troubleshooting.rst").read_text(encoding="utf-8")
    assert set(re.findall(r"^`(\w+Error)`\n-+\n", text, re.M)) == set(error_classes())


@pytest.mark.parametrize("word", WORDS)
def test_each_word_is_in_the_glossary(word):
    text = (PAGES / "glossary.rst").read_text(encoding="utf-8")
    assert re.search(rf"^   {re.escape(word)}$", text, re.M)


def glossary() -> list[str]:
    """Return the words that the glossary explains."""
    text = (PAGES / "glossary.rst").read_text(encoding="utf-8")
    entries = text[text.index(".. glossary::") : text.index("\nSame word, other meaning\n")]
    return re.findall(r"^   ([^ :].*)$", entries, re.M)


@pytest.mark.parametrize("word", glossary())
def test_each_word_of_the_glossary_is_used(word):
    others = [page.read_text(encoding="utf-8") for page in RST if page.name != "glossary.rst"]
    assert any(re.search(rf"\b{re.escape(word)}", text, re.I) for text in others)


RELAY = "rest/relay.py", {"call", "_ask", "_submit"}
API = "rest/panda_api.py", {"_get_rows"}


def asked(source: str, methods: set[str]) -> set[str]:
    """Return what a module asks a server: first arguments of some calls."""
    tree = ast.parse((PACKAGE / source).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    return {
        str(node.args[0].value)
        for node in calls
        if isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
        and isinstance(node.args[0], ast.Constant)
    }


@pytest.mark.parametrize(("source", "methods"), [RELAY, API, ("runs/submit.py", {"call"})])
def test_the_page_of_the_protocol_has_each_call(source, methods):
    text = (PAGES / "protocol.rst").read_text(encoding="utf-8")
    found = asked(source, methods)
    assert found
    assert {name for name in found if f"``{name}``" not in text} == set()


def test_the_page_of_files_has_each_name():
    text = (PAGES / "files.rst").read_text(encoding="utf-8")
    staged = (MANIFEST_NAME, PARTIAL_NAME, TEMPORARY_FOLDER, CANCELLED, f"{ATTEMPTS_FOLDER}/")
    own = (PLAN_NAME, RECORD_NAME, CAMPAIGN_NAME, REGISTRATION_NAME, f"{PARAMETERS_DIRECTORY}/")
    own += (STAGES_NAME, REST_NAME)
    names = (*own, LOG_NAME, *staged, KEYS["orderIdMapFilename"].default)
    assert [name for name in names if f"``{name}``" not in text] == []


def test_the_page_of_files_has_each_key_of_a_record():
    keys = {row[0].strip("`") for row in table("files", "key                meaning")}
    assert set(RunRecord.model_fields) - {"format"} == keys


def test_each_environment_variable_is_documented():
    """The variables of PanDA's world that the submit side reads, found in the source."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in {"edgenode", "local", "demo"}:
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r"[\"']((?:PANDA|PANDACACHE|OIDC|X509)_[A-Z0-9_]*[A-Z0-9])[\"']", text))
    assert len(found) > 5
    pages = "".join(page.read_text(encoding="utf-8") for page in RST)
    assert {name for name in found if f"``{name}``" not in pages} == set()


def test_each_setting_is_on_the_page_of_settings():
    """The page is made from the table; what matters is that it still is."""
    assert re.search(r"^\.\. panda-keys::", (PAGES / "settings.rst").read_text(encoding="utf-8"), re.M)
    for key in KEYS.values():
        assert key.meaning.endswith("."), key.name


def test_each_extra_is_documented():
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    documented = {row[0].strip("`") for row in table("install", "extra        what it adds")}
    assert documented == {*parser["options.extras_require"], "(none)"}


def test_each_site_with_a_profile_is_documented():
    text = (PAGES / "sites.rst").read_text(encoding="utf-8")
    assert [name for name in site_names() if not re.search(rf"^``{name}``", text, re.M)] == []


# --- change notes -----------------------------------------------------------

FRAGMENTS = sorted(path for path in (DOC / "changes").iterdir() if path.name != "README.md")


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda fragment: fragment.name)
def test_change_notes_are_well_formed(fragment):
    with open(CHECKOUT / "pyproject.toml", "rb") as stream:
        kinds = [entry["directory"] for entry in tomllib.load(stream)["tool"]["towncrier"]["type"]]
    assert re.fullmatch(rf"[a-z0-9][a-z0-9-]*\.({'|'.join(kinds)})\.md", fragment.name)
    text = fragment.read_text(encoding="utf-8").strip()
    assert text, "a change note says what changed"
    assert text[-1] in ".:`)", "a change note is made of full sentences"
