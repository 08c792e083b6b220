"""The chat page in headless Chromium against the server that brings it: under its policy, with its answers."""

import time

import pytest
from chromium import PROGRAM, chromium
from served import Live

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium: apt-get install chromium")


def test_the_page_talks_with_its_server_and_stop_frees_the_slot(
    live: Live, tmp_path_factory: pytest.TempPathFactory
) -> None:
    queue = live.service.queue
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        page.open(live.url)
        page.wait_for("document.title === 'tiny'")
        page.value("document.getElementById('said').focus()")
        page.type("Hello")
        page.press("Enter")
        page.wait_for("(document.querySelector('.message.assistant:last-child > div')?.innerText ?? '').length > 5")
        assert queue.running == 1, "the tiny model goes on for long"
        page.click("#stop")
        deadline_s = time.monotonic() + 5
        while queue.running and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert queue.running == 0
        assert page.console == []
