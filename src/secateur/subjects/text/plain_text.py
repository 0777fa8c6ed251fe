"""Plain text and Markdown as trees: paragraphs, headings, lists, tables and code, each with the lines of its source.

What stays of them is written as it stood there, and not as HTML: a reader pays for no tag, and no sign is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from secateur.errors import MissingExtraError
from secateur.subjects.text.lines import BOXES, ROOT
from secateur.subjects.text.markup import whole
from secateur.subjects.text.tree import Tree

if TYPE_CHECKING:
    from markdown_it.token import Token

__all__ = ["count_signs", "find_underlines", "read_markdown", "read_text", "write_source"]

_HEADING = re.compile(r"^ {0,3}#{1,6} +\S", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
_DELIMITER = re.compile(
    r"^ {0,3}(?=[^\n|]*\|)\|?[ \t]*:?-{3,}:?[ \t]*(?:\|[ \t]*:?-{2,}:?[ \t]*)*(?:\|[ \t]*)?$", re.MULTILINE
)
_UNDERLINE = re.compile(r"""^([-=~^"'`#*+.:_])\1{2,}[ \t\r]*$""", re.MULTILINE)
_ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_BREAK = re.compile(r"\r\n?")
_WORD = re.compile(r"[^\W_]+")
_PARAGRAPH = re.compile(r"\n(?:[ \t]*\n)+")
_TAG = 7
"""Columns that a manual page leaves for a term and the blank behind it."""
_TERM, _DEEPEST = 16, 6
"""Words of a term, and how many terms and leads of a text stand in one another: a text may go deeper with each line."""
_SENTENCE = re.compile(r"(?:[^.]\.|[!?,;\u3002])$")

_OPENS = {"bullet_list_open": "ul", "ordered_list_open": "ol", "list_item_open": "li", "blockquote_open": "blockquote",
          "table_open": "table"}  # fmt: skip
_CLOSES = {f"{name.removesuffix('_open')}_close" for name in _OPENS}
_LEAVES = {"fence": "pre", "code_block": "pre", "html_block": "div", "paragraph_open": "p"}
_CLOSE = {"li", "td", "th"}
"""What stands in a line right below the last."""


def count_signs(text: str, *, items: bool = True) -> int:
    """How many lines say that a text is Markdown: headings, code, tables, and items where there are several.

    An underline is none, and no fence. Where more headings are underlined by what underlines none in Markdown, such as
    ~, than there are signs but items, nothing is one: there such a line would begin or end code. items: whether those
    count.
    """
    underlines = list(find_underlines(text))
    signs = sum(len(sign.findall(text)) for sign in (_HEADING, _FENCE, _DELIMITER))
    signs -= sum(_FENCE.match(line) is not None for line in underlines)
    if sum(line[0] not in "-=" for line in underlines) > signs:
        return 0
    listed = len(_ITEM.findall(text)) if items else 0
    return signs + (listed if listed > 1 else 0)


def find_underlines(text: str) -> Iterator[str]:
    """The underlines of headings: of lines that begin a paragraph, but for such a line above them."""
    for found in _UNDERLINE.finditer(text):
        line, (begin, title) = found[0].rstrip(), _read_line_before(text, found.start())
        if _is_underline(title, line):
            begin, above = _read_line_before(text, begin)
            if not above or (above == line and not _read_line_before(text, begin)[1]):
                yield line


def _read_line_before(text: str, place: int) -> tuple[int, str]:
    """Where the line before the one that begins at a place begins, and what it says."""
    begin = text.rfind("\n", 0, max(0, place - 1)) + 1
    return begin, text[begin : max(0, place - 1)].rstrip()


def read_text(text: str) -> Tree:
    """The paragraphs of a text, which stand between blank lines, and what underlines and indentation say of them.

    A line that is underlined, by whatever sign, is a heading (h1 to h6), as in reStructuredText: the first sign is that
    of the highest, the next one that of those below. As in a manual page or the help of a command, a short line is the
    term (dt) of what stands deeper below it (dd), as are the words before the column in which the rest of a paragraph
    stands; and a paragraph that ends in a colon leads into what stands deeper, or into the next paragraph or items.
    """
    builder, pieces = _Builder(), _split_pieces(_BREAK.sub("\n", whole(text)).replace("\0", "\ufffd"))
    builder.open("section")
    opened, levels = list[_Opened](), list[str]()
    for (indent, piece, style), (following, _, _) in zip(pieces, [*pieces[1:], _Piece(-1, "")], strict=False):
        while opened and (style or _is_over(opened[-1], indent, piece)):
            opened.pop()
            builder.close()
            builder.close()
        if style:
            levels += [] if style in levels else [style]
            builder.add(f"h{min(6, 1 + levels.index(style))}", piece)
            continue
        if opened and opened[-1].first < 0:
            opened[-1] = opened[-1]._replace(first=indent)
        inside = len(opened) < _DEEPEST
        if inside and following > indent and _is_term(piece):
            builder.open("dl")
            builder.add("dt", piece)
            builder.open("dd")
            opened.append(_Opened(indent, following))
            continue
        builder.add("p", piece)
        if inside and following >= indent and piece.endswith((":", "\uff1a")):
            builder.open("ul")
            builder.open("li")
            opened.append(_Opened(indent))
    return builder.tree()


class _Piece(NamedTuple):
    """A paragraph, term or heading; style: of a heading its underline's sign, twice where a line stands above, too."""

    indent: int
    text: str
    style: str = ""


class _Opened(NamedTuple):
    """What is open in a text: the indentation of the term or line that leads to it, and of the first that is in it."""

    indent: int
    first: int = -1


def _is_over(opened: _Opened, indent: int, piece: str) -> bool:
    """Whether a piece is no more of what is open: it stands less deep, or as deep as what leads to it and no item."""
    if opened.indent == indent:
        return opened.first >= 0 and not (opened.first == indent and _ITEM.match(piece))
    return opened.indent > indent


def _split_pieces(text: str) -> list[_Piece]:
    """Each paragraph and heading, and each term that stands right above what it is the term of.

    What stands right below a term or a heading begins with a line break and keeps its indentation. Where the first line
    of a paragraph is the one that stands deeper, indentation is one of prose, and says nothing.
    """
    found, prose = list[_Piece](), False
    parts = [part.rstrip().strip("\n").split("\n") for part in _PARAGRAPH.split(text)]
    for lines, behind in zip(parts, [*parts[1:], [""]], strict=True):
        at = 0
        while heading := _read_heading(lines[at : at + 3], at == 0):
            found.append(heading)
            at += heading.text.strip("\n").count("\n") + 1
        lines, first = lines[at:], at == 0
        while any(line.strip() for line in lines):
            depths = list(map(_find_depth, lines))
            prose |= first and len(lines) > 1 and depths[0] > max(depths[1:])
            if hanging := _find_hanging(lines, depths[1:] or [_find_depth(behind[0])]):
                name = lines[0][:hanging].rstrip()
                found.append(_Piece(depths[0], name.strip() if first else f"\n{name}"))
                found.append(_Piece(hanging, "\n".join([lines[0][len(name) :], *lines[1:]])))
                break
            term = 1 if min(depths[1:], default=0) > depths[0] and _is_term(lines[0]) else len(lines)
            if term == 1 < len(lines) and not _breaks_early(lines):
                term = len(lines)
            piece = "\n".join(lines[:term])
            found.append(_Piece(min(depths[:term]), piece.strip() if first else f"\n{piece}"))
            lines, first = lines[term:], False
    return [piece._replace(indent=0) for piece in found] if prose else found


def _find_depth(line: str) -> int:
    line = line.expandtabs()
    return len(line) - len(line.lstrip())


def _find_hanging(lines: Sequence[str], deeper: Sequence[int]) -> int:
    """The column at which a paragraph's first line goes on as all that is `deeper` does, behind a term; 0 for none.

    One blank alone parts from what is said of it a term as long as manual pages leave room for, indented as theirs are:
    others may end there by chance.
    """
    line, column = lines[0], min(deeper)
    name, rest = line[:column], line[column:]
    if "\t" in line or not name.strip() or not name.endswith(" ") or rest[:1].strip() == "":
        return 0
    tight = len(name.strip()) == _TAG - 1 and name[:1] == " " and " " not in name.strip()
    return column if _is_term(name) and (name.endswith("  ") or tight) else 0


def _read_heading(lines: Sequence[str], first: bool) -> _Piece | None:
    """The heading that lines begin with: a line that is underlined, perhaps with the same line above it."""
    over = len(lines) > 2 and lines[0].rstrip() == lines[2].rstrip() and _UNDERLINE.fullmatch(lines[0]) is not None
    title, line = lines[over : over + 2] if len(lines) > over + 1 else ("", "")
    if not _is_underline(title.strip() if over else title, line):
        return None
    piece = "\n".join(lines[: over + 2])
    return _Piece(0, piece if first else f"\n{piece}", line[0] * (1 + over))


def _is_underline(title: str, line: str) -> bool:
    """Whether a line underlines the one above it: one sign all over, about as long as that is, which is not indented.

    As docutils has it an underline may be too short if it has four signs; here it is half as long then.
    """
    long, enough = len(line.rstrip()), len(title.rstrip())
    titled = _UNDERLINE.fullmatch(line) and title[:1].strip() and _WORD.search(title)
    return bool(titled) and (long >= enough or long >= max(4, enough / 2))


def _is_term(piece: str) -> bool:
    """Whether a piece is a line of few words, that begins no item and ends no sentence."""
    line = piece.strip()
    return "\n" not in line and len(line.split()) <= _TERM and not _ITEM.match(line) and not _SENTENCE.search(line)


def _breaks_early(lines: Sequence[str]) -> bool:
    """Whether a first line would have had room for the word that begins the second: it was not broken for its length"""
    return len(lines[0]) + 1 + len(lines[1].split()[0]) < max(map(len, lines[1:]))


def read_markdown(text: str, *, signs: bool = True) -> Tree:
    """The blocks of Markdown, with tables as GitHub writes them: h1 to h6, p, ul, ol, li, blockquote, table, pre.

    The text of each is that of its lines with all signs: "## Title", "- item". A row has one cell. What stands in no
    block, such as the addresses of links, is a paragraph. Raises `MissingExtraError` without markdown-it-py.

    signs: without, the signs of blocks are left out, which say the same as tags: "Title" in h2, and a row has all its
    cells. Signs within a line stay, and those that hold a word: "1. first", "```sh", cells beyond the table's head.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise MissingExtraError("reading Markdown needs markdown-it-py: pip install 'secateur[context]'") from error
    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])
    source = _BREAK.sub("\n", whole(text)).replace("\0", "\ufffd")
    rows, builder, at = source.split("\n"), _Builder(), 0
    builder.open("section")
    heads = False
    tokens = parser.parse(source)
    for place, token in enumerate(tokens):
        if token.type in ("thead_open", "tbody_open"):
            heads = token.type == "thead_open"
        tag = token.tag if token.type == "heading_open" else _LEAVES.get(token.type, "")
        if token.type == "tr_open":
            tag = "th" if heads else "td"
        if token.map and (tag or token.type == "hr"):
            start, end = token.map
            end += heads and token.type == "tr_open"  # the line of dashes
            builder.add("p", _join_loose(rows[at:start]))
            lines = "\n".join(rows[max(at, start) : end])
            texts = [lines] if signs else _leave_out_signs(lines, _read_contents(tokens, place))
            builder.add(
                tag, *(each.strip("\n").rstrip() for each in texts), row=token.type == "tr_open", bare=token.hidden
            )
            at = max(at, end)
        elif token.type in _OPENS:
            builder.open(_OPENS[token.type])
        elif token.type in _CLOSES:
            builder.close()
    builder.add("p", _join_loose(rows[at:]))
    builder.close()
    return builder.tree()


def _read_contents(tokens: Sequence[Token], place: int) -> list[str]:
    """The text of the block that begins at a place, without the block's signs; of a row those of its cells."""
    token = tokens[place]
    if token.type != "tr_open":
        return [tokens[place + 1].content if token.nesting else token.content]
    end = next(later for later in range(place, len(tokens)) if tokens[later].type == "tr_close")
    return [cell.content for cell in tokens[place:end] if cell.type == "inline"]


def _leave_out_signs(lines: str, contents: Sequence[str]) -> Sequence[str]:
    """The contents of a block in place of its lines, unless a word or number of them would go."""
    return contents if _WORD.findall(" ".join(contents)) == _WORD.findall(lines) else [lines]


def _join_loose(rows: Sequence[str]) -> str:
    """Lines that stand in no block; nothing where no word is in them."""
    text = "\n".join(rows).strip("\n").rstrip()
    return text if _WORD.search(text) else ""


class _Builder:
    """A tree that grows at its end."""

    def __init__(self) -> None:
        self._tag, self._text, self._parent, self._end = [ROOT], [""], [-1], [0]
        self._opened = [0]

    def open(self, tag: str, text: str = "") -> None:
        """An element, or a text, in what is open."""
        self._tag.append(tag)
        self._text.append(text)
        self._parent.append(self._opened[-1])
        self._end.append(len(self._tag))
        if tag:
            self._opened.append(len(self._tag) - 1)

    def close(self) -> None:
        """The last element that was opened ends."""
        self._end[self._opened.pop()] = len(self._tag)

    def add(self, tag: str, *texts: str, row: bool = False, bare: bool = False) -> None:
        """An element around each text, unless all are empty; in a row of a table, or without the element."""
        if not any(texts) or not tag:
            return
        if row:
            self.open("tr")
        for text in texts:
            if not bare:
                self.open(tag)
            if text:
                self.open("", text)
            if not bare:
                self.close()
        if row:
            self.close()

    def tree(self) -> Tree:
        """What was built."""
        while self._opened:
            self.close()
        return Tree(self._tag, self._text, self._parent, self._end)


def write_source(tree: Tree, nodes: Sequence[int] | None = None) -> str:
    """The texts of the whole tree or of the subtrees of `nodes`: items and rows in lines, others with one between."""
    parts, last = list[str](), -1
    for top in tree.children(0) if nodes is None else nodes:
        for node in range(top, tree.end[top]):
            if tree.tag[node] or not tree.text[node]:
                continue
            owner = tree.parent[node]
            while tree.tag[owner] in BOXES:
                owner = tree.parent[owner]
            if parts and owner != last:
                parts[-1] = parts[-1].rstrip()
                # Right below the line before, or in the term's own.
                joined = tree.text[node][0] == "\n" or (tree.text[node][0] == " " and tree.tag[last] == "dt")
                parts.append("" if joined else "\n" if {tree.tag[owner], tree.tag[last]} <= _CLOSE else "\n\n")
            parts.append(tree.text[node])
            last = owner
    return "".join(parts).strip()
