"""Vectors of texts on the disk: by encoder and content, bounded, for several processes at once."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from secateur._utils.disk import cache_folder

__all__ = ["VectorFile"]

MOST = 2**28
"""Bytes of vectors that are kept of one encoder; those that were not asked for the longest leave."""
_ALIKE = 1e-4
"""How far a vector of one encoder may move, as a share of its length: threads and batches change the last digits."""
_AT_ONCE = 500
"""Texts that one query asks for."""


class VectorFile:
    """The vectors of one encoder in a file of SQLite, each by a digest of its text: the texts are not kept.

    Digests are those of the encoder's probe, too: a process that still has old weights neither reads nor writes what
    is of new ones. A write is done as a whole or not at all, whenever the process ends. A file that is damaged, locked
    for long, or can't be written is done without: nothing depends on it but time.
    """

    def __init__(self, path: Path, most: int = MOST) -> None:
        self.path, self.most, self.off, self._salt = path, most, False, b""
        self._lock = threading.Lock()

    @classmethod
    def open(cls, name: str, probe: np.ndarray, *, most: int = MOST) -> VectorFile:
        """The file of an encoder by its name; emptied where that gives another vector of a probe than it did.

        name: a folder, Hub id or address. probe: [d], what it makes of one text now.
        """
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        found = cls(cache_folder() / "vectors" / f"{digest}.sqlite", most)
        found._begin(np.ascontiguousarray(probe, dtype=np.float32))
        return found

    def _begin(self, probe: np.ndarray) -> None:
        for attempt in range(2):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with closing(self._connect()) as connection, connection:
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, used REAL, vector BLOB)"
                    )
                    connection.execute("CREATE TABLE IF NOT EXISTS probe (vector BLOB)")
                    row = connection.execute("SELECT vector FROM probe").fetchone()
                    before = np.frombuffer(row[0], dtype=np.float32) if row else None
                    if before is None or not _alike(before, probe):
                        before = probe
                        connection.execute("DELETE FROM vectors")
                        connection.execute("DELETE FROM probe")
                        connection.execute("INSERT INTO probe VALUES (?)", (probe.tobytes(),))
                self.width, self._salt = len(probe), before.tobytes()  # as others have it, to the last digit
                return
            except sqlite3.DatabaseError as error:
                if attempt or isinstance(error, sqlite3.OperationalError):  # locked, full or not ours to write
                    break
                self.path.unlink(missing_ok=True)  # no file of SQLite, or a damaged one
            except OSError:
                break
        self.off = True

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=2.0)

    def read(self, texts: Iterable[str], role: str = "") -> dict[str, np.ndarray]:
        """Text -> its vector [d], of those that are there."""
        keys, found = {self._key(text, role): text for text in texts}, dict[str, np.ndarray]()
        if self.off or not keys:
            return found
        asked = list(keys)
        try:
            with self._lock, closing(self._connect()) as connection, connection:
                for start in range(0, len(asked), _AT_ONCE):
                    part = asked[start : start + _AT_ONCE]
                    marks = ", ".join("?" * len(part))
                    rows = connection.execute(
                        f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part
                    ).fetchall()
                    found |= {keys[key]: np.frombuffer(raw, np.float32).copy() for key, raw in rows}
                    now = time.time()
                    connection.execute(f"UPDATE vectors SET used = ? WHERE key IN ({marks})", (now, *part))
        except (sqlite3.Error, OSError):
            self.off = True
        return {text: vector for text, vector in found.items() if len(vector) == self.width}

    def write(self, vectors: Mapping[str, np.ndarray], role: str = "") -> None:
        """Keep vectors by their texts; above the bound those leave that were not asked for the longest."""
        if self.off or not vectors:
            return
        now = time.time()
        rows = [
            (self._key(text, role), now, np.ascontiguousarray(vector, dtype=np.float32).tobytes())
            for text, vector in vectors.items()
        ]
        try:
            with self._lock, closing(self._connect()) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
                (count,) = connection.execute("SELECT COUNT(*) FROM vectors").fetchone()
                most = max(1, self.most // (4 * self.width))
                if count > most:
                    connection.execute(
                        "DELETE FROM vectors WHERE key IN (SELECT key FROM vectors ORDER BY used LIMIT ?)",
                        (count - most * 9 // 10,),
                    )
        except (sqlite3.Error, OSError):
            self.off = True

    def _key(self, text: str, role: str) -> bytes:
        return hashlib.sha256(self._salt + f"{role}\0{text}".encode("utf-8", "surrogatepass")).digest()[:16]


def _alike(before: np.ndarray, probe: np.ndarray) -> bool:
    """Whether two vectors [d] are of one encoder."""
    return before.shape == probe.shape and bool(
        np.linalg.norm(before - probe) <= _ALIKE * max(np.linalg.norm(before), np.linalg.norm(probe))
    )
