"""A headless Chromium for tests, which are skipped where it is missing."""

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
    """Yields a browser that closes at the end of the block."""
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        # Chromium's sandbox does not start as root, the usual user in containers.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def open_report(browser, path, *, width=1280, height=900, dark=False):
    """Opens a report, waits for its visible part, and returns (page, complaints, requests)."""
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
