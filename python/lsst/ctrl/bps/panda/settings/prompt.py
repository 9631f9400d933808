"""The section ``prompt`` of a configuration: where images arrive, what makes a group of them, and by which
rules groups are processed.
"""

from __future__ import annotations

__all__ = ["PROMPT_SECTION", "PromptSection", "configure_group", "read_prompt_file", "read_prompt_section"]

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict

from lsst.ctrl.bps import BpsConfig

from ..errors import SettingsError
from ..findings import did_you_mean
from .configuration import RunConfiguration, complete_configuration
from .files import check_files, locate_in
from .keys import Seconds, Section, Text, WholeNumber, choice, key, keys_of
from .run import read_service_settings

PROMPT_SECTION = "prompt"

_SOURCES = ("directory", "collection", "lines")
_LATE = ("behind", "drop")


def _one_of(words: tuple[str, ...]) -> Any:
    return choice(words, lambda text: words[words.index(str(text))])


class PromptSection(Section):
    """How images are processed as they arrive."""

    model_config = ConfigDict(extra="forbid")

    source: Annotated[str, _one_of(_SOURCES)] = key(
        "directory",
        "Where images arrive: as files in `directory`, as datasets in `collection`, or as `lines` on the "
        "standard input, each with the path of a file.",
    )
    directory: Text = key("", "Directory in which files appear; folders in it are not looked into.")
    pattern: Text = key(
        r"(?P<group>\w+?)_\w+\.fits",
        "Regular expression for names of files; what its part `(?P<group>...)` holds names the group. Braces "
        "are BPS's variables.",
    )
    images: WholeNumber = key(1, "Images of a complete group, one for each detector, say.", least=1)
    patience: Seconds = key(
        10.0, "Time that a group waits for more images; then it is processed with those that are there."
    )
    settle: Seconds = key(
        0.2,
        "Time for which size and time of a file must not have changed; 0 if files are renamed into place.",
    )
    opens: Text = key(
        "", "Python function that reads a file and raises an exception unless it is whole; empty: none."
    )
    ingest: Text = key(
        "", "Python function that ingests the files of a group: `ingest(butler, paths, run=collection)`."
    )
    collection: Text = key("", "Collection of the images: they are ingested into it, or appear in it.")
    dataset_type: Text = key("raw", "Dataset type of the images.")
    dimension: Text = key("exposure", "Dimension that makes a group of datasets: exposure or visit.")
    output: Text = key(
        "u/{operator}/prompt", "Outputs of a night are in the chained collection of this name and the night."
    )
    deadline: Seconds = key(60.0, "Time from the arrival of a group until its outputs should be there.")
    late: Annotated[str, _one_of(_LATE)] = key(
        "behind",
        "What becomes of a group that has not begun by its deadline: processed `behind` new ones, or "
        "reported as failed (`drop`).",
    )
    attempts: WholeNumber = key(2, "Attempts of a group, the first one included.", least=1)
    groups_at_once: WholeNumber = key(4, "Groups that are processed at the same time.", least=1)


def read_prompt_section(config: BpsConfig, environment: Mapping[str, str]) -> PromptSection:
    """Read the section, with variables replaced; `SettingsError` says what is wrong with it."""
    run = RunConfiguration(config)
    written = run.section(PROMPT_SECTION)
    names = keys_of(PromptSection)
    if not written:
        raise SettingsError(
            f"The configuration has no section {PROMPT_SECTION}. It says where images arrive, for instance "
            f"{PROMPT_SECTION}: {{directory: /data/incoming, images: 4, ingest: my.module.ingest, "
            "collection: raws}."
        )
    for name in map(str, written):
        if name not in names:
            meant = did_you_mean(name, names, likeness=0.6) or f"; there are {', '.join(sorted(names))}."
            raise SettingsError(f"Section {PROMPT_SECTION} of the BPS configuration has a key {name}{meant}")
    values = {
        name: run.text(f".{PROMPT_SECTION}.{name}") if isinstance(value, str) else value
        for name, value in written.items()
    }
    locate = locate_in(PROMPT_SECTION, environment)
    section = PromptSection.parse(values, source=locate, title=f"{PROMPT_SECTION}.{{}}")
    if "output" not in written:
        section = section.model_copy(update={"output": f"u/{run.operator}/prompt"})
    _check(section, run)
    return section


def read_prompt_file(file: str) -> PromptSection:
    """Read the section of a configuration file."""
    settings = read_service_settings(None)
    check_files(file, settings.environment)
    config = complete_configuration(file, timestamp="", user=settings.user, environment=settings.environment)
    return read_prompt_section(config, settings.environment)


def _check(section: PromptSection, run: RunConfiguration) -> None:
    needed = {
        "directory": ("directory", "ingest", "collection"),
        "collection": ("collection", "dataset_type", "dimension"),
        "lines": ("ingest", "collection"),
    }[section.source]
    for name in needed:
        if not getattr(section, name):
            shown = next(alias for alias, each in keys_of(PromptSection).items() if each.field == name)
            raise SettingsError(f"{PROMPT_SECTION}.{shown} is not set, and source {section.source} needs it.")
    try:
        groups = re.compile(section.pattern).groupindex
    except re.error as error:
        raise SettingsError(
            f"{PROMPT_SECTION}.pattern is {section.pattern!r}, which is no regular expression: {error}."
        ) from None
    if section.source != "collection" and "group" not in groups:
        raise SettingsError(
            f"{PROMPT_SECTION}.pattern is {section.pattern!r}; a part (?P<group>...) must tell the group."
        )
    if options := run.text("extraQgraphOptions"):
        raise SettingsError(
            f"extraQgraphOptions is {options!r}, and for prompt processing pipetask makes no graph: put "
            "options of tasks into the pipeline."
        )


def configure_group(config: BpsConfig, *, run: str, submit_path: Path, graph: Path) -> BpsConfig:
    """Make the configuration of one attempt of a group.

    Outputs are initialized and registered by the process that has the Butler open, so the run has neither a
    first nor a final job.
    """
    one = BpsConfig(config)
    given = {
        "outputRun": run,
        "uniqProcName": run.replace("/", "_"),
        "submitPath": str(submit_path),
        "runInit": False,
    }
    for name, value in given.items():
        one[f".bps_cmdline.{name}"] = value
    one[".bps_defined.runQgraphFile"] = str(graph)
    one[".finalJob.whenRun"] = "NEVER"
    one.generate_config()
    return one
