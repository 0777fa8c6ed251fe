"""The page of what was cut."""

from __future__ import annotations

from secateur.reports import decisions


def block(score, kept, text="words"):
    return {"path": "html > body > p0", "score": score, "kept": kept, "text": text, "words": 1.0}


def test_every_block_stands_there_with_score_rank_and_fate():
    rows = [block(0.25, False, "first & <b>"), block(0.75, True, "second"), block(0.5, False, "third")]
    found = decisions.page("Why?", {"page": rows}, {"tokens": 1200.0}, {"tokens": 300.0})
    assert "1,200 tokens before, 300 after (25.0 %)" in found
    assert found.index("first &amp; &lt;b&gt;") < found.index("second") < found.index("third")
    assert ["0.250, no. 3, cut" in found, "0.750, no. 1<" in found, "0.500, no. 2, cut" in found] == [True] * 3
    assert found.count('<li class="gone">') == 2
    assert "1 of 3 blocks stay" in found


def test_nothing_on_it_runs_or_loads():
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    found = decisions.page(evil, {"page": [block(0.0, True, evil)], "page.fine": []}, {}, {"words": 0.0})
    assert "<img" not in found
    assert "<script" not in found
    assert "default-src 'none'" in found
