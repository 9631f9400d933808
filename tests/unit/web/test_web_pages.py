"""The live pages without a browser: what they show, when they say that nothing is new, whom they refuse."""

import re
import time
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft202012Validator
from panda_servers.recorded_panda import REQUEST_ID, RUN, RecordedPanda, RecordedRun
from panda_servers.run_sets import write_campaigns, write_night
from werkzeug.test import Client

from lsst.ctrl.bps.panda.insight.documents import read_schema
from lsst.ctrl.bps.panda.runs.client import connect
from lsst.ctrl.bps.panda.settings.run import read_service_settings
from lsst.ctrl.bps.panda.web.application import make_application
from lsst.ctrl.bps.panda.web.looks import Looks
from lsst.ctrl.bps.panda.web.server import PagesServer

NASTY = "<script>alert('x')</script>\"&"
SECRET = "root:x:0:0"


class NastyRun(RecordedRun):
    """A run whose names, errors and places of logs attack who looks at them."""

    def label(self, task):
        return f"l{NASTY}{task}"

    def job_rows(self, task_id, unsuccessful_only):
        for row in super().job_rows(task_id, unsuccessful_only):
            yield row | {
                "pilotErrorDiag": NASTY,
                "computingSite": NASTY,
                "pilotID": "file:///etc/passwd|x|1" if row["jobStatus"] == "failed" else "",
            }


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A client of the pages that the server has let in: its application, without a socket between."""
    state = tmp_path_factory.mktemp("state")
    with RecordedPanda(NastyRun(tasks=2, jobs=30)) as panda:
        write_campaigns(state, panda.url, REQUEST_ID, RUN, words=NASTY)
        write_night(state, words=NASTY)
        env = {"PANDA_URL_SSL": panda.url, "XDG_STATE_HOME": str(state), "USER": "ann", "HOME": str(state)}
        looks = Looks(lambda: connect(read_service_settings(None, env)), 0.2)
        application = make_application(looks)
        yield application.test_client()


@pytest.fixture
def get(browser):
    def call(path, code=200, **headers):
        reply = browser.get(path, headers=headers)
        assert reply.status_code == code, reply.text
        return reply

    return call


def run_page(path=""):
    return f"/runs/{REQUEST_ID}/{path}"


def links(reply, pattern):
    found = re.findall(f'href="([^"]*{pattern}[^"]*)"', reply.text)
    return [address.replace("&amp;", "&") for address in found]


def complete(get):
    """Return the run's page once its jobs have been looked at."""
    end = time.monotonic() + 60
    while "are being looked at" in (reply := get(run_page())).text:
        assert time.monotonic() < end
        time.sleep(0.1)
    return reply


def pages(get):
    run = complete(get)
    label = get(links(run, "/label")[0])
    job = get(links(run, "/job")[0])
    lists = get("/campaigns/"), get("/prompt/")
    night = get(links(lists[1], "prompt/")[-1])
    campaign = get(links(lists[0], "campaigns/")[-1])
    actions = get(run_page("cancel")), get(run_page("restart"))
    return [get("/"), run, label, job, *actions, *lists, campaign, night]


def test_pages_run_nothing_that_is_in_them(get):
    for reply in pages(get):
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.text.count("<script") == reply.text.count('static/live.js"') == 1
        assert not re.search(r"<style|<[^>]* style=|<[^>]* on\w+=|javascript:", reply.text)
        # Nothing is from elsewhere.
        assert not re.findall(r'(?:src|href)="(?:\w+:)?//', reply.text)
    run = complete(get)
    assert "&lt;script&gt;alert" in run.text


def test_a_run_from_the_first_failure_to_its_log(get):
    run = complete(get)
    assert f"Run {REQUEST_ID}: {RUN}" in run.text
    assert run.text.index('id="failure"') < run.text.index('id="states"')
    assert "60 of 60 jobs have ended" in run.text
    job = get(links(run, "/job")[0])
    assert "panda_bps reproduce" in job.text
    assert "attempt" in job.text


def test_a_log_outside_the_runs_areas_is_not_shown(get):
    job = get(links(complete(get), "/job")[0])
    assert "outside the run&#39;s areas" in job.text
    # Nor is its end, among the errors.
    for reply in (job, complete(get), get(f"/api/runs/{REQUEST_ID}/errors")):
        assert SECRET not in reply.text


def test_nothing_new_is_said_in_a_word(get):
    for path in ("/", run_page(), links(complete(get), "/label")[0], links(complete(get), "/job")[0]):
        page = get(path)
        (tag,) = re.findall(r'data-tag="(\w+)"', page.text)
        reply = get(path, code=304, **{"If-None-Match": tag})
        assert reply.data == b""
        assert reply.headers["Looked-At"] >= page.headers["Looked-At"]


