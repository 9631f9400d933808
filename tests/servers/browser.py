"""A real browser (Debian's Chromium), and what a user does with it."""

from __future__ import annotations

import shutil

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

LIMIT = 120.0


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
