"""A real browser (Debian's Chromium), and what a user does with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from .npm import install

LIMIT = 120.0

SIZES = {"narrow": 360, "wide": 1500, "4k": 3840}
_WIDE = SIZES["wide"]

_NAME = """
const words = (each) => ["A", "BUTTON", "SUMMARY"].includes(each.tagName) ? each.innerText : "";
const name = (each) => [each.tagName, each.getAttribute("href"), each.name, each.getAttribute("aria-label"),
                        words(each)].join(" ");
"""
_REACHABLE = (
    _NAME
    + """
const all = document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']");
return [...all].filter((each) => each.type !== "hidden" && each.checkVisibility()).map(name);
"""
)
_FOCUSED = (
    _NAME
    + """
const active = document.activeElement;
return [name(active), getComputedStyle(active).outlineStyle];
"""
)

# As of WCAG 2.2 AA; what axe cannot decide is looked at, not listed.
_JUDGE = """
const done = arguments[arguments.length - 1];
axe.run({runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}).then(
  (found) => done(found.violations.map((each) => [each.id, each.help, each.nodes.map((node) => node.html)])),
  (error) => done([["axe", String(error), []]]));
"""


class Browser:
    """A browser, and what a user does with it."""

    def __init__(self, profile, words=()):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for word in (
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-dev-shm-usage",
            "hide-scrollbars",
            *words,
        ):
            options.add_argument(f"--{word}")
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options, service)
        self.clicks = 0

    def close(self):
        self.driver.quit()

    def wait(self, condition):
        # A page that renews itself may replace what was just found.
        renewed = [StaleElementReferenceException]
        waiting = WebDriverWait(self.driver, LIMIT, 0.2, renewed)
        return waiting.until(lambda driver: condition(), f"not seen: {self.text}")

    @property
    def text(self):
        return self.driver.execute_script("return document.body.innerText")

    def wait_for(self, *words):
        self.wait(lambda: all(word in self.text for word in words))

    def find(self, words):
        """Find a link or a button by its words; none if it is not there."""
        found = self.driver.find_elements(By.XPATH, f"//*[self::a or self::button][contains(., '{words}')]")
        return found[0] if found else None

    def click(self, words):
        def click():
            if found := self.find(words):
                found.click()
            return found

        self.wait(click)
        self.clicks += 1

    def complaints(self):
        """Return what the browser says of the pages: what their policy refuses, what is broken."""
        return [each["message"] for each in self.driver.get_log("browser")]

    def resize(self, width, height=900):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def press(self, words):
        """Go to a link or a button with the Tab key, see that it is marked, and press Enter."""
        script = """
          const active = document.activeElement, style = getComputedStyle(active);
          return [active.tagName, active.innerText, style.outlineStyle];
        """
        for _ in range(60):
            webdriver.ActionChains(self.driver).send_keys(Keys.TAB).perform()
            # In one question: a page that renews itself puts another element in its place.
            kind, text, outline = self.driver.execute_script(script)
            if kind in ("A", "BUTTON") and words in text:
                assert outline == "solid"
                webdriver.ActionChains(self.driver).send_keys(Keys.ENTER).perform()
                return
        raise AssertionError(f"{words} is out of reach of the Tab key")

    def judge(self):
        """Return what axe finds wrong with the page for people who see badly or use no mouse, in the light
        and in the dark.
        """
        source = install("axe-core", "4") / "node_modules" / "axe-core" / "axe.min.js"
        self.driver.execute_script(source.read_text(encoding="utf-8"))
        found = []
        for scheme in ("dark", "light"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            found += [(scheme, *each) for each in self.driver.execute_async_script(_JUDGE)]
        return found

    def walk(self):
        """Return what cannot be reached with the Tab key, or does not show that it was."""
        wanted, reached, unmarked = set(self.driver.execute_script(_REACHABLE)), set(), set()
        assert wanted
        for _ in range(3 * len(wanted)):
            webdriver.ActionChains(self.driver).send_keys(Keys.TAB).perform()
            name, outline = self.driver.execute_script(_FOCUSED)
            reached.add(name)
            if outline == "none" and name in wanted:
                unmarked.add(name)
            if wanted <= reached:
                break
        return wanted - reached | unmarked

    def shoot(self, name):
        """Look whether the page can be used by all, and fits each width; keep pictures in the folder that
        ``PANDA_TEST_PICTURES`` names, if somebody wants to look at them.
        """
        assert self.judge() == []
        assert self.walk() == set()
        for size, width in SIZES.items():
            self.resize(width)
            assert self.driver.execute_script("return document.scrollingElement.scrollWidth") <= width
            if folder := os.environ.get("PANDA_TEST_PICTURES"):
                height = self.driver.execute_script("return document.scrollingElement.scrollHeight")
                self.resize(width, height)
                Path(folder, f"{name}_{size}.png").write_bytes(self.driver.get_screenshot_as_png())
        self.resize(_WIDE)
