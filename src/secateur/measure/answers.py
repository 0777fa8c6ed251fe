"""Whether a text holds an answer, and how near an answer comes to those that are right."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

__all__ = [
    "alias_match", "distinct", "exact_match", "holds", "lenient_match", "letter_match", "normalise", "read_boxed",
    "read_letter", "rouge_l", "same_answer", "token_f1",
]  # fmt: skip

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


_TOGETHER = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Letters of scripts that write words, or a word and its particle, without blanks between: no end of a word shows."""
_SPACED = rf"[^\W{_TOGETHER}]"
_FORM = re.compile("<(?!super|sub|fraction)")
_DASHES, _QUOTES, _DOUBLE = "-\u2010\u2012\u2013\u2014\u2212", "'\u2018\u2019\u02bc", '"\u201c\u201d\u201e'
_ALIKE = {sign: f"[{signs}]" for signs in (_DASHES, _QUOTES, _DOUBLE) for sign in signs}


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text, letter by letter, and not within a word or a number.

    Blanks and upper case say nothing, nor do breaks between the words of an answer, nor the form of letters (Unicode's
    NFKC, but for raised ones and fractions), quotes and dashes. A hyphen joins words, but not the ends of a range: 1918
    stands in 1914-1918. Where a script has no blanks between words, an answer may begin and end anywhere.
    """
    whole, given = _normalise_letters(text), map(_normalise_letters, answers)
    return any(answer.strip() and _pattern(answer).search(whole) for answer in given)


def _normalise_letters(text: str) -> str:
    """Letters in their plain form; raised and lowered ones stay, or 10\u00b2 were 102."""
    if text.isascii():
        return text
    return "".join(
        unicodedata.normalize("NFKC", letter) if _FORM.match(unicodedata.decomposition(letter)) else letter
        for letter in unicodedata.normalize("NFC", text)
    )


@lru_cache(maxsize=4096)
def _pattern(answer: str) -> re.Pattern[str]:
    parts = re.findall(r"\w+|[^\w\s]", answer)
    inner = r"\s*".join(_ALIKE.get(part, re.escape(part)) for part in parts)
    return re.compile(_begin(parts[0]) + inner + _end(parts[-1]), re.IGNORECASE)


def _begin(part: str) -> str:
    """What must not stand before an answer that begins with this."""
    if part[0].isdecimal():
        group = r"(?<!\d,)" if re.match(r"\d{3}(?!\d)", part) else ""
        date = r"(?:(?<!\d\.)|(?:(?<=\d\.\d\d\.)|(?<=\d\.\d\.))(?=\d{4}(?!\d)))"  # 12.05.2024, 1.5.2024
        return rf"(?<!{_SPACED})(?:(?<![-\u2010\u2212])|(?<=\d[-\u2010\u2212])){date}{group}"
    return rf"(?<!{_SPACED})(?<![-\u2010])" if re.match(rf"{_SPACED}|-", part) else ""


def _end(part: str) -> str:
    """What must not stand behind an answer that ends with this."""
    if part[-1].isdecimal():
        return rf"(?!{_SPACED})(?!\.\d)(?!,\d{{3}}(?!\d))"
    return rf"(?!{_SPACED})(?![-\u2010]\w)" if re.match(_SPACED, part[-1]) else ""


def normalise(answer: str) -> str:
    """Lower case without punctuation, the articles a, an and the, and blanks at the ends.

    Source: Rajpurkar et al., SQuAD (2016), its evaluation.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 where the answer is one of the right ones after `normalise`, else 0."""
    return float(normalise(answer) in map(normalise, right))


def same_answer(answer: str, right: Sequence[str]) -> float:
    r"""1 where the answer is one of the right ones, else 0: numbers by their value, words by `exact_match`.

    So 073 is 73 and 1/2 is 0.5, but -5 is not 5, nor 3.5 35, which are alike without punctuation. What LaTeX sets as
    text, ``\text{B}``, is that text. Where nothing is left of a right answer without articles, as of the letter A, it
    is compared as it stands, and no answer is wrong.
    """
    return float(any(_is_same(answer, gold) for gold in right))


def _is_same(answer: str, gold: str) -> bool:
    answer, gold = (_TEXT.sub(r"\1", one) for one in (answer, gold))
    given, known = _read_number(answer), _read_number(gold)
    if given is not None and known is not None:
        return given == known
    wanted = normalise(gold)
    return normalise(answer) == wanted if wanted else answer.strip().casefold() == gold.strip().casefold()


_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_NUMBER = re.compile(r"[-+]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40}|\d{1,40}/0*[1-9]\d{0,39})")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def _read_number(text: str) -> Fraction | None:
    """The number that a text is, in digits or as LaTeX's fraction; None for other texts, and very long ones."""
    if len(text) > 100:
        return None
    plain = _FRACTION.sub(r"\1/\2", text.replace("\N{MINUS SIGN}", "-")).strip().strip("$").strip()
    plain = _THOUSANDS.sub("", plain).removesuffix(".").replace(" ", "" if plain[:1] in "+-" else " ")
    return Fraction(plain) if _NUMBER.fullmatch(plain) else None


