"""A graph of 50 facts written by hand, and 24 questions: what graph recipes answer, and where they rightly say nothing.

    python -m claims._lab.fifty_facts

12 questions have an answer in one fact, 4 spell a name wrong, 4 have no answer in the graph, and 4 take two hops.
Relations are not always in the words of the graph. Written before any of it was tried, and not altered since.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FACTS = """
salbutamol,treats,asthma
prednisone,treats,asthma
prednisone,treats,gout
colchicine,treats,gout
ibuprofen,treats,migraine
sumatriptan,treats,migraine
aspirin,treats,fever
metformin,treats,diabetes
insulin,treats,diabetes
salbutamol,causes side effect,tremor
prednisone,causes side effect,weight gain
colchicine,causes side effect,nausea
metformin,causes side effect,nausea
sumatriptan,causes side effect,dizziness
aspirin,causes side effect,stomach bleeding
Acme Pharma,manufactures,salbutamol
Acme Pharma,manufactures,metformin
Borealis Labs,manufactures,sumatriptan
Borealis Labs,manufactures,insulin
Cordia,manufactures,colchicine
Acme Pharma,has headquarters in,Bern
Borealis Labs,has headquarters in,Oslo
Cordia,has headquarters in,Lisbon
Acme Pharma,was founded by,Ruth Keller
Borealis Labs,was founded by,Nils Aasen
Cordia,was founded by,Ines Duarte
Acme Pharma,was founded in,1961
Borealis Labs,was founded in,1987
Ruth Keller,was born in,Zurich
Nils Aasen,was born in,Bergen
Ines Duarte,was born in,Porto
Ruth Keller,studied at,ETH Zurich
Nils Aasen,studied at,University of Bergen
Bern,is capital of,Switzerland
Oslo,is capital of,Norway
Lisbon,is capital of,Portugal
Zurich,lies in,Switzerland
Bergen,lies in,Norway
Porto,lies in,Portugal
asthma,affects,lungs
gout,affects,joints
migraine,affects,head
diabetes,affects,pancreas
asthma,has symptom,wheezing
gout,has symptom,swollen toe
migraine,has symptom,aura
diabetes,has symptom,thirst
fever,has symptom,shivering
asthma,is triggered by,pollen
migraine,is triggered by,red wine
"""


class Question(NamedTuple):
    """A question, its kind, and its answers, of which one is to be given; "" where the graph has none."""

    text: str
    kind: str
    answers: tuple[str, ...]


QUESTIONS = (
    Question("What treats asthma?", "one", ("salbutamol", "prednisone")),
    Question("Which drugs are used against gout?", "one", ("prednisone", "colchicine")),
    Question("What side effect does colchicine have?", "one", ("nausea",)),
    Question("Who manufactures sumatriptan?", "one", ("Borealis Labs",)),
    Question("Where are the headquarters of Cordia?", "one", ("Lisbon",)),
    Question("Who founded Acme Pharma?", "one", ("Ruth Keller",)),
    Question("When was Borealis Labs founded?", "one", ("1987",)),
    Question("Where was Ines Duarte born?", "one", ("Porto",)),
    Question("Which country is Oslo the capital of?", "one", ("Norway",)),
    Question("What part of the body does diabetes affect?", "one", ("pancreas",)),
    Question("What triggers migraine?", "one", ("red wine",)),
    Question("Where did Nils Aasen study?", "one", ("University of Bergen",)),
    Question("What treats asthmma?", "misspelt", ("salbutamol", "prednisone")),
    Question("Which symptom has migrane?", "misspelt", ("aura",)),
    Question("Who founded Boralis Labs?", "misspelt", ("Nils Aasen",)),
    Question("Which side effect does sumatripan cause?", "misspelt", ("dizziness",)),
    Question("What treats malaria?", "none", ()),
    Question("Who directed the film Casablanca?", "none", ()),
    Question("How many employees does Cordia have?", "none", ()),
    Question("Who is married to Ruth Keller?", "none", ()),
    Question("Which drug treats asthma and causes tremor?", "two", ("salbutamol",)),
    Question("Which drug treats gout and is made by Cordia?", "two", ("colchicine",)),
    Question("In which city are the headquarters of the company that manufactures insulin?", "two", ("Oslo",)),
    Question("Where was the founder of Cordia born?", "two", ("Porto",)),
)


def write_graph(folder: Path) -> Path:
    """The facts as a table."""
    file = folder / "facts.csv"
    file.write_text(f"subject,predicate,object{FACTS}", encoding="utf-8")
    return file


def judge(recipe: str, graph: Path, embedder: str = "") -> Iterator[tuple[Question, str, bool]]:
    """Each question, what was found, and whether that is right: an answer within 40 words, or nothing where none is."""
    import secateur

    for question in QUESTIONS:
        pruned = secateur.prune_context(recipe, str(graph), question.text, "words=40", embedder=embedder)
        found = str(pruned.told["answer"]) if "answer" in pruned.told else pruned.text
        folded = found.casefold()
        right = any(answer.casefold() in folded for answer in question.answers) if question.answers else not found
        yield question, found, right


def main() -> None:
    """Print what each recipe finds, with BM25 and with MiniLM."""
    import tempfile

    sys.path.insert(0, "tests")
    from assets import packages

    with tempfile.TemporaryDirectory() as folder:
        graph = write_graph(Path(folder))
        for name, embedder in (("BM25", ""), ("MiniLM", str(packages.minilm()))):
            for recipe in ("kg_rag", "paths_over_graph"):
                rows = list(judge(recipe, graph, embedder))
                print(f"{recipe}, {name}: {sum(right for *_, right in rows)} of {len(rows)}")
                for question, found, right in rows:
                    if not right:
                        print(f"    {question.kind}: {question.text} -> {found[:200]!r}")


if __name__ == "__main__":
    main()
