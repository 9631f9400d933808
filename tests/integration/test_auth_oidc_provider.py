"""Logging in, against a real OpenID provider (npm's oidc-provider) on
loopback, and together with panda-client in an environment of its own.

Whatever a test prints, logs or writes is searched for its secrets at the end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import venv
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from panda_servers.npm import made_once
from panda_servers.oidc import OidcProvider

from lsst.ctrl.bps.panda.auth.login import (
    await_approval,
    find_login_settings,
    find_provider,
    keep_fresh,
    log_in,
    make_renewer,
    refresh,
    start_device_login,
)
from lsst.ctrl.bps.panda.errors import (
    LoginError,
    RefreshRefusedError,
    ReplyError,
    TokenBrokenError,
    TransportError,
)
from lsst.ctrl.bps.panda.rest.credentials import find_credentials
from lsst.ctrl.bps.panda.rest.tokens import TokenStore, parse_claims

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PANDA_AUTH = [sys.executable, str(HERE.parents[1] / "bin" / "panda_auth")]
SHORT, LONG = 3600, 864000


@pytest.fixture(scope="session")
def panda_client_python():
    """An environment that has panda-client and nothing of ours."""
    with made_once(f"panda-client-{sys.version_info.major}.{sys.version_info.minor}") as folder:
        if not (folder / "installed").exists():
            venv.create(folder, clear=True)
            pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-qq"]
            subprocess.run([*pip, "--no-compile", "panda-client==2.2.0"], check=True, timeout=600)
            (folder / "installed").touch()
    return folder / "bin" / "python"


@dataclass
class World:
    """The provider, and what must not be seen anywhere."""

    provider: OidcProvider
    commands: Path
    secrets: set[str] = field(default_factory=lambda: {"the-secret-of-panda-client"})
    heard: list[str] = field(default_factory=list)

    @property
    def root(self) -> str:
        return self.provider.root

    def ask(self, path: str, **query: object) -> dict:
        return self.provider.ask(path, **query)

    def set(self, **changes: object) -> None:
        self.ask("world", **changes)

    def reset(self) -> None:
        self.set(idTokenSeconds=LONG, deviceSeconds=60, clockSeconds=0, client="panda-client", issuer="")

    def remember(self, store: TokenStore) -> None:
        """Take the tokens of a file for secrets."""
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            fields = json.loads(store.path.read_text())
            self.secrets |= {value for key, value in fields.items() if key.endswith("_token")}


@pytest.fixture(scope="module")
def provider(commands):
    with OidcProvider() as process:
        yield World(process, commands.folder)


@pytest.fixture
def world(provider, tmp_path, caplog):
    """The provider in its first state; afterwards nothing may have leaked."""
    caplog.set_level(logging.DEBUG)
    provider.reset()
    provider.heard.clear()
    yield provider
    provider.heard.append(caplog.text)
    assert find_leaks(provider, tmp_path) == []


def find_leaks(world: World, folder: Path) -> list[str]:
    """Search what was heard and written; the token file itself may hold them."""
    places = {f"output {number}": text for number, text in enumerate(world.heard)}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".token":
            places[str(path)] = path.read_bytes().decode("latin-1")
    return [place for place, text in places.items() if any(secret in text for secret in world.secrets)]


@pytest.fixture
def env(world, tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PANDA_AUTH": "oidc",
        "PANDA_AUTH_VO": "Rubin",
        "PANDA_URL_SSL": f"{world.root}/server/panda",
        "PANDA_CONFIG_ROOT": str(tmp_path / "config"),
    }


@pytest.fixture
def store(env, world):
    made = TokenStore(Path(env["PANDA_CONFIG_ROOT"]))
    yield made
    world.remember(made)


def approver(world, **answer):
    """Play the person: whoever gets the link answers at once."""
    return lambda grant: world.ask("person", code=grant.user_code, **(answer or {"name": "alice"}))


class NoWait:
    """Lets time pass without waiting; the clock and the sleep of a login."""

    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def clock(self):
        return self.now


def log_in_quickly(world, store, env):
    """Log in without the provider's interval between questions."""
    settings = find_login_settings(env)
    transport = settings.make_transport()
    provider = find_provider(transport, settings.panda_url, settings.vo)
    grant = start_device_login(transport, provider)
    approver(world)(grant)
    wait = NoWait()
    tokens = await_approval(transport, provider, grant, sleep=wait.sleep, clock=wait.clock)
    world.secrets.add(grant.device_code)
    store.save(tokens)
    world.remember(store)
    return tokens


