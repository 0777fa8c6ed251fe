"""Any PyTorch network as a subject: what could go is found by one recorded forward pass, and every cut is proved.

No line of this knows an architecture. What is not understood stays, with the reason; see `Traced.reasons`.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur._utils.disk import atomic_write, writing
from secateur.errors import InputError, ModelError, SecateurError, UnsupportedError
from secateur.formats import integers, onnx_files
from secateur.subjects.network import configs, flops, invariance, segments
from secateur.subjects.network import coupling as coupled
from secateur.subjects.network import offsets as offsets_of
from secateur.subjects.network.coupling import Coupling
from secateur.subjects.network.proof import (
    FAINT,
    Fault,
    Silenced,
    compare,
    differences,
    same,
    silenced,
    stirred,
    trains,
)
from secateur.subjects.network.recording import Example, Run, record, running, tensors_of
from secateur.subjects.network.shrinking import Plan, plan, shrink, speaks_of_widths, twin, widths
from secateur.vocabulary import Cut, Notes, Selection, Site, Term, Units

__all__ = ["CutError", "Traced", "open_traced", "reload_traced"]

_WEIGHTS, _PLAN, _MASKS = "model.safetensors", "cut.json", "masks.safetensors"


class CutError(ModelError):
    """A cut that does not give what silencing gives. `fault` says where; `Traced.without` takes it out."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.fault = fault