def letter_match(answer: str, right: Sequence[str]) -> float:
    """1 where the answer is the right letter, else 0: as it is, since an A is no article here, and nothing is wrong."""
    return float(answer in right)


def token_f1(answer: str, right: Sequence[str]) -> float:
    """The best ``2 P R / (P + R)`` over right answers, P and R of the words that both have, as often as both have them.

    Words are those of `normalise`; two answers without words are alike. Source: as `normalise`.
    """
    given = normalise(answer).split()
    return max((_f1(given, normalise(gold).split()) for gold in right), default=0.0)


def _f1(given: Sequence[str], gold: Sequence[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    both = (Counter(given) & Counter(gold)).total()
    return 2 * both / (len(given) + len(gold))


# ------------------------------------------------------------------------------------------- what a model was asked for


def alias_match(answer: str, right: Sequence[str]) -> float:
    """1 where a right answer stands anywhere in the text, without regard to case and blanks, else 0.

    Source: the factoid questions of LLM-KICK (arXiv 2310.01382). Departure: the text is the model's own alone; the
    released code reads the question with it, so that an alias there counts.
    """
    said = _squeeze(answer)
    return float(any(gold and gold in said for gold in map(_squeeze, right)))


def _squeeze(text: str) -> str:
    return "".join(text.lower().split())


def lenient_match(answer: str, right: Sequence[str]) -> float:
    """1 where the answer holds a right one or is held by it, after `normalise`, else 0; an empty answer is wrong.

    Source: retrieval questions of LLM-KICK (arXiv 2310.01382). Departure: there an empty answer is held by all.
    """
    given, golds = normalise(answer), [gold for gold in map(normalise, right) if gold]
    return float(bool(given) and any(gold in given or given in gold for gold in golds))


def read_letter(text: str, letters: str) -> str:
    """The letter of a choice that a text names, as "B" in "(B) Paris" or "the answer is b."; "" where there is none.

    Behind the word "answer", in either case; else the first capital that stands alone, else the first small one.
    """
    for case in (letters, letters.lower()):
        alone = rf"(?<![\w'])([{case}])(?![\w'])"
        for where in (rf"(?i:\banswer\b\W*(?:is\b)?[\s:(*]*){alone}", alone):
            if found := re.search(where, text):
                return found[1].upper()
    return ""


def read_boxed(text: str) -> str:
    r"""What stands in the last ``\boxed{...}`` of a text, with braces within it; "" where there is none or no end."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    begin, depth = start + len("\\boxed{"), 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return text[begin:place].strip()
    return ""


def rouge_l(answer: str, right: Sequence[str]) -> float:
    """The best F1 over right texts of the longest common subsequence of words, after `normalise`.

    ``P = lcs / words of the answer``, ``R = lcs / words of the text``. Source: Lin, ROUGE (2004), section 3.1.
    """
    given = normalise(answer).split()
    return max((_subsequence_f1(given, normalise(gold).split()) for gold in right), default=0.0)


def _subsequence_f1(given: Sequence[str], gold: Sequence[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    row = [0] * (len(gold) + 1)
    for word in given:
        before = 0
        for place, other in enumerate(gold, 1):
            before, row[place] = row[place], before + 1 if word == other else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(given) + len(gold))


def distinct(texts: Sequence[str], n: int = 1) -> float:
    """Share of different ones among all runs of n words of the texts, from 0 to 1; 0 where there is none.

    A model that repeats itself has few. Source: Li et al., A Diversity-Promoting Objective (arXiv 1510.03055).
    """
    runs = [tuple(words[at : at + n]) for words in (text.lower().split() for text in texts)
            for at in range(len(words) - n + 1)]  # fmt: skip
    return len(set(runs)) / len(runs) if runs else 0.0
