"""A headless Chromium that tests drive; they are skipped where there is none."""

import contextlib
import os
import shutil

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
needs_chromium = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium on PATH; Debian has it as the package chromium"
)


@contextlib.contextmanager
def chromium():
    """A browser that ends with the block."""
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        # A sandbox cannot be made by root, which is who runs in containers.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def open_report(browser, path, *, width=1280, height=900, dark=False):
    """(page, what it complained of, what it asked the network for), drawn as far as it is seen."""
    scheme = "dark" if dark else "light"
    window = {"viewport": {"width": width, "height": height}, "reduced_motion": "reduce"}
    page = browser.new_page(color_scheme=scheme, **window)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    return page, complaints, requests
