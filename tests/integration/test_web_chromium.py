"""The live pages of an embedded PanDA in a real browser: a run that fails is watched from its launch to the
log of its exception, restarted and cancelled; with the keyboard alone, narrow and wide, with hostile words.
"""

import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from panda_servers.browser import Browser
from panda_servers.place import add, place_with_pages
from panda_servers.run_sets import write_campaigns, write_night
from selenium.webdriver.common.by import By

from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

NASTY = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with place_with_pages(tmp_path_factory.mktemp("web"), 4) as made:
        yield made


@pytest.fixture(scope="module")
def browser(place, tmp_path_factory):
    with closing(Browser(tmp_path_factory.mktemp("profile"))) as made:
        made.driver.get(instance.make_link(place.endpoint))
        made.home = made.driver.current_url
        yield made
        assert made.complaints() == []


def failing(mark):
    """Build a run whose last job but one fails as long as a file is missing."""

    def build(workflow):
        for number in range(5):
            script = f"echo lsst INFO: sensor {number}; echo lsst INFO: read it; sleep 1"
            add(workflow, f"isr_{number}", "isr", script)
        words = (
            f'echo "lsst ERROR: {NASTY}" >&2; echo "  File nowhere" >&2; echo "ValueError: bad {NASTY}" >&2'
        )
        add(workflow, "fit", "fit", f"test -e {mark} || {{ {words}; exit 3; }}", ["isr_1", "isr_2"])
        add(workflow, "show", "show", "true", ["fit"])

    return build


@pytest.fixture(scope="module")
def failed(place, browser):
    """A run, watched from its launch to the log of its exception: its id, and what makes it succeed."""
    mark = place.directory / "mended"
    browser.wait_for("There is no such run")
    run_id = place.submit("failing", failing(mark))
    browser.clicks = 0
    # The list renews itself.
    browser.wait_for("u_ann_failing")
    browser.click("u_ann_failing")
    browser.wait_for("First failure", f"ValueError: bad {NASTY}")
    browser.click("job and log")
    browser.wait_for(f"lsst ERROR: {NASTY}", "Attempts")
    assert browser.clicks <= 3
    return run_id, mark


def test_the_job_of_a_failure(browser, failed):
    run_id, _ = failed
    assert f"panda_bps reproduce {run_id} fit" in browser.text
    assert "exit code 3" in browser.text or "payload 3" in browser.text
    browser.wait_for("What it waited for", "for a slot", "isr_1", "isr_2")
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "main img, main script")
    browser.shoot("job")


def test_all_pages_fit_and_nothing_on_them_runs(browser, failed):
    run_id, _ = failed
    browser.driver.get(browser.home)
    browser.wait_for("u_ann_failing")
    browser.shoot("runs")
    browser.click("u_ann_failing")
    browser.wait_for("Tasks in iDDS and PanDA", "isr")
    browser.shoot("run")
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "main img, main script")
    # No rule of the style sheet changes what is drawn.
    bars = browser.driver.find_elements(By.CSS_SELECTOR, ".histogram rect, .shares rect")
    drawn = "return [arguments[0].getBBox().width, Number(arguments[0].getAttribute('width'))]"
    widths = [browser.driver.execute_script(drawn, bar) for bar in bars]
    assert any(wanted > 0 for _, wanted in widths)
    assert all(abs(found - wanted) < 0.1 for found, wanted in widths)
    browser.click("isr")
    browser.wait_for("isr_0", "1 to 5 of 5")
    browser.shoot("label")
    assert browser.complaints() == []


def test_campaigns_and_nights(place, browser, failed):
    run_id, _ = failed
    state = place.directory / "state"
    write_campaigns(state, place.endpoint.url, int(run_id), "u_ann_failing", words=NASTY)
    write_night(state, words=NASTY)
    browser.driver.get(browser.home)
    browser.click("campaigns")
    browser.wait_for(f"here{NASTY}")
    assert "elsewhere" not in browser.text
    browser.shoot("campaigns")
    browser.click("here<img")
    browser.wait_for("Side by side", f"A{NASTY}", "not submitted yet")
    browser.shoot("campaign")
    browser.click(f"Run {run_id}")
    browser.wait_for("First failure")
    browser.driver.get(browser.home)
    browser.click("prompt processing")
    browser.wait_for("night.yaml")
    browser.shoot("prompt")
    browser.click("night.yaml")
    browser.wait_for("isr took 39.0 s", "it waits for its turn", "4 of 4, the newest first")
    browser.shoot("night")
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "main img, main script")


def test_the_age_is_shown_and_small(browser, failed):
    run_id, _ = failed
    browser.driver.get(f"{browser.home}runs/{run_id}/")
    script = "return Date.now() - Date.parse(document.getElementById('age').dataset.lookedAt)"
    seen = {browser.driver.find_element(By.ID, "age").get_attribute("data-looked-at")}

    def look():
        seen.add(browser.driver.find_element(By.ID, "age").get_attribute("data-looked-at"))
        return len(seen) > 3 and browser.driver.execute_script(script) < 1500

    # A busy machine takes its time to ask.
    browser.wait(look)
    assert "As of 20" in browser.text


def test_restart_with_the_keyboard_alone(place, browser, failed):
    run_id, mark = failed
    place.wait(run_id)
    browser.driver.get(f"{browser.home}runs/{run_id}/")
    browser.wait(lambda: browser.find("Restart"))
    browser.press("Restart")
    browser.wait_for("a new run does what did not succeed")
    mark.touch()
    browser.press("Restart")
    browser.wait_for("Restarted")
    new = max(map(int, re.findall(r"Run (\d+)", browser.text)))
    assert new > int(run_id)
    browser.press(f"Run {new}")
    browser.wait_for("SUCCEEDED", "No failed job is known")
    assert browser.find("Restart") is None
    browser.driver.get(f"{browser.home}runs/{run_id}/")
    browser.wait_for(f"Run {run_id} was restarted: run {new}")
    browser.click(f"Run {new}")
    browser.wait_for(f"Run {new}: ")


def test_cancel(place, browser, failed):
    def build(workflow):
        for number in range(3):
            add(workflow, f"long_{number}", "long", "sleep 600")

    run_id = place.submit("long", build)
    browser.driver.get(f"{browser.home}runs/{run_id}/")
    browser.wait_for("RUNNING")
    browser.click("Cancel")
    browser.wait_for("is to be cancelled")
    browser.shoot("cancel")
    # Who goes back changes nothing.
    browser.click("Back")
    browser.click("Cancel")
    browser.click("Cancel")
    browser.wait_for("is cancelled")
    browser.click("Back")
    browser.wait_for("DELETED")
    browser.shoot("cancelled")


def test_the_command_serves_the_same_pages(place, browser, failed):
    command = [Path(sys.executable).with_name("panda_bps"), "web"]
    with subprocess.Popen(command, env=place.env, stdout=subprocess.PIPE, text=True) as process:
        try:
            link = process.stdout.readline().split()[-1]
            browser.driver.get(link)
            browser.wait_for("u_ann_failing")
            browser.driver.get(f"{browser.driver.current_url}runs/{failed[0]}/")
            browser.wait_for("First failure", "As of 20")
            # The link is used up, and the next one is told.
            browser.driver.get(link)
            browser.wait_for("this link was used before")
            assert "/open/" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, 130)
        finally:
            process.kill()
    said = browser.complaints()
    assert all("401" in text for text in said), said


def test_the_process_of_the_pages_has_nothing_to_complain_of(place, browser, failed):
    text = Path(place.endpoint.directory, "pages.log").read_text()
    assert "Traceback" not in text
    assert "WARNING" not in text
