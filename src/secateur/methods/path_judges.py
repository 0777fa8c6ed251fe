"""Judges of paths: a language model, or similarity of texts without one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

import numpy as np
from annotated_types import Ge

from secateur.clients import chat
from secateur.errors import BudgetError, InputError, SecateurError
from secateur.methods import path_questions
from secateur.methods.asking import Asking, Record, Spending
from secateur.methods.path_questions import PathQuestion
from secateur.methods.similarity import Similarity
from secateur.score.alignment import align

__all__ = ["TOPICS", "Judging", "ModelJudge", "Piece", "SimilarityJudge", "open_judge"]

T = TypeVar("T")

TOPICS = 6
"""Things that a question is about, at most."""
TRIES = 3
"""How often a language model is asked for the same list."""
OTHER_KIND = 0.8
"""What a path counts that names no time where one is asked for, or nothing else where a person or a place is."""
WARM = 0.4
"""Temperature of all but verdicts."""


@dataclass(frozen=True, slots=True)
class Judging(Asking):
    """Which language model judges."""

    window: Annotated[int, Ge(1)] = 16_000
    """Tokens that a prompt may have; a local model's own where that is less."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A path or a piece of one in words, its relations in order, and whether it holds the path's beginning and end."""

    text: str
    relations: tuple[str, ...]
    begins: bool = True
    ends: bool = True


def open_judge(judging: Judging, similarity: Similarity, enough: float, seed: int, device: str = "") -> SimilarityJudge:
    """The language model as a judge, or one without where none is given; device: see `Asking.open_model`."""
    model = judging.open_model(device)
    if model is None:
        return SimilarityJudge(similarity, enough)
    return ModelJudge(model, similarity, enough, judging.window, seed)


class SimilarityJudge:
    """A judge without a language model, by how alike words are.

    A topic's part of the question is the clause that names it. A phrase is a run of words between function words, and
    each is a step, the nearer to the topic the earlier.

    enough: cosine at which a relation says what a phrase of the question asks.
    """

    def __init__(self, similarity: Similarity, enough: float) -> None:
        self.similarity, self.enough = similarity, enough

    def list_names(self, question: str) -> list[str]:
        """What the question is about, as it says it; none where that is to be found by names."""
        return []

    def read(self, question: str, nodes: Sequence[str], names: Sequence[str], indicator: str) -> PathQuestion:
        """The question with its topics, their parts and phrases."""
        return path_questions.read_question(question, nodes, names, indicator)

    def fits(self, question: PathQuestion, pieces: Sequence[Piece]) -> bool:
        """Whether so many can be judged at once."""
        return True

    def choose(self, question: PathQuestion, pieces: Sequence[Piece]) -> list[int]:
        """The places of the best, the best first: by how well their relations and the question's phrases align."""
        relations = list(dict.fromkeys(relation for piece in pieces for relation in piece.relations))
        phrases = question.phrases or (question.text,)
        alike = self._compare(question, phrases, relations)
        column = {relation: number for number, relation in enumerate(relations)}
        scores = []
        for piece in pieces:
            # Of a piece, the phrases at its side count, and one more in case the path has a step that none speaks of.
            count = len(phrases) if piece.begins and piece.ends else min(len(phrases), len(piece.relations) + 1)
            side = alike[:count] if piece.begins else alike[len(phrases) - count :]
            value = sum(align(side[:, [column[relation] for relation in piece.relations]]))
            value *= 1.0 if path_questions.suits_kind(question, piece.text) else OTHER_KIND
            scores.append(value / max(1, len(piece.relations)) + value / max(1, count))
        return [int(place) for place in np.argsort(-np.round(scores, 6), kind="stable")]

    def propose(self, question: PathQuestion, texts: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
        """(name of a possible answer, the chain that leads there), at most three; `names` stand on the paths `texts`.

        Without a language model the names that are most like the question.
        """
        scores = self.similarity.rank(question.text, names)
        return [(names[i], "") for i in np.argsort(-scores, kind="stable")[:3]]

    def shorten(self, question: PathQuestion, texts: Sequence[str], names: Sequence[str]) -> list[str]:
        """The paths, shorter where that is possible, with nothing named that is not in `names`."""
        return list(texts)

    def decide(self, question: PathQuestion, texts: Sequence[str], whole: Sequence[Piece]) -> tuple[bool, str]:
        """Whether the paths answer the question, and the answer; `whole`: those of them that hold all topics.

        Without a language model, whether one of `find_sufficient` is there; what it answers stands on the path.
        """
        return bool(self.find_sufficient(question, whole)), ""

    def find_sufficient(self, question: PathQuestion, whole: Sequence[Piece]) -> list[int]:
        """The places of the paths that have a relation for each phrase and may name what is asked for, the best first.

        A path that is longer than what the question speaks of says something else. It asks no language model.
        """
        found = list[int]()
        for place in SimilarityJudge.choose(self, question, whole):
            piece = whole[place]
            alike = self._compare(question, question.phrases, piece.relations)
            spoken = not question.phrases or all(value >= self.enough for value in align(alike))
            spoken = spoken and len(piece.relations) <= question.steps
            found += [place] if spoken and path_questions.suits_kind(question, piece.text) else []
        return found

    def _compare(self, question: PathQuestion, phrases: Sequence[str], relations: Sequence[str]) -> np.ndarray:
        """[phrases, relations]: how alike they are.

        A relation that names a kind the question asks for may be what any phrase speaks of: "which currency is used".
        """
        alike = self.similarity.compare(phrases, relations)
        if not question.kinds or not len(phrases):
            return alike
        terms, said = self.similarity.terms, [set(self.similarity.terms(relation)) for relation in relations]
        named = np.array([[bool(of) and of <= some for some in said] for of in map(set, map(terms, question.kinds))])
        kinds = self.similarity.compare(question.kinds, relations)
        return np.asarray(np.maximum(alike, np.where(named, kinds, 0.0).max(0)))

    def guess(self, question: PathQuestion, texts: Sequence[str]) -> str:
        """The best answer that there is, though the paths do not suffice; empty without a language model."""
        return ""

    def may_expand(self, question: PathQuestion, steps: int) -> bool:
        """Whether longer paths may help where the best, of so many steps, do not suffice.

        Without a language model, where they are shorter than what the question speaks of: longer ones that align as
        well say something else.
        """
        return steps < question.steps

    def record(self) -> Record:
        """Calls, tokens and what went wrong."""
        return {"calls": 0, "prompt_tokens": 0, "answer_tokens": 0, "notes": []}


KEYWORDS = """Which things does the question name? Answer with their names, separated by semicolons.
Question: Which drug treats asthma and is made by Acme?
Things: asthma; Acme

Question: {question}
Things: """
ANALYSIS = """Read a question whose topics are known. Guess the chain of relations that leads through the topics and \
the answer, and split the question into one for each topic, in the order of the chain.
Question: Which drug treats asthma and is made by Acme?
Topics: Acme; asthma
Chain: "asthma" - is treated by - answer(drug) - is made by - "Acme"
Question 1: Which drug treats asthma?
Question 2: Which drug is made by Acme?

Question: {question}
Topics: {topics}
"""
CHOICE = """Which of these help most to answer the question? Answer with the numbers of the best three, the best first.
Question: {example}
1. asthma <-[treats]- {{salbutamol, prednisone}}
2. asthma -[resembles]-> bronchitis
Best: 1

Question: {question}
{pieces}
Best: """
PROPOSAL = """Guess up to three answers to the question, each with the chain that leads to it, one a line.
Question: Which drug treats asthma and is made by Acme?
Known:
asthma <-[treats]- salbutamol
Answer: salbutamol | Chain: "asthma" - is treated by - "salbutamol" - is made by - "Acme"

Question: {question}
Known:
{paths}
"""
SUMMARY = """Shorten these paths to what matters for the question, one chain a line. Name nothing that they don't name.
Question: Which drug treats asthma?
asthma <-[treats]- {{salbutamol, prednisone}} -[causes]-> tremor
Short:
asthma <-[treats]- {{salbutamol, prednisone}}

Question: {question}
{paths}
Short:
"""
VERDICT = """Do these paths suffice to answer the question? Answer {{Yes}} and the answer, or {{No}} and why not.
Question: Which drug treats asthma?
asthma <-[treats]- salbutamol
{{Yes}} salbutamol

Question: {question}
{paths}
"""
FORCED = """Answer the question by these paths and by what you know. Give the answer alone.
Question: {question}
{paths}
Answer: """


# Possessive, and within a line as far as signs go: tried once at each line, whatever a model says.
_CHAIN = re.compile(r"^[^\w\n]*+chain[^\w\n:]*+:\s*+(.+)", re.IGNORECASE | re.MULTILINE)
_PART = re.compile(r"^[^\w\n]*+question \d++[^\w\n:]*+:\s*+(.+)", re.IGNORECASE | re.MULTILINE)
_PROPOSED = re.compile(
    r"^[^\w\n]*+answer[^\w\n:]*+:\s*+([^|\n]++)(?:\|\s*+chain[^\w\n:]*+:\s*+(.*))?$", re.IGNORECASE | re.MULTILINE
)
_VERDICT = re.compile(r"\b(yes|no)\b[\s}\]).:,]*(.*)", re.IGNORECASE | re.DOTALL)


class ModelJudge(SimilarityJudge):
    """A language model as judge. Where it gives no answer that can be read, it is done without.

    A server that is down, and a bound on calls or tokens that is reached, end the asking for good.
    """

    def __init__(
        self, model: chat.LanguageModel, similarity: Similarity, enough: float, window: int, seed: int
    ) -> None:
        super().__init__(similarity, enough)
        self.model, self.seed, self.notes = model, seed, list[str]()
        self.window = min(float(window), getattr(model, "window", math.inf))
        self.spending, self.lost = Spending(model), False

    def ask(self, prompt: str, most: int = 256, temperature: float = WARM, attempt: int = 0) -> str:
        """What it answers; empty where it gives no answer."""
        room = self.window - self._size(prompt)
        if self.lost or most > room:
            return ""
        try:
            return chat.ask_text(
                self.model, prompt, most=most, room=room, temperature=temperature, seed=self.seed + attempt
            )
        except SecateurError as error:
            # What is wrong with this prompt alone may be right with the next; the rest will be no better then.
            self.lost = isinstance(error, BudgetError) or not isinstance(error, InputError)
            self.note(f"the language model gave no answer: {error}")
            return ""

    def ask_until_read(
        self, prompt: str, read: Callable[[str], T | None], most: int, cold: bool, what: str
    ) -> T | None:
        """What `read` makes of its answer, of `TRIES` at most; `cold`: the first of them at temperature 0."""
        for attempt in range(TRIES):
            answer = self.ask(prompt, most, 0.0 if cold and not attempt else WARM, attempt)
            value = read(answer)
            if value is not None:
                return value
            if self.lost or not answer:
                break
        self.note(f"a {what} of the language model could not be read, and was made without it")
        return None

    def note(self, text: str) -> None:
        """Add a note, once."""
        self.notes += [text] if text not in self.notes else []

    def _size(self, prompt: str) -> int:
        count = getattr(self.model, "prompt", None)
        # A server's tokenizer is not known: three letters a token is more than most need.
        return len(count(prompt)) if count else len(prompt) // 3 + 1

    def list_names(self, question: str) -> list[str]:
        """The things in its list."""
        line = self.ask(KEYWORDS.format(question=question), 64).partition("\n")[0]
        names = dict.fromkeys(" ".join(part.split())[:200] for part in line.split(";"))
        return [name for name in names if name][:TOPICS]

    def read(self, question: str, nodes: Sequence[str], names: Sequence[str], indicator: str) -> PathQuestion:
        """Its chain and its questions, as far as they can be read."""
        answer = self.ask(ANALYSIS.format(question=question, topics="; ".join(names))) if nodes else ""
        match = _CHAIN.search(answer)
        chain = " ".join(match[1][:1000].split()) if match else ""
        guess = chain if len(path_questions.split_indicator(chain)) > 2 else ""
        found = super().read(question, nodes, names, indicator or guess)
        parts = tuple(" ".join(part.split())[:500] for part in _PART.findall(answer))
        if len(parts) != len(names) or not names:
            return found
        steps = (len(path_questions.split_indicator(found.indicator)) - 1) // 2
        return path_questions.with_phrases(replace(found, parts=parts, steps=steps))

    def _choice_prompt(self, question: PathQuestion, pieces: Sequence[Piece]) -> str:
        listed = "\n".join(f"{number}. {piece.text}" for number, piece in enumerate(pieces, start=1))
        return CHOICE.format(example="Which drug treats asthma?", question=question.text, pieces=listed)

    def fits(self, question: PathQuestion, pieces: Sequence[Piece]) -> bool:
        """Whether the prompt fits into its window."""
        return self._size(self._choice_prompt(question, pieces)) + 64 <= self.window

    def choose(self, question: PathQuestion, pieces: Sequence[Piece]) -> list[int]:
        """The numbers in its answer."""

        def read(answer: str) -> list[int] | None:
            numbers = [int(number) - 1 for number in re.findall(r"\d{1,6}", answer[:500])]
            return [number for number in dict.fromkeys(numbers) if 0 <= number < len(pieces)][:3] or None

        chosen = self.ask_until_read(self._choice_prompt(question, pieces), read, 64, False, "choice")
        return super().choose(question, pieces) if chosen is None else chosen

    def propose(self, question: PathQuestion, texts: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
        """What it would look for."""
        answer = self.ask(PROPOSAL.format(question=question.text, paths="\n".join(texts)))
        proposals = [(name[:200].strip(), chain[:1000]) for name, chain in _PROPOSED.findall(answer)]
        return proposals[:3] or super().propose(question, texts, names)

    def shorten(self, question: PathQuestion, texts: Sequence[str], names: Sequence[str]) -> list[str]:
        """Its lines that are chains of entities on the paths; all paths where there is none."""
        answer = self.ask(SUMMARY.format(question=question.text, paths="\n".join(texts)), 512)
        known, chains = {name.casefold() for name in names}, list[str]()
        for line in answer.splitlines():
            ends = [part.strip(" {}\"'") for part in re.split(r"<?-\[[^\]]*\]->?", line)]
            named = [name.strip() for end in ends for name in ([end] if end.casefold() in known else end.split(","))]
            if len(ends) > 1 and all(name.casefold() in known for name in named):
                chains.append(" ".join(line.split()))
        return chains or list(texts)

    def decide(self, question: PathQuestion, texts: Sequence[str], whole: Sequence[Piece]) -> tuple[bool, str]:
        """Its {Yes} with the answer, or {No}."""

        def read(answer: str) -> tuple[bool, str] | None:
            match = _VERDICT.search(answer)
            if match is None:
                return None
            yes = match[1].lower() == "yes"
            return yes, " ".join(match[2].split())[:500] if yes else ""

        prompt = VERDICT.format(question=question.text, paths="\n".join(texts))
        verdict = self.ask_until_read(prompt, read, 256, True, "verdict")
        return super().decide(question, texts, whole) if verdict is None else verdict

    def guess(self, question: PathQuestion, texts: Sequence[str]) -> str:
        """Its answer by the paths and by what it knows."""
        return " ".join(self.ask(FORCED.format(question=question.text, paths="\n".join(texts))).split())[:500]

    def may_expand(self, question: PathQuestion, steps: int) -> bool:
        """As long as it answers: it has seen the paths, and said why not."""
        return not self.lost or super().may_expand(question, steps)

    def record(self) -> Record:
        """What its meter counted since, and the notes."""
        spent = self.spending
        tokens = {"prompt_tokens": spent.prompt_tokens, "answer_tokens": spent.answer_tokens}
        return {"calls": spent.calls, **tokens, "notes": self.notes}
