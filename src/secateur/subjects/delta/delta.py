"""The update that a training made: the difference of two checkpoints, entry by entry; each entry may go.

An entry that stays is the trained one, bit by bit; one that goes is what it was before. Neither model is ever whole in
memory: tensors are read, compared and written one at a time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from secateur._utils.checkpoints import read_json
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.subjects.delta import naming
from secateur.subjects.delta.merged import Merged
from secateur.subjects.delta.resized import Resized, fit_vocabulary
from secateur.subjects.delta.tensors import Checkpoint, Tensors, write
from secateur.subjects.network.pretrained import copy_beside
from secateur.subjects.transformer import files, low_rank
from secateur.vocabulary import Array, Cut, Selection, Site, Term, Units

__all__ = ["SITE", "Delta", "open_delta"]

SITE = "entries"
"""The kind of its units: the site of a tensor is `TENSOR.entries`."""


def open_delta(before: str | Path, after: str | Path) -> Delta:
    """The update between a model's folder, or Hub id, and the one that it became: a checkpoint, or an adapter on it.

    Raises `InputError` for two that are no checkpoints of one model, or that are the same; see `Delta`.
    """
    base = Checkpoint(before)
    if (Path(after) / low_rank.CONFIG).is_file():
        return Delta(base, Merged(base, after))
    trained = Checkpoint(after)
    if trained.folder is not None and base.folder is not None and trained.folder.resolve() == base.folder.resolve():
        raise InputError(f"{before} and {after} are one folder: give the model before training, and the one after it")
    if base.outlines().keys() == trained.outlines().keys():
        return Delta(fit_vocabulary(base, trained), trained)
    try:
        named, apart = naming.match(base, trained)
    except (ModelError, UnsupportedError):  # a config of no class that is known: names are all there is
        return Delta(fit_vocabulary(base, trained), trained)
    return Delta(fit_vocabulary(named, trained), trained, apart)


class Delta:
    """An update: what training changed in the tensors of a model.

    sites: tensor -> entries that still belong to the update, of tensors that training changed; the others have none.
    apart: names in `after` that `before` is not asked for -> the tensor that they are again, as a tied head is its
    embedding, or "" for what is no part of the model and stays as it is.

    Raises `InputError` for models whose tensors differ in names, shapes or number types, and for two of the same
    weights; `UnsupportedError` where training changed what is no floating number.
    """

    backend = "secateur.runs.backends.delta:Deltas"

    def __init__(self, before: Tensors, after: Tensors, apart: Mapping[str, str] | None = None) -> None:
        self.before, self.after, self._apart = before, after, apart or {}
        self._masks: tuple[Mapping[str, Array], ...] = ()
        _check_alike(before, after, self._apart)
        self.sites = {
            name: outline.numel
            for name, outline in before.outlines().items()
            if not _same_bits(before.read(name), after.read(name))
        }
        if not self.sites:
            raise InputError(
                f"{before.name} and {after.name} hold the same weights, so there is no update: give the model before "
                "training, and the one after it"
            )
        for name in self.sites:
            if not before.outlines()[name].kind.is_floating_point:
                raise UnsupportedError(
                    f"{after.name} changed {name}, which holds {before.outlines()[name]}: an update is of floating "
                    "numbers, so give checkpoints that are not quantised"
                )

    @property
    def folder(self) -> Path | None:
        """The folder of the trained model, or of an adapter's base."""
        return self.after.folder

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how the two models were found to belong together."""
        added = (self.before.note,) if isinstance(self.before, Resized) else ()
        return (*added, *(self.after.notes if isinstance(self.after, Merged) else ()))

    @property
    def is_whole(self) -> bool:
        """Whether nothing was cut of the update."""
        return not self._masks

    def mask(self, name: str) -> Tensor:
        """[numel] booleans: which entries of a tensor belong to the update."""
        mask = torch.ones(self.before.outlines()[name].numel, dtype=torch.bool)
        if name not in self.sites:
            return ~mask
        for keep in self._masks:
            if name in keep:
                mask[mask.clone()] = torch.as_tensor(keep[name], dtype=torch.bool)
        return mask

    def update(self, name: str) -> Tensor:
        """[count] of a site: by how much training changed each entry that belongs to the update; float32 or float64."""
        kind = torch.promote_types(self.before.outlines()[name].kind, torch.float32)
        change = (self.after.read(name).to(kind) - self.before.read(name).to(kind)).flatten()
        return change[self.mask(name)] if self._masks else change

    def tensor(self, name: str) -> Tensor:
        """A tensor of the model with this update: trained where entries belong to it, else as before, bit by bit."""
        name = self._apart.get(name) or name
        if name not in self.sites or not self._masks:
            return self.after.read(name)
        before = self.before.read(name)
        return torch.where(self.mask(name).view(before.shape), self.after.read(name), before)

    def norm(self) -> float:
        """The Euclidean length of the update, over all tensors together."""
        return float(sum(float(self.update(name).double().square().sum()) for name in self.sites) ** 0.5)

    def units(self, *axes: str) -> Units:
        """One site per tensor that training changed, with one unit per entry; each costs one `update`."""
        sites = {f"{name}.{SITE}": count for name, count in self.sites.items()}
        return Units(
            {site: Site(site, count) for site, count in sites.items()},
            tuple(Term("update", 1.0, (site,)) for site in sites),
            {"update": 0.0},
        )

    def cut(self, selection: Selection) -> tuple[Delta, Cut]:
        """The update without the entries that go. Masks are asked for by tensor when that is read, and not held here.

        A mapping that computes its masks may so stand for more entries than memory takes.
        """
        keep: Mapping[str, Array] = _BySite(selection.keep)
        small = object.__new__(type(self))
        small.before, small.after, small._apart = self.before, self.after, self._apart
        small._masks = (*self._masks, keep)
        small.sites, removed = {}, {}
        for name, count in self.sites.items():
            stays = int(keep[name].sum()) if name in keep else count
            removed[f"{name}.{SITE}"] = (count - stays, count)
            small.sites[name] = stays
        return small, Cut(removed, self.units().cost(), small.units().cost())

    def digest(self) -> str:
        """A hash of both models."""
        return hashlib.sha256(f"{self.before.digest()} {self.after.digest()}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write an ordinary checkpoint: the trained model's config, tokenizer and licence, and weights in its files.

        One tensor is in memory at a time. Raises `InputError` for an update of models in memory, which has no config.
        """
        home, after = self.folder, self.after
        if home is None:
            raise InputError("an update of tensors in memory has no config to be saved with: read its tensors instead")
        folder.mkdir(parents=True, exist_ok=True)
        config = read_json(home / "config.json")
        shutil.copyfile(home / "config.json", folder / "config.json")
        if isinstance(config, dict) and "auto_map" in config:  # of a model that was cut to unequal layers
            for module in home.glob("modeling_*.py"):
                shutil.copyfile(module, folder / module.name)
        for place in [after.adapter] if isinstance(after, Merged) else []:
            copy_beside(place, folder)
        copy_beside(home, folder)
        base = after.base if isinstance(after, Merged) else after
        assert isinstance(base, Checkpoint)
        _write_weights(self, base, folder)


