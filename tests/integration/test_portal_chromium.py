"""The portal in a real browser: from the form to an image with what was found on it, by the mouse and by the
keyboard alone; a link that is shared, a configuration that is downloaded, and what is wrong.
"""

import logging
import os
import re
import subprocess
import sys
import time
from contextlib import closing
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import requests
import yaml
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from lsst.ctrl.bps.wms_service import WmsStates
from panda_servers.browser import Browser
from panda_servers.place import place_with_pages
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from lsst.ctrl.bps.panda.local import instance

pytestmark = pytest.mark.slow

NASTY = "<img src=x onerror=alert(1)>"
SMALL = "bands=r&visits_per_band=1&detectors=1&patches=1"
COUNT = """
  const pen = canvas.getContext('2d'), data = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let n = 0; n < data.length; n += 4) {
    if (arguments[0].every((value, k) => Math.abs(data[n + k] - value) < 12)) count += 1;
  }
  return count;
"""
FOUND, TRUTH = [76, 201, 255], [255, 176, 0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with place_with_pages(tmp_path_factory.mktemp("portal"), 2) as made:
        yield made


@pytest.fixture(scope="module")
def browser(place, tmp_path_factory):
    with closing(Browser(tmp_path_factory.mktemp("profile"))) as made:
        made.driver.get(instance.make_link(place.endpoint))
        made.home = made.driver.current_url
        yield made
        # What the browser thinks of the test's own questions is no complaint.
        assert [text for text in made.complaints() if "willReadFrequently" not in text] == []


def get(browser, path):
    """Download what a link of a page leads to."""
    cookies = {each["name"]: each["value"] for each in browser.driver.get_cookies()}
    reply = requests.get(browser.home + path, cookies=cookies, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply


def field(browser, name):
    return browser.driver.find_element(By.NAME, name)


def write(browser, name, text):
    field(browser, name).clear()
    field(browser, name).send_keys(text)


def wait_for_image(browser):
    browser.wait(lambda: browser.driver.find_elements(By.CSS_SELECTOR, "#viewer[data-shown]"))


@pytest.fixture(scope="module")
def launched(browser):
    """A run, from the form to its first image: its number, and what the form said of it."""
    browser.clicks = 0
    browser.click("Simulate")
    browser.wait_for("Simulate on demand", "115 quanta")
    for name, value in (("visits_per_band", "1"), ("patches", "1")):
        write(browser, name, value)
    browser.driver.find_element(By.CSS_SELECTOR, "[name=bands][value=g]").click()
    browser.driver.find_element(By.CSS_SELECTOR, "[aria-label^='detector 0']").click()
    browser.clicks += 2
    browser.wait_for("dataQuery: skymap='starcam_sky' AND detector IN (0)", "--visits-per-band 1")
    rows = browser.driver.find_elements(By.CSS_SELECTOR, "#preview tbody tr")
    quanta = {label: int(number) for label, number in (row.text.split() for row in rows)}
    begun = time.monotonic()
    browser.click("Launch")
    browser.wait_for("Progress")
    number = int(re.search(r"/runs/(\d+)/", browser.driver.current_url)[1])
    browser.click("Images")
    wait_for_image(browser)
    logging.getLogger(__name__).info("launch to first image: %.0f s", time.monotonic() - begun)
    assert browser.clicks <= 6
    return number, quanta


def test_the_preview_counts_as_the_graph_does(place, launched):
    (log,) = Path(place.endpoint.directory).glob("portal/launches/*/submit/**/quantumGraphGeneration.out")
    rows = re.findall(r"^ *(\d+) +(\w+) *$", log.read_text(), re.M)
    assert {label: int(number) for number, label in rows} == launched[1]


def test_an_image_with_what_was_found_and_the_truth(place, browser, launched):
    number, _ = launched
    assert place.wait(str(number)) == WmsStates.SUCCEEDED
    browser.driver.get(f"{browser.home}runs/{number}/images?name=coadd-0-r")
    wait_for_image(browser)
    canvas = browser.driver.find_element(By.ID, "canvas")
    count = browser.driver.execute_script
    assert count(COUNT, FOUND) > 100
    assert count(COUNT, TRUTH) == 0
    canvas.send_keys("ot+sc")
    assert count(COUNT, FOUND) == 0
    assert count(COUNT, TRUTH) > 100
    ActionChains(browser.driver).move_to_element_with_offset(canvas, 40, 30).perform()
    told = browser.driver.find_element(By.ID, "readout").text
    x, y, ra, dec = map(float, re.search(r"x (\d+), y (\d+): .*RA ([\d.]+), Dec ([-\d.]+)", told).groups())
    image = fits.open(BytesIO(get(browser, f"runs/{number}/images/coadd-0-r.fits").content))[0]
    # The place is that of the pointer, within its pixel.
    there = WCS(image.header).wcs_world2pix([[ra, dec]], 0)[0]
    assert abs(there[0] - x) < 0.51
    assert abs(there[1] - y) < 0.51
    browser.shoot("image")
    objects = Table.read(BytesIO(get(browser, f"runs/{number}/tables/objects-0.fits").content), format="fits")
    browser.click("snr")
    browser.click("ra")
    first = browser.driver.find_element(By.CSS_SELECTOR, "#table tbody tr").text
    assert f"{max(objects['ra']):.6f}" in first
    assert get(browser, f"runs/{number}/tables/truth.parquet").content[:4] == b"PAR1"
    assert b"object_id" in get(browser, f"runs/{number}/tables/objects-0.csv").content
    images = get(browser, f"api/runs/{number}/images").json()["images"]
    assert {each["kind"] for each in images} == {"raw", "calibrated", "coadd", "colour"}
    raw = next(each["name"] for each in images if each["kind"] == "raw")
    both = (raw, raw.replace("raw", "calibrated"))
    # What the telescope says of its pointing is wrong by some pixels, and not used once it is known better.
    places = [get(browser, f"api/runs/{number}/images/{name}").json()["objects"] for name in both]
    assert places[0] == places[1]
    assert len(places[0]["x"]) > 10


def test_no_path_leads_out_of_a_run(browser, launched):
    cookies = {each["name"]: each["value"] for each in browser.driver.get_cookies()}
    for path in (
        "images/..%2F..%2Fetc%2Fpasswd.fits", "images/raw-1-1.fits", "tables/starcam_flat.csv",
        "tables/..%2Fbutler.csv", "images/colour-99.pixels",
    ):  # fmt: skip
        reply = requests.get(f"{browser.home}runs/{launched[0]}/{path}", cookies=cookies, timeout=60)
        # The server in front of the pages refuses what leaves its paths.
        assert reply.status_code == (400 if ".." in path else 404)


def test_a_link_is_the_same_form_and_what_is_wrong_is_said_at_its_field(browser):
    browser.driver.get(f"{browser.home}portal?place=10.5,-20.25&bands=i,z&only=1,3&seeing={NASTY}")
    browser.wait_for("seeing is <img", "it must be a number")
    assert browser.find("Launch") is None
    write(browser, "seeing", "9")
    browser.wait_for("seeing is 9; it must be at most 5")
    assert field(browser, "seeing").get_attribute("aria-invalid") is not None
    write(browser, "seeing", "0.9")
    browser.wait_for("--place 10.5,-20.25 --bands i,z --seeing 0.9", "detector IN (1, 3)")
    link = browser.driver.current_url
    browser.driver.get(link)
    browser.wait_for("--place 10.5,-20.25 --bands i,z --seeing 0.9", "detector IN (1, 3)")
    assert field(browser, "seeing").get_attribute("value") == "0.9"
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "main img, main script")
    browser.shoot("form")


def test_detectors_are_picked_with_the_keyboard(browser):
    browser.driver.get(f"{browser.home}portal?bands=r&visits_per_band=1&patches=1")
    browser.wait_for("Simulate on demand")
    for _ in range(60):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        active = browser.driver.switch_to.active_element
        if (active.get_attribute("aria-label") or "").startswith("detector 2"):
            break
    ActionChains(browser.driver).send_keys(Keys.SPACE).perform()
    browser.wait_for("detector IN (2)")
    # What has the focus keeps it, though the drawing was made anew.
    active = browser.driver.switch_to.active_element
    assert active.get_attribute("aria-label").startswith("detector 2")
    assert active.get_attribute("aria-checked") == "true"
    browser.press("Link to this form")
    browser.wait_for("detector IN (2)")


def submit(place, directory):
    command = [Path(sys.executable).with_name("bps"), "submit", "portal.yaml"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{place.env['PATH']}"
    env = place.env | {"PATH": path, "PWD": str(directory)}
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, check=False)


def test_the_configuration_does_the_same_by_hand(place, browser, tmp_path):
    # Elsewhere, where no repository is yet.
    text = get(browser, f"portal/portal.yaml?{SMALL}&steps=simulate").text
    given = yaml.safe_load(text)["butlerConfig"]
    (tmp_path / "portal.yaml").write_text(text.replace(given, (tmp_path / "my sky").as_uri()))
    done = submit(place, tmp_path)
    assert done.returncode == 0, done.stderr
    assert place.wait(re.search(r"Run Id: (\d+)", done.stdout + done.stderr)[1]) == WmsStates.SUCCEEDED
    assert (tmp_path / "my sky" / "butler.yaml").is_file()


def test_a_launch_that_fails_says_why_first(browser):
    choices = f"{SMALL}&seed=77"
    given = yaml.safe_load(get(browser, f"portal/portal.yaml?{choices}").text)["butlerConfig"]
    sky = Path(unquote(urlsplit(given).path))
    sky.mkdir(parents=True)
    (sky / "something").touch()
    browser.driver.get(f"{browser.home}portal?{choices}")
    browser.click("Launch")
    browser.wait_for("There is no run", f"there is something at {sky}")
    browser.click("Back to the form")
    browser.wait_for("--seed 77")