class Traced:
    """A network with example inputs, as something to prune. Use `open_traced` to make one."""

    backend = "secateur.runs.backends.network:Network"

    def __init__(self, model: nn.Module, example: Example, plans: tuple[Plan, ...] = ()) -> None:
        self._model = model
        self.inputs = example
        self._plans = plans
        self._later: Callable[[], tuple[str, ...]] | None = None
        """What brings the configs up to date after a cut, and gives the notes on that."""
        self._told: tuple[str, ...] = ()
        self.masks: dict[str, Tensor] = {}
        """Name of a parameter -> booleans of its shape, False where a weight was pruned on its own and stays zero."""
        self.forms: dict[str, integers.Form] = {}
        """Name of a masked parameter -> the pattern of its mask, where it has one."""
        self._channels: float | None = None
        """How many channels an earlier cut has left, as it counted them."""
        self._kept: dict[int, str] = {}
        self._bound: list[np.ndarray] = []
        self._tried: dict[type, tuple[int, int]] = {}
        """Kind of module -> from where on `_bound` is bound for it (-1 if nothing is), and what is to be tried next."""
        self._whole: frozenset[str] = frozenset()
        self._priced: tuple[Coupling, Any, tuple[list[Term], dict[str, float]]] | None = None
        self._held: dict[str, str] = {}
        self.error = 0.0
        """Largest relative difference of outputs between this cut and the silenced original, as it was proved.

        Where outputs tell nothing (last weights of zero), that of the same cut under weights drawn anew.
        """

    # --------------------------------------------------------------------------------------------- configs

    # The search for a config that describes a cut takes longer than the cut of a small network, and many a cut is only
    # tried. So it waits until the network is handed out, saved, or the notes are read: nobody sees the config of old.

    @property
    def model(self) -> nn.Module:
        """The network; its configs say what it is, where one of their kind can."""
        self._describe()
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        """Put another network in its place, whose configs are its own matter."""
        self._model, self._later = model, None

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What was done to the original, cut after cut."""
        self._describe()
        return self._plans

    def _describe(self) -> tuple[str, ...]:
        """Bring the configs up to date, if that was not done yet; the notes on it."""
        if self._later is not None:
            later, self._later = self._later, None
            try:
                self._told = later()
            except BaseException:
                self._later = later
                raise
        return self._told

    # --------------------------------------------------------------------------------------------- structure

    @cached_property
    def run(self) -> Run:
        """The recorded pass."""
        shadow = twin(self.model, share=True).eval()
        where = [""]
        try:
            return record(shadow, self.inputs, entered=where, whole=self._whole)
        except Exception as error:
            line = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            place = f" in {where[0]}" if where[0] else ""
            if type(error).__module__.startswith("torch._dynamo"):
                raise UnsupportedError(
                    f"{type(self.model).__name__} calls compiled code{place} (torch.compile): prune it with the plain "
                    "function, then compile the result"
                ) from error
            raise ModelError(
                f"{type(self.model).__name__} can't run on the example inputs{place}: {type(error).__name__}: {line}; "
                "give inputs with which model(*args, **kwargs) runs, on the model's device"
            ) from error

    @cached_property
    def coupling(self) -> Coupling:
        """What goes together and what stays."""
        return coupled.couple(self.run, self._kept, self._bound)

    @cached_property
    def graph(self) -> segments.Segments:
        """The recorded pass as a graph of operators, with its segments."""
        return segments.trace(self.model, self.inputs, self._held)

    @property
    def reasons(self) -> Mapping[str, str]:
        """Dimension of a tensor, as "conv1.weight[0]" -> why it, or a part of it, stays."""
        return self.coupling.reasons

    def protect(self, names: Iterable[str], reason: str = "is protected by the caller") -> None:
        """Let nothing of these modules, parameters or sites go; "layer4.*" is all whose names fit, as in fnmatch.

        A lone string is one name. Raises `InputError` for a name that is none and a pattern that fits none.
        """
        for name in self._named([names] if isinstance(names, str) else names):
            self._held.update(
                dict.fromkeys((n for n in tensors_of(self.model) if n == name or n.startswith(f"{name}.")), reason)
            )
            axes = [
                axis for axis in self.run.flow.atoms.axes if axis.tensor == name or axis.tensor.startswith(f"{name}.")
            ]
            for axis in axes:
                self._kept.update(dict.fromkeys(range(axis.start, axis.start + axis.size), reason))
            if not axes and name in self.coupling.sites:
                self._keep_site(name, reason)
        for name in ("coupling", "graph", "_invariance"):
            self.__dict__.pop(name, None)

    def _named(self, patterns: Iterable[str]) -> list[str]:
        """What fits of the names of modules, parameters and sites; nothing inside what is there already."""
        known = dict.fromkeys((*dict(self.model.named_modules()), *tensors_of(self.model), *self.coupling.sites))
        known.pop("", None)
        found: dict[str, None] = {}
        for pattern in patterns:
            fitting = [pattern] if pattern in known else [name for name in known if fnmatchcase(name, pattern)]
            if not fitting:
                near = difflib.get_close_matches(pattern.replace("*", ""), known, n=3, cutoff=0.4)
                raise InputError(
                    f"protect names {pattern!r}, which is no module, parameter or site of this model, and no pattern "
                    f"of such names{'; the nearest: ' if near else ''}{', '.join(near)}"
                )
            for name in fitting:
                if not any(name.startswith(f"{one}.") for one in found):
                    found[name] = None
        return list(found)

    def _keep_site(self, name: str, reason: str) -> None:
        atoms = np.flatnonzero(np.isin(self.coupling.classes.of, self.coupling.sites[name].classes))
        self._kept.update(dict.fromkeys(atoms.tolist(), reason))

    def without(self, fault: Fault, selection: Selection) -> list[str]:
        """Take out of the way what a fault shows, in all modules of the kind in which it shows; names of the sites.

        Code that computes the size of heads from the number of channels wants both cut in step: sites that meet there
        are bound to one another first. If the fault comes again, heads stay whole, and the same dimensions of each go
        instead. If that does not help, the site that touches least of the network stays. Raises `ModelError` where no
        site that was cut explains the fault.
        """
        cut = [name for name, keep in selection.keep.items() if not bool(np.asarray(keep).all())]
        modules = dict(self.model.named_modules())
        path, near = fault.where, []
        while True:
            places = _alike(path, modules) if path else [""]
            near = self._near(path, cut) if path else []
            if near or not path:
                break
            path = path.rpartition(".")[0]
        if not near:
            # Nothing near the fault: half of what was cut stays, what touches least first.
            near = sorted(cut, key=lambda name: len(self.coupling.sites[name].axes))[: max(1, len(cut) // 2)]
            places = []
        if not near:
            raise ModelError(f"the cut can't be proved: {fault.what}")
        found: list[str] = []
        above, around = path, places
        parent = path.rpartition(".")[0]
        leaf = not any(True for _ in modules.get(path, self.model).children())
        if leaf and (near[0].endswith("heads") or parent in self._whole):
            # A layer that is given heads of another size than it was made for: the module around it shaped them.
            leaf, above, around = False, parent, _alike(parent, modules)
        kind = type(modules.get(above, self.model))
        known = kind in self._tried
        if not leaf and self._remedied(kind, around, 0 if above == path else 2):
            found = near
        else:
            cut = list(self.coupling.sites) if known and not leaf else cut
            chosen = [self._near(place, cut)[:1] for place in places] or [near]
            found = list(dict.fromkeys(name for names in chosen for name in names))
            place = f" (in {fault.where})" if fault.where else ""
            for name in found:
                self._keep_site(name, f"a cut of it fails: {fault.what}{place}")
        self.__dict__.pop("coupling", None)
        return found

    def _remedied(self, kind: type, places: list[str], step: int) -> bool:
        """Try the next of what may help modules of a kind, in these places; False, and all as it was, after the last.

        Heads bound to channels; all sites that are there; the same with whole heads; whole heads alone. step: where to
        begin.
        """
        start, step = self._tried.get(kind, (-1, step))
        if start >= 0:
            # Binding did not help: what was bound for this kind of module is free again.
            del self._bound[start:]
            self.__dict__.pop("coupling", None)
        while step < 4:
            near = [self._near(place, self.coupling.sites) for place in places]
            if step == 2:
                if not any(name.endswith("heads") for names in near for name in names):
                    break
                self._keep_heads(self._whole.union(places))
                near = [self._near(place, self.coupling.sites) for place in places]
            plain, every = ([pairs for names in near for pairs in self._bind(names, more)] for more in (False, True))
            bound = (plain, every if len(every) > len(plain) else [], plain, [])[step]
            step += 1
            if bound or step == 3 or (step == 4 and start >= 0):
                self._tried[kind] = (len(self._bound) if bound else -1, step)
                self._bound += bound
                self.__dict__.pop("coupling", None)
                return True
        if not self._whole.isdisjoint(places):
            self._keep_heads(self._whole.difference(places))
        self._tried[kind] = (-1, 4)
        return False

    def _keep_heads(self, whole: Iterable[str]) -> None:
        """Record anew, with these modules' heads whole."""
        self._whole = frozenset(whole)
        for name in ("run", "coupling", "_invariance"):
            self.__dict__.pop(name, None)

    def _bind(self, near: list[str], every: bool = False) -> list[np.ndarray]:
        """Pairs of atoms that let heads go in step with the channels that they are computed from.

        The channels are those of the site that touches most of the network; each head takes a block of them along.
        Where there are no heads, other sites are bound in their place, and with `every` also beside them, if they have
        as many channels.
        """
        sites = [self.coupling.sites[name] for name in near]
        if len(sites) < 2:
            return []
        large = max(sites, key=lambda site: len(site.axes))
        others = [site for site in sites if site is not large]
        found = []
        of = self.coupling.classes.of
        atom = np.zeros(int(of.max()) + 1, np.int64)
        atom[of] = np.arange(len(of))
        heads = [site for site in others if site.name.endswith("heads")]
        for small in others if every or not heads else heads:
            few, many = len(small.classes), len(large.classes)
            if many % few == 0 and (few == many or not heads or small in heads):
                found.append(np.stack([atom[small.classes[np.arange(many) * few // many]], atom[large.classes]]))
        if every and not found:
            # Queries, keys and values of as many dimensions, whatever they are computed from.
            small = others[0]
            found = [
                np.stack([atom[small.classes], atom[one.classes]])
                for one in others[1:]
                if len(one.classes) == len(small.classes)
            ]
        return found

    def _near(self, path: str, cut: Iterable[str]) -> list[str]:
        """The sites of `cut` that touch module `path`: those it gives a shape first, then what touches least of all."""
        sites = self.coupling.sites
        shaped: set[int] = set()
        for one in self.run.flow.shapings:
            if one.module == path:
                for label in one.labels:
                    shaped.update(np.unique(self.coupling.classes.of[label.numpy()]).tolist())
        near = []
        for name in cut:
            if name not in sites:
                continue
            site = sites[name]
            inside = any(axis.tensor.startswith(f"{path}.") for axis, _ in site.axes)
            if inside or not shaped.isdisjoint(site.classes.tolist()):
                near.append((shaped.isdisjoint(site.classes.tolist()), len(site.axes), name))
        return [name for _, _, name in sorted(near)]

    def copy(self) -> Traced:
        """The same analysed subject on a deep copy of the weights: what was found out is shared, not done again.

        For a recipe that trains before it cuts: the copy's `model` may be trained in place, this one stays.
        """
        coupling, run = self.coupling, self.run
        result = Traced(twin(self.model), self.inputs, self.plans)
        result._kept, result._bound, result._tried = dict(self._kept), list(self._bound), dict(self._tried)
        result.error, result._channels, result._whole = self.error, self._channels, self._whole
        result.masks, result.forms = dict(self.masks), dict(self.forms)
        result.__dict__.update(run=run, coupling=coupling)
        result._held = dict(self._held)
        result.__dict__.update(
            {name: self.__dict__[name] for name in ("graph", "_invariance") if name in self.__dict__}
        )
        return result

    # ------------------------------------------------------------------------------------------------- units

    def units(self, *axes: str, multiple: int = 1) -> Units:
        """What could go, on these axes ("channels", "heads"; all if none is named), with exact costs.

        Measures: channels (as they are made: a head counts all of its own); params, bytes and flops (of a forward pass
        on the example inputs), as polynomials of kept counts. Where Python code follows the data (routing to experts),
        FLOPs are those of the recorded pass. `multiple` rounds channels. At least one unit of each site stays. Raises
        `UnsupportedError` for a network in which nothing can go, with the reasons, `InputError` for a `multiple`
        below 1.

        `units("segments")` gives the operators that can be erased whole instead, one site. They are cut alone; some
        selections of them would break the network, which `cut` refuses and `erasure` tells. A segment costs its own
        parameters and those of what only it feeds or needs; what goes with several of them together comes on top, so
        that never more is left of params and bytes than is said. FLOPs are measured by `cut`.
        """
        if not hasattr(multiple, "__index__") or multiple < 1:
            raise InputError(f"multiple={multiple!r}: give a whole number of at least 1, such as 8")
        if segments.SITE in axes:
            if len(axes) > 1:
                raise UnsupportedError("segments are cut alone: cut them first, then the channels of the result")
            return self._segments()
        coupling = self.coupling
        if not coupling.sites:
            raise UnsupportedError(f"nothing of this {type(self.model).__name__} can be cut: {self._why()}")
        sites = {}
        for name, site in coupling.sites.items():
            count = len(site.classes)
            step = math.lcm(multiple // math.gcd(multiple, site.width), site.step // math.gcd(site.step, site.width))
            sites[name] = Site(
                name, count, {"channels": np.full(count, float(site.width))}, multiple=step, minimum=min(step, count)
            )
        found = dict(self.model.named_parameters())
        parameters = {name: p.element_size() for name, p in found.items()}
        shapes = {name: tuple(p.shape) for name, p in found.items()}
        terms, base = self._terms(shapes, parameters)
        whole = Units(sites, tuple(terms), {**base, "channels": self._settled()})
        if not axes:
            return whole
        kinds = {site.kind for site in sites.values()}
        for axis in axes:
            if axis not in kinds:
                raise UnsupportedError(f"axis {axis!r} is not one of this network's: {', '.join(sorted(kinds))}")
        return whole.only(*axes)

    def _terms(
        self, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int]
    ) -> tuple[list[Term], dict[str, float]]:
        """Those of the coupling, which are asked for again and again."""
        if self._priced is None or self._priced[0] is not self.coupling or self._priced[1] != (shapes, sizes):
            self._priced = self.coupling, (shapes, sizes), self.coupling.terms(shapes, sizes, self.run.products)
        return self._priced[2]

    def topology(self) -> dict[str, str]:
        """Site -> which kinds of layers its units touch, and in which dimensions: equal for sites of equal structure.

        Widths, counts and names don't matter: the inner channels of all blocks of one make have one topology. It is
        the multiset of what is touched, which isomorphic structures share; the wiring between is not compared.
        """
        modules = dict(self.model.named_modules())

        def kind(tensor: str) -> str:
            path, _, leaf = tensor.rpartition(".")
            return f"{type(modules[path]).__name__}.{leaf}" if path in modules else leaf

        return {
            name: ", ".join(sorted(f"{kind(axis.tensor)}[{axis.dim}]" for axis, _ in site.axes))
            for name, site in self.coupling.sites.items()
        }

    def _settled(self) -> float:
        """What an earlier cut has left beside the sites of now, so that all of it is what that cut said.

        Channels of sites that are down to one unit, which always stays. Below zero where more can go than before, and
        is counted twice: the queries and values of an attention of one head.
        """
        return 0.0 if self._channels is None else self._channels - self._own_channels()

    def _own_channels(self) -> float:
        return sum(float(len(site.classes) * site.width) for site in self.coupling.sites.values())

    def _segments(self) -> Units:
        found = self.graph.removable
        if not found:
            reasons = dict.fromkeys(one.reason for one in self.graph.segments)
            raise UnsupportedError(
                f"no segment of this {type(self.model).__name__} can be erased: {'; '.join(reasons) or 'it has none'}"
            )
        size = dict(self.model.named_parameters())
        lost = self.graph.lost
        owned = [[size[name] for name in (*one.parameters, *lost[one.name]) if name in size] for one in found]
        own = {
            "segments": np.ones(len(found)),
            "params": np.array([float(sum(p.numel() for p in part)) for part in owned]),
            "bytes": np.array([float(sum(p.numel() * p.element_size() for p in part)) for part in owned]),
        }
        whole = self._count()
        base = {measure: whole[measure] - float(own[measure].sum()) for measure in ("params", "bytes")}
        return Units({segments.SITE: Site(segments.SITE, len(found), own)}, (), base)

    def erasure(self, selection: Selection) -> segments.Erasure | None:
        """What goes with the segments that `selection` does not keep; None if the network would break."""
        return self.graph.erase(self._gone(selection))

    def _gone(self, selection: Selection) -> list[str]:
        found = self.graph.removable
        keep = selection.keep[segments.SITE]
        mask = np.asarray(keep.cpu() if isinstance(keep, Tensor) else keep).astype(bool)
        if mask.shape != (len(found),):
            raise InputError(f"the selection of segments has shape {mask.shape}, expected ({len(found)},)")
        return [one.name for one, stays in zip(found, mask, strict=True) if not stays]

    def _why(self) -> str:
        counted: dict[str, int] = {}
        for reason in self.reasons.values():
            counted[reason] = counted.get(reason, 0) + 1
        most = sorted(counted, key=lambda one: -counted[one])[:3]
        return "; ".join(most) or "it has no parameter with more than one index"

    def slices(self) -> dict[str, list[tuple[Tensor, int, Tensor]]]:
        """Site -> (parameter, dimension, unit of each index or -1): every slice that goes with a unit.

        A site that holds buffers only has none, and is left out.
        """
        found: dict[str, Tensor] = dict(self.model.named_parameters())
        of = self.coupling.classes.of
        result: dict[str, list[tuple[Tensor, int, Tensor]]] = {}
        unit = np.full(int(of.max(initial=0)) + 1, -1)
        for name, site in self.coupling.sites.items():
            unit[:] = -1
            unit[site.classes] = np.arange(len(site.classes))
            result[name] = [
                (found[axis.tensor], axis.dim, torch.from_numpy(unit[of[axis.start : axis.start + axis.size]]))
                for axis, _ in site.axes
                if axis.tensor in found
            ]
        return {name: parts for name, parts in result.items() if parts}

    def producers(self) -> dict[str, list[tuple[Tensor, int, Tensor]]]:
        """As `slices`, but only what makes a unit: where all of it is zero, the unit's values are zero.

        Only sites whose cut then equals the network with the zeros, norms and all, are there: see `invariance`.
        """
        reads, exact = self._invariance
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {
            name: [part for part in parts if (names[id(part[0])], part[1]) not in reads]
            for name, parts in self.slices().items()
            if name in exact
        }

    @cached_property
    def _invariance(self) -> tuple[set[tuple[str, int]], set[str]]:
        return invariance.reads(self.model), invariance.exact(self.model, self.inputs, self.coupling, self.run)

    def weights(self) -> dict[str, list[tuple[Tensor, int, Tensor]]]:
        """The weights of the segments that can be erased, in the form of `slices`: site -> (parameter, 0, unit)."""
        found = dict(self.model.named_parameters())
        return {
            segments.SITE: [
                (found[name], 0, torch.full((len(found[name]) if found[name].dim() else 1,), number))
                for number, one in enumerate(self.graph.removable)
                for name in one.parameters
            ]
        }

    # --------------------------------------------------------------------------------------------------- cut

    def _keep(self, selection: Selection) -> dict[str, np.ndarray]:
        keep = {}
        for name, given in selection.keep.items():
            if name not in self.coupling.sites:
                raise InputError(f"the selection names {name!r}, which is no site of this network: use units()")
            mask = np.asarray(given.cpu() if isinstance(given, Tensor) else given).astype(bool)
            count = len(self.coupling.sites[name].classes)
            if mask.shape != (count,):
                raise InputError(f"the selection of {name} has shape {mask.shape}, expected ({count},)")
            if not mask.any():
                raise InputError(f"the selection keeps nothing of {name}: at least one unit must stay")
            keep[name] = mask
        return keep

    def cut(self, selection: Selection, *, prove: bool = True, offsets: bool = False) -> tuple[Traced, Cut]:
        """A smaller copy with the selection made real, and the receipt; this subject stays as it is.

        With `prove`, both the smaller network and the silenced original run on the example inputs and must agree to
        1e-5 of the largest output; `CutError` says where they don't. Where parts run in training only (an auxiliary
        classifier), a pass in training must run as well. Segments (see `units`) are erased: then the
        silenced original has zeros for their weights. Raises `InputError` where the network breaks without them.

        With `offsets`, channels that go are not silent but what their batch norms give at a scale of 0: the constants
        are folded into whatever reads them (see `subjects.network.offsets`). A receipt's note says how much nearer
        that is, on the example inputs, to the original with those scales at 0; where it is not, nothing is folded.

        The configs of models from transformers and diffusers say what the smaller network is, where one of their kind
        can; a note says so, or that it can't. That is looked for when the model, the notes or a file are first asked
        for.
        """
        if segments.SITE in selection.keep:
            return self._erase(selection, prove)
        keep = self._keep(selection)
        removed = {name: (int((~mask).sum()), len(mask)) for name, mask in keep.items() if not mask.all()}
        before = self._count(sum(one.whole for one in self.run.products))
        if not removed:
            same = Traced(twin(self.model), self.inputs, self.plans)
            same._channels = self._settled() + self._own_channels()
            return same, Cut({}, before, before)
        kept = self.coupling.kept(keep)
        made = plan(self.model, self.coupling, kept, self.run.flow)
        small = shrink(self.model, made)
        result = Traced(small, self.inputs, (*self.plans, made))
        counter = flops.Counter() if prove else None
        if counter:
            result.error, fault = compare(
                small, silenced(self.model, kept, self.run), self.inputs, counter, made.rescaled
            )
            if fault is None and result.error < FAINT:
                result.error, fault = stirred(self.model, made, kept, self.inputs, self.run)
            if fault is None and self.run.late:
                fault = trains(small, self.inputs)
            if fault is not None:
                raise CutError(
                    f"a cut of {type(self.model).__name__} can't be proved: {fault.what}"
                    f"{f' in {fault.where}' if fault.where else ''}",
                    fault,
                )
        notes = self._fold(result, kept) if offsets else ()
        channels = self._settled() + self._own_channels()
        after = result._count(counter.total if counter and not offsets else None)
        gone = sum(float(count * self.coupling.sites[name].width) for name, (count, _) in removed.items())
        result._channels = channels - gone
        if configs.holders(self.model):
            # Of what is there now: offsets may have made biases, which no config gives.
            counted = widths(self.model, made, kept, self.run.flow.shapings)
            result._later = lambda: self._followed(result, counted)
        return result, Cut(
            removed,
            {**before, "channels": channels},
            {**after, "channels": channels - gone},
            Notes(*notes, *([result._describe] if result._later else []), *self._notes()),
        )

    def _followed(self, small: Traced, counted: Mapping[int, Counter[int]]) -> tuple[str, ...]:
        """Bring the configs of `small`, which was just cut so, up to date; notes for the receipt."""
        holders = configs.holders(self.model)
        made = small.plans[-1]
        changes, numbers, lost = configs.described(self.model, small.model, counted, speaks_of_widths)
        if changes:
            told = shrink(small.model, Plan(attributes=tuple(numbers), config=tuple(changes)))
            try:
                apart = differences(Traced(told, small.inputs).forward(), small.forward()) > 1e-6
            except Exception:  # code that computes from its config in every pass
                apart = True
            if apart:
                changes, lost = [], list(holders)
            else:
                made = replace(made, attributes=(*made.attributes, *numbers), config=tuple(changes))
                small._model, small._plans = told, (*small.plans[:-1], made)
        old = {path: holder.config for path, holder in holders.items()}
        said = ", ".join(f"{field} {configs.read(old[path], field)} -> {new}" for path, field, new in changes)
        return (
            *([f"config: {said}; save_pretrained and from_pretrained work as for the original"] if said else []),
            *configs.behind(self.model, lost),
        )

    def _fold(self, small: Traced, kept: np.ndarray) -> tuple[str, ...]:
        """Fold into `small`, which was just cut so, the constants of what went; notes for the receipt."""
        found, lost = offsets_of.offsets(self.model, self.coupling, kept, self.inputs)
        if not found:
            return (*lost, "offsets: no constant of what went reaches anything that stays")
        modules = dict(self.model.named_modules())
        found = [_rescaled(one, small.plans[-1], modules[one.module]) for one in found]
        plans = (*small.plans[:-1], replace(small.plans[-1], biases=tuple(one.module for one in found if one.made)))
        whole = Traced(shrink(small.model, Plan(biases=plans[-1].biases)), small.inputs, plans)
        offsets_of.fold(whole.model, found)
        wanted = Traced(offsets_of.constant(self.model, self.coupling, kept), self.inputs).forward()
        before, after = (differences(one.forward(), wanted) for one in (small, whole))
        changed = f"the outputs' difference to scales of 0 changes from {before:.2g} to {after:.2g} of the largest"
        if after >= before:
            return (*lost, f"offsets: left out, for {changed}")
        small._model, small._plans = whole.model, whole.plans
        means = sum(one.into.endswith("running_mean") for one in found)
        biases = f"{len(found) - means} biases ({sum(one.made for one in found)} of them new)"
        return (*lost, f"offsets: folded into {biases} and {means} running means; {changed}")

    def _erase(self, selection: Selection, prove: bool) -> tuple[Traced, Cut]:
        if len(selection.keep) > 1:
            raise InputError("the selection names segments and more: cut segments first, then channels of the result")
        before, count = self._count(), len(self.graph.removable)
        gone = self._gone(selection)
        if not gone:
            return Traced(twin(self.model), self.inputs, self.plans), Cut({}, before, before)
        erasure = self.graph.erase(gone)
        if erasure is None:
            raise InputError(
                f"without {', '.join(gone)} no way leads from the input to the output of this "
                f"{type(self.model).__name__}: keep one of them"
            )
        made = self.graph.plan(self.model, erasure)
        result = Traced(shrink(self.model, made), self.inputs, (*self.plans, made))
        if prove:
            result.error, fault = same(result.model, self.silence(selection).model, self.inputs)
            if fault is not None:
                raise CutError(f"erasing {', '.join(gone)} can't be proved: {fault.what}", fault)
        after = result._count()
        removed = {segments.SITE: (len(gone), count)}
        notes = [f"erased: {', '.join(erasure.removed)}"]
        said = self._segments().cost(selection.keep)["params"]
        if said > after["params"]:
            notes.append(
                f"params: {after['params']:.0f} are left, where prices of single segments said at most {said:.0f}: "
                "the rest goes with several of them together"
            )
        if erasure.dead:
            notes.append(f"erased because only erased parts took their results: {', '.join(erasure.dead)}")
        notes += [f"stays: {one.name}: {one.reason}" for one in self.graph.segments if one.reason]
        notes += configs.behind(self.model)
        before["segments"], after["segments"] = float(count), float(count - len(gone))
        return result, Cut(removed, before, after, tuple(notes))

    def _notes(self) -> list[str]:
        counted: dict[str, tuple[list[str], dict[str, None]]] = {}
        modules = dict(self.model.named_modules())
        for axis, reason in self.reasons.items():
            what, _, rest = reason.partition(" (")
            axes, places = counted.setdefault(what, ([], {}))
            axes.append(axis)
            # "(sort in layer1)", or "(sort)" where the whole network's own code calls it.
            place = rest.rstrip(")").rpartition("in ")[2] if "in " in rest else ""
            if rest and place in modules:
                kind = type(modules[place]).__name__
                places[f"{place} ({kind})" if place else kind] = None
        notes = []
        for what, (axes, places) in counted.items():
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            notes.append(
                f"stays: {axes[0]}{f' and {len(axes) - 1} more' if len(axes) > 1 else ''}: {what}"
                f"{f', in {next(iter(places))}{more}' if places else ''}"
            )
        return notes

    def silence(self, selection: Selection) -> Traced:
        """The same shapes with the units that go set to zero, norms over what is kept: what a cut must equal."""
        if segments.SITE in selection.keep:
            erasure = self.erasure(selection)
            parameters = dict(self.model.named_parameters())
            zero = {one.name: one.parameters for one in self.graph.segments}
            changed = {
                name: torch.zeros_like(parameters[name])
                for one in (erasure.removed if erasure else self._gone(selection))
                for name in zero[one]
            }
            return Traced(twin(self.model, changed), self.inputs, self.plans)
        kept = self.coupling.kept(self._keep(selection))
        return Traced(silenced(self.model, kept, self.run), self.inputs, self.plans)

    def forward(self, inputs: Any = None) -> Any:
        """Run the network, in evaluation mode, on the CPU, on the example inputs or others of the same form."""
        example = self.inputs if inputs is None else Example.of(inputs)
        model = self._model if isinstance(self._model, Silenced) else twin(self._model, share=True).eval()
        with running(model, lambda _: None):
            args, kwargs = example.fresh()
            return model(*args, **kwargs)

    def flops(self) -> float:
        """FLOPs of a forward pass on the example inputs, multiply and add counted as two."""
        model = twin(self._model, share=True).eval()
        try:
            with running(model, lambda _: None):
                args, kwargs = self.inputs.fresh()
                return flops.count(model, args, kwargs)
        except Exception as error:
            raise ModelError(f"{type(self.model).__name__} can't run on the example inputs: {error}") from error

    def _count(self, flops: float | None = None) -> dict[str, float]:
        parameters = list(self.model.parameters())
        return {
            "params": float(sum(p.numel() for p in parameters)),
            "bytes": float(sum(p.numel() * p.element_size() for p in parameters)),
            "flops": self.flops() if flops is None else float(flops),
        }

    # -------------------------------------------------------------------------------------------------- files

    def save(self, folder: str | Path, *, program: bool = False) -> None:
        """Weights (safetensors) and what was cut (JSON), for `reload_traced`; with `program`, a torch.export program.

        The program takes a batch of any size where the network lets it, else that of the example inputs. Masks of
        single weights go into a file of their own; quantised layers are stored as integers, packed by their masks'
        patterns, while the program holds them as floats. Each file is written whole or not at all.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().contiguous() for name, tensor in _state(self.model).items()}
        state = integers.stored(self.model, state, self.masks, self.forms)
        with writing(folder / _WEIGHTS) as place:
            save_file(state, place)
        if loose := {name: mask for name, mask in self.masks.items() if f"{name}.places" not in state}:
            from secateur.subjects.transformer import packing  # which loads transformers

            packing.save_masks(loose, folder / _MASKS)
        data = {
            "model": type(self.model).__name__,
            "plans": [one.to_dict() for one in self.plans],
            "channels": self._channels,
            **({"forms": {name: [one.n, one.m, one.unit] for name, one in self.forms.items()}} if self.forms else {}),
        }
        atomic_write(folder / _PLAN, json.dumps(data))
        if program:
            args, kwargs = self.inputs.fresh()
            exported = onnx_files.program(twin(self.model, share=True).eval(), args, kwargs)
            with writing(folder / "model.pt2") as place:
                torch.export.save(exported, place)

    def export_onnx(self, file: str | Path) -> tuple[str, ...]:
        """Write the network as an ONNX file, in evaluation mode and float32; returns notes.

        Inputs are named as the arguments of its `forward`. They take any batch where the network lets them; a note
        says where not. The file is run under onnxruntime beside the network before it is put in place. Raises
        `MissingExtraError` without the `onnx` extra, `UnsupportedError` for what ONNX can't hold, `NumericalError`
        where outputs differ by more than 1e-4.
        """
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        args, kwargs = self.inputs.fresh()
        model = twin(self.model, share=True).eval()
        with writing(file) as place:
            return onnx_files.write_module(model, args, kwargs, place)


def _rescaled(one: offsets_of.Offset, cut: Plan, module: nn.Module) -> offsets_of.Offset:
    """The offset of a layer whose results a cut makes larger or smaller."""
    name = f"{one.module}.weight" if one.module else "weight"
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    by = cut.factors(name, 0, len(weight)) if weight is not None else None
    if by is None:
        return one
    stays = cut.tensors.get(name, {}).get(0)
    return replace(one, values=one.values * (by if stays is None else by[stays]).to(one.values))


def _alike(path: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """The modules of the kind of the one at `path`; of layers, only those that stand in like places."""
    kind = type(modules[path])
    found = [name for name, module in modules.items() if type(module) is kind]
    if any(True for _ in modules[path].children()):
        return found
    parent, _, tail = path.rpartition(".")
    above = (tail, type(modules[parent]), parent.rpartition(".")[2].strip("0123456789"))
    result = []
    for name in found:
        other, _, end = name.rpartition(".")
        if (end, type(modules[other]), other.rpartition(".")[2].strip("0123456789")) == above:
            result.append(name)
    return result


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor once, also buffers that a state dict leaves out."""
    return tensors_of(model)


def open_traced(model: nn.Module, example_inputs: Any, *, protect: Iterable[str] = (), prove: bool = True) -> Traced:
    """`model` as something to prune; it stays as it is.

    example_inputs: a tensor (one positional input), a tuple (positional), or a dict (keywords). prove: cut half of
    everything once, then unequal shares, and let stay what can't be cut, so that `units` promises no more than can be
    kept; without it, a cut may raise `CutError`. Raises `ModelError` for a model that can't run on the inputs or holds
    NaN, `UnsupportedError` for compiled, scripted and quantised models, for one in which nothing can go, and for one
    that chooses by its data what to run, where the inputs leave something out.
    """
    subject = Traced(model, Example.of(example_inputs))
    _check(model, subject.inputs)
    _check_branches(subject)
    if protect:
        subject.protect(protect)
    _something(subject)
    if prove:
        for turn in (None, 0.0, 0.5):
            _try(subject, turn)
        _something(subject)
    return subject


def _try(subject: Traced, turn: float | None) -> None:
    """Cut once, half of everything or in unequal shares that begin at `turn`, and let stay what can't be cut so.

    Where one site loses more than another, code shows that computes the width of one from that of the other.
    """
    while subject.coupling.sites:
        keep = {}
        for number, (name, site) in enumerate(subject.coupling.sites.items()):
            index, count = np.arange(len(site.classes)), len(site.classes)
            if turn is None:
                keep[name] = index % 2 == 0
            else:
                # Multiples of the golden ratio: no two sites lose the same share, and some lose nothing.
                keep[name] = index < 1 + int(count * (1.2 * (0.618 * number + turn) % 1.2))
        selection = Selection(keep)
        try:
            subject.cut(selection)
            return
        except CutError as error:
            subject.without(error.fault, selection)


def _something(subject: Traced) -> None:
    """Raise `UnsupportedError` where neither a channel nor a segment can go."""
    if subject.coupling.sites or not subject.graph.removable:
        subject.units()


def reload_traced(folder: str | Path, model: nn.Module, example_inputs: Any) -> Traced:
    """A saved result again: `model` is the original architecture, with any weights; it stays as it is.

    Raises `ModelError` where files are missing or of another architecture.
    """
    folder = Path(folder)
    try:
        data = json.loads((folder / _PLAN).read_text("utf-8"))
        state = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no saved network ({error}): give the folder that save() wrote") from error
    # What the file says is followed step by step: whatever does not fit shows as an error of some kind.
    try:
        forms = {str(name): integers.Form(*map(int, form)) for name, form in data.get("forms", {}).items()}
        channels = float(data["channels"]) if data.get("channels") else None
        plans = tuple(Plan.from_dict(one) for one in data.get("plans", ()))
        small = twin(model)
        for one in plans:
            small = shrink(small, one)
    except SecateurError:
        raise
    except Exception as error:
        line = str(error).partition("\n")[0][:200]
        raise ModelError(
            f"{folder / _PLAN} is damaged ({type(error).__name__}: {line}): give a folder as save() wrote it"
        ) from error
    masks: dict[str, Tensor] = {}
    if (folder / _MASKS).is_file():
        from secateur.subjects.transformer import packing  # which loads transformers

        masks = packing.load_masks(folder / _MASKS)
    state, packed = integers.taken(small, state, forms)
    found = tensors_of(small)
    wrong = [
        name
        for name in found.keys() | state.keys()
        if name not in found or name not in state or found[name].shape != state[name].shape
    ]
    if wrong:
        raise ModelError(f"{folder} is of another architecture than {type(model).__name__}: {sorted(wrong)[0]} differs")
    with torch.no_grad():
        for name, tensor in found.items():
            tensor.copy_(state[name])
    result = Traced(small, Example.of(example_inputs), plans)
    result._channels = channels
    result.masks, result.forms = {**masks, **packed}, forms
    return result


def _check(model: nn.Module, example: Example) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"{type(model).__name__} is no torch.nn.Module: give the network itself")
    for path, module in model.named_modules():
        name = f"{path} ({type(module).__name__})" if path else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise UnsupportedError(f"{name} is compiled: prune the model first, then compile the result")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = f"{path}.module" if path else "model.module"
            raise UnsupportedError(f"{name} spreads a network over devices: give the network inside, {inner}")
        if ".quantized" in type(module).__module__ or type(module).__module__.startswith("bitsandbytes"):
            raise UnsupportedError(f"{name} is quantised: prune first, then quantise the result")
    found = tensors_of(model)
    if not found:
        raise UnsupportedError(f"{type(model).__name__} has no parameters: nothing of it can be cut")
    for name, tensor in found.items():
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"{name} has no shape yet: run the model once, so that its lazy modules are made")
        if tensor.is_meta:
            raise ModelError(f"{name} has no values (it is on the meta device): load the weights first")
        if type(tensor.data) is not Tensor or tensor.is_quantized:
            raise UnsupportedError(f"{name} is a {type(tensor.data).__name__}: prune first, then quantise the result")
        if tensor.is_floating_point() and tensor.element_size() == 1:
            raise UnsupportedError(
                f"{name} is in {tensor.dtype}: prune in a wider type first, then quantise the result"
            )
        # A sum is the fastest look at all numbers. Infinity is at home in buffers, as a mask.
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach().sum())):
            continue
        wrong = ~torch.isfinite(tensor).all() if isinstance(tensor, nn.Parameter) else torch.isnan(tensor).any()
        if bool(wrong):
            raise ModelError(f"{name} holds NaN or infinity: load the weights again, or train with a lower rate")
    tensors = [one for one in tree_leaves((example.args, dict(example.kwargs))) if isinstance(one, Tensor)]
    if tensors and not any(one.numel() for one in tensors):
        raise InputError(f"the example inputs are empty ({tuple(tensors[0].shape)}): give at least one example")


def _check_branches(subject: Traced) -> None:
    """Refuse a network that chooses by its data what to run, where the example leaves something out."""
    run, whole = subject.run, type(subject.model).__name__
    idle = [name for name in dict(subject.model.named_parameters()) if name not in run.used]
    if run.reads and idle:
        raise UnsupportedError(
            f"{idle[0]} takes no part in the forward pass, which depends on values computed in "
            f"{run.reads[0] or whole}: other inputs may run it; give example inputs that run all of the network"
        )
    # Code looks at its inputs for many reasons, such as masks without effect: where it then leaves out a module of its
    # own it has chosen.
    for name in idle:
        place = name.rpartition(".")[0]
        while place:
            place = place.rpartition(".")[0]
            if place in run.looks:
                raise UnsupportedError(
                    f"{name} takes no part in the forward pass, and {place or whole} looks at values of its inputs: "
                    "others may run it; give example inputs that run all of the network"
                )
