"""PoG: Paths-over-Graph: knowledge graph empowered large language model reasoning.

Tan, Wang, Liu, Xu, Yuan and Zhang, WWW 2025 (arXiv 2410.14211).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from secateur._utils.rundir import Run
from secateur.methods import graphs
from secateur.methods.asking import Record
from secateur.methods.fitting import fit_to_limits
from secateur.methods.linking import NOTHING, Linking, correct, find_spans, link_topics
from secateur.methods.path_judges import TOPICS, Judging, SimilarityJudge, open_judge
from secateur.methods.path_questions import find_phrases, find_position, is_common_noun, order_topics
from secateur.methods.path_search import Exploring, Hops, PathSearch, Widths
from secateur.methods.similarity import Matching, Similarity
from secateur.retrieval.encoders import Count, Encoding
from secateur.score import naming
from secateur.select import beams, limits
from secateur.subjects.graph import walks
from secateur.subjects.graph.knowledge_graph import Fact, Facts, KnowledgeGraph, Line
from secateur.subjects.graph.walks import Cluster, Path, Surroundings
from secateur.subjects.text import markup
from secateur.vocabulary import Budget, Cut, Result

CARD = {
    "title": "PoG: Paths-over-Graph: Knowledge Graph Empowered Large Language Model Reasoning",
    "paper": "https://arxiv.org/abs/2410.14211",
    "cuts": "paths of a knowledge graph through all that a question names, under a budget of tokens",
    "recovers": "nothing",
    "extra": "context",
    "family": "context",
}


def paths_over_graph(
    subject: KnowledgeGraph,
    data: str,
    budgets: Sequence[Budget],
    run: Run,
    *,
    encoding: Encoding = Encoding(),
    linking: Linking = Linking(),
    judging: Judging = Judging(),
    hops: Hops = Hops(),
    widths: Widths = Widths(),
    exploring: Exploring = Exploring(),
    indicator: str = "",
    ordered: bool = True,
    supplement: bool = True,
    expand: bool = True,
    summarise: bool = True,
    enough: float = 0.5,
    force: bool = False,
    seed: int = 0,
    dry_run: bool = False,
) -> Iterator[Result]:
    """Find the paths that lead through all that a question names, and keep the few that answer it.

    1. Topics are found in the question, which is read for an indicator of the path, a part of it for each topic, and
       how long the path may be (D).
    2. From h = ceil(D / 2) hops up to `depth` (from D where there is one topic): the graph around the topics is read,
       and reduced to walks of at most h hops from a topic to a node that all of them reach. All paths in it through
       the topics are pruned; if what is left answers the question, that is it.
    3. If not, names that the answer might have are looked up and paths are led through them (`supplement`); and what
       stands beside the best paths is added to them (`expand`).

    Paths with the same relations are one, with all their entities. Pruning is in three steps: the `wide` most like the
    indicator stay; then those whose beginnings and ends a judge prefers, until `branch` are left; then those that it
    prefers as a whole, until `width` are left. The judge is a language model that sees `batch` of them at a time and
    names three. Without one, relations r are aligned in order with the phrases p of the question,

        s = (1 / hops + 1 / phrases) max over alignments of sum of cos(r, p),

    and paths suffice where one holds all topics and each phrase has its relation there, with a cosine of `enough`; that
    one answers. It is no longer than D.

    Args:
        subject: the graph; it stays as it is.
        data: the question.
        budgets: tokens=100, or words=60 where there is no tokenizer; or a share of all paths, tokens=20%.
        run: where what was found goes.
        encoding, linking, judging, hops, widths, exploring: see these classes.
        indicator: what the path may look like, "A" - treats - x - causes - "B"; else the language model's guess.
        ordered: lead paths through topics in the order in which the indicator names them, or the question does without
            one; otherwise in the order in which they are given or found.
        supplement: the second phase.
        expand: the third phase. Without a language model it is left out where the best paths are as long as what the
            question speaks of.
        summarise: let the language model shorten the paths before it judges whether they suffice.
        enough: cosine at which a relation says what a phrase of the question asks, without a language model.
        force: answer even where no paths suffice, as the paper does; otherwise there is no answer then.
        seed: of the language model's answers.
        dry_run: as a run; nothing is kept.

    No topic found gives an empty result, and so does a best path that does not fit into the budget: `told-...` in the
    run says why. Topics that don't meet within `depth` hops are explored in groups that do, or one by one. A language
    model that is down, or answers nonsense three times, is replaced by the judge without one, and a graph that stops
    answering midway by what was read of it; one that never answers raises `ServerError`.

    Departures: where no paths suffice there is no answer, unless `force`, and what the third phase added leaves again.
    The released code ends its search where it has seen the gold answer; here nothing but the question is
    read. It mixes up topics whose searches end out of order, extends only the first arrival at an entity, and asks
    without end for a list that it can read; none of these is kept. D is the number of steps of the indicator, as in
    the code; of more than two topics, those from one to the next. Branches of paths with the same relations are one,
    as the paths are; where one hop more makes whole paths of all branches, they stay short, or the judge would read as
    much as without them. Without a language model a path counts less that names no time where one is asked for, and
    does not suffice; and a relation that names the kind of what is asked for, "which currency is used", says what any
    phrase does. A name that the question writes small is no topic where it says what kind of thing is asked for.
    Where more than `most` paths begin alike in length, those go on whose relations are most like
    the question. A thing without a name is called by the end of its IRI. A round of the third phase looks at the `wide`
    most similar edges. Paths lead from thing to thing: what a graph says of one in words or numbers (RDF literals, as
    most of its dates are) is on none of them. Without a language model the supplement looks up the three entities on
    paths whose names are most like the question.
    """
    counts, similarity = (
        encoding.counts(),
        Similarity(encoding.open_embedder(), digits=6, matching=Matching(encoding.language, shortlist=0)),
    )
    judge = open_judge(judging, similarity, enough, seed, encoding.device)

    def find_paths() -> Record:
        text = " ".join(data.split())
        topics, notes, text = link(subject, text, linking, judge, similarity)
        names = subject.names(topics)
        question = judge.read(text, topics, [names[node] for node in topics], indicator)
        if not ordered:
            question = order_topics(question, topics)
        around = Surroundings(
            subject, question.topics, most=exploring.reading, hub=exploring.hub, threads=exploring.threads
        )
        tried = range(min(hops.start or question.hops, hops.depth), hops.depth + 1)
        search = PathSearch(
            subject, question, judge, similarity, around, counts, notes, widths, exploring, tried, summarise
        )
        best = explore(search) if question.topics else []
        if question.topics and supplement and not search.sufficient:
            best = add_guesses(search, best)
        steps = max((len(path.steps) for path in best), default=0)
        if best and expand and not search.sufficient and judge.may_expand(search.question, steps):
            longer = add_neighbours(search, best)
            best = longer if search.sufficient else best  # what did not help is not read
        if question.topics and not best:
            notes.append("no path leads from what the question names")
        search.conclude(best, force)
        return search.record(best)

    found = run.json("found", find_paths)
    lines = [Line(row["text"], tuple(Fact(*fact) for fact in row["facts"])) for row in found["best"]]
    for budget in budgets:
        limit = limits.limits_of_text(budget, found["whole"], "a context of paths")
        facts, notes = cut_paths(lines, limit, counts)
        kept = {line.text for line in facts.lines}
        rows = [{**row, "kept": row["text"] in kept} for row in found["rows"]]
        run.json(f"trace-{budget}", partial(dict, {"paths": rows}))
        record = {**found["told"], "notes": [*found["told"]["notes"], *notes], "paths_kept": len(facts.lines)}
        run.json(f"told-{budget}", partial(dict, record))
        gone = {"paths": (record["paths"] - len(facts.lines), record["paths"])}
        after = facts.cost(counts)
        yield Result(str(budget), facts, Cut(gone, found["whole"], after, tuple(record["notes"])), after)


def link(
    graph: KnowledgeGraph, question: str, linking: Linking, judge: SimilarityJudge, similarity: Similarity
) -> tuple[list[str], list[str], str]:
    """The nodes that a question is about, notes on those that were not found, and the question in the graph's names.

    Where no topics are given, they are what a language model finds in the question, or the names of the graph that
    stand in it, or what its phrases are nearest to.
    """
    given = linking.clean_topics()
    linked, notes = link_topics(
        graph, given or judge.list_names(question), similarity.embed, linking, question=question
    )
    nodes = [found[0] for found in linked.values() if found]
    if not nodes and not given:
        names, lost = graphs.find_names(graph, [question], lookup=linking.lookup)
        notes += lost
        spans, spelt = find_spans(graph, names, question, similarity.embed, linking)
        called = graph.names(found[0] for _, _, found in spans)
        proper = [span for span in spans if not is_common_noun(question, *span[:2], called[span[2][0]])]
        nodes, notes = [found[0] for _, _, found in proper or spans], notes + [spelling.note for spelling in spelt]
        question = correct(question, spelt)
        if not nodes and similarity.embed:
            phrases = find_phrases(question, "", ()) or [question]
            matches = names.nearest(phrases, similarity.embed, 1, linking.least)
            nodes = [match.node for near in matches for match in near]
    nodes = list(dict.fromkeys(nodes))
    if not nodes:
        notes.append(NOTHING)
    if len(nodes) > TOPICS:
        notes.append(f"the question names {len(nodes)} things, of which {TOPICS} are looked at")
    return nodes[:TOPICS], notes, question


def cut_paths(
    lines: Sequence[Line], limit: Mapping[str, float], counts: Mapping[str, Count]
) -> tuple[Facts, list[str]]:
    """As many of the paths, the best first, as fit; and a note where none does."""
    facts = Facts(lines)
    kept, _ = facts.cut(fit_to_limits(facts, -np.arange(len(lines), dtype=float), limit, counts))
    lost = bool(lines) and not kept.lines
    return kept, [f"not even the best path fits into {Budget.of(limit)}: raise it"] if lost else []


# ------------------------------------------------------------------------------------------------- three-step pruning


def prune(search: PathSearch, clusters: Sequence[Cluster]) -> tuple[list[Cluster], list[Cluster]]:
    """What is left after all steps, the best first; and after the first of them."""
    widths = search.widths
    clusters = walks.cluster_paths(dict.fromkeys(path for cluster in clusters for path in cluster.members))
    # A path that was led through a guess may be one that was found before: it says the same.
    clusters = list({(path.nodes, path.steps): path for path in reversed(clusters)}.values())[::-1]
    near = most_similar(search, clusters, widths.width if widths.mode == "1" else widths.wide)
    left, last = near, widths.width if widths.mode == "12" else widths.branch
    if "2" in widths.mode and len(near) > last:
        kept = beams.narrow_branches(
            [path.blocks for path in near], partial(search.choose, near, False), width=last,
            longest=search.range[-1] + 1, batch=widths.batch, fits=partial(search.fits, near, False),
        )  # fmt: skip
        left = [near[place] for place in kept]
    branched = len(left)
    if "3" in widths.mode:
        left = choose_whole(search, left, widths.width)
    left = left[: widths.width]
    sizes = {"enumerated": len(clusters), "fuzzy": len(near), "branch": branched, "precise": len(left), "rounds": 1}
    for figure, size in sizes.items():
        search.count(figure, size)
    search.trace(near)
    return left, near


def most_similar(search: PathSearch, clusters: Sequence[Cluster], width: int) -> list[Cluster]:
    """The `width` most like the indicator, the likest first."""
    order = np.argsort(-search.score(clusters), kind="stable")[:width]
    return [clusters[place] for place in order]


def choose_whole(search: PathSearch, paths: Sequence[Cluster], width: int) -> list[Cluster]:
    """The paths that the judge prefers as a whole."""
    kept = beams.narrow(
        [path.blocks for path in paths], partial(search.choose, paths, True), width=width, top=width,
        batch=search.widths.batch, fits=partial(search.fits, paths, True),
    )  # fmt: skip
    return [paths[place] for place in kept]


def best_of(search: PathSearch, paths: Sequence[Path], width: int) -> list[Path]:
    """The `width` paths most like the indicator."""
    order = np.argsort(-search.score([walks.cluster_paths([path])[0] for path in paths]), kind="stable")[:width]
    return [paths[place] for place in order]


# ------------------------------------------------------------------------------------------------------- three phases


def explore(search: PathSearch) -> list[Cluster]:
    """Phase 1: paths through all topics, with ever more hops, until they suffice; the best of them."""
    groups, depth = [list(range(len(search.question.topics)))], search.range[-1]
    if len(groups[0]) > 1:
        best = join_topics(search, groups[0])
        if best or search.sufficient:
            return best
        groups = search.around.together(depth)
        search.notes.append(f"the topics do not meet within {depth} hops: {len(groups)} groups of them stand alone")
    best = []
    for group in groups:
        best += join_topics(search, group) if len(group) > 1 else follow_topic(search, group[0])
    return prune(search, best)[0] if len(groups) > 1 else best


def join_topics(search: PathSearch, group: Sequence[int]) -> list[Cluster]:
    """Paths through some topics, in the order of the indicator, and through what else it names if there are such."""
    around, best = search.around, list[Cluster]()
    order = [search.question.topics[number] for number in group]
    for hops in search.range:
        around.reach(hops)
        meeting = around.meeting(hops, group)
        if not meeting:
            continue
        beside: walks.Beside = around.reduce(hops, group)
        reached = set[str]().union(*(around.within(number, hops) for number in group))
        search.entities = (len(reached), len(beside))
        beside = beside if search.exploring.reduce else around.beside
        waypoints = insert(search, order, match_names(search, search.question.others, list(beside), 0.95))
        paths = lead_through(search, beside, waypoints, hops, None) if waypoints != order else []
        if not paths:
            paths = lead_through(search, beside, order, hops, meeting if len(order) > 2 else None)
        best, _ = prune(search, [*best, *walks.cluster_paths(paths)])
        if search.decide(best, "topics", hops):
            break
    return best


def follow_topic(search: PathSearch, topic: int) -> list[Cluster]:
    """Paths from one topic: at first all up to the hops to start with, then those that are one hop longer.

    What is read next are the ends of the paths that the first step of pruning left, and no others.
    """
    best, pool, edge = list[Cluster](), list[Path](), [Path((search.question.topics[topic],), ())]
    for hops in range(1, search.range[-1] + 1):
        search.around.read(path.nodes[-1] for path in edge)
        edge = grow(search, edge)
        pool += edge
        if hops < search.range[0]:
            continue
        best, near = prune(search, [*best, *walks.cluster_paths(pool)])
        if search.decide(best, "topics", hops) or not edge:
            break
        edge = [path for cluster in near for path in cluster.members if len(path.steps) == hops]
        pool = []
    return best


def add_guesses(search: PathSearch, best: list[Cluster]) -> list[Cluster]:
    """Phase 2: paths that are led through what the answer might be."""
    around, depth, topics = search.around, search.range[-1], search.question.topics
    around.reach(depth)
    held = [node for path in best for nodes in path.nodes for node in nodes if node not in topics]
    near = list(dict.fromkeys([*held, *nodes_nearby(around)]))
    search.learn_names(near)
    known, paths = list(dict.fromkeys(search.names[node] for node in near)), list[Path]()
    for name, chain in search.judge.propose(search.question, search.verbalise(best), known)[:3]:
        for node in match_names(search, [name], near, 0.8)[:depth]:
            order = insert(search, list(topics), [node], chain)
            for hops in range(1, depth + 1):
                around.reach(hops)
                through = lead_through(search, around.beside, order, hops, None, each=10)
                if through:
                    paths += best_of(search, through, 50)
                    break
    if paths:
        best, _ = prune(search, [*best, *walks.cluster_paths(paths)])
        search.decide(best, "supplement", depth)
    return best


def add_neighbours(search: PathSearch, best: list[Cluster]) -> list[Cluster]:
    """Phase 3: what stands beside the entities of the best paths, a few edges at a time."""
    done, running, depth = set(search.question.topics), list[Path](), search.range[-1]
    for _ in range(depth):
        begun = [
            Path(path.nodes[: place + 1], path.steps[:place], tuple(stop for stop in path.stops if stop <= place))
            for cluster in best
            for path in cluster.members[: walks.LISTED]
            for place in range(1, len(path.nodes))
        ]
        begun = [path for path in dict.fromkeys([*running, *begun]) if path.nodes[-1] not in done]
        ends = list(dict.fromkeys(path.nodes[-1] for path in begun))
        if not ends:
            break
        done |= set(ends)
        search.around.read(ends)
        edges = walks.cluster_paths(grow(search, [Path((node,), ()) for node in ends]))
        kept = choose_whole(search, most_similar(search, edges, search.widths.wide), 3)
        running = [
            Path((*path.nodes, edge.nodes[1]), path.steps + edge.steps, path.stops)
            for cluster in kept
            for edge in cluster.members
            for path in begun
            if path.nodes[-1] == edge.nodes[0] and edge.nodes[1] not in path.nodes
        ]
        running = best_of(search, running, 10)
        best, _ = prune(search, [*best, *walks.cluster_paths(running)])
        if search.decide(best, "expand", depth):
            break
    return best


# ---------------------------------------------------------------------------------------------------- paths and nodes


def lead_through(
    search: PathSearch, beside: walks.Beside, order: Sequence[str], hops: int, meeting: set[str] | None, each: int = 0
) -> list[Path]:
    """Paths that lead through nodes in order; the `each` most like the indicator between two of them, if given."""
    most, liking, parts = search.widths.most, search.preferences(), list[list[Path]]()
    for near, far in itertools.pairwise(order):
        between = walks.find_paths(
            beside, near, far, hops, meeting=meeting, most=most, liking=liking, one=search.exploring.one_relation
        )
        search.note_bound(between.whole)
        paths = list(between.paths)
        parts.append(best_of(search, paths, each) if each and len(paths) > each else paths)
    chained = walks.chain_paths(parts, most=most, liking=liking)
    search.note_bound(chained.whole)
    # Out to a guess and back over what it came from says no more than the way without it.
    return [path for path in chained.paths if walks.is_simple_between(path, search.question.topics)]


def grow(search: PathSearch, paths: Sequence[Path]) -> list[Path]:
    """Paths that are one hop longer, over what was read."""
    grown = walks.grow_paths(
        search.around.beside, paths, most=search.widths.most, liking=search.preferences(),
        one=search.exploring.one_relation,
    )  # fmt: skip
    search.note_bound(grown.whole)
    return list(grown.paths)


def nodes_nearby(around: Surroundings, most: int = 10_000) -> list[str]:
    """Nodes around the topics, those few hops away first."""
    far = {node: min(hops) for node, hops in around.far().items()}
    return sorted(far, key=lambda node: (far[node], node))[:most]


def match_names(search: PathSearch, names: Sequence[str], nodes: Sequence[str], least: float) -> list[str]:
    """The node whose name is most like each of `names`, if it is more than `least`."""
    if not names or not nodes:
        return []
    search.learn_names(nodes)
    terms = [markup.stems(search.names[node]) for node in nodes]
    alike = naming.tfidf([markup.stems(name) for name in names], terms)
    best = [(int(row.argmax()), float(row.max())) for row in alike]
    return list(dict.fromkeys(nodes[place] for place, value in best if value > least))


def insert(search: PathSearch, order: Sequence[str], nodes: Sequence[str], chain: str = "") -> list[str]:
    """The order with more nodes where a chain names them; behind the first topic where it does not."""
    found, chain = list(order), chain or search.question.indicator
    last = max(1, len(order) - 1)
    for node in nodes:
        if node in found:
            continue
        at = find_position(search.names[node], chain)
        before = [i for i, other in enumerate(found) if find_position(search.names[other], chain) <= at < len(chain)]
        found.insert(min(before[-1] + 1 if before else 1, last), node)
    return found
