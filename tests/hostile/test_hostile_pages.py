"""Pages in a browser of the owner that attack the embedded PanDA, and the pages that it shows."""

import http.server
import json
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass, field

import pytest

from lsst.ctrl.bps.panda.local import instance
from lsst.ctrl.bps.panda.local.endpoint import EndpointClient, SampleTask

pytestmark = pytest.mark.slow

_TASK = json.dumps({"task_parameters": {"taskName": "stolen", "userName": "root", "vo": "x"}})

# Each attack says what came of it; a page of another origin may see no more than that it was sent.
_ATTACK = """<!DOCTYPE html><body><pre id="said"></pre>
<form id="form" method="post" enctype="text/plain" target="frame"
 action="{base}/api/v1/task/submit"><input name='{start}' value='{end}'></form>
<form id="open" method="post" enctype="multipart/form-data" target="frame"
 action="{base}/api/v1/local/link"></form>
<iframe name="frame"></iframe><iframe id="log" src="{base}/logs/PandaJob_1000001/payload.stdout"></iframe>
<script src="{base}/logs/PandaJob_1000001/payload.stdout"></script>
<script>
const said = [];
async function attempt(name, url, options) {{
  try {{
    const reply = await fetch(url, options);
    said.push(name + ": " + reply.type + " " + await reply.text());
  }} catch (error) {{ said.push(name + ": failed"); }}
}}
(async () => {{
  const kinds = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""];
  for (const kind of kinds) for (const credentials of ["include", "omit"])
    await attempt("submit", "{base}/api/v1/task/submit",
      {{method: "POST", mode: "no-cors", credentials, body: new Blob([{task}], {{type: kind}})}});
  await attempt("json", "{base}/api/v1/task/submit",
    {{method: "POST", headers: {{"Content-Type": "application/json"}}, body: {task}}});
  await attempt("read", "{base}/logs/PandaJob_1000001/payload.stdout", {{credentials: "include"}});
  await attempt("read", "{base}/api/v1/system/get_attributes", {{credentials: "include"}});
  document.getElementById("form").submit();
  document.getElementById("open").submit();
  navigator.sendBeacon("{base}/api/v1/task/submit", {task});
  document.getElementById("said").textContent = said.join("\\n") + "\\ndone";
}})();
</script>"""


@dataclass
class Attacker:
    """A web server of somebody else: its port, its page, and the cookies that it has heard."""

    port: int
    page: str = ""
    cookies: list[str] = field(default_factory=list)


@pytest.fixture
def attacker():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found.cookies += filter(None, [self.headers.get("Cookie")])
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(found.page.encode())

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found = Attacker(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    place = tmp_path_factory.mktemp("pages")
    found = instance.start(place / "state", slots=2)
    client = EndpointClient(found)
    sample = client.submit("u_me_pages", [SampleTask("say", {"say:0": ()}, "echo secret output")])
    assert client.wait(sample, timeout=200)[0] == "Finished"
    yield found
    instance.stop(place / "state")


@pytest.fixture
def browse(tmp_path):
    """Open a page in Chromium without a window, always as the same user; return its tree."""
    browser = shutil.which("chromium")
    assert browser, "apt-get install chromium"

    def run(url):
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", "--dump-dom"]
        command += ["--host-resolver-rules=MAP evil.example 127.0.0.1", url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def attack(base):
    start, end = _TASK[:-1] + ',"', '":1}'
    return _ATTACK.format(base=base, task=json.dumps(_TASK), start=start, end=end)


def tasks(endpoint):
    everybody = "filters=%7B%22userName%22:%22.*|%22%7D"
    return json.dumps(EndpointClient(endpoint).api(f"task/get_tasks_detailed_info_since?{everybody}"))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost"])
def test_a_page_can_do_nothing(endpoint, attacker, browse, host):
    attacker.page = attack(endpoint.base)
    tree = browse(f"http://{host}:{attacker.port}/")
    assert "done" in tree
    assert re.findall(r"(?:json|read): (.*)", tree) == ["failed"] * 3
    assert "secret output" not in tree
    assert "stolen" not in tasks(endpoint)


def test_another_name_of_the_address_reads_nothing(endpoint, browse):
    """What a page sees whose name was made to point here: its own origin."""
    base = endpoint.base.replace("127.0.0.1", "evil.example")
    for path in (
        "/api/v1/system/is_alive",
        "/logs/PandaJob_1000001/payload.stdout",
        "/logs/..%2fendpoint.json",
    ):
        tree = browse(base + path)
        assert "(Host)" in tree
        assert "secret output" not in tree


def test_who_opens_the_link_reads_and_nobody_else(endpoint, attacker, browse):
    link = instance.make_link(endpoint, 1000001)
    tree = browse(link)
    assert 'href="payload.stdout"' in tree
    # The same browser, later: the link is used up, and what it got it for goes to nobody else.
    assert "used before" in browse(link)
    attacker.page = attack(endpoint.base)
    for host in ("evil.example", "127.0.0.1", "localhost"):
        assert "secret output" not in browse(f"http://{host}:{attacker.port}/")
    assert attacker.cookies == []
    assert "stolen" not in tasks(endpoint)


def test_the_cookie_of_the_pages_opens_nothing_else(endpoint, attacker, browse):
    """The page is the next one of the same browser: the cookie stays in it."""
    attacker.page = "<!DOCTYPE html><p>nothing</p>"
    link = instance.make_link(endpoint)
    tree = browse(link)
    assert "u_me_pages" in tree
    said = browse(f"{endpoint.base}/logs/PandaJob_1000001/payload.stdout")
    assert "panda_local open" in said
    assert "secret output" not in said
