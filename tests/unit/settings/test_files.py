"""Files of a configuration that cannot be read, and where a value stands in those that can."""

import os

import pytest
from click.testing import CliRunner

from lsst.ctrl.bps.panda.cli.panda_bps import main
from lsst.ctrl.bps.panda.errors import SettingsError
from lsst.ctrl.bps.panda.settings.files import check_files, find_origin

ENCODED = "project: 1\nnote: é\n"

BROKEN = {
    "list": (b"- a: 1\n", ", line 1: the file holds a list, and not keys with values. Write 'KEY: VALUE'"),
    "text": (
        b"\nhello world\n",
        ", line 2: the file holds the text 'hello world', and not keys with values.",
    ),
    "number": (b"5\n", ", line 1: the file holds the text '5', and not keys"),
    "nothing": (b"# a comment\n", " is empty. Write keys with values, at least wmsServiceClass."),
    "latin-1": (ENCODED.encode("latin-1"), ", line 2: byte 0xe9 is not UTF-8. Save the file as UTF-8."),
    "utf-32": (ENCODED.encode("utf-32"), ", line 1: the character 0 is not allowed. Save the file as text"),
    "bytes": (b"a: 1\n\0", ", line 2: the character 0 is not allowed. Save the file as text, in UTF-8."),
    "tab": (b"a:\n\tb: 1\n", ", line 2: it is indented with a tab. YAML takes blanks only."),
    "colon": (
        b"a: 1\nb: c: d\n",
        ", line 2: mapping values are not allowed in this context. Correct it; values ",
    ),
    "bracket": (
        b"a: [1\nb: 2\n",
        ", line 2: while parsing a flow sequence did not find expected ',' or ']' (",
    ),
    "two": (b"a: 1\n---\nb: 1\n", ", line 2: expected a single document in the stream but found another"),
    "alias": (b"a: *b\n", ", line 1: found undefined alias"),
}


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_read_is_told_in_a_sentence(tmp_path, content, words):
    run = tmp_path / "run.yaml"
    run.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        check_files(str(run), {})
    assert str(caught.value).startswith(f"{run}{words}")
    assert "\n" not in str(caught.value)
    done = CliRunner().invoke(main, ["check", str(run)])
    assert (done.exit_code, done.output) == (1, f"Error: {run} cannot be checked: {caught.value}\n")
    done = CliRunner().invoke(main, ["campaign", "prepare", str(run)])
    assert (done.exit_code, done.output) == (1, f"Error: {caught.value}\n")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_bps_reads_is_read_and_its_lines_are_known(tmp_path, encoding):
    run = tmp_path / "run.yaml"
    run.write_bytes(ENCODED.replace("1", "\t1").encode(encoding))
    check_files(str(run), {})
    assert find_origin(str(run), "note", "é", {})[:2] == (str(run), 2)


def test_no_pipe_and_no_directory(tmp_path):
    """A pipe is empty when BPS reads it a second time; opening this one would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "run.yaml").write_text("includeConfigs: pipe\n")
    for path in ("pipe", "run.yaml", ""):
        with pytest.raises(SettingsError, match="is a directory or a pipe, and BPS reads it several times."):
            check_files(str(tmp_path / path), {})


def test_what_is_included(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "part.yaml").write_text("includeConfigs: [near.yaml, here.yaml]\n")
    (tmp_path / "deep" / "near.yaml").write_text("a: 1\n")
    (tmp_path / "here.yaml").write_text("# nothing yet\n\nb: 2\n")
    run = tmp_path / "run.yaml"
    run.write_text("x: 1\nincludeConfigs: ${PARTS}/part.yaml\n")
    monkeypatch.chdir(tmp_path)  # where BPS looks first
    env = {"PARTS": f"{tmp_path}/deep"}
    check_files(str(run), env)
    assert find_origin(str(run), "b", 2, env)[:2] == (f"{tmp_path}/here.yaml", 3)
    (tmp_path / "here.yaml").write_text("- list\n")
    with pytest.raises(SettingsError, match="here.yaml, line 1: the file holds a list"):
        check_files(str(run), env)
    (tmp_path / "here.yaml").unlink()
    with pytest.raises(SettingsError) as caught:
        check_files(str(run), env)
    assert str(caught.value).startswith(
        f"includeConfigs names here.yaml ({tmp_path}/deep/part.yaml, line 1), which is not there. Correct"
    )
    with pytest.raises(
        SettingsError, match="names .*/part.yaml .*, but PARTS is not set. Set it, or give a path"
    ):
        check_files(str(run), {})
    (tmp_path / "here.yaml").write_text("includeConfigs: run.yaml\n")
    with pytest.raises(SettingsError) as caught:
        check_files(str(run), env)
    circle = (run, tmp_path / "deep" / "part.yaml", tmp_path / "here.yaml", run)
    assert str(caught.value).startswith(" -> ".join(map(str, circle)) + ": these files include each other.")


@pytest.mark.parametrize("value", ["{a: b}", "[[x]]", "no-such-scheme://x/y.yaml"])
def test_an_include_that_is_no_file(tmp_path, value):
    run = tmp_path / "run.yaml"
    run.write_text(f"includeConfigs: {value}\n")
    with pytest.raises(SettingsError, match="includeConfigs names .* .*line 1., which is not there"):
        check_files(str(run), {})


def test_an_include_by_a_variable_of_an_lsst_stack(tmp_path):
    run = tmp_path / "run.yaml"
    run.write_text("includeConfigs: ${CTRL_BPS_PANDA_DIR}/config/bps_usdf.yaml\n")
    with pytest.raises(SettingsError) as caught:
        check_files(str(run), {})
    assert str(caught.value) == (
        f"includeConfigs names ${{CTRL_BPS_PANDA_DIR}}/config/bps_usdf.yaml ({run}, line 1), but "
        "CTRL_BPS_PANDA_DIR is not set; only an LSST stack sets it. Include "
        "resource://lsst.ctrl.bps.panda/config/bps_usdf.yaml instead, or nothing: computeSite selects what "
        "it held."
    )
    run.write_text("includeConfigs: resource://lsst.ctrl.bps.panda/config/bps_usdf.yaml\n")
    check_files(str(run), {})