def test_documents_are_those_of_the_schema(get):
    check = Draft202012Validator(read_schema()).validate
    for path in (
        "",
        f"/{REQUEST_ID}",
        *(f"/{REQUEST_ID}/{part}" for part in ("errors", "resources", "jobs")),
    ):
        document = get(f"/api/runs{path}").get_json()
        check(document)
    assert len(document["jobs"]) == 72
    number = document["jobs"][0]["panda_id"]
    document = get(f"/api/runs/{REQUEST_ID}/logs?id={number}").get_json()
    check(document)
    assert [job["panda_id"] for job in document["jobs"]] == [number]


def test_a_campaign_has_its_sites_side_by_side(get):
    page = get("/campaigns/")
    # The one that runs on another server is not asked for here.
    assert "elsewhere" not in page.text
    address = links(page, "campaigns/")[-1]
    page = get(address)
    assert links(page, f"runs/{REQUEST_ID}/")
    assert page.text.count("30 of 30") == 2
    assert "not submitted yet" in page.text
    document = get(f"/api{address.rstrip('/')}").get_json()
    Draft202012Validator(read_schema()).validate(document)
    assert [site["jobs"] for site in document["sites"]] == [60, 0]
    (listed,) = get("/api/campaigns").get_json()["campaigns"]
    assert address == f"/campaigns/{listed['key']}/"
    assert listed["runs"] == [REQUEST_ID, None]
    get("/campaigns/nothing/", code=404)


def test_a_night_shows_its_groups_and_why_some_are_late(get):
    check = Draft202012Validator(read_schema()).validate
    listed = get("/api/prompt").get_json()
    check(listed)
    (found,) = listed["processings"]
    address = f"/prompt/{found['key']}/"
    page = get(address)
    # The newest night, with what has just arrived.
    assert "night u/n/2" in page.text
    assert "does not run" in page.text
    assert "deadline 10 s" in page.text
    assert "it waits for its turn" in page.text
    assert "isr took 39.0 s, usually" in page.text
    assert "4 of 4, the newest first" in page.text
    old = get(links(page, "night=u%2Fn%2F1")[0])
    assert "1 of 1, the newest first" in old.text
    assert "No group has failed" in old.text
    document = get(f"/api{address.rstrip('/')}?night=u/n/2").get_json()
    check(document)
    assert document["counts"] == {"waiting": 1, "planning": 0, "submitted": 0, "done": 2, "failed": 1}
    assert "no night" in get(f"{address}?night=x", code=404).text
    get("/prompt/nothing/", code=404)


def test_what_is_not_there(get):
    assert "no label" in get(run_page("label?name=nothing"), code=404).text
    assert "no PanDA job 7" in get(run_page("job?id=7"), code=404).text
    get(run_page("job?id=../../etc/passwd"), code=404)
    get("/static/../application.py", code=404)
    get("/runs/x/", code=404)


@pytest.mark.parametrize("action", ["cancel", "restart"])
def test_a_change_needs_the_token_of_a_page(browser, get, action):
    (token,) = re.findall(r'name="token" value="(\w+)"', get(run_page(action)).text)
    for sent, origin in (("", ""), ("0" * 64, ""), (token, "http://evil.example"), (token, "null")):
        reply = browser.post(
            run_page(action), data={"token": sent}, headers={"Origin": origin} if origin else {}
        )
        assert reply.status_code == 403
    # The token of another browser, which has another place.
    other = browser.post(
        run_page(action), data={"token": token}, environ_overrides={"SCRIPT_NAME": "/view/x"}
    )
    assert other.status_code == 403
    assert browser.post(run_page(action), data={"token": "x" * 50_000}).status_code == 413


def test_too_many_requests_are_refused(browser):
    codes = {browser.get("/static/page.css").status_code for _ in range(400)}
    assert codes == {200, 429}


# --- who is let in ------------------------------------------------------------


@pytest.fixture
def server(browser):
    told = []
    made = PagesServer(browser.application, 0, told.append)
    made._tell(made._make_link())
    yield made, told
    made._server.close()


def test_a_link_lets_one_browser_in(server):
    made, told = server
    place = urlsplit(told[0])
    client = made_client(made, place.netloc)
    refused = client.get("/")
    assert (refused.status_code, "link" in refused.text) == (401, True)
    reply = client.get(place.path)
    view = reply.headers["Location"]
    assert client.get(f"{view}static/page.css").status_code in (200, 429)
    # The link is used up, and another one was told.
    assert client.get(place.path).status_code == 401
    assert len(told) == 2
    # The cookie is sent to its own place only.
    assert "HttpOnly" in reply.headers["Set-Cookie"]
    assert f"Path={view}" in reply.headers["Set-Cookie"]
    assert client.get("/view/other/static/page.css").status_code == 401
    assert made_client(made, place.netloc).get(f"{view}static/page.css").status_code == 401
    assert made_client(made, "evil.example").get(view).status_code == 403


def made_client(made, host):
    client = Client(made)
    client.get = lambda path, get=client.get: get(path, base_url=f"http://{host}")
    return client
