"""The live pages of a group: a real OpenID provider, an embedded PanDA that believes its tokens, nginx that
speaks TLS, and two users with two tokens in two real browsers.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests
from panda_servers.browser import Browser
from panda_servers.nginx import TlsProxy
from panda_servers.oidc import OidcProvider
from panda_servers.place import add
from panda_servers.process import free_port
from panda_servers.runs import make_config, make_service_class, make_workflow
from selenium.webdriver.common.by import By
from werkzeug.test import Client

from lsst.ctrl.bps.panda.auth.login import LoginSettings
from lsst.ctrl.bps.panda.errors import TransportError
from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.settings.run import read_service_settings
from lsst.ctrl.bps.panda.web.server import GroupServer, GroupSettings

pytestmark = pytest.mark.slow

USERS = {"alice": "Alice Example", "bob": "Bob Example"}
ENDED = "your session has ended"


class Group:
    """The pages of a group, with everything around them."""

    def __init__(self, directory, proxy, port, provider, panda):
        self.directory, self.proxy, self.port, self.provider = directory, proxy, port, provider
        self.panda = panda
        self.client = {
            "client_id": "panda-client",
            "client_secret": "the-secret-of-panda-client",
            "oidc_config_url": f"{provider.issuer}/.well-known/openid-configuration",
        }
        client = directory / "client.json"
        client.write_text(json.dumps(self.client))
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "USER": "operator",
            "PANDA_AUTH_VO": "Rubin",
            "PANDA_URL_SSL": panda.url,
            "XDG_STATE_HOME": str(directory / "state"),
        }
        self.command = [
            Path(sys.executable).with_name("panda_bps"), "web", "--login", "--address", proxy.url,
            "--port", str(port), "--client", client,
        ]  # fmt: skip

    def serve(self):
        """Start the command, and wait until it serves."""
        process = subprocess.Popen(self.command, env=self.env, stdout=subprocess.PIPE, text=True)
        assert "Serving https://localhost" in process.stdout.readline()
        assert f"{self.proxy.url}/callback" in process.stdout.readline()
        return process

    def submit(self, user, script):
        """Submit a run as a user; its id."""
        name, folder = f"u_{user}_run", self.directory / user
        service_class = make_service_class(self.env, self.panda, user=USERS[user])
        config = make_config(name, folder / "submit", folder / "area", user=user)
        workflow = make_workflow(name, user=user)
        for number in range(2):
            add(workflow, f"isr_{number}", "isr", script)
        service = service_class(config)
        made = service.prepare(config, workflow, str(folder / "submit"))
        service.submit(made)
        return made.run_id


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    directory = tmp_path_factory.mktemp("group")
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("XDG_STATE_HOME", str(directory / "state"))
        port = free_port()
        proxy = stack.enter_context(TlsProxy(directory, port))
        provider = stack.enter_context(OidcProvider(f"{proxy.url}/callback"))
        panda = instance.start(directory / "panda", slots=4, issuer=provider.issuer)
        stack.callback(instance.stop, directory / "panda")
        yield Group(directory, proxy, port, provider, panda)


@pytest.fixture(scope="module")
def runs(group):
    """A run of each user, which goes on."""
    return {user: group.submit(user, "sleep 600") for user in USERS}


# --- without a browser: what is refused ---------------------------------------


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def server(group):
    """The server in this process, whose time stands still, and a maker of browsers."""
    clock = Clock()
    settings = GroupSettings(
        group.proxy.url,
        read_service_settings(None, group.env),
        LoginSettings(group.panda.url, "Rubin", client=group.client),
        1.0,
        idle=600.0,
        longest=3600.0,
    )
    made = GroupServer(settings, 0, clock=clock)
    made.clock = clock
    yield made
    made.close()


class Visitor:
    """A browser of a few lines, which leaves the way back from the provider to the test."""

    def __init__(self, server, address):
        self.client, self.address = Client(server), address

    def get(self, path, **headers):
        return self.client.get(path, base_url=self.address, headers=headers)

    def go_to_provider(self, to="/"):
        return self.get(f"/login?to={to}").headers["Location"]

    def log_in_there(self, url, user="alice"):
        """Log in at the provider; the path to come back to."""
        with requests.Session() as person:
            form = person.get(url, timeout=30)
            answer = {"name": user} if user else {"refuse": "1"}
            reply = person.post(form.url, data=answer, allow_redirects=False, timeout=30)
            while not (target := reply.headers["Location"]).startswith(self.address):
                reply = person.get(target, allow_redirects=False, timeout=30)
        return target.removeprefix(self.address)

    def log_in(self, user="alice", to="/"):
        reply = self.get(self.log_in_there(self.go_to_provider(to), user))
        assert reply.status_code == 303, reply.text
        return reply


@pytest.fixture
def visit(server, group):
    return lambda: Visitor(server, group.proxy.url)


def test_a_login_comes_back_to_where_it_began(visit, runs):
    browser = visit()
    place = f"/runs/{runs['alice']}/"
    asked = browser.get(place)
    assert asked.status_code == 401
    assert f"login?to={quote(place, safe='')}" in asked.text
    url = browser.go_to_provider(place)
    sent = parse_qs(urlsplit(url).query)
    assert sent["code_challenge_method"] == ["S256"]
    assert {"state", "nonce", "code_challenge"} <= sent.keys()
    back = browser.log_in_there(url)
    reply = browser.get(back)
    assert reply.headers["Location"] == browser.address + place
    cookie = next(each for each in reply.headers.getlist("Set-Cookie") if "__Host-panda_bps=" in each)
    assert all(word in cookie for word in ("Secure", "HttpOnly", "SameSite=Lax", "Path=/"))
    page = browser.get(place)
    assert page.status_code == 200
    assert "alice" in page.text
    # No token gets to the browser, in any form.
    assert not re.search(r"eyJ[\w-]+\.", cookie + page.text)
    for to in ("https://evil.example/", "//evil.example", "/\\evil.example"):
        assert visit().log_in(to=to).headers["Location"] == f"{browser.address}/"


def test_a_way_back_that_is_stolen_changed_or_used_is_refused(visit, server):
    browser, other = visit(), visit()
    url = browser.go_to_provider()
    back = browser.log_in_there(url)
    # In another browser, which has begun a login of its own; then it is used up for the first one, too.
    theirs = other.go_to_provider()
    assert other.get(back).status_code == 403
    assert browser.get(back).status_code == 403
    # The state of one login with the code of another.
    again = other.log_in_there(theirs)
    code = parse_qs(urlsplit(browser.log_in_there(browser.go_to_provider())).query)["code"][0]
    mixed = re.sub(r"code=[^&]+", f"code={code}", again)
    assert "invalid_grant" in other.get(mixed).text
    # Nobody's state, none at all, another provider, and a person who refuses.
    assert browser.get("/callback?code=x&state=y").status_code == 403
    assert browser.get("/callback").status_code == 403
    back = browser.log_in_there(browser.go_to_provider())
    wrong = re.sub(r"iss=[^&]+", "iss=https%3A%2F%2Fevil.example", back)
    assert "another provider" in browser.get(wrong).text
    refused = browser.get(browser.log_in_there(browser.go_to_provider(), user=""))
    assert (refused.status_code, "access_denied" in refused.text) == (403, True)
    # A login that took too long.
    back = browser.log_in_there(browser.go_to_provider())
    server.clock.now += 700
    assert browser.get(back).status_code == 403
    assert browser.get("/api/runs").status_code == 401


def test_sessions_end(visit, server, runs):
    browser = visit()
    browser.log_in()
    # One that is used, for as long as any may last.
    for _ in range(6):
        server.clock.now += 590
        assert browser.get("/").status_code == 200
    server.clock.now += 590
    assert ENDED in browser.get("/").text
    # A page that asks for itself is no use.
    browser.log_in()
    for _ in range(2):
        server.clock.now += 290
        assert browser.get("/", If_None_Match="x").status_code == 200
    server.clock.now += 290
    reply = browser.get("/", If_None_Match="x")
    assert (reply.status_code, reply.mimetype) == (401, "text/plain")
    # Logging out needs the token of a page, as every change does.
    browser.log_in()
    post = browser.client.post
    assert post("/logout", base_url=browser.address, data={"token": "x"}).status_code == 403
    (token,) = re.findall(r'logout"><input type="hidden" name="token" value="(\w+)"', browser.get("/").text)
    assert post("/logout", base_url=browser.address, data={"token": token}).status_code == 303
    assert browser.get("/").status_code == 401


def test_tokens_are_renewed_and_a_session_ends_with_its_login(visit, group):
    browser = visit()
    group.provider.ask("world", idTokenSeconds=2)
    browser.log_in()
    before = group.provider.ask("world")["grants"].get("refresh_token", 0)
    group.provider.ask("world", idTokenSeconds=864000)
    # Half of its short life is soon over.
    while group.provider.ask("world")["grants"].get("refresh_token", 0) == before:
        assert browser.get("/").status_code == 200
    assert browser.get("/").status_code == 200


def test_what_others_send_is_not_believed(visit, group):
    browser = visit()
    headers = {"Host": "evil.example", "X-Forwarded-Host": urlsplit(browser.address).netloc}
    assert browser.client.get("/", headers=headers).status_code == 403
    url = browser.client.get(
        "/login",
        base_url=browser.address,
        headers={"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"},
    ).headers["Location"]
    assert parse_qs(urlsplit(url).query)["redirect_uri"] == [f"{browser.address}/callback"]
    browser.log_in()
    reply = browser.client.post(
        "/logout", base_url=browser.address, data={"token": "x"}, headers={"Origin": "https://evil.example"}
    )
    assert reply.status_code == 403


def test_users_see_their_own_runs_and_change_no_others(visit, runs):
    alice, bob = visit(), visit()
    alice.log_in("alice")
    bob.log_in("bob")
    assert [run["request_id"] for run in alice.get("/api/runs").json["runs"]] == [int(runs["alice"])]
    assert [run["request_id"] for run in bob.get("/api/runs").json["runs"]] == [int(runs["bob"])]
    everybody = {run["request_id"] for run in bob.get("/api/runs?everybody=1").json["runs"]}
    assert everybody == {int(run) for run in runs.values()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--login",), "--address is ''"),
        (("--login", "--address", "http://localhost"), "--address is 'http://localhost'"),
        (("--login", "--address", "https://a@localhost"), "--address is"),
        (("--login", "--address", "https://localhost/pages"), "--address is"),
        (("--address", "https://localhost"), "are for --login"),
        (("--idle", "5"), "are for --login"),
    ],
)
def test_without_an_address_behind_tls_nothing_is_served(group, arguments, words):
    command = [*group.command[:2], *arguments]
    done = subprocess.run(command, env=group.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert words in done.stderr


def test_a_provider_that_cannot_be_found_is_told_at_the_start(group, server):
    settings = replace(server.settings, login=replace(server.settings.login, client=None))
    with pytest.raises(TransportError, match="auth configuration"):
        GroupServer(settings, 0)


# --- two browsers -------------------------------------------------------------


def log_in(browser, user):
    """Log in where the provider asks."""
    browser.click("Log in")
    browser.wait(lambda: browser.driver.find_elements(By.NAME, "name"))
    browser.driver.find_element(By.NAME, "name").send_keys(user)
    browser.click("Approve")


def test_two_users_in_two_browsers(group, runs, tmp_path):
    with ExitStack() as stack:
        process = group.serve()
        stack.callback(lambda: (process.kill(), process.wait(), process.stdout.close()))
        browsers = {}
        for user in USERS:
            browser = stack.enter_context(
                closing(Browser(tmp_path / user, words=["ignore-certificate-errors"]))
            )
            browsers[user] = browser
            browser.driver.get(f"{group.proxy.url}/runs/{runs[user]}/")
            browser.wait_for(ENDED)
            browser.shoot("login")
            log_in(browser, user)
            # Where it was going to.
            browser.wait_for(f"Run {runs[user]}:", "RUNNING", user, "Log out")
        alice, bob = browsers["alice"], browsers["bob"]
        for user, browser in browsers.items():
            browser.driver.get(group.proxy.url)
            browser.wait_for(f"u_{user}_run")
            assert browser.text.count("_run") == 1, browser.text
        alice.shoot("group")
        # The server refuses, not the pages.
        bob.driver.get(f"{group.proxy.url}/runs/{runs['alice']}/cancel")
        bob.click("Cancel")
        bob.wait_for("Not cancelled")
        alice.driver.get(f"{group.proxy.url}/runs/{runs['alice']}/")
        alice.wait_for("RUNNING")
        alice.click("Cancel")
        alice.wait_for("is to be cancelled")
        alice.click("Cancel")
        alice.wait_for("is cancelled")
        alice.click("Back")
        alice.wait_for("DELETED")
        # The session ends with the server that knows it: the page that is open says so, and leads back.
        process.kill()
        process.wait()
        process.stdout.close()
        process = group.serve()
        alice.wait_for("Reload this page to log in")
        alice.driver.refresh()
        alice.wait_for(ENDED)
        alice.click("Log in")
        # The provider still knows her.
        alice.wait_for(f"Run {runs['alice']}:", "DELETED")
        alice.click("Log out")
        alice.wait_for(ENDED)
        bob.driver.get(group.proxy.url)
        bob.wait_for(ENDED)
