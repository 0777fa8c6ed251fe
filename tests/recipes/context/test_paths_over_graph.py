"""Paths-over-Graph: three phases, three steps of pruning, judges that talk nonsense, and budgets that hold."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparql
import tiny
import toys
from chat_server import Scripted, say, served, speaking
from claims._lab import fifty_facts
from secateur._utils.rundir import Run, Transient
from secateur.clients.chat import Local
from secateur.clients.stores import Embedded, Endpoint
from secateur.errors import InfeasibleError, InputError, ServerError
from secateur.recipes.context import paths_over_graph as recipe
from secateur.recipes.context.paths_over_graph import paths_over_graph
from secateur.runs import keywords
from secateur.subjects.graph.knowledge_graph import KnowledgeGraph
from secateur.vocabulary import Budget

pytest.importorskip("pyoxigraph")
pytest.importorskip("bm25s")

X = "http://x/"


def graph(facts, kind=KnowledgeGraph, **how):
    store = Embedded()
    said = " . ".join(" ".join(f"<{X}{part.replace(' ', '_')}>" for part in fact) for fact in facts)
    named = {part for fact in facts for part in (fact[0], fact[2])}
    label = "<http://www.w3.org/2000/01/rdf-schema#label>"
    said += "".join(f' . <{X}{name.replace(" ", "_")}> {label} "{name}"' for name in named)
    store.graph.update(f"INSERT DATA {{ {said} }}")
    return kind(store, **how)


MEDICINE = [
    ("salbutamol", "treats", "asthma"), ("prednisone", "treats", "asthma"), ("salbutamol", "causes", "tremor"),
    ("prednisone", "causes", "weight gain"), ("propranolol", "treats", "tremor"), ("Acme", "makes", "salbutamol"),
    ("Acme", "makes", "propranolol"), ("Zenith", "makes", "prednisone"), ("Acme", "located in", "Bern"),
    ("Zenith", "located in", "Basel"), ("Bern", "part of", "Switzerland"), ("Basel", "part of", "Switzerland"),
    ("asthma", "affects", "lung"), ("tremor", "affects", "hand"), ("smoke", "worsens", "asthma"),
]  # fmt: skip
QUESTION = "Which drug treats asthma and causes tremor?"


def run(subject, question, *budgets, into=None, **options):
    parsed = [Budget.parse(budget) for budget in budgets or ("words=1000",)]
    return list(keywords.call(paths_over_graph, subject, question, parsed, into or Transient(), **options))


def told(subject, question, budget="words=1000", **options):
    memory = Transient()
    (result,) = run(subject, question, budget, into=memory, **options)
    return result, memory.values[f"told-{result.name}"], memory.values[f"trace-{result.name}"]["paths"]


def letters(texts):
    """A reader whose tokens are characters."""
    return [len(text) for text in texts]


# ------------------------------------------------------------------------------------------------------- what it finds


def test_a_guess_on_a_path_that_was_found_takes_no_place():
    facts = [("asthma", "drug used for it", "wort"), ("wort", "part of", "plants")]
    result, found, _ = told(graph(facts), "What treats asthma?")
    lines = result.subject.to_text().split("\n")
    assert found["phase"] in ("supplement", "expand")
    assert len(lines) == len(set(lines)) == found["paths_kept"] == 2


def test_a_kind_that_the_graph_has_a_name_for_is_no_topic():
    here = graph([("Triton", "is moon of", "Neptune"), ("Luna 9", "landed on", "Moon")])
    _, found, _ = told(here, "What is the moon of Neptune?")
    assert (found["answer"], found["names"]) == ("Triton", ["Neptune"])
    assert told(here, "What landed on the moon?")[1]["answer"] == "Luna 9"


def test_a_guess_leads_to_no_path_that_comes_back_over_a_topic():
    facts = [(rover, "landed on", "Mars") for rover in ("Curiosity", "Perseverance")]
    question = "Is it Curiosity that reached Mars and Ingenuity?"
    here = graph([*facts, ("Perseverance", "carried", "Ingenuity")])
    result, _, rows = told(here, question, topics=["Mars", "Ingenuity"])
    assert result.subject.to_text() == "Mars <-[landed on]- Perseverance -[carried]-> Ingenuity"
    assert len(rows) == 1


def test_a_path_through_both_topics_answers():
    result, found, rows = told(graph(MEDICINE), QUESTION)
    assert result.subject.to_text().split("\n")[0] == "asthma <-[treats]- salbutamol -[causes]-> tremor"
    assert (found["answer"], found["sufficient"], found["phase"], found["hops"]) == ("salbutamol", True, "topics", 1)
    assert [name.removeprefix(X) for name in found["topics"]] == ["asthma", "tremor"]
    assert found["entities_reduced"] < found["entities"]
    names = {"path", "text", "score", "words", "kept", "nodes", "steps", "facts"}
    assert all(set(row) == names for row in rows)
    (best,) = [row for row in rows if row["text"] == result.subject.to_text().split("\n")[0]]
    assert best["nodes"] == [[f"{X}asthma"], [f"{X}salbutamol"], [f"{X}tremor"]]
    assert best["steps"] == [[f"{X}treats", False], [f"{X}causes", True]]
    assert best["facts"] == [list(fact) for fact in result.subject.lines[0].facts]
    assert [fact[:3] for fact in result.subject.lines[0].facts] == [
        (f"{X}salbutamol", f"{X}treats", f"{X}asthma"), (f"{X}salbutamol", f"{X}causes", f"{X}tremor")
    ]  # fmt: skip


def test_a_topic_alone_is_followed_for_as_many_hops_as_the_question_has_phrases():
    result, found, _ = told(graph(MEDICINE), "Where is it located that makes propranolol?")
    assert found["steps"] == found["hops"] == 2
    lines = result.subject.to_text().split("\n")
    assert "propranolol <-[makes]- Acme -[located in]-> Bern" in lines
    assert found["facts_read"] < len(MEDICINE)


def test_entities_with_the_same_relations_stand_in_one_path():
    result, found, _ = told(graph(MEDICINE), "Which drugs treat asthma?")
    assert result.subject.to_text().split("\n")[0] == "asthma <-[treats]- {prednisone, salbutamol}"
    assert found["answer"] == "prednisone, salbutamol"
    assert len(result.subject.lines[0].facts) == 2


def test_three_topics_are_joined_in_the_order_of_the_indicator():
    facts = [
        ("a1", "likes", "x9"),
        ("b1", "hates", "x9"),
        ("c1", "knows", "x9"),
        ("a1", "likes", "y9"),
        ("b1", "hates", "y9"),
    ]
    result, found, _ = told(
        graph(facts), "What is it that a1 likes, b1 hates and c1 knows?",
        indicator='"c1" - knows - x - hates - "a1" - likes - x - hates - "b1"',
    )  # fmt: skip
    assert [name.removeprefix(X) for name in found["topics"]] == ["c1", "a1", "b1"]
    first = result.subject.lines[0]
    assert "c1 -[knows]-> x9 <-[likes]- a1 -[likes]-> x9 <-[hates]- b1" in first.text
    assert found["steps"] == 4


def test_topics_keep_the_order_in_which_they_are_given_if_that_is_wanted():
    facts = [("a1", "likes", "x9"), ("b1", "hates", "x9"), ("c1", "knows", "x9")]
    question, given = "What is it that a1 likes, b1 hates and c1 knows?", ["c1", "a1", "b1"]
    for ordered, first, order in (
        (True, "a1 -[likes]-> x9 <-[hates]- b1 -[hates]-> x9 <-[knows]- c1", ["a1", "b1", "c1"]),
        (False, "c1 -[knows]-> x9 <-[likes]- a1 -[likes]-> x9 <-[hates]- b1", given),
    ):
        result, found, _ = told(graph(facts), question, topics=given, ordered=ordered)
        assert result.subject.lines[0].text == first
        assert [name.removeprefix(X) for name in found["topics"]] == order
        assert (found["sufficient"], found["steps"]) == (True, 4)


def test_what_else_the_indicator_names_is_gone_through():
    facts = [("a1", "r", "m1"), ("m1", "r", "b1"), ("a1", "r", "m2"), ("m2", "r", "b1")]
    result, _, _ = told(
        graph(facts), "What is a1 r and b1?", indicator='"a1" - r - "m2" - r - "b1"', supplement=False, expand=False
    )
    assert result.subject.to_text() == "a1 -[r]-> m2 -[r]-> b1"


def test_a_question_that_needs_more_hops_gets_them():
    question = "Which land is the home of the makers of salbutamol and prednisone?"
    result, found, _ = told(
        graph(MEDICINE), question, topics=["salbutamol", "prednisone"], supplement=False, expand=False
    )
    assert found["hops"] == 3
    assert "Switzerland" in result.subject.to_text()
    _, short, _ = told(
        graph(MEDICINE), question, topics=["salbutamol", "prednisone"], depth=2, supplement=False, expand=False
    )
    assert short["hops"] == 2


def test_what_the_best_paths_lack_stands_beside_them():
    how = dict(topics=["asthma"], depth=1, supplement=False)
    result, found, _ = told(graph(MEDICINE), "Who makes what treats asthma?", **how)
    assert (found["phase"], found["sufficient"]) == ("expand", True)
    assert "<-[makes]-" in result.subject.to_text().split("\n")[0]
    _, without, _ = told(graph(MEDICINE), "Who makes what treats asthma?", expand=False, **how)
    assert (without["phase"], without["sufficient"]) == ("topics", False)


def test_names_that_the_answer_might_have_are_looked_up():
    memory = Transient()
    run(
        graph(MEDICINE),
        "Is Switzerland behind asthma?",
        into=memory,
        topics=["asthma"],
        depth=3,
        start=1,
        expand=False,
        enough=2,
    )
    assert memory.values["told-words=1000"]["phase"] in ("topics", "supplement")
    assert memory.values["told-words=1000"]["rounds"] >= 3


def test_topics_are_names_or_iris_or_found_in_the_question():
    for topics in (["asthma", "tremor"], [f"{X}asthma", "Tremor "], []):
        _, found, _ = told(graph(MEDICINE), QUESTION, topics=topics)
        assert [name.removeprefix(X) for name in found["topics"]] == ["asthma", "tremor"]


def test_of_an_endpoint_no_names_are_read_but_those_that_the_question_may_hold():
    class Nameless(KnowledgeGraph):
        def things(self, kinds=(), *, aliases=False):
            raise AssertionError("all names were read")

    with sparql.served(graph(MEDICINE).store) as url:
        for topics in (["asthma", "tremor"], [f"{X}asthma", "Tremor "], []):
            _, found, _ = told(Nameless(Endpoint(url)), QUESTION, topics=topics, lookup="query")
            assert [name.removeprefix(X) for name in found["topics"]] == ["asthma", "tremor"]
        with pytest.raises(AssertionError, match="all names"):
            run(Nameless(Endpoint(url)), QUESTION)


def test_names_are_found_by_vectors_too():
    def embed(texts):
        return np.array([[float("asthma" in text or "wheez" in text), float("tremor" in text), 0.01] for text in texts])

    _, found, _ = told(graph(MEDICINE), "What treats wheezing?", topics=["wheezing"], embedder=embed)
    assert found["topics"] == [f"{X}asthma"]


# ------------------------------------------------------------------------------------------------------------ pruning


def many(middles=60, relations=9):
    """Two topics with many ways between them; one of them is asked for."""
    facts = []
    for i in range(middles):
        facts += [("left", f"r{i % relations}", f"m{i}"), (f"m{i}", f"s{i % 7}", "right")]
    return [*facts, ("left", "cures", "answer"), ("answer", "feeds", "right")]


@pytest.mark.parametrize("mode", ["1", "12", "13", "123"])
@pytest.mark.parametrize(("wide", "branch", "width"), [(80, 20, 3), (30, 10, 5), (10, 2, 1)])
def test_no_step_leaves_more_than_its_width(mode, wide, branch, width):
    result, found, _ = told(
        graph(many()), "What does left cure that feeds right?", topics=["left", "right"], mode=mode, wide=wide,
        branch=branch, width=width, supplement=False, expand=False,
    )  # fmt: skip
    rounds = found["rounds"]
    assert len(result.subject.lines) <= width
    assert found["paths_fuzzy"] <= rounds * (width if mode == "1" else wide)
    assert found["paths_enumerated"] >= found["paths_fuzzy"] >= found["paths_branch"] >= found["paths_precise"]
    if "2" in mode:
        assert found["paths_branch"] <= rounds * max(branch, width)
    assert found["paths_precise"] <= rounds * width
    assert "left -[cures]-> answer -[feeds]-> right" in result.subject.to_text()


def test_a_larger_width_leaves_as_many_paths():
    """Of more than ten the best three of each batch stayed, as of more than three."""
    how = dict(topics=["left", "right"], mode="13", supplement=False, expand=False)
    for width in (1, 3, 10, 50):
        result, _, rows = told(graph(many()), "What does left cure that feeds right?", width=width, **how)
        assert len(result.subject.lines) == min(width, len(rows))
        assert result.subject.lines[0].text == "left -[cures]-> answer -[feeds]-> right"


def test_where_no_path_leads_from_the_topics_it_is_said():
    result, found, _ = told(graph(MEDICINE), QUESTION, topics=[f"{X}nowhere"])
    assert (result.subject.to_text(), found["notes"]) == ("", ["no path leads from what the question names"])


def test_what_stays_was_there():
    result, _, rows = told(graph(many()), "What does left cure that feeds right?", topics=["left", "right"])
    assert {line.text for line in result.subject.lines} <= {row["text"] for row in rows}
    assert {row["text"] for row in rows if row["kept"]} == {line.text for line in result.subject.lines}


def test_branches_take_fewer_words_than_whole_paths():
    """Eighty paths of four steps: nine beginnings, and then the few that go on from the best of them."""
    facts = [("left", "cures", "answer"), ("answer", "feeds", "m"), ("m", "eats", "n"), ("n", "owns", "right")]
    for i in range(9):
        facts += [
            ("left", f"r{i}", f"a{i}"),
            (f"a{i}", "p", f"b{i}"),
            (f"c{i}", "q", f"b{i}"),
            (f"c{i}", f"s{i}", "right"),
        ]
        facts += [(f"b{i}", f"t{j}", f"c{j}") for j in range(9) if j != i]
    how = dict(topics=["left", "right"], start=2, depth=2, supplement=False, expand=False)
    question = "What does left cure that feeds what eats what owns right?"
    _, both, _ = told(graph(facts), question, **how)
    _, whole, _ = told(graph(facts), question, mode="13", **how)
    assert both["paths_fuzzy"] == whole["paths_fuzzy"] == 80
    assert both["judged_tokens"] < whole["judged_tokens"]


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_and_the_reduction_change_nothing_of_the_result(threads):
    plain, found, rows = told(graph(MEDICINE), QUESTION)
    other, again, same = told(graph(MEDICINE), QUESTION, threads=threads)
    assert (plain.subject.to_text(), found, rows) == (other.subject.to_text(), again, same)
    loose, _, _ = told(graph(MEDICINE), QUESTION, threads=threads, reduce=False)
    assert loose.subject.to_text() == plain.subject.to_text()


def test_one_relation_per_hop():
    facts = [("a1", r, "m1") for r in ("likes", "sees", "knows")] + [
        ("m1", r, "b1") for r in ("likes", "sees", "knows")
    ]
    _, every, _ = told(graph(facts), "What do a1 and b1 know?", topics=["a1", "b1"])
    _, one, _ = told(graph(facts), "What do a1 and b1 know?", topics=["a1", "b1"], one_relation=True)
    assert (every["paths"], one["paths"]) == (9, 1)


# ------------------------------------------------------------------------------------------------------------- budgets


def test_no_budget_is_exceeded_and_a_larger_one_keeps_a_superset():
    kept = []
    for limit in (2, 40, 60, 120, 500):
        (result,) = run(graph(MEDICINE), QUESTION, f"tokens={limit}", tokenizer=letters, width=5)
        text = result.subject.to_text()
        assert len(text) == result.cut.after["tokens"] <= limit
        kept.append(set(text.split("\n")) - {""})
    assert all(small <= large for small, large in itertools.pairwise(kept))
    assert kept[-1]


def test_where_not_even_the_best_path_fits_the_result_is_empty_and_says_so():
    result, found, rows = told(graph(MEDICINE), QUESTION, "words=2")
    assert result.subject.to_text() == ""
    assert "not even the best path fits into words=2: raise it" in found["notes"]
    assert "not even the best path fits into words=2: raise it" in result.cut.notes
    assert rows
    assert not any(row["kept"] for row in rows)


def test_what_makes_no_sense_is_refused_in_one_line():
    subject = graph(MEDICINE)
    with pytest.raises(InputError, match="cut to tokens or words"):
        run(subject, QUESTION, "params=50%")
    with pytest.raises(InputError, match="needs the reader's tokenizer"):
        run(subject, QUESTION, "tokens=50")
    for wrong in ({"depth": 0}, {"calls": -1}, {"mode": "2"}, {"lookup": "none"}):
        with pytest.raises(InputError, match=f"option {next(iter(wrong))}="):
            run(subject, QUESTION, **wrong)
    with pytest.raises(InfeasibleError, match="words"):
        run(subject, QUESTION, "words=0.001%")


# ---------------------------------------------------------------------------------------------------------- bad graphs


def test_nothing_found_is_an_empty_result():
    result, found, rows = told(graph(MEDICINE), "What is the meaning of it all?")
    assert (result.subject.to_text(), rows, found["phase"], found["answer"]) == ("", [], "none", "")
    assert "nothing in the graph was found for the question" in found["notes"]
    _, found, _ = told(graph(MEDICINE), QUESTION, topics=["unicorn", "asthma"])
    assert "nothing in the graph is called 'unicorn'" in found["notes"]
    assert found["topics"] == [f"{X}asthma"]


def test_topics_that_do_not_meet_are_explored_one_by_one():
    facts = [("a1", "likes", "b1"), ("c1", "hates", "d1")]
    result, found, _ = told(graph(facts), "What does a1 like and c1 hate?", topics=["a1", "c1"])
    assert set(result.subject.to_text().split("\n")) == {"a1 -[likes]-> b1", "c1 -[hates]-> d1"}
    assert "the topics do not meet within 3 hops: 2 groups of them stand alone" in found["notes"]
    assert not found["sufficient"]


def test_a_lonely_topic_has_no_paths():
    result, found, _ = told(graph(MEDICINE), "What?", topics=["http://x/nowhere"])
    assert (result.subject.to_text(), found["phase"], found["paths"]) == ("", "none", 0)


@pytest.mark.slow
def test_a_hub_of_a_hundred_thousand_edges_is_read_in_part():
    store = Embedded()
    ox, node = store.library, lambda name: store.library.NamedNode(X + name)
    store.graph.bulk_extend(ox.Quad(node("hub"), node("r"), node(f"n{i}")) for i in range(100_000))
    store.graph.update(f"INSERT DATA {{ <{X}a1> <{X}likes> <{X}hub> . <{X}b1> <{X}hates> <{X}hub> }}")
    result, found, _ = told(KnowledgeGraph(store), "What do a1 like and b1 hate?", topics=[X + "a1", X + "b1"], start=3)
    assert "a1 -[likes]-> hub <-[hates]- b1" in result.subject.to_text()
    assert any("have more facts than are read of one" in note for note in found["notes"])
    assert found["facts_read"] < 5_000


class Failing(KnowledgeGraph):
    """A graph whose server goes down after some queries."""

    left = 10**9

    def around(self, *args, **how):
        self.left -= 1
        if self.left < 0:
            raise ServerError("the endpoint is down")
        return super().around(*args, **how)


def test_a_graph_that_goes_down_midway_gives_what_was_read():
    subject = graph(MEDICINE, Failing)
    subject.left = 2
    result, found, _ = told(subject, "Who makes drugs of asthma in the land of Bern?", topics=["asthma"], start=3)
    assert result.subject.to_text()
    assert "the graph was read in part: the endpoint is down" in found["notes"]
    subject.left = 0
    with pytest.raises(ServerError):
        run(subject, QUESTION)


# ------------------------------------------------------------------------------------------------------ language models


def sensible(prompt):
    """What a good language model says, by the kind of prompt."""
    if prompt.startswith("Which things"):
        return "asthma; tremor"
    if prompt.startswith("Read a question"):
        chain = 'Chain: "asthma" - is treated by - answer(drug) - causes - "tremor"'
        return f"{chain}\nQuestion 1: What treats asthma?\nQuestion 2: What causes tremor?"
    if prompt.startswith("Which of these"):
        lines = re.findall(r"^(\d+)\. (.*)$", prompt.rpartition("Question:")[2], re.MULTILINE)
        return ", ".join(number for number, text in lines if "treats" in text or "causes" in text) or "1"
    if prompt.startswith("Shorten"):
        return "asthma <-[treats]- salbutamol -[causes]-> tremor\nunicorn -[is]-> pink"
    if prompt.startswith("Do these"):
        return "{Yes} salbutamol" if "unicorn" not in prompt else "{No} that is made up"
    return "Answer: salbutamol | Chain: none"


def test_a_language_model_reads_judges_shortens_and_answers():
    model = Scripted(sensible)
    result, found, _ = told(graph(MEDICINE), QUESTION, llm=model)
    assert (found["answer"], found["sufficient"], found["phase"]) == ("salbutamol", True, "topics")
    assert found["indicator"].startswith('"asthma" - is treated by')
    assert found["steps"] == 2
    assert "salbutamol" in result.subject.to_text()
    assert found["calls"] == model.meter.calls == len(model.asked)
    assert (found["prompt_tokens"], found["answer_tokens"]) == (model.meter.prompt_tokens, model.meter.answer_tokens)
    assert [temperature for prompt, _, temperature, _ in model.asked if prompt.startswith("Do these")] == [0.0]
    assert {temperature for prompt, _, temperature, _ in model.asked if not prompt.startswith("Do these")} == {0.4}


@pytest.mark.parametrize("nonsense", ["", "purple", "999, 1000", "{}", "0", "\x00" * 50, "[[[", "No", "yes" * 1000])
def test_nonsense_of_a_language_model_is_asked_for_a_few_times_and_then_done_without(nonsense):
    model = Scripted(lambda prompt: nonsense)
    how = dict(topics=["left", "right"])
    question = "What does left cure that feeds right?"
    result, found, _ = told(graph(many()), question, llm=model, **how)
    without, _, _ = told(graph(many()), question, **how)
    assert found["calls"] <= 200
    assert result.subject.lines
    if nonsense in ("purple", "{}", "[[["):
        assert "a choice of the language model could not be read, and was made without it" in found["notes"]
        assert "left -[cures]-> answer -[feeds]-> right" in result.subject.to_text()
        assert max(Counter(prompt for prompt, *_ in model.asked).values()) <= 3 * found["rounds"]
        assert without.subject.to_text()


def test_calls_and_tokens_are_bounded():
    for meter in ({"most_calls": 2}, {"most_tokens": 60}):
        model = Scripted(sensible, **meter)
        result, found, _ = told(graph(MEDICINE), QUESTION, llm=model)
        assert found["calls"] <= 2
        assert any("the language model gave no answer" in note for note in found["notes"])
        assert "salbutamol" in result.subject.to_text()


def test_a_language_model_that_is_down_is_asked_once():
    def down(prompt):
        raise ServerError("down")

    model = Scripted(down)
    result, found, _ = told(graph(MEDICINE), QUESTION, llm=model)
    assert len(model.asked) == 1
    assert "salbutamol" in result.subject.to_text()
    assert "the language model gave no answer: down" in found["notes"]


def test_prompts_fit_into_the_window():
    class Small(Scripted):
        window = 300

        def prompt(self, question):
            return question.split()

    model = Small(lambda prompt: "1, 2, 3" if prompt.startswith("Which of these") else "{No}")
    told(graph(many(200, 30)), "What does left cure that feeds right?", topics=["left", "right"], llm=model)
    sizes = [len(prompt.split()) for prompt, *_ in model.asked]
    assert max(sizes) <= 300
    choices = [prompt for prompt, *_ in model.asked if prompt.startswith("Which of these")]
    assert choices
    listed = [len(re.findall(r"^\d+\. ", prompt.rpartition("Question:")[2], re.MULTILINE)) for prompt in choices]
    assert max(listed) < 40


def test_proposals_are_waypoints():
    def answer(prompt):
        if prompt.startswith("Guess"):
            return "Answer: Bern | Chain: asthma - x - Bern\nAnswer: unicorn | Chain: a"
        return "{No} it lacks a town" if prompt.startswith("Do these") else ""

    result, found, _ = told(
        graph(MEDICINE), "Where do drugs of asthma come from?", topics=["asthma"], llm=Scripted(answer), start=1,
        depth=3, width=40, expand=False,
    )  # fmt: skip
    assert found["phase"] == "supplement"
    assert "asthma <-[treats]- salbutamol <-[makes]- Acme -[located in]-> Bern" in result.subject.to_text()


# ---------------------------------------------------------------------------------------------------------------- runs


def test_a_run_that_was_made_is_read(tmp_path):
    class Counting(KnowledgeGraph):
        asked = 0

        def around(self, *args, **how):
            Counting.asked += 1
            return super().around(*args, **how)

    subject, texts = graph(MEDICINE, Counting), []
    for _ in range(2):
        with Run.open(tmp_path / "run", {}) as into:
            (result,) = run(subject, QUESTION, "words=50", into=into)
        texts.append(result.subject.to_text())
        seen = Counting.asked
    assert texts[0] == texts[1]
    assert Counting.asked == seen
    assert json.loads((tmp_path / "run" / "work" / "told-words=50.json").read_text())["answer"] == "salbutamol"


NODES = st.sampled_from("abcdefgh")


@given(
    st.lists(st.tuples(NODES, st.sampled_from("rst"), NODES), min_size=1, max_size=20),
    st.lists(NODES, min_size=1, max_size=3, unique=True),
    st.integers(2, 60),
    st.text(max_size=30),
)
@settings(max_examples=40, deadline=None)
def test_whatever_the_graph_and_the_question_facts_are_true_and_budgets_hold(facts, topics, limit, question):
    result, _, _ = told(graph(facts), question or "?", f"words={limit}", topics=[X + topic for topic in topics])
    assert len(result.subject.to_text().split()) <= limit
    for line in result.subject.lines:
        assert {tuple(part.removeprefix(X) for part in fact[:3]) for fact in line.facts} <= set(facts)


def test_a_branch_may_begin_at_another_topic_than_the_first():
    """Of three topics one stood alone; no path begins there, and branches of those of the others were of no path."""
    facts = [
        ("a", "r", "b"), ("a", "r", "c"), ("a", "r", "g"), ("a", "r", "h"), ("b", "r", "e"), ("b", "r", "f"),
        ("b", "r", "h"), ("c", "r", "h"), ("c", "s", "e"), ("e", "r", "f"), ("g", "r", "a"),
    ]  # fmt: skip
    result, _, _ = told(graph(facts), "?", "words=9", topics=[X + topic for topic in "dfg"])
    assert result.subject.lines


# ------------------------------------------------------------------------------------------------------ over HTTP


def test_a_real_model_behind_a_real_server_that_knows_nothing_is_no_harm():
    """It answers nonsense, or refuses what is too long for it: the judge without a language model goes on."""
    alone, _, _ = told(graph(MEDICINE), QUESTION)
    with served(speaking(Local(tiny.model("llama"), tiny.tokenizer()))) as url:
        result, found, _ = told(graph(MEDICINE), QUESTION, llm=url, llm_name="tiny", calls=30)
    assert found["calls"] == 2
    assert any("gave no answer" in note and "HTTP 400" in note for note in found["notes"])
    assert result.subject.to_text() == alone.subject.to_text()


def test_a_server_that_judges_is_asked_over_http():
    asked = []

    def answer(body, headers):
        asked.append(body)
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        return say({"choices": [{"message": {"content": "nothing of use"}}], "usage": usage})

    with served(answer) as url:
        _, found, _ = told(graph(MEDICINE), QUESTION, llm=url, llm_name="judge", calls=4)
    assert len(asked) == found["calls"] <= 4
    assert {body["model"] for body in asked} == {"judge"}


def toy(_):
    """What `conformance.check_recipe` takes: see tests/conformance."""
    ways = [*((f"r{i}", f"m{i}", f"s{i}") for i in range(12)), ("feeds", "ammag", "heals")]
    triples = [f"<urn:x:alpha> <urn:r:{r}> <urn:x:{m}> . <urn:x:{m}> <urn:r:{s}> <urn:x:omega> ." for r, m, s in ways]
    lines = [f"alpha -[{r}]-> {m} -[{s}]-> omega" for r, m, s in ways]
    question, topics = "What is it that alpha feeds and that heals omega?", ["urn:x:alpha", "urn:x:omega"]
    return toys.graph("paths_over_graph", triples, lines, question, "ammag", topics=topics)


def test_without_enough_evidence_there_is_no_answer_unless_it_is_forced():
    here = graph(MEDICINE)
    for question in ("Who paints asthma?", "Which colour has Acme?"):
        result, found, _ = told(here, question)
        assert (found["answer"], found["sufficient"]) == ("", False)
        assert result.subject.lines  # what there is of it may be read
        assert told(here, question, force=True)[1]["answer"]


def test_what_expanding_adds_leaves_again_where_it_does_not_help():
    here = graph([("asthma", "affects", "lung"), ("lung", "lies in", "chest"), ("chest", "is part of", "body")])
    question = "Who paints asthma?"
    plain, *_ = told(here, question, depth=1, expand=False)
    expanded, found, _ = told(here, question, depth=1, llm=Scripted("{No} nothing is said"))
    assert found["phase"] == "expand"
    assert expanded.subject.to_text() == plain.subject.to_text()
    assert told(here, question, depth=1)[1]["phase"] != "expand"  # the path is as long as the question already


def test_a_name_that_is_spelt_wrong_is_read_as_the_graph_spells_it():
    _, found, _ = told(graph(MEDICINE), "Which drug treats asthmma and causes tremorr?")
    assert (found["answer"], found["sufficient"], found["names"]) == ("salbutamol", True, ["asthma", "tremor"])
    assert "nothing in the graph is called 'asthmma': 'asthma' is taken for it" in found["notes"]


def test_a_language_model_that_thinks_is_read_behind_its_thinking():
    def answer(prompt):
        said = "asthma; tremor" if "Which things" in prompt else "{Yes} salbutamol" if "suffice" in prompt else "1"
        return f"<think>no; {{No}} 2, 3</think>\n{said}"

    _, found, _ = told(graph(MEDICINE), QUESTION, llm=Scripted(answer))
    assert (found["answer"], found["sufficient"], found["names"]) == ("salbutamol", True, ["asthma", "tremor"])


def test_questions_on_fifty_facts_are_answered_or_rightly_not(tmp_path):
    rows = list(fifty_facts.judge("paths_over_graph", fifty_facts.write_graph(tmp_path)))
    assert len(rows) == 24
    assert all(fine for question, _, fine in rows if question.kind == "none")
    assert sum(fine for *_, fine in rows) >= 18


def test_the_seed_reaches_the_language_model_and_enough_the_judge_without_one():
    model = Scripted(sensible)
    told(graph(MEDICINE), QUESTION, llm=model, seed=9)
    assert {seed for *_, seed in model.asked} == {9}
    assert told(graph(MEDICINE), QUESTION)[1]["sufficient"]
    assert not told(graph(MEDICINE), QUESTION, enough=1.5)[1]["sufficient"]


@pytest.mark.parametrize("mode", ["12", "13"])
def test_the_judge_sees_no_more_at_once_than_was_asked_for(mode):
    model = Scripted(lambda prompt: "1, 2, 3" if prompt.startswith("Which of these") else "{No}")
    how = {"mode": mode, "batch": 10, "supplement": False, "expand": False}
    told(graph(many(60, 30)), "What does left cure that feeds right?", topics=["left", "right"], llm=model, **how)
    choices = [prompt for prompt, *_ in model.asked if prompt.startswith("Which of these")]
    listed = [len(re.findall(r"^\d+\. ", prompt.rpartition("Question:")[2], re.MULTILINE)) for prompt in choices]
    assert max(listed) == 10


def test_a_name_that_is_like_another_in_part_is_not_gone_through():
    leaves = ("green leaf", "red leaf")
    facts = [fact for leaf in leaves for fact in (("a1", "r", leaf), (leaf, "r", "b1"))]
    result, _, _ = told(
        graph(facts), "What is a1 r and b1?", indicator='"a1" - r - "leaf" - r - "b1"', supplement=False, expand=False
    )
    assert result.subject.to_text() == "a1 -[r]-> {green leaf, red leaf} -[r]-> b1"


def test_bounds_on_what_is_read_are_those_asked_for_and_paths_are_looked_for_in_the_reduced_graph(monkeypatch):
    read, looked = [], []
    around, lead = recipe.Surroundings, recipe.lead_through
    monkeypatch.setattr(recipe, "Surroundings", lambda *given, **how: read.append(how) or around(*given, **how))
    monkeypatch.setattr(
        recipe, "lead_through", lambda *given, **how: looked.append(len(given[1])) or lead(*given, **how)
    )
    for reduce in (True, False):
        told(graph(MEDICINE), QUESTION, reading=500, hub=20, threads=2, reduce=reduce)
    assert read == [{"most": 500, "hub": 20, "threads": 2}] * 2
    reduced, whole = looked
    assert reduced < whole


@pytest.mark.parametrize(("guess", "phase"), [("Acme works", "supplement"), ("works", "topics")])
def test_a_guess_that_is_like_a_name_in_part_leads_nowhere(guess, phase):
    model = Scripted(lambda prompt: f"Answer: {guess} | Chain: none" if prompt.startswith("Guess") else "{No}")
    here = graph([("salbutamol", "treats", "asthma"), ("Acme works", "makes", "salbutamol")])
    _, found, _ = told(here, "Who is behind drugs of asthma?", topics=["asthma"], llm=model, start=1, expand=False)
    assert found["phase"] == phase
