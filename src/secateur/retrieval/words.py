"""Terms of texts for a search by words: without stop words and endings of a language, identifiers and code whole."""

from __future__ import annotations

import functools
import importlib.util
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from secateur.errors import InputError, MissingExtraError

__all__ = ["COMMON", "Words", "count_documents", "is_known", "stop_words"]

_COMMON = (
    "a about all also an and any are as at be been but by can could did do does for from had has have he her his how i "
    "if in into is it its may me most my no not of on one or our out she so some such than that the their them there "
    "they this to too up was we were what when where which who whom whose why will with would you your"
)
COMMON = frozenset(_COMMON.split())
"""English words that are no mention of a thing on their own, though some thing is called so."""

_LISTS = {
    "en": "EN_PLUS", "da": "DANISH", "de": "GERMAN", "es": "SPANISH", "fr": "FRENCH", "it": "ITALIAN", "ko": "KOREAN",
    "nb": "NORWEGIAN", "nl": "DUTCH", "no": "NORWEGIAN", "pt": "PORTUGUESE", "ru": "RUSSIAN", "sv": "SWEDISH",
    "tr": "TURKISH", "eng": "EN_PLUS", "dan": "DANISH", "deu": "GERMAN", "ger": "GERMAN", "spa": "SPANISH",
    "fra": "FRENCH", "fre": "FRENCH", "ita": "ITALIAN", "nld": "DUTCH", "dut": "DUTCH", "nor": "NORWEGIAN",
    "por": "PORTUGUESE", "rus": "RUSSIAN", "swe": "SWEDISH", "tur": "TURKISH",
}  # fmt: skip
"""Language -> its list of stop words in bm25s; that of Chinese is of words, and letters are compared."""
_STEMMERS = {"nb": "no", "nn": "no"}
"""Languages that Snowball knows by another code."""

# Scripts without spaces: each letter is a term.
_UNSPACED = "\\u0e00-\\u0eff\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff"
_TERM = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_CHUNK = re.compile(r"[^\s\"'`´’‘“”()\[\]{}<>,;=|!?…*&]+")
_CLITIC = re.compile(r"(?<=\w)['’](?:s|t|d|m|ll|re|ve)\b", re.IGNORECASE)
_INSIDE = re.compile(r"[a-z][A-Z]|\w[._:/\\]\w|_|\w(?:\+\+|#)$")
"""What makes a run of letters and signs an identifier: maxDepth, os.path, a::b, max_depth, C++."""
_AHEAD = re.compile(r"--?[^\W\d_]|[$@%.][^\W\d_]")
"""How an option, variable, decorator or suffix begins: -s, --depth, $HOME, @property, .txt"""
_ENDING = re.compile(r"(?:ing|ed|es|s|e)$")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Words:
    """From a text to its terms, in their order: what a search by words compares.

    Words are folded and lose the ending that Snowball's stemmer of the language takes; stop words are left out, unless
    there is nothing else, or they are written in capitals ("IT support"). What looks like an identifier or code, `-s`,
    `max_depth`, `os.path`, is a term as it stands, and so is each word in it.

    Args:
        language: code such as en or de. Of a language without a stemmer, or without a list of stop words, words are
            compared as they stand, or all of them.

    Raises `InputError` for what is no code, `MissingExtraError` without bm25s, whose stop words these are. Without
    PyStemmer a short rule takes endings of English alone, which is warned of.
    """

    def __init__(self, language: str = "en") -> None:
        self.language = _check_language(language)
        self.stop = stop_words(self.language)
        self._stem = _stemmer(self.language)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Words) and other.language == self.language

    def __hash__(self) -> int:
        return hash(self.language)

    def __call__(self, text: str) -> list[str]:
        """The terms of a text."""
        found, every = list[str](), list[str]()
        loud = text.isupper()
        for chunk in _CHUNK.findall(_CLITIC.sub("", text)):
            whole = chunk.rstrip(".:-/\\")
            code = bool(_AHEAD.match(whole) or _INSIDE.search(whole))
            if code:
                # One letter is another option in capitals; longer identifiers are asked for in any case.
                term = whole if len(whole) < 3 else whole.casefold()
                found.append(term)
                every.append(term)
            for word in _TERM.findall(_HUMP.sub(" ", whole).replace("_", " ") if code else whole):
                folded = word.casefold()
                if code and len(folded) == 1 and folded.isascii():
                    continue
                every.append(self._stem(folded))
                if folded not in self.stop or (word.isupper() and len(word) > 1 and not loud):
                    found.append(every[-1])
        return found or every


def is_known(language: str) -> bool:
    """Whether stop words or endings of a language are known; `InputError` for what is no code of one."""
    code = _check_language(language)
    return code in _LISTS or _stemmer(code) is not str


@functools.lru_cache(maxsize=16)
def stop_words(language: str) -> frozenset[str]:
    """The words of a language that say nothing of what a text is about; none of a language without a list."""
    name = _LISTS.get(language)
    if name is None:
        return frozenset()
    found = frozenset(getattr(_read_lists(), f"STOPWORDS_{name}"))
    return found | COMMON if language == "en" else found


@functools.cache
def _read_lists() -> object:
    """The module of bm25s that holds them, alone: the package imports scipy, which takes half of a short command."""
    package = importlib.util.find_spec("bm25s")
    if package is None or package.origin is None:
        raise MissingExtraError("stop words are those of bm25s: pip install 'secateur[context]'")
    spec = importlib.util.spec_from_file_location(
        "_secateur_stop_words", Path(package.origin).with_name("stopwords.py")
    )
    if spec is None or spec.loader is None:
        raise MissingExtraError("this bm25s has no stop words: pip install --upgrade bm25s")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _check_language(language: str) -> str:
    code = language.strip().casefold().replace("_", "-").partition("-")[0]
    if not re.fullmatch(r"[a-z]{2,3}", code):
        raise InputError(f"language={language!r}: give the code of a language, such as en or de")
    return code


@functools.lru_cache(maxsize=16)
def _stemmer(language: str) -> Callable[[str], str]:
    """A word -> its stem; the word itself in a language that Snowball does not know."""
    try:
        import Stemmer
    except ImportError:
        warnings.warn(
            "PyStemmer is not installed, so that only the commonest endings of English are known: pip install "
            "'secateur[context]'",
            stacklevel=3,
        )
        return (lambda word: _ENDING.sub("", word)) if language == "en" else str
    code = _STEMMERS.get(language, language)
    try:
        Stemmer.Stemmer(code)
    except KeyError:
        return str
    own = threading.local()  # a stemmer is not to be used by two threads at once

    def stem(word: str) -> str:
        if not hasattr(own, "stemmer"):
            own.stemmer = Stemmer.Stemmer(code)
        return str(own.stemmer.stemWord(word))

    return stem


def count_documents(texts: Sequence[Sequence[str]]) -> dict[str, int]:
    """Term -> how many of the texts hold it."""
    held: dict[str, int] = {}
    for text in texts:
        for term in set(text):
            held[term] = held.get(term, 0) + 1
    return held
