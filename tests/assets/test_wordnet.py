"""WordNet's database as facts."""

from __future__ import annotations

import pytest

from assets import packages, wordnet
from secateur.errors import DataError

NOUNS = """  1 This software and database is being provided
00001740 03 n 01 entity 0 002 ~ 00001930 n 0000 ! 00001930 n 0101 | that which is perceived
00001930 05 n 02 physical_entity 0 thing(a) 1 003 @ 00001740 n 0000 ! 00001740 n 0101 #p 00002000 s 0000 | a thing; "it"
"""
ADJECTIVES = '00002000 00 s 01 real(p) 0 001 \\ 00001740 n 0000 | "really"\n'


def test_a_pointer_and_its_inverse_are_one_fact(tmp_path):
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "data.adj").write_text(ADJECTIVES)
    net = wordnet.read(tmp_path)
    top, thing, real = "wordnet-00001740-n", "wordnet-00001930-n", "wordnet-00002000-a"
    assert set(net.triples) == {
        (thing, "hypernym", top), (top, "antonym", thing), (thing, "part_holonym", real), (real, "pertains_to", top),
    }  # fmt: skip
    assert (net.words[thing], net.words["part_holonym"], net.words[real]) == ("physical entity", "part holonym", "real")
    assert net.kinds[thing] == "noun animal"
    assert [synset.words for synset in wordnet.synsets(tmp_path)][1] == ["physical entity", "thing"]


@pytest.mark.wide
@pytest.mark.slow
def test_all_of_it():
    try:
        net = wordnet.net()
    except DataError as error:
        pytest.skip(str(error))
    dog = "wordnet-02084071-n"
    assert sum(1 for _ in wordnet.synsets(packages.wordnet())) == 117_659
    assert (len(net.triples), net.words[dog], net.kinds[dog]) == (187_583, "dog", "noun animal")
    above = [net.words[other] for subject, relation, other in net.triples if (subject, relation) == (dog, "hypernym")]
    assert sorted(above) == ["canine", "domestic animal"]
