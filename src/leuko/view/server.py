"""The local server of `leuko view`: one page, its images, and saving of corrected masks.

It answers only requests of this machine that know its token, and serves no file but those of the
page and the results that it was started with.
"""

import csv
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from leuko.errors import LeukoError
from leuko.io import nifti
from leuko.io.outputs import LESION_TABLE_FILE, REPORT_FILE, VERDICTS_FOLDER
from leuko.view.editing import ConflictError, Result, described
from leuko.volume import Volume

if TYPE_CHECKING:  # it loads libraries that the first picture does not need
    from leuko.model.runtime import Model

ASSETS = {
    "": ("view.html", "text/html; charset=utf-8"),
    "view.css": ("view.css", "text/css; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
    "niivue.js": ("niivue.umd.js", "text/javascript; charset=utf-8"),
}
# NiiVue needs styles in its elements, and images, fonts and matrices from data in its script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src data:; connect-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
BEAT_S = 1.0  # between signs of life to an open page
LINGER_S = 4.0  # after the last page was closed: a reload opens it again
LARGEST_MASK = 1 << 30  # bytes


class Viewer(ThreadingHTTPServer):
    """Serves results until the last page is closed or `shutdown` is called."""

    daemon_threads = True
    # On Windows, another program could otherwise listen on the same port.
    allow_reuse_address = os.name != "nt"

    def __init__(self, results: Sequence[Result], folder: Path, *, port: int = 0) -> None:
        """Verdicts are saved in `folder`/verdicts. Port 0 takes a free one."""
        super().__init__(("127.0.0.1", port), _Handler)
        self.results = {result.name: result for result in results}
        self.token = secrets.token_urlsafe(24)
        self.verdicts = folder / VERDICTS_FOLDER
        self.saving = threading.Lock()
        self._models: dict[str, Model] = {}  # by their folder or name
        self._pending: set[str] = set()  # results that are about to be measured
        self._measuring = ThreadPoolExecutor(1)
        self._problems: dict[str, str] = {}  # why the corrected mask of a result is not measured
        self._pages, self._closed_at = 0, float("inf")
        self._counting = threading.Lock()

    @property
    def address(self) -> str:
        """The page's address; only who knows it is answered."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def service_actions(self) -> None:
        """Stop some seconds after the last page was closed; called twice a second."""
        if self._pages == 0 and time.monotonic() > self._closed_at + LINGER_S:
            threading.Thread(target=self.shutdown, daemon=True).start()

    def open_page(self) -> None:
        with self._counting:
            self._pages += 1

    def close_page(self) -> None:
        with self._counting:
            self._pages -= 1
            self._closed_at = time.monotonic()

    def measure(self, result: Result) -> None:
        """Measure a corrected mask soon, one after the other."""
        self._problems.pop(result.name, None)
        self._pending.add(result.name)
        self._measuring.submit(self._measure, result)

    def described(self, result: Result) -> dict[str, object]:
        """What the page shows of a result, whose corrected mask is measured if it was not."""
        about = described(result)
        if not about["is_current"] and result.name not in (*self._pending, *self._problems):
            self.measure(result)
        return about | {"problem": self._problems.get(result.name)}

    def finish(self) -> None:
        """Wait until all corrected masks are measured."""
        self._measuring.shutdown(wait=True)
        self.server_close()

    def _measure(self, result: Result) -> None:
        from leuko.model.runtime import load_model

        try:
            model = result.record.model
            used = model.path or model.name
            if used not in self._models:
                self._models[used] = load_model(used)
            result.measure(self._models[used])
        except Exception as error:  # noqa: BLE001, the page shows it: nobody waits for this thread
            self._problems[result.name] = str(error)
        finally:
            self._pending.discard(result.name)


class _Handler(BaseHTTPRequestHandler):
    server: Viewer
    server_version, sys_version = "Leuko", ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the address holds the token."""

    def _answer(self, answer: Callable[[str, dict[str, str]], None]) -> None:
        address = urlsplit(self.path)
        _, token, *rest = [*unquote(address.path).split("/"), ""]
        hosts = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        if (
            self.headers.get("Host") not in hosts  # another site's name that leads here
            or not secrets.compare_digest(token.encode(), self.server.token.encode())
            or (origin is not None and urlsplit(origin).netloc not in hosts)
        ):
            self._send(
                HTTPStatus.FORBIDDEN, "text/plain", b"open the address that leuko view printed"
            )
            return
        given = {name: values[-1] for name, values in parse_qs(address.query).items()}
        with suppress(BrokenPipeError, ConnectionResetError):
            try:
                answer("/".join(rest[:-1]), given)
            except ConflictError as error:
                self._send(HTTPStatus.CONFLICT, "text/plain", str(error).encode())
            except LeukoError as error:
                self._send(HTTPStatus.BAD_REQUEST, "text/plain", str(error).encode())

    def _get(self, path: str, given: dict[str, str]) -> None:
        if path in ASSETS:
            name, kind = ASSETS[path]
            content = files("leuko.view").joinpath("assets", name).read_bytes()
            self._send(HTTPStatus.OK, kind, content)
        elif path == "open":
            self._stay_open()
        elif path == "about":
            result, names = self._result(given), list(self.server.results)
            self._send_json(
                self.server.described(result)
                | {
                    "names": names,
                    "images": list(result.images()),
                    "lesions_table": _lesions(result),
                    "label": result.record.label,
                }
            )
        elif path == "image":
            image = self._result(given).images().get(given.get("image", ""))
            if image is None:
                raise LeukoError("there is no such image")
            self._send(HTTPStatus.OK, "application/octet-stream", as_nifti(image()))
        elif path == "mask":
            result = self._result(given)
            with self.server.saving:  # the version must be that of these voxels
                mask, version = result.mask, result.version
            content = mask.astype(np.uint8).tobytes(order="F")
            self._send(HTTPStatus.OK, "application/octet-stream", content, version=version)
        elif path == "report":
            report = self._result(given).latest(REPORT_FILE)
            if not report.is_file():
                raise LeukoError("there is no report")
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", report.read_bytes(), policy="")
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page")

    def _post(self, path: str, given: dict[str, str]) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= LARGEST_MASK or path not in ("mask", "verdict"):
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page")
            return
        content, result = self.rfile.read(length), self._result(given)
        if path == "verdict":
            with self.server.saving:
                result.judge(
                    self.server.verdicts,
                    verdict=given.get("verdict", ""),
                    rater=given.get("rater", ""),
                )
            self._send_json({})
            return
        voxels = np.frombuffer(content, dtype=np.uint8)
        shape = result.automatic.canonical().data.shape
        if voxels.size != np.prod(shape):
            raise LeukoError(f"{voxels.size} voxels were sent, expected {np.prod(shape)}")
        mask = voxels.reshape(shape, order="F") > 0
        with self.server.saving:
            version = result.save(
                mask, based_on=given.get("based_on", ""), editor=given.get("editor", "")
            )
        self.server.measure(result)
        self._send_json({"version": version})

    def _result(self, given: dict[str, str]) -> Result:
        name = given.get("name") or next(iter(self.server.results))
        if name not in self.server.results:
            raise LeukoError(f"there is no result {name}")
        return self.server.results[name]

    def _stay_open(self) -> None:
        """Send signs of life until the page is closed."""
        self.server.open_page()
        try:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            while True:
                self.wfile.write(b":\n\n")
                self.wfile.flush()
                time.sleep(BEAT_S)
        finally:
            self.server.close_page()
            self.close_connection = True

    def _send_json(self, content: dict[str, object]) -> None:
        self._send(HTTPStatus.OK, "application/json", json.dumps(content).encode())

    def _send(
        self,
        status: HTTPStatus,
        kind: str,
        content: bytes,
        *,
        version: str = "",
        policy: str = POLICY,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if policy:  # a report has its own
            self.send_header("Content-Security-Policy", policy)
        if version:
            self.send_header("X-Version", version)
        self.end_headers()
        self.wfile.write(content)


def as_nifti(volume: Volume) -> bytes:
    """An image as the bytes of a NIfTI file, in at most 32 bits."""
    data = volume.data
    if data.dtype == bool:
        data = data.astype(np.uint8)
    elif data.dtype.itemsize > 4:
        data = data.astype(np.float32)
    return nifti.to_bytes(volume.with_data(data))


def _lesions(result: Result) -> list[dict[str, str]]:
    """The rows of the table of lesions, of the corrected mask once it is measured."""
    path = result.latest(LESION_TABLE_FILE)
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [{"id": row.get("index", ""), **row} for row in rows]  # the column's name in BIDS
