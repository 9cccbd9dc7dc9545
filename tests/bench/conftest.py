"""One language, one engine and one server for all tests of the benchmarks: starting them is what takes time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from vllm_eagle_plugin.benchmarks.engine import Engine, open_engine

from .browser import chromium
from .language import K, Language, build_language

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OPTIONS = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8, "enforce_eager": True}


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Language:
    return build_language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def engine(language: Language) -> Iterator[Engine]:
    """The language's target with its half-wrong head."""
    speculative = {"model": str(language.head), "num_speculative_tokens": K}
    with open_engine(str(language.target), speculative, OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as play:
        launched = play.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield launched
        launched.close()
