"""What the tensors of a checkpoint are called in the model that its config describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from secateur.subjects.delta.tensors import Checkpoint, Outline, Tensors
from secateur.subjects.transformer import loading

__all__ = ["Names", "Renamed", "match"]


class Names:
    """Names of a model's parameters and of buffers that are saved, built on the meta device.

    first: name -> the first name of the same tensor, of a tied head its embedding's.

    Raises `ModelError` or `UnsupportedError` for a config that describes no model of transformers.
    """

    def __init__(self, folder: Path) -> None:
        model = loading.outline_any(folder)
        self.prefix = f"{model.base_model_prefix}."
        seen: dict[int, str] = {}
        state = model.state_dict(keep_vars=True)  # in which tied tensors are one object
        self.first = {name: seen.setdefault(id(tensor), name) for name, tensor in state.items()}

    def find(self, name: str) -> str | None:
        """What the model calls a tensor of its checkpoint: with the prefix of its base, or without; None for what it
        does not have, such as a mask that older versions saved."""
        forms = (name, self.prefix + name, name.removeprefix(self.prefix))
        return next((form for form in forms if form in self.first), None)

    def twin(self, name: str) -> str | None:
        """The tensor before it that a tensor is again, as a tied head is its embedding; None for one of its own."""
        found = self.find(name)
        return None if found is None or self.first[found] == found else self.first[found]


class Renamed:
    """Tensors under other names. names: name -> what `held` calls it."""

    def __init__(self, held: Checkpoint, names: Mapping[str, str]) -> None:
        self.held, self.names, self.name, self.folder = held, names, held.name, held.folder

    def outlines(self) -> Mapping[str, Outline]:
        """Name -> number type and shape."""
        return {name: self.held.outlines()[other] for name, other in self.names.items()}

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return self.held.read(self.names[name])

    def digest(self) -> str:
        """A hash of all tensors that are held, whatever they are called."""
        return self.held.digest()


def match(before: Checkpoint, after: Checkpoint) -> tuple[Tensors, dict[str, str]]:
    """(the tensors of `before` under the names of `after`, `apart` of a `Delta` of both).

    Left out is what either model does not have, and what is tied to another tensor: that is the same again.
    """
    (ours, _), (theirs, apart) = (_sort(one) for one in (before, after))
    return Renamed(before, {theirs.get(name, name): stored for name, stored in ours.items()}), apart


def _sort(checkpoint: Checkpoint) -> tuple[dict[str, str], dict[str, str]]:
    """(name in the model -> in the checkpoint; other names in that -> of the one that they are tied to, or "")."""
    assert checkpoint.folder is not None
    names = Names(checkpoint.folder)
    found, apart = dict[str, str](), dict[str, str]()
    for stored in sorted(checkpoint.outlines(), key=lambda one: names.twin(one) is not None):
        name = names.find(stored)
        if name is not None and names.first[name] not in found:
            found[names.first[name]] = stored
        else:
            apart[stored] = "" if name is None else found[names.first[name]]
    return found, apart
