"""Texts with keywords, from files: lines that are none are named."""

from __future__ import annotations

import pytest

from secateur.errors import DataError
from secateur.runs.keyword_texts import read, read_prefixes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "line 2 has no text"),
        ('{"text": "a mauve sea"}', "line 2 has no keyword"),
        ('{"text": "a mauve sea", "keyword": "pink"}', "line 2: its text does not hold its keyword 'pink' as a word"),
        ('{"text": "mauves", "keyword": "mauve"}', "does not hold its keyword 'mauve' as a word"),
        ('{"text": "a mauve sea", "keyword": "mauve", "theme": 3}', "a theme that is no text: 3"),
        ('{"text": "a mauve sea", "keyword": "mauve", "category": []}', "a category that is no text"),
        ("[1]", "line 2 is a list"),
        ("{", "line 2 is no JSON"),
        ('{"text": "a \\ud800 mauve sea", "keyword": "mauve"}', "line 2 holds half a character"),
    ],
)
def test_lines_that_are_no_texts_with_keywords_are_refused(line, said, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a mauve sea", "keyword": "mauve"}\n' + line)
    with pytest.raises(DataError, match=said):
        read(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no line"):
        read(path)


def test_prompts_are_by_theme_and_end_with_a_blank(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = ['{"theme": "colour", "prefix": "sand is"}', '{"prefix": "and "}', '{"theme": "colour", "prefix": "sea is"}']
    path.write_text("\n".join(rows))
    assert read_prefixes(str(path)) == {"colour": ("sand is ", "sea is "), "": ("and ",)}
    assert read_prefixes("") == {}
