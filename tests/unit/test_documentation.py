"""The documentation, held to the code.

Sphinx checks its own syntax and references (``bin/run-tests`` builds with
``-W -n``); here is what it cannot know: that what is said exists.
"""

from __future__ import annotations

import ast
import configparser
import fnmatch
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml

from lsst.ctrl.bps.panda import errors
from lsst.ctrl.bps.panda.keys import KEYS
from lsst.ctrl.bps.panda.sites import site_names
from lsst.ctrl.bps.panda.spelling import closest_key

CHECKOUT = Path(__file__).resolve().parents[2]
DOC = CHECKOUT / "doc"
PAGES = DOC / "lsst.ctrl.bps.panda"
RST = sorted(DOC.rglob("*.rst"))
MARKDOWN = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"]
EACH_PAGE = pytest.mark.parametrize("page", [*RST, *MARKDOWN], ids=lambda page: page.name)

WORDS = (
    "quantum", "job", "label", "task", "chunk", "work", "transform", "request", "request_id",
    "workload_id", "pseudo-input", "payload", "PanDA job", "queue", "site", "cloud", "staging area",
    "runner", "relay", "sink",
)  # fmt: skip


def console_scripts() -> dict[str, str]:
    """Return our commands and what they start, from the metadata."""
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg")
    lines = parser["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): target.strip() for name, _, target in (line.partition("=") for line in lines)}


PROGRAMS = {
    "bps": "lsst.ctrl.bps.cli.bps:cli",
    "python -m lsst.ctrl.bps.panda.demo": "lsst.ctrl.bps.panda.demo.__main__:main",
    **console_scripts(),
}


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


def environment_variables() -> list[str]:
    """Return the variables of PanDA's world that the submit side reads, found
    in the source.
    """
    package = CHECKOUT / "python" / "lsst" / "ctrl" / "bps" / "panda"
    found = set()
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in {"edgenode", "local", "demo"}:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"^(?:PANDA|PANDACACHE|OIDC|X509)_[A-Z0-9_]+$", node.value))
    return sorted(found)


@pytest.mark.parametrize("name", environment_variables())
def test_each_environment_variable_is_documented(name):
    assert any(f"``{name}``" in page.read_text(encoding="utf-8") for page in RST)


def test_each_setting_is_on_the_page_of_settings():
    """The page is made from the table; what matters is that it still is."""
    assert re.search(r"^\.\. panda-keys::", (PAGES / "settings.rst").read_text(encoding="utf-8"), re.M)
    for key in KEYS.values():
        assert key.meaning.endswith("."), key.name


def test_each_site_with_a_profile_is_documented():
    text = (PAGES / "sites.rst").read_text(encoding="utf-8")
    assert [name for name in site_names() if not re.search(rf"^``{name}``", text, re.M)] == []


def test_keys_in_yaml_examples_are_known():
    """A key of ours that is misspelt in an example has no effect."""
    for page in (*RST, *MARKDOWN):
        for block in blocks(page, "yaml"):
            for name in yaml.safe_load(block):
                meant = closest_key(str(name))
                assert meant is None, f"{page.name}: {name}, meant is {meant}"


# --- examples ---------------------------------------------------------------


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a language in a page."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".md":
        return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)
    found = re.findall(
        rf"^\.\. code-block:: {language}\n(?:   :\w+:.*\n)*\n((?:   .*\n|\n)+)", text + "\n", re.M
    )
    return [re.sub(r"^   ", "", block, flags=re.M) for block in found]


@EACH_PAGE
def test_python_examples_are_python(page):
    for block in blocks(page, "python"):
        ast.parse(block)


@EACH_PAGE
def test_yaml_examples_are_yaml(page):
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


@EACH_PAGE
def test_imports_in_examples_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lsst.ctrl.bps"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


@dataclass(frozen=True)
class Shown:
    """A command that a page shows."""

    page: Path
    program: str
    arguments: tuple[str, ...]


def commands(page: Path) -> Iterator[Shown]:
    """Yield each command of ours or of BPS that a page shows, in a block or
    in the text.
    """
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    if page.suffix == ".md":
        lines += re.findall(r"^    (.+)$", text, re.M) + re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    else:
        lines += [" ".join(literal.split()) for literal in re.findall(r"``((?:[^`]|`(?!`))+)``", text)]
    for line in lines:
        line = line.strip().removeprefix("$ ")
        for program in PROGRAMS:
            if line.startswith(program + " ") and "..." not in line:
                # "bps report | less", "panda_auth status && ...", "panda_auth status | reset": the first.
                words = shlex.split(line[len(program) :], comments=True)
                end = next((i for i, word in enumerate(words) if word in {"|", "&&", ";", ">", "--"}), None)
                yield Shown(page, program, tuple(words[:end]))


def load_command(program: str) -> click.Command:
    """Import the click command behind a program."""
    name, _, attribute = PROGRAMS[program].partition(":")
    module = importlib.import_module(name)
    command = getattr(module, attribute)
    if isinstance(command, click.Command):
        return command
    # The entry point is a function that starts the module's only group.
    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    assert len(groups) == 1, f"{PROGRAMS[program]} is no click command"
    return groups[0]


def problem(shown: Shown) -> str:
    """Say what of a shown command does not exist; empty if all does."""
    command = load_command(shown.program)
    context = click.Context(command, info_name=shown.program)
    for word in shown.arguments:
        if word.startswith("-") and len(word) > 1:
            options = {
                name for option in command.get_params(context) for name in option.opts + option.secondary_opts
            }
            if word.partition("=")[0] not in options | {"--version"}:
                return f"{context.command_path} has no option {word}"
        elif isinstance(command, click.Group) and word != word.upper():
            inner = command.get_command(context, word)
            if inner is None:
                return f"{context.command_path} has no command {word}"
            context = click.Context(inner, info_name=word, parent=context)
            command = inner
    return ""


@EACH_PAGE
def test_commands_that_are_shown_exist(page):
    assert [text for text in map(problem, commands(page)) if text] == []


def test_the_check_of_commands_is_not_blind(tmp_path):
    page = tmp_path / "page.rst"
    page.write_text("``bps submit --no-such x.yaml`` and ``bps no-such`` and ``bps report --id 1``\n")
    assert [problem(shown) != "" for shown in commands(page)] == [True, True, False]
    assert any(shown.program == "bps" for shown in commands(PAGES / "tutorial.rst"))


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
