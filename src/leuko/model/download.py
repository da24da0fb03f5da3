"""Downloads a file over HTTP: follows redirects, and resumes after a broken connection."""

import http.client
import re
import socket
import ssl
import time
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from leuko.errors import LeukoError, in_one_line

WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before each new try
TIMEOUT_S = 60.0
BUSY = 429  # and all of 500 and more: another try may succeed
ADVICE = {
    401: "it needs a login: download it in a browser and give the path of the file",
    403: "it needs a login: download it in a browser and give the path of the file",
    404: "check the address",
    410: "it was removed: look for a newer address",
}


class _BrokenError(Exception):
    """A download that another try may finish."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from HTTPS to HTTP."""

    def redirect_request(  # noqa: PLR0917, as urllib calls it
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request at the new address. Raises LeukoError if that is not encrypted any more."""
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise LeukoError(
                f"{req.full_url} leads to {newurl}, which is not encrypted; nothing was downloaded"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, target: Path, *, largest_bytes: int) -> None:
    """Download `url` (http or https) into a file.

    After a broken connection it continues where it was, if the server can, and otherwise begins
    again; after five failed tries it gives up. Raises LeukoError that names the cause, also if the
    file has more than `largest_bytes`.
    """
    with target.open("wb") as file:
        part = _Part(url, file, largest_bytes)
        for wait_s in (*WAITS_S, None):
            try:
                part.fetch()
            except (_BrokenError, http.client.HTTPException, OSError) as error:
                if wait_s is None:
                    raise LeukoError(
                        f"{url} could not be fetched ({in_one_line(error)}), after "
                        f"{len(WAITS_S) + 1} tries; try again later"
                    ) from error
                time.sleep(wait_s)
            else:
                return


class _Part:
    """The part of a file that is downloaded so far."""

    def __init__(self, url: str, file: IO[bytes], largest_bytes: int) -> None:
        self.url, self.file, self.largest_bytes = url, file, largest_bytes
        self.version = ""  # ETag or date of what is there; without one it cannot be continued
        self.opener = urllib.request.build_opener(_Redirects)

    def fetch(self) -> None:
        """Download what is missing. Raises _BrokenError, OSError or HTTPException if another try
        may succeed, else LeukoError."""
        start = self.file.tell() if self.version else 0
        headers = {"User-Agent": f"leuko/{metadata.version('leuko')}"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": self.version}
        request = urllib.request.Request(self.url, headers=headers)
        try:
            with self.opener.open(request, timeout=TIMEOUT_S) as response:
                self._append(response, start)
        except HTTPError as error:
            if error.code == BUSY or error.code >= 500:
                raise _BrokenError(f"the server answered {error.code} {error.reason}") from error
            advice = ADVICE.get(error.code, "check the address")
            raise LeukoError(
                f"{self.url} could not be fetched (the server answered {error.code} "
                f"{error.reason}); {advice}"
            ) from error
        except URLError as error:
            why = error.reason
            if isinstance(why, socket.gaierror | ConnectionRefusedError | ssl.SSLError):
                raise LeukoError(
                    f"{self.url} could not be fetched: no connection to "
                    f"{urlsplit(self.url).hostname} ({why}); check the network, or download it "
                    "elsewhere and give the path of the file"
                ) from error
            raise

    def _append(self, response: http.client.HTTPResponse, start: int) -> None:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status != 206 or given is None or int(given[1]) != start:
            start = 0  # the whole file
        self.file.seek(start)
        self.file.truncate()
        self.version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        length = response.headers.get("Content-Length")
        size = start + int(length) if length else None
        self._require_small(size or 0)
        while piece := response.read(1 << 20):
            self._require_small(self.file.tell() + len(piece))
            self.file.write(piece)
        if size is not None and self.file.tell() != size:
            raise _BrokenError(f"the connection ended after {self.file.tell()} of {size} bytes")

    def _require_small(self, size: int) -> None:
        if size > self.largest_bytes:
            raise LeukoError(
                f"{self.url} is larger than {self.largest_bytes / 1e6:.0f} MB, the limit; it was "
                "not installed: give a zip archive of a model"
            )
