"""Secrets in the environment that BPS writes down."""

import stat

import pytest
import yaml

from lsst.ctrl.bps.panda.runs.files import (
    clean_environment_dump,
    hide_secrets,
    prepare_environment_dump,
    protect_environment_dumps,
)

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PANDA_AUTH_ID_TOKEN", "short"),
        ("OIDC_AUTH_ID_TOKEN", JWT),
        ("IDDS_OIDC_TOKEN", JWT),
        ("BEARER_TOKEN", "abc"),
        ("AWS_SECRET_ACCESS_KEY", "/abc/def+12"),
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("PGPASSWORD", "x"),
        ("IDDS_BUIL_SIGNATURE", "7e1a"),
        ("MY_VARIABLE", JWT),
        ("DATABASE", "postgresql://ann:geheim@host/db"),
    ],
)
def test_hidden(name, value):
    hidden = hide_secrets({name: value})[name]
    assert "[hidden]" in hidden
    assert value not in hidden
    assert "geheim" not in hidden


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PANDA_AUTH", "oidc"),
        ("PANDA_AUTH_VO", "Rubin"),
        ("OIDC_AUTH_TOKEN_FILE", "/home/ann/.token"),
        ("PANDA_URL_SSL", "https://host:8443/server/panda"),
        ("KEYBOARD", "us"),
        ("PATH", "/usr/bin:/bin"),
        ("BEARER_TOKEN", ""),
    ],
)
def test_shown(name, value):
    assert hide_secrets({name: value}) == {name: value}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_dump_is_changed_in_place(tmp_path):
    path = tmp_path / "run.env.info.yaml"
    environment = {"PANDA_AUTH_ID_TOKEN": JWT, "LANG": "de_DE.UTF-8", "WORDS": "two\nlines: ü"}
    path.write_text(yaml.dump(environment))
    path.chmod(0o644)
    protect_environment_dumps(tmp_path)
    assert yaml.safe_load(path.read_text()) == {**environment, "PANDA_AUTH_ID_TOKEN": "[hidden]"}
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_dump_without_secrets_is_private_too(tmp_path):
    path = tmp_path / "run.env.info.yaml"
    path.write_text("LANG: C\n")
    path.chmod(0o644)
    protect_environment_dumps(tmp_path)
    assert (path.read_text(), mode(path)) == ("LANG: C\n", 0o600)


def test_a_dump_that_is_not_understood_is_named(tmp_path, caplog):
    path = tmp_path / "run.env.info.yaml"
    path.write_text("- [")
    protect_environment_dumps(tmp_path)
    assert str(path) in caplog.text
    assert mode(path) == 0o600


def test_what_bps_writes_later_is_private(tmp_path):
    prepare_environment_dump(tmp_path, "run_r1")
    path = tmp_path / "run_r1.env.info.yaml"
    with open(path, "w") as stream:
        stream.write(f"LANG: C\nBEARER_TOKEN: {JWT}\n")
    assert mode(path) == 0o600
    clean_environment_dump(path)
    assert yaml.safe_load(path.read_text()) == {"LANG": "C", "BEARER_TOKEN": "[hidden]"}
    assert mode(path) == 0o600


def test_a_reserved_file_that_bps_did_not_need_goes(tmp_path, caplog):
    prepare_environment_dump(tmp_path, "run_r1")
    path = tmp_path / "run_r1.env.info.yaml"
    clean_environment_dump(path)
    clean_environment_dump(path)
    assert not path.exists()
    assert caplog.text == ""
