"""A headless Chromium, and pages in it that are watched for errors."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.image import imread

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 375, "height": 740}


def chromium() -> str:
    """A browser of this machine; without one the tests fail in CI and are skipped elsewhere."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI"):
        pytest.fail("no Chromium here; tools/browser.sh installs it")
    pytest.skip("no Chromium here; tools/browser.sh installs it")


def open_page(browser: Browser, file: Path, size: dict[str, int], **options: Any) -> tuple[Page, list[str]]:
    """The page, and what went wrong: console errors, failed scripts, requests to anywhere."""
    page, wrong = browser.new_page(viewport=size, **options), list[str]()
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
    page.goto(file.as_uri())
    return page, wrong


def pixels(page: Page, selector: str) -> np.ndarray:
    return imread(io.BytesIO(page.locator(selector).first.screenshot()), format="png")[..., :3]
