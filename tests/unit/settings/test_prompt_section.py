"""The section ``prompt``: its defaults, and what is wrong with it, by its key and place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.settings.configuration import RunConfiguration, complete_configuration
from lsst.ctrl.bps.panda.settings.prompt import configure_group, read_prompt_file

GOOD = {"directory": "/in", "ingest": "os.listdir", "collection": "raws/{project}"}


def write(path: Path, section: dict[str, Any] | None, **keys: object) -> str:
    content = {"wmsServiceClass": "lsst.ctrl.bps.panda.PanDAService", "project": "dev", **keys}
    if section is not None:
        content["prompt"] = section
    file = path / "night.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def test_variables_are_replaced_and_the_output_has_the_operator(tmp_path: Path) -> None:
    section = read_prompt_file(write(tmp_path, GOOD | {"deadline": "30"}, operator="ann"))
    assert (section.collection, section.output, section.deadline) == ("raws/dev", "u/ann/prompt", 30.0)
    assert (section.source, section.images, section.attempts, section.late) == ("directory", 1, 2, "behind")


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (None, r"has no section prompt.*prompt: \{directory"),
        (GOOD | {"directry": "x"}, r"has a key directry; did you mean directory\?"),
        (GOOD | {"images": 0}, r"prompt\.images is 0 .*; it must be at least 1"),
        (GOOD | {"late": "never"}, r"prompt\.late is 'never' .*; choose one of behind, drop"),
        (GOOD | {"settle": "soon"}, r"prompt\.settle is 'soon' .*number of seconds"),
        ({"directory": "/in"}, r"prompt\.ingest is not set, and source directory needs it"),
        ({"source": "collection"}, r"prompt\.collection is not set, and source collection needs it"),
        (GOOD | {"pattern": "(x"}, r"prompt\.pattern is '\(x', which is no regular expression"),
        (GOOD | {"pattern": "x.fits"}, r"prompt\.pattern is 'x\.fits'; a part \(\?P<group>\.\.\.\) must"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, section: dict[str, Any] | None, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        read_prompt_file(write(tmp_path, section))


def test_options_of_the_graph_command_are_refused_since_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="extraQgraphOptions is '-c isr:x=1', and for prompt"):
        read_prompt_file(write(tmp_path, GOOD, extraQgraphOptions="-c isr:x=1"))


def test_the_configuration_of_a_group_has_no_other_jobs_and_leaves_the_common_one_alone(
    tmp_path: Path,
) -> None:
    common = complete_configuration(write(tmp_path, GOOD), timestamp="T", user="ann")
    one = configure_group(common, run="u/ann/prompt/1/g/1", submit_path=tmp_path / "g", graph=tmp_path / "x")
    run = RunConfiguration(one)
    assert (run.name, run.output_run) == ("u_ann_prompt_1_g_1", "u/ann/prompt/1/g/1")
    assert run.submit_path == str(tmp_path / "g")
    assert one.search("runInit")[1] is False
    assert one.search(".finalJob.whenRun")[1] == "NEVER"
    assert RunConfiguration(common).name != run.name
    assert common.search(".finalJob.whenRun")[1] == "ALWAYS"
