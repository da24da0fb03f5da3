"""The server of `leuko view`: whom it answers, what it serves, and when it ends."""

import csv
import errno
import hashlib
import json
import threading
import time
from http.client import HTTPConnection
from importlib.resources import files
from urllib.parse import quote

import numpy as np
import pytest

from conftest import segmented
from leuko.cohort import ratings
from leuko.cohort.files import EDITED_FILE, EDITED_FOLDER
from leuko.io import nifti
from leuko.view import server
from leuko.view.editing import find_results

NIIVUE_SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"


@pytest.fixture
def viewer(heads, model, tmp_path):
    head = heads / "head0"
    segmented(head / "FLAIR.nii.gz", head / "T1.nii.gz", tmp_path / "out", model=model)
    viewer = server.Viewer(find_results(tmp_path / "out"), tmp_path / "out")
    thread = threading.Thread(target=viewer.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    viewer.thread = thread
    yield viewer
    viewer.shutdown()
    thread.join()
    viewer.finish()


def ask(viewer, path, method="GET", body=None, token=None, **headers):
    connection = HTTPConnection("127.0.0.1", viewer.server_port, timeout=30)
    address = f"/{viewer.token if token is None else token}/{path}"
    connection.request(method, address, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def test_only_those_who_know_the_token_are_answered(viewer):
    assert ask(viewer, "about")[0] == 200
    for token in ("", "x", viewer.token[:-1], viewer.token.swapcase()):
        assert ask(viewer, "about", token=token)[0] == 403
        assert ask(viewer, "mask", "POST", b"x", token=token)[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.org"},
        {"Host": "evil.org:80"},
        {"Origin": "http://evil.org"},
        {"Origin": "null"},
    ],
)
def test_other_sites_are_refused(viewer, headers):
    assert ask(viewer, "about", **headers)[0] == 403


@pytest.mark.parametrize(
    "path",
    ["../run.json", "..%2frun.json", "run.json", "wmh.nii.gz", "server.py", "assets/view.js", "x"],
)
def test_no_other_file_is_served(viewer, path):
    assert ask(viewer, path)[0] in (403, 404)


def test_the_page_may_load_nothing_from_elsewhere(viewer):
    for path in server.ASSETS:
        status, headers, content = ask(viewer, path)
        assert status == 200
        assert content
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "http" not in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"


def test_niivue_is_the_published_file():
    assets = files("leuko.view").joinpath("assets")
    content = assets.joinpath("niivue.umd.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() == NIIVUE_SHA256
    assert "BSD 2-Clause" in assets.joinpath("NIIVUE_LICENSE.txt").read_text()


def test_images_are_nifti_on_the_grid_of_the_mask(viewer, tmp_path):
    about = json.loads(ask(viewer, "about")[2])
    shape = nifti.read(tmp_path / "out" / "wmh.nii.gz").canonical().data.shape
    assert about["images"][:2] == ["flair", "t1"]
    assert len(about["lesions_table"]) == about["lesions"]
    for name in about["images"]:
        content = ask(viewer, f"image?image={name}")[2]
        (tmp_path / "got.nii").write_bytes(content)
        assert nifti.read(tmp_path / "got.nii").data.shape == shape
    assert ask(viewer, "image?image=x")[0] == 400
    assert ask(viewer, "about?name=x")[0] == 400


def wait_until_measured(viewer):
    until = time.monotonic() + 60
    while not (about := json.loads(ask(viewer, "about")[2]))["is_current"]:
        assert time.monotonic() < until
        assert about["problem"] is None
        time.sleep(0.2)
    return about


def test_a_correction_that_was_not_measured_is_measured_when_it_is_opened(viewer, tmp_path):
    (result,) = find_results(tmp_path / "out")
    mask = result.mask.copy()
    mask[:3, 0, 0] = True
    result.save(mask, based_on=result.version, editor="A B")
    assert not json.loads(ask(viewer, "about")[2])["is_current"]
    about = wait_until_measured(viewer)
    assert about["volume_ml"] == pytest.approx(result.automatic.ml(mask), abs=1e-3)


def test_a_mask_goes_and_comes_back(viewer, tmp_path):
    status, headers, content = ask(viewer, "mask")
    mask = np.frombuffer(content, np.uint8).copy()
    mask[:7] ^= 1
    version = headers["X-Version"]
    status, _, answer = ask(viewer, f"mask?based_on={version}&editor=A%20B", "POST", mask.tobytes())
    assert status == 200
    saved = nifti.read(tmp_path / "out" / EDITED_FILE).canonical().data
    np.testing.assert_array_equal(saved.ravel(order="F"), mask)
    _, headers, content = ask(viewer, "mask")
    assert content == mask.tobytes()
    assert headers["X-Version"] == json.loads(answer)["version"]
    status, _, said = ask(viewer, f"mask?based_on={version}", "POST", mask.tobytes())
    assert status == 409
    assert b"another window" in said
    about = wait_until_measured(viewer)
    assert about["edited"]["editor"] == "A B"
    assert b"Mask corrected by" in ask(viewer, "report")[2]


def test_verdicts_are_added_to_the_file_of_their_rater(viewer, tmp_path):
    for verdict, rater in (("FAIL", "=A B"), ("PASS", "=A B"), ("flag", "")):
        path = f"verdict?verdict={verdict}&rater={quote(rater)}"
        assert ask(viewer, path, "POST")[0] == 200
    assert ask(viewer, "verdict?verdict=x", "POST")[0] == 400
    folder = tmp_path / "out" / "verdicts"
    assert sorted(path.name for path in folder.iterdir()) == ["view.csv", "view__A_B.csv"]
    with (folder / "view__A_B.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["FAIL", "PASS"]
    assert rows[0]["rater"] == "'=A B"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert rows[0]["mask_sha256"] == record["mask_sha256"]
    (said,) = ratings.gather(folder, {"out": row_of(record)})[-1:]
    assert (said["id"], said["current"]) == ("out", "yes")


def test_a_verdict_that_cannot_be_written_is_told_to_the_page(viewer, monkeypatch):
    def read_only(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    status, _, said = ask(viewer, "verdict?verdict=PASS", "POST")
    assert status == 400
    assert b"cannot write into" in said


def row_of(record):
    """What the verdict is matched by."""
    flair = record["inputs"]["flair"]["sha256"]
    return {"flair_sha256": flair, "mask_sha256": record["mask_sha256"]}


@pytest.mark.parametrize("body", [b"", b"abc"])
def test_a_mask_of_another_size_is_refused_and_nothing_is_written(viewer, tmp_path, body):
    version = ask(viewer, "mask")[1]["X-Version"]
    assert ask(viewer, f"mask?based_on={version}", "POST", body)[0] in (400, 404)
    assert not (tmp_path / "out" / EDITED_FILE).exists()


def test_why_a_mask_could_not_be_measured_is_told(viewer, tmp_path, monkeypatch):
    monkeypatch.setattr(server.Result, "measure", lambda *_: 1 / 0)
    _, headers, content = ask(viewer, "mask")
    ask(viewer, f"mask?based_on={headers['X-Version']}", "POST", content)
    until = time.monotonic() + 30
    while json.loads(ask(viewer, "about")[2])["problem"] is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (tmp_path / "out" / EDITED_FILE).is_file()
    assert not (tmp_path / "out" / EDITED_FOLDER).exists()


def test_the_server_ends_after_its_last_page(viewer, monkeypatch):
    monkeypatch.setattr(server, "BEAT_S", 0.05)
    monkeypatch.setattr(server, "LINGER_S", 0.5)
    pages = []
    for _ in range(2):
        page = HTTPConnection("127.0.0.1", viewer.server_port)
        page.request("GET", f"/{viewer.token}/open")
        pages.append(page.getresponse())  # holds the connection from here on
        pages[-1].read1(3)
    pages[0].close()
    time.sleep(1.5)
    assert viewer.thread.is_alive()
    pages[1].close()
    viewer.thread.join(timeout=20)
    assert not viewer.thread.is_alive()