class _BySite(Mapping[str, Array]):
    """Masks by the names of tensors, of a selection that has them by site."""

    def __init__(self, keep: Mapping[str, Array]) -> None:
        self.keep = keep

    def __getitem__(self, name: str) -> Array:
        return self.keep[f"{name}.{SITE}"]

    def __iter__(self) -> Iterator[str]:
        return (site.removesuffix(f".{SITE}") for site in self.keep)

    def __len__(self) -> int:
        return len(self.keep)

    def __contains__(self, name: object) -> bool:  # that of `Mapping` would compute a mask
        return f"{name}.{SITE}" in self.keep


def _write_weights(delta: Delta, home: Checkpoint, folder: Path) -> None:
    """The tensors, in as many files as the checkpoint `home` has."""
    sources = sorted(set(home.places.values()))
    outlines, table = home.outlines(), dict[str, str]()
    for number, source in enumerate(sources, 1):
        file = files.WHOLE if len(sources) == 1 else f"model-{number:05d}-of-{len(sources):05d}.safetensors"
        inside = {name: outlines[name] for name, place in home.places.items() if place == source}
        write(folder / file, inside, delta.tensor)
        table |= dict.fromkeys(inside, file)
    if len(sources) > 1:
        total = sum(outline.numel * outline.kind.itemsize for outline in outlines.values())
        files.write_index(folder, table, total)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    whole = (one.contiguous().flatten().view(torch.uint8), other.contiguous().flatten().view(torch.uint8))
    return torch.equal(*whole)


def _check_alike(before: Tensors, after: Tensors, apart: Collection[str]) -> None:
    """Refuse models that are not one before and after training, by the first tensor that tells; `apart` as `Delta`."""
    ours = before.outlines()
    theirs = {name: outline for name, outline in after.outlines().items() if name not in apart}
    advice = "give two checkpoints of one model"
    for held, lacking, names in ((before, after, ours.keys() - theirs), (after, before, theirs.keys() - ours)):
        if names:
            raise InputError(f"{held.name} has the tensor {min(names)}, and {lacking.name} has not: {advice}")
    for name, outline in ours.items():
        if outline.shape != theirs[name].shape:
            raise InputError(
                f"{name} is {list(outline.shape)} in {before.name} and {list(theirs[name].shape)} in {after.name}: "
                f"{advice}"
            )
        if outline.kind != theirs[name].kind:
            raise InputError(
                f"{name} is {outline} in {before.name} and {theirs[name]} in {after.name}: save both in one number type"
            )
