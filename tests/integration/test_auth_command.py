"""The command ``panda_auth`` as scripts see it: exit codes, what goes where."""

import json
import os
import subprocess
from datetime import UTC, datetime, timedelta

import jwt
import pytest

from lsst.ctrl.bps.panda.rest.tokens import TokenSet, TokenStore

pytestmark = pytest.mark.slow

NOBODY = {"PANDA_URL_SSL": "http://127.0.0.1:9/x", "PANDA_AUTH_VO": "R"}


def make_token(life):
    now = datetime.now(UTC)
    claims = {"sub": "1", "name": "Alice \x1b[31mExample", "email": "alice@example.org"}
    claims |= {"iat": int((now - timedelta(days=30)).timestamp()), "exp": int((now + life).timestamp())}
    return jwt.encode({**claims, "groups": ["Rubin"]}, "k" * 64, algorithm="HS256")


@pytest.fixture
def panda_auth(tmp_path, commands):
    def run(*arguments, **variables):
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PANDA_CONFIG_ROOT": str(tmp_path)}
        env["TZ"] = "UTC"
        done = subprocess.run(
            [commands.folder / "panda_auth", *arguments],
            env=env | variables,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def test_status_of_a_good_token(panda_auth, tmp_path):
    token = make_token(timedelta(days=3, hours=4, minutes=30))
    TokenStore(tmp_path).save(TokenSet({"id_token": token}))
    code, out, err = panda_auth("status")
    assert (code, err) == (0, "")
    rows = dict(line.split(":", 1) for line in out.splitlines())
    assert list(rows) == [
        "Filename", "Valid starting", "Expires", "Name", "User", "Email", "Groups", "Organization",
    ]  # fmt: skip
    assert rows["Filename"].strip() == str(tmp_path / ".token")
    assert rows["Expires"].endswith("UTC (in 3 d 4 h)")
    # What comes from elsewhere does not steer the terminal.
    assert rows["Name"].strip() == "Alice [31mExample"
    assert token not in out
    code, out, err = panda_auth("status", "--needed", "80")
    assert code == 4
    assert "3 d 8 h are needed" in err
    assert panda_auth("status", "--needed", "75.5")[0] == 0


def test_status_of_an_expired_token(panda_auth, tmp_path):
    code, out, err = panda_auth("status", "--json", PANDA_AUTH_ID_TOKEN=make_token(timedelta(hours=-2)))
    told = json.loads(out)
    assert code == 4
    assert (told["valid"], told["file"]) == (False, "PANDA_AUTH_ID_TOKEN")
    assert -7300 < told["seconds_left"] < -7100
    assert "expired 2 h ago" in err
    assert "panda_auth refresh" in err


@pytest.mark.parametrize(
    ("arguments", "content", "variables", "code", "kind", "words"),
    [
        (["status"], None, {}, 3, "no-token", "There is no token file"),
        (["status"], "{", {}, 7, "broken", "cut or is not JSON"),
        (["refresh"], None, {}, 1, "error", "PANDA_URL_SSL and PANDA_AUTH_VO"),
        (["refresh"], None, NOBODY, 3, "no-token", ""),
        (["reset"], None, NOBODY, 6, "unreachable",
         "refused"),
        (["reset"], None, {"PANDA_URL_SSL": "nonsense", "PANDA_AUTH_VO": "R"}, 1, "error", "not a URL"),
    ],
)  # fmt: skip
def test_each_trouble_has_its_exit_code(
    panda_auth, tmp_path, arguments, content, variables, code, kind, words
):
    if content is not None:
        (tmp_path / ".token").write_text(content)
    found, out, err = panda_auth(*arguments, "--json", **variables)
    assert found == code
    told = json.loads(out)
    assert (told["error"], told["exit_code"]) == (kind, code)
    assert words in told["message"]
    assert err.startswith("Error: ")


def test_wrong_use_and_cleaning(panda_auth, tmp_path):
    assert panda_auth("status", "--needed", "soon")[0] == 2
    assert panda_auth("nonsense")[0] == 2
    (tmp_path / ".token").write_text("")
    code, out, _ = panda_auth("clean")
    assert (code, out) == (0, f"Removed {tmp_path / '.token'}\n")
    code, out, _ = panda_auth("clean")
    assert (code, out) == (0, f"Nothing to remove in {tmp_path}\n")


def test_the_options_of_the_previous_plugin_are_there(panda_auth):
    code, out, _ = panda_auth("--help")
    assert code == 0
    for name in ("status", "reset", "refresh", "clean", "--log-level", "--long-log", "--log-file",
                 "--log-tty", "--log-label"):  # fmt: skip
        assert name in out
    _, out, _ = panda_auth("refresh", "--help")
    assert "--days" in out
    assert "--verbose" in out
