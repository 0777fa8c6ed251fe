"""WebDataset shards: images with classes inside of .tar files, each read from where it stands."""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from secateur._utils.plugins import line
from secateur.data import parts as parts_of
from secateur.data.images import Encoded, naming
from secateur.errors import DataError

__all__ = ["Shards", "expand", "read_class", "read_samples"]


class Shards(Encoded):
    """Images inside of .tar files, each read from where it stands.

    members: for each image its shard, where in it its bytes begin, and how many they are.
    """

    def __init__(self, paths: Sequence[Path], members: NDArray[np.int64], names: Sequence[str]) -> None:
        self.paths, self.members, self.names = [str(path) for path in paths], members, names

    def __len__(self) -> int:
        return len(self.members)

    def name(self, place: int) -> str:
        """Its shard and its name there."""
        return f"{self.paths[self.members[place][0]]}:{self.names[place]}"

    def length(self, place: int) -> int:
        """Bytes of the image's file."""
        return int(self.members[place][2])

    def fetch(self, place: int, start: int, stop: int) -> bytes:
        """Some of them."""
        shard, offset, length = (int(number) for number in self.members[place])
        with naming(self.name(place)), open(self.paths[shard], "rb") as file:
            file.seek(offset + start)
            return file.read(max(0, min(stop, length) - start))


def expand(source: str | Path) -> list[Path]:
    """The .tar files that a name, a pattern or a folder stands for, of all its parts."""
    path, _ = parts_of.split_name(Path(source))
    text = str(path)
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if braces:
        first, last = braces.groups()
        found = [Path(f"{text[: braces.start()]}{number:0{len(first)}}{text[braces.end() :]}")
                 for number in range(int(first), int(last) + 1)]  # fmt: skip
    elif path.is_dir():
        found = sorted(path.glob("*.tar"))
    else:
        found = [Path(one) for one in sorted(glob.glob(text))] or [path]
    missing = next((path for path in found if not path.is_file()), None)
    if missing is not None:
        raise DataError(f"there is no shard {missing}: give .tar files, such as data-*.tar or data-{{000..009}}.tar")
    return found


def read_samples(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """(name, ending -> file) of each example in a shard, whose files stand together."""
    try:
        with tarfile.open(path, "r:") as tar:
            key, parts = "", dict[str, tarfile.TarInfo]()
            for member in tar:
                if not member.isfile():
                    continue
                place = PurePosixPath(member.name)
                stem, _, ending = place.name.partition(".")
                own = str(place.with_name(stem or "_"))
                if own != key and parts:
                    yield key, parts
                    parts = {}
                key = own
                parts[ending.lower()] = member
            if parts:
                yield key, parts
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} can't be read as .tar ({line(error)}): give it uncompressed and whole") from error


def read_class(path: Path, parts: Mapping[str, tarfile.TarInfo], label: str, key: str) -> object:
    """The class of an example, from NAME.cls, from NAME.json under `label`, or from NAME.txt; None without them."""
    ending = next((one for one in ("cls", "json", "txt") if one in parts), None)
    if ending is None:
        return None
    member = parts[ending]
    with path.open("rb") as file:
        file.seek(member.offset_data)
        content = file.read(member.size).decode("utf-8", "replace").strip()
    if ending == "json":
        try:
            found = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path}:{key}.json is no JSON ({error}): mend it") from error
        return found.get(label) if isinstance(found, dict) else found
    return int(content) if re.fullmatch(r"\d+", content) else content
