"""Models are fetched from a local server that behaves like the hosts of models, and misbehaves."""

import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from conftest import assert_one_line_error
from leuko.errors import LeukoError
from leuko.model import download, weights
from leuko.model.card import CARD_FILE, ONNX_FILE
from leuko.model.weights import installed, pull
from phantoms import SMALL_MODEL

TAG = '"v1"'


class Host:
    """Answers each request with the next of `answers`, the last of them for ever."""

    def __init__(self, content):
        self.content, self.answers, self.asked = content, ["whole"], []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.asked.append((self.path, dict(self.headers)))
                answers = host.answers
                host.answer(self, answers.pop(0) if len(answers) > 1 else answers[0])

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/model.zip"

    def answer(self, request, kind):
        """A number is a status; `(status, address)` a redirect; `("cut", n)` breaks after n bytes
        of what is asked for."""
        if isinstance(kind, int):
            request.send_error(kind)
            return
        if isinstance(kind, tuple) and isinstance(kind[0], int):
            request.send_response(kind[0])
            request.send_header("Location", kind[1])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        options = kind if isinstance(kind, tuple) else (kind,)
        start, wanted = 0, request.headers.get("Range")
        tag = '"v2"' if "changed" in options else TAG
        if wanted and "no ranges" not in options and request.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        size, body = len(self.content), self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if "untagged" not in options:
            request.send_header("ETag", tag)
        if "unsized" not in options:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        cut = options[1] if options[0] == "cut" else len(body)
        request.wfile.write(body[:cut])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEUKO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "WAITS_S", (0.0, 0.0, 0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "models"


@pytest.fixture
def host(zipped):
    host = Host(zipped)
    yield host
    host.server.shutdown()
    host.server.server_close()


@pytest.fixture(scope="module")
def zipped(tmp_path_factory):
    """A model in an archive, as bytes."""
    target = tmp_path_factory.mktemp("archive") / "model.zip"
    with zipfile.ZipFile(target, "w") as archive:
        for name in (CARD_FILE, ONNX_FILE):
            archive.write(SMALL_MODEL / name, f"small/{name}")
    return target.read_bytes()


def test_a_model_is_installed_from_a_url(host):
    pull(host.url, sha256_expected=hashlib.sha256(host.content).hexdigest())
    assert "small" in installed()
    assert host.asked[0][1]["User-Agent"].startswith("leuko/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(host, status):
    other = host.url.replace("model.zip", "resolve/main/model.zip?download=true&signature=a%2Bb")
    host.answers = [(status, "/elsewhere"), (status, other), "whole"]
    pull(host.url)
    assert [path for path, _ in host.asked] == [
        "/model.zip", "/elsewhere", "/resolve/main/model.zip?download=true&signature=a%2Bb"
    ]  # fmt: skip


def test_a_circle_of_redirects_is_an_error(host, cache):
    host.answers = [(302, "/a"), (302, "/model.zip")] * 20
    with pytest.raises(LeukoError, match="could not be fetched"):
        pull(host.url)
    assert not cache.exists()


def test_a_redirect_to_a_file_of_this_machine_is_not_followed(host, cache):
    host.answers = [(302, "file:///etc/passwd")]
    with pytest.raises(LeukoError, match="could not be fetched"):
        pull(host.url)
    assert not cache.exists()


def test_a_redirect_out_of_https_is_not_followed():
    redirects = download._Redirects()
    request = download.urllib.request.Request("https://example.org/model.zip")
    with pytest.raises(LeukoError, match="which is not encrypted; nothing was downloaded"):
        redirects.redirect_request(request, None, 302, "", {}, "http://example.org/model.zip")
    followed = redirects.redirect_request(request, None, 302, "", {}, "https://cdn.org/model.zip")
    assert followed.full_url == "https://cdn.org/model.zip"


def test_a_broken_download_continues_where_it_was(host):
    part = len(host.content) // 3
    host.answers = [("cut", part), ("cut", part), "whole"]
    pull(host.url)
    assert [asked.get("Range") for _, asked in host.asked] == [
        None, f"bytes={part}-", f"bytes={2 * part}-"
    ]  # fmt: skip
    assert "small" in installed()


@pytest.mark.parametrize("option", ["no ranges", "untagged", "changed"])
def test_what_cannot_be_continued_begins_again(host, option):
    first = ("cut", 1000, "untagged") if option == "untagged" else ("cut", 1000)
    host.answers = [first, ("whole", option)]
    pull(host.url)
    assert "small" in installed()
    assert (host.asked[1][1].get("Range") is None) == (option == "untagged")


def test_a_download_that_always_breaks_is_an_error(host, cache):
    host.answers = [("cut", 1000, "no ranges")]
    size = len(host.content)
    with pytest.raises(LeukoError, match=rf"ended after 1000 of {size} bytes.* after 5 tries"):
        pull(host.url)
    assert len(host.asked) == 5
    assert not cache.exists()


def test_a_cut_download_of_unknown_size_is_not_installed(host, cache):
    host.answers = [("cut", 1000, "unsized")]
    with pytest.raises(LeukoError, match="is not a readable zip archive"):
        pull(host.url)
    assert not cache.exists()


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_busy_server_is_asked_again(host, status):
    host.answers = [status, status, "whole"]
    pull(host.url)
    assert "small" in installed()


def test_a_server_that_stays_busy_is_an_error(leuko, host):
    host.answers = [503]
    words = "the server answered 503 Service Unavailable", "after 5 tries; try again later"
    assert_one_line_error(leuko("models", "pull", host.url), *words)


@pytest.mark.parametrize(
    ("status", "advice"),
    [(404, "check the address"), (403, "it needs a login"), (410, "it was removed")],
)
def test_an_address_without_a_model_is_an_error_at_once(leuko, host, status, advice):
    host.answers = [status]
    assert_one_line_error(leuko("models", "pull", host.url), f"answered {status}", advice)
    assert len(host.asked) == 1


def test_without_a_network_another_way_is_told(leuko, host):
    host.server.shutdown()
    host.server.server_close()  # its port is closed
    answer = leuko("models", "pull", host.url)
    assert_one_line_error(answer, "no connection to 127.0.0.1", "give the path of the file")


def test_a_wrong_hash_installs_nothing(leuko, host, cache):
    answer = leuko("models", "pull", host.url, "--sha256", "0" * 64)
    found = hashlib.sha256(host.content).hexdigest()
    assert_one_line_error(answer, f"has SHA-256 {found}", "was not installed")
    assert not cache.exists()


@pytest.mark.parametrize("kind", ["whole", ("whole", "unsized")])
def test_what_is_larger_than_any_model_is_not_downloaded(host, cache, monkeypatch, kind):
    monkeypatch.setattr(weights, "LARGEST_BYTES", len(host.content) - 1)
    host.answers = [kind]
    with pytest.raises(LeukoError, match=r"is larger than .* the limit"):
        pull(host.url)
    assert len(host.asked) == 1
    assert not cache.exists()


def test_a_page_in_place_of_a_model_is_refused(host, cache):
    host.content = b"<!doctype html><title>Please log in</title>"
    with pytest.raises(LeukoError, match="is not a readable zip archive"):
        pull(host.url)
    assert not cache.exists()
