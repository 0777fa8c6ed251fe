"""The model card says what was made of what, with its figures, and how to load it."""

from __future__ import annotations

import pytest

from secateur.runs.cards import write_card
from secateur.vocabulary import Cut, Evidence, Figure


@pytest.mark.parametrize("cut", [None, Cut({"layers.0.heads": (2, 4), "layers.1.heads": (0, 4)}, {}, {}, ("a note",))])
def test_a_card_has_evidence_what_was_cut_and_the_lines_that_load_it(cut, tmp_path):
    row = Evidence("ziplm", "params=50%", after={"params": Figure(15.0)}, cut=cut, verdict="met",
                   environment={"measured_at": "noon"})  # fmt: skip
    load = 'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("out", trust_remote_code=True)'
    write_card(tmp_path, row, load, tag="pruned", title="thin", origin="Cut from wide.")
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\ntags: [secateur, pruned]\n---\n\n# thin\n\nCut from wide.")
    assert "Verdict: met." in card
    assert "Measured at noon." in card
    assert f"```python\n{load}\n```" in card
    assert ("layers.0.heads | 2 | 4" in card) == ("- a note" in card) == ("secateur.load" in card) == (cut is not None)
    assert "layers.1.heads" not in card
