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
from secateur.data import labels as labels_of
from secateur.data import parts as parts_of
from secateur.data.images import Encoded, is_image, is_unread, naming
from secateur.errors import DataError

__all__ = ["Shards", "expand", "find_image", "list_others", "read_class", "read_json", "read_samples"]

_AT_ONCE = 2**20


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
                if place.name.startswith("."):  # as macOS puts one beside each
                    continue
                stem, _, ending = place.name.partition(".")
                own = str(place.with_name(stem or "_"))
                if own != key and parts:
                    yield key, parts
                    parts = {}
                key = own
                if ending.lower() in parts:
                    raise DataError(f"{path} has the file {member.name} twice: give each example a name of its own")
                parts[ending.lower()] = member
            if parts:
                yield key, parts
            with path.open("rb") as file:
                file.seek(tar.offset)  # tarfile takes a header that was cut off for the end
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise DataError(
                        f"{path} is cut off or damaged, for no block of zeros ends it: give it whole, or pack anew "
                        "what was written without one"
                    )
                while rest := file.read(_AT_ONCE):
                    if rest.count(0) < len(rest):
                        raise DataError(f"{path} goes on after its end, as two .tar files in one do: give each alone")
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} can't be read as .tar ({line(error)}): give it uncompressed and whole") from error


def find_image(path: Path, parts: Mapping[str, tarfile.TarInfo], key: str) -> tarfile.TarInfo | None:
    """The image of an example: NAME.png before NAME.depth.png. Raises `DataError` for several of the second kind.

    None where there is none, or the one of its own name is of a kind that is not read: NAME.mask.png is no NAME.heic.
    """
    images = [ending for ending in parts if is_image(Path(f"x.{ending}"))]
    plain = [ending for ending in images if "." not in ending]
    if len(images) > 1 and not plain:
        raise DataError(
            f"{path} has {len(images)} images of the one name {key} ({', '.join(images[:3])}): for WebDataset a name "
            "ends at its first dot, so write img_000.png for img.000.png, and NAME.png for the one image to be read"
        )
    unread = any(is_unread(Path(f"x.{ending}")) for ending in parts if "." not in ending)
    return parts[(plain or images)[0]] if plain or (images and not unread) else None


def read_class(path: Path, parts: Mapping[str, tarfile.TarInfo], label: str, key: str) -> object:
    """The class of an example, from NAME.cls, from NAME.json under `label`, or from NAME.txt; None without them.

    A `label` that was named is an ending, or stands in NAME.json. Raises `DataError` for one that is neither.
    """
    if label != labels_of.DEFAULT:
        row = read_json(path, parts, key)
        texts = [ending for ending in parts if ending != "json" and not is_image(Path(f"x.{ending}"))]
        labels_of.check(label, [*row, *texts], f"{path}:{key}", what="label")
        return row[label] if label in row else _read_text(path, parts[label])
    if "cls" in parts:
        return _read_text(path, parts["cls"])
    if "json" in parts:
        return read_json(path, parts, key).get(label)
    return _read_text(path, parts["txt"]) if "txt" in parts else None


def list_others(path: Path, parts: Mapping[str, tarfile.TarInfo], key: str) -> str:
    """What stands beside the image of an example without a class that might be one; "" for nothing."""
    others = [*read_json(path, parts, key), *(one for one in parts if one != "json" and not is_image(Path(f"x.{one}")))]
    folder = PurePosixPath(key).parent
    if others:
        return f"it has {', '.join(others)}: name that of the classes (--label), or say label='' for none"
    return "" if folder == PurePosixPath() else f"images lie in folders such as {folder}: unpack them for such classes"


def read_json(path: Path, parts: Mapping[str, tarfile.TarInfo], key: str) -> Mapping[str, object]:
    """What NAME.json holds by its names, what it holds without any as the label; nothing where there is none."""
    if "json" not in parts:
        return {}
    try:
        found = json.loads(_read_bytes(path, parts["json"]))
    except ValueError as error:
        raise DataError(f"{path}:{key}.json is no JSON ({error}): mend it") from error
    return found if isinstance(found, dict) else {labels_of.DEFAULT: found}


def _read_text(path: Path, member: tarfile.TarInfo) -> float | str:
    content = _read_bytes(path, member).decode("utf-8", "replace").strip()
    if re.fullmatch(r"[+-]?\d+", content):
        return int(content)
    return float(content) if re.fullmatch(r"[+-]?\d+\.\d*", content) else content


def _read_bytes(path: Path, member: tarfile.TarInfo) -> bytes:
    with path.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(member.size)