def run(world, env, *arguments, expect=0):
    """Run panda_auth; gives its standard output and error."""
    done = subprocess.run(
        [world.commands / "panda_auth", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    world.heard += [done.stdout, done.stderr]
    world.remember(TokenStore(Path(env["PANDA_CONFIG_ROOT"])))
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@contextlib.contextmanager
def started_login(env):
    """Start ``panda_auth reset``; gives the process, its words and the code."""
    process = subprocess.Popen(
        [*PANDA_AUTH, "reset"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said = ""
        while "Waiting" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        link = next(word for word in said.split() if word.startswith("http"))
        yield process, said, parse_qs(urlsplit(link).query)["user_code"][0]
    finally:
        process.kill()
        process.communicate()


def test_a_person_logs_in(world, env, store):
    with started_login({**env, "LC_ALL": "C"}) as (process, said, code):
        assert code in said
        assert not store.path.exists()
        world.ask("person", code=code, name="alice")
        out, err = process.communicate(timeout=120)
    world.heard += [said, out, err]
    assert process.returncode == 0, err
    assert "Alice Example" in out
    assert "(in 9 d 23 h)" in out
    assert store.path.stat().st_mode & 0o777 == 0o600
    out, err = run(world, env, "status", "--json")
    told = json.loads(out)
    assert err == ""
    assert (told["username"], told["groups"]) == ("alice", ["Rubin", "Rubin/production"])
    assert (told["valid"], told["refreshable"], told["private"]) == (True, True, True)
    assert told["file"] == str(store.path)
    run(world, env, "status", "--needed", "300", expect=4)
    out, _ = run(world, env, "clean", "--json")
    assert json.loads(out) == {"removed": [str(store.path)]}
    _, err = run(world, env, "status", expect=3)
    assert "panda_auth reset" in err


def test_a_refused_login_leaves_the_token_alone(world, env, store):
    log_in_quickly(world, store, env)
    before = store.path.read_bytes()
    with started_login(env) as (process, said, code):
        world.ask("person", code=code, refuse=1)
        out, err = process.communicate(timeout=120)
    world.heard += [said, out, err]
    assert process.returncode == 5
    assert "refused in the browser" in err
    assert store.path.read_bytes() == before


def test_ctrl_c_cancels_a_login(world, env, store):
    with started_login(env) as (process, said, _):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    world.heard += [said, out, err]
    assert process.returncode == 130
    assert "Cancelled" in err
    assert not store.path.exists()


def test_a_login_that_nobody_approves_ends(world, env):
    settings = find_login_settings(env)
    transport = settings.make_transport()
    provider = find_provider(transport, settings.panda_url, settings.vo)
    grant = start_device_login(transport, provider)
    assert grant.device_code not in repr(grant)
    assert provider.client_secret not in repr(provider)
    wait = NoWait()
    with pytest.raises(LoginError, match="Nobody approved"):
        await_approval(transport, provider, grant, sleep=wait.sleep, clock=wait.clock)
    assert wait.now <= grant.expires_in


def test_the_provider_ends_a_login(world, env):
    world.set(deviceSeconds=1)
    settings = find_login_settings(env)
    transport = settings.make_transport()
    provider = find_provider(transport, settings.panda_url, settings.vo)
    grant = start_device_login(transport, provider)
    world.set(clockSeconds=30)
    # Patience that outlasts the provider's.
    with pytest.raises(LoginError, match="expired_token"):
        await_approval(transport, provider, grant, sleep=lambda _: None, clock=lambda: -100.0)


def test_a_token_is_refreshed_before_it_expires(world, env, store):
    world.set(idTokenSeconds=SHORT)
    first = log_in_quickly(world, store, env)
    out, _ = run(world, env, "refresh", "--days", "0.01")
    assert "Too early to refresh" in out
    assert store.load() == first
    world.set(idTokenSeconds=LONG)
    out, _ = run(world, env, "refresh", "--json")
    told = json.loads(out)
    assert told["refreshed"] is True
    assert told["seconds_left"] > LONG - 600
    second = store.load()
    assert second.refresh_token != first.refresh_token
    assert parse_claims(second.id_token).subject == parse_claims(first.id_token).subject
    assert store.path.stat().st_mode & 0o777 == 0o600
    out, _ = run(world, env, "refresh")
    assert "Too early" in out
    assert store.load() == second
    out, _ = run(world, env, "refresh", "--force", "--verbose")
    assert "was refreshed" in out
    assert store.load() != second


def test_an_expired_token_is_refreshed_and_says_so_otherwise(world, env, store):
    world.set(clockSeconds=-2 * SHORT, idTokenSeconds=SHORT)
    settings = find_login_settings(env)
    # Our clock is the right one: to the login, this token came from the past.
    with pytest.raises(TokenBrokenError, match=r"clock of this machine seems to be 7[12]\d\d s ahead"):
        log_in_quickly(world, store, env)
    world.reset()
    world.set(idTokenSeconds=1)
    log_in_quickly(world, store, env)
    late = datetime.now(UTC) + timedelta(hours=1)
    credentials = find_credentials(env, now=lambda: late)
    with pytest.raises(TransportError, match="panda_auth refresh"):
        credentials.headers()
    world.set(idTokenSeconds=LONG)
    outcome = refresh(store, settings, threshold=timedelta(days=4), now=lambda: late)
    assert outcome.refreshed
    assert find_credentials(env, now=lambda: late).headers()["Origin"] == "Rubin"


@pytest.mark.parametrize(("skew", "accepted"), [(30, True), (-30, True), (600, False)])
def test_clocks_may_differ_a_little(world, env, store, skew, accepted):
    world.set(clockSeconds=skew)
    if accepted:
        log_in_quickly(world, store, env)
        assert store.path.exists()
    else:
        with pytest.raises(TokenBrokenError, match="seems to be (600|599) s behind the provider's"):
            log_in_quickly(world, store, env)
        assert not store.path.exists()


def test_a_revoked_refresh_token_is_refused(world, env, store):
    tokens = log_in_quickly(world, store, env)
    form = {"token": tokens.refresh_token, "client_id": "panda-client"}
    form["client_secret"] = "the-secret-of-panda-client"
    urllib.request.urlopen(
        f"{world.root}/realm/token/revocation", urlencode(form).encode(), timeout=30
    ).close()
    before = store.path.read_bytes()
    out, err = run(world, env, "refresh", "--force", "--json", expect=5)
    assert json.loads(out)["error"] == "refused"
    assert "panda_auth reset" in err
    assert store.path.read_bytes() == before


def test_a_wrong_client_is_refused(world, env, store):
    log_in_quickly(world, store, env)
    before = store.path.read_bytes()
    world.set(client="somebody-else")
    for arguments in (("reset",), ("refresh", "--force")):
        _, err = run(world, env, *arguments, expect=5)
        assert "client 'somebody-else'" in err
    assert store.path.read_bytes() == before


def test_a_provider_that_calls_itself_otherwise_is_not_believed(world, env, store):
    world.set(issuer=f"{world.root.replace('127.0.0.1', 'localhost')}/realm")
    with pytest.raises(ReplyError, match="which is not where it was found"):
        log_in_quickly(world, store, env)


def test_servers_that_do_not_answer(world, env, store):
    log_in_quickly(world, store, env)
    before = store.path.read_bytes()
    world.set(issuer="http://127.0.0.1:9/realm")
    _, err = run(world, env, "refresh", "--force", expect=6)
    assert "http://127.0.0.1:9/realm" in err
    _, err = run(world, {**env, "PANDA_URL_SSL": "http://127.0.0.1:9/server/panda"}, "reset", expect=6)
    assert "http://127.0.0.1:9/auth/Rubin_auth_config.json" in err
    _, err = run(world, {**env, "PANDA_AUTH_VO": "Other"}, "reset", expect=6)
    assert "Other_auth_config.json" in err
    assert store.path.read_bytes() == before


def test_two_refreshes_at_once_are_one(world, env, store):
    world.set(idTokenSeconds=SHORT)
    log_in_quickly(world, store, env)
    world.set(idTokenSeconds=LONG)
    grants = world.ask("world")["grants"].get("refresh_token", 0)
    ended = threading.Event()
    trouble = []

    def read_all_the_time():
        while not ended.is_set():
            try:
                store.load()
            except TransportError as error:
                trouble.append(error)

    reader = threading.Thread(target=read_all_the_time)
    reader.start()
    try:
        command = [*PANDA_AUTH, "refresh", "--json"]
        both = [
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        results = [process.communicate(timeout=120) for process in both]
    finally:
        ended.set()
        reader.join()
    world.heard += [text for result in results for text in result]
    assert [process.returncode for process in both] == [0, 0], results
    assert sorted(json.loads(out)["refreshed"] for out, _ in results) == [False, True]
    assert world.ask("world")["grants"]["refresh_token"] == grants + 1
    assert trouble == []
    world.remember(store)
    # The provider would have taken a second use for theft and ended it all.
    assert refresh(store, find_login_settings(env), threshold=timedelta.max).refreshed


def test_credentials_renew_themselves(world, env, store):
    world.set(idTokenSeconds=60)
    first = log_in_quickly(world, store, env)
    world.set(idTokenSeconds=LONG)
    soon = datetime.now(UTC) + timedelta(seconds=45)
    plain = find_credentials(env, now=lambda: soon)
    assert plain.headers()["Authorization"] == f"Bearer {first.id_token}"
    renewing = find_credentials(env, now=lambda: soon, renew=make_renewer(env))
    second = renewing.headers()["Authorization"]
    assert second != f"Bearer {first.id_token}"
    world.remember(store)
    assert renewing.headers()["Authorization"] == second
    renewing.ensure_lifetime(timedelta(days=5))


def test_renewal_that_fails_keeps_what_there_is(world, env, store, caplog):
    world.set(idTokenSeconds=60)
    first = log_in_quickly(world, store, env)
    world.set(client="somebody-else")
    soon = datetime.now(UTC) + timedelta(seconds=45)
    credentials = find_credentials(env, now=lambda: soon, renew=make_renewer(env))
    assert credentials.headers()["Authorization"] == f"Bearer {first.id_token}"
    assert "could not be renewed" in caplog.text


def test_watching_refreshes_again_and_survives_an_outage(world, env, store, caplog):
    world.set(idTokenSeconds=SHORT)
    log_in_quickly(world, store, env)
    waits = []
    fresh = keep_fresh(store, find_login_settings(env), threshold=timedelta(hours=2), sleep=waits.append)
    assert next(fresh).refreshed
    world.remember(store)
    world.set(issuer="http://127.0.0.1:9/realm")

    def recover(_: object) -> None:
        world.reset()

    waiting = keep_fresh(store, find_login_settings(env), threshold=timedelta(hours=2), sleep=recover)
    assert next(waiting).refreshed
    assert "trying again" in caplog.text
    world.remember(store)
    assert not next(fresh).refreshed
    # Too short a token by the threshold: looked at after half of its life.
    assert 1500 < waits[0] <= SHORT / 2
    log_in_quickly(world, store, env)
    world.set(client="somebody-else")
    with pytest.raises(RefreshRefusedError):
        next(keep_fresh(store, find_login_settings(env), threshold=timedelta(days=20)))


def test_login_as_the_library_offers_it(world, env, store):
    seen = []
    shown = lambda grant: (seen.append(grant), approver(world, name="bob")(grant))  # noqa: E731
    begin = time.monotonic()
    claims = log_in(store, find_login_settings(env), shown)
    assert claims.username == "bob"
    assert time.monotonic() - begin >= seen[0].interval, "the provider's interval was not kept"


PANDA_CLIENT = """
import json, logging, sys
from pandaclient.openidc_utils import OpenIdConnect_Utils
url, folder = sys.argv[1:]
session = OpenIdConnect_Utils(url, token_dir=folder, log_stream=logging.getLogger("x"))
good, token, claims = session.check_token()
done, final = session.run_device_authorization_flow()
print(json.dumps({"good": good, "done": done, "same": token == final, "path": session.get_token_path(),
                  "name": claims["name"]}))
"""


def ask_panda_client(python, world, env):
    """Let panda-client use the token file; gives what it thinks of it."""
    command = [
        python,
        "-c",
        PANDA_CLIENT,
        f"{world.root}/auth/Rubin_auth_config.json",
        env["PANDA_CONFIG_ROOT"],
    ]
    # Its import resolves host names unless told that there is a load balancer.
    environment = {**env, "PANDA_BEHIND_REAL_LB": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_panda_client_accepts_our_token_file(world, env, store, panda_client_python):
    log_in_quickly(world, store, env)
    before = store.path.read_bytes()
    told = ask_panda_client(panda_client_python, world, env)
    expected = {"good": True, "done": True, "same": True, "path": str(store.path), "name": "Alice Example"}
    assert told == expected
    assert store.path.read_bytes() == before


def test_we_accept_the_token_file_of_panda_client(world, env, store, panda_client_python):
    world.set(idTokenSeconds=200)
    first = log_in_quickly(world, store, env)
    world.set(idTokenSeconds=SHORT)
    old_mask = os.umask(0o022)
    try:
        store.path.unlink()
        # As panda-client would have left it.
        store.path.write_text(first.render())
        told = ask_panda_client(panda_client_python, world, env)
    finally:
        os.umask(old_mask)
    # It found the token about to expire, refreshed it, and wrote the file.
    assert (told["good"], told["done"]) == (False, True)
    second = store.load()
    assert second.refresh_token != first.refresh_token
    world.remember(store)
    out, err = run(world, env, "status")
    assert "Alice Example" in out
    assert "others can read" in err
    run(world, env, "refresh")
    assert store.load() != second
    assert store.is_private()
    out, _ = run(world, env, "clean")
    # Also what panda-client left beside the token.
    assert ".page_cache_" in out
    assert [path.name for path in store.directory.iterdir()] == [".panda_auth.lock"]


def test_the_search_for_leaks_can_fail(world, tmp_path):
    leaky = World(world.provider, world.commands, secrets={"abcdef"}, heard=["it is abcdef"])
    (tmp_path / "log").write_text("abcdef")
    (tmp_path / ".token").write_text("abcdef")
    assert find_leaks(leaky, tmp_path) == ["output 0", str(tmp_path / "log")]
