"""No page of Leuko asks another machine for anything: a listener in place of the network hears
nothing."""

import socket
import subprocess
import sys
import threading

import pytest

from conftest import segmented
from leuko.cohort.gather import write_batch

pytestmark = pytest.mark.browser
# Chromium itself calls its maker, whatever page it shows: it gets a closed port instead.
FEATURES = (
    "AutofillServerCommunication", "MediaRouter", "NetworkTimeServiceQuerying",
    "OptimizationHints", "Translate",
)  # fmt: skip
QUIET = (
    "--disable-background-networking", "--disable-sync", "--no-first-run", "--no-pings",
    "--component-updater=disable-pings,url-source=http://127.0.0.1:9/",
    "--gaia-url=http://127.0.0.1:9/", f"--disable-features={','.join(FEATURES)}",
)  # fmt: skip


class Listener:
    """Takes the place of every other machine and keeps what it is sent."""

    def __init__(self):
        self.heard = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(2)
                self.heard.append(connection.recv(1000))


@pytest.fixture
def listener():
    listener = Listener()
    yield listener
    listener.server.close()


@pytest.fixture
def page(listener, launch):
    """A page of a browser for which the listener is the whole network beyond this machine."""
    network = (f"--proxy-server=127.0.0.1:{listener.port}", "--proxy-bypass-list=127.0.0.1")
    browser = launch(*QUIET, *network)
    yield browser.new_page(viewport={"width": 500, "height": 400})
    browser.close()


@pytest.fixture
def out(heads, model, tmp_path):
    head = heads / "head0"
    for name in ("a", "b"):
        flair, t1 = head / "FLAIR.nii.gz", head / "T1.nii.gz"
        segmented(flair, t1, tmp_path / "out" / name, model=model)
    write_batch(tmp_path / "out")
    return tmp_path / "out"


def use(page):
    """Press every button that asks for no file, and choose every choice."""
    for control in page.locator("input[type=radio], input[type=checkbox]").all():
        if control.is_visible():
            control.check()
    for select in page.locator("select").all():
        for option in select.locator("option").all():
            if select.is_visible():
                select.select_option(index=option.evaluate("o => o.index"))
    page.keyboard.press("n")
    page.wait_for_timeout(300)


def test_the_listener_would_hear_a_request(page, listener):
    page.goto("data:text/html,<img src='http://example.org/a.png'>")
    page.wait_for_timeout(500)
    assert any(b"example.org/a.png" in request for request in listener.heard)


def test_reports_and_the_page_of_a_cohort_ask_nobody(page, listener, out):
    for path in (out / "report.html", out / "a" / "report.html"):
        page.goto(path.as_uri())
        use(page)
    assert listener.heard == []


def test_leuko_view_asks_only_its_own_server(page, listener, out):
    command = [sys.executable, "-m", "leuko.cli", "view", str(out), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            page.goto(process.stdout.readline().split()[-1])
            page.wait_for_selector("body[data-ready]", timeout=60_000)
            use(page)
            page.locator("#next").click()
            page.wait_for_selector("body[data-ready]", timeout=60_000)
        finally:
            process.kill()
    assert listener.heard == []
