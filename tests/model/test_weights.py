"""Models by name: found, listed, fetched whole or not at all."""

import json
import shutil
import zipfile
from dataclasses import replace

import pytest

from leuko.errors import LeukoError
from leuko.io.files import sha256
from leuko.model import weights
from leuko.model.card import CARD_FILE, WEIGHTS_FILE, load_card
from leuko.model.weights import find, installed, pull


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEUKO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def archive(model, tmp_path):
    """The phantoms' model, zipped as a folder."""
    path = tmp_path / "phantom.zip"
    with zipfile.ZipFile(path, "w") as content:
        for name in (CARD_FILE, WEIGHTS_FILE):
            content.write(model / name, f"phantom/{name}")
        content.writestr("phantom/README.md", "hello")
        content.writestr("../escape.txt", "no")
    return path


def test_the_bundled_model_is_whole():
    card = load_card(find("leuko-base"))
    assert card.name == "leuko-base"
    assert card.classes == ("background", "csf", "ventricle", "grey", "white", "rim", "wmh")
    assert card.preparation.t1_optional
    assert "not stated" not in card.licence
    assert sum(p.stat().st_size for p in find("leuko-base").iterdir()) <= 16e6


def test_a_model_is_pulled_and_found_by_name(archive, cache, model):
    folder = pull(str(archive))
    assert folder == cache / "phantom-model" == find("phantom-model")
    assert sorted(path.name for path in folder.iterdir()) == [CARD_FILE, WEIGHTS_FILE]
    assert load_card(folder) == load_card(model)
    assert set(installed()) == {"leuko-base", "phantom-model"}
    with pytest.raises(LeukoError, match=r"is installed already: .* with --name, or delete"):
        pull(str(archive))


def test_a_model_is_pulled_under_another_name(archive, cache, model):
    pull(str(archive))
    folder = pull(str(archive), name="second")
    assert folder == cache / "second" == find("second")
    assert load_card(folder) == replace(load_card(model), name="second")
    with pytest.raises(LeukoError, match="a model second is installed already"):
        pull(str(archive), name="second")


def test_a_bundled_model_is_not_installed_again(tmp_path, cache):
    folder = weights.BUNDLED / "leuko-base"
    archive = shutil.make_archive(str(tmp_path / "base"), "zip", folder)
    assert pull(archive) == folder
    assert not cache.exists()
    assert pull(archive, name="mine") == cache / "mine"


def test_another_model_with_the_name_of_a_bundled_one_needs_its_own_name(archive, tmp_path, cache):
    """Nobody is told to delete a part of the package."""
    other = changed(archive, tmp_path / "other.zip", name="leuko-base")
    with pytest.raises(LeukoError, match="give this one a name of its own with --name") as refused:
        pull(str(other))
    assert "delete" not in str(refused.value)
    assert not cache.exists()
    assert pull(str(other), name="other") == cache / "other"
    assert find("leuko-base") == weights.BUNDLED / "leuko-base"


def test_a_url_will_do(archive):
    assert load_card(pull(archive.as_uri(), sha256_expected=sha256(archive)))


def test_a_wrong_hash_installs_nothing(archive, cache):
    with pytest.raises(LeukoError, match="expected 00ff; it is damaged"):
        pull(str(archive), sha256_expected="00ff")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "is not a readable zip archive"),
        (None, "could not be fetched"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path, cache, content, message):
    path = tmp_path / "some.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LeukoError, match=message):
        pull(str(path))
    assert not cache.exists()


def test_what_is_larger_than_any_model_is_not_fetched(archive, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LARGEST_BYTES", archive.stat().st_size - 1)
    for source in (str(archive), archive.as_uri()):
        with pytest.raises(LeukoError, match=r"is larger than .* the limit"):
            pull(source)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr(CARD_FILE, " " * archive.stat().st_size)
    with pytest.raises(LeukoError, match=r"is larger than .* the limit"):
        pull(str(tmp_path / "bomb.zip"))
    assert not cache.exists()


def test_a_folder_with_the_name_of_a_model_is_asked_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(weights.BUNDLED / "leuko-base", "leuko-base")
    with pytest.raises(LeukoError, match=r"write \./leuko-base for the folder"):
        find("leuko-base")
    assert find("./leuko-base").samefile(tmp_path / "leuko-base")


def test_an_archive_without_card_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as content:
        content.writestr("note.txt", "hello")
    with pytest.raises(LeukoError, match="holds no card"):
        pull(str(tmp_path / "a.zip"))


def changed(archive, target, **changes):
    """The same archive with another card."""
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(target, "w") as after:
        card = json.loads(before.read(f"phantom/{CARD_FILE}")) | changes
        after.writestr(CARD_FILE, json.dumps(card))
        after.writestr(WEIGHTS_FILE, before.read(f"phantom/{WEIGHTS_FILE}"))
    return target


def test_a_tampered_model_is_not_installed(archive, tmp_path, cache):
    bad = changed(archive, tmp_path / "bad.zip", weights_sha256="0" * 64)
    with pytest.raises(LeukoError, match="its card expects"):
        pull(str(bad))
    assert not cache.exists()


@pytest.mark.parametrize(
    "name",
    [
        "../out", "", ".hidden", "a/b", "a b", "x" * 65, "dot.", "nul", "COM1.zip", "leuko-base",
        "Leuko-Base",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_is_refused(archive, tmp_path, cache, name):
    bad = changed(archive, tmp_path / "bad.zip", name=name)
    with pytest.raises(LeukoError, match="with --name"):
        pull(str(bad))
    with pytest.raises(LeukoError, match="with --name"):
        pull(str(archive), name=name)
    assert not cache.exists()


def test_an_unknown_name_lists_what_is_there(tmp_path):
    with pytest.raises(LeukoError, match=r"nobody is neither .* \(leuko-base\)"):
        find("nobody")
    shutil.copytree(weights.BUNDLED / "leuko-base", tmp_path / "copy")
    assert find(str(tmp_path / "copy")) == tmp_path / "copy"
