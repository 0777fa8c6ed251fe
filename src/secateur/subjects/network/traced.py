"""Any PyTorch network as a subject: what could go is found by one recorded forward pass, and every cut is proved.

No line of this knows an architecture. What is not understood stays, with the reason; see `Traced.reasons`. How it is
done stands in docs/design/network-analysis.md.
"""

from __future__ import annotations

import copy
import difflib
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur._utils.disk import writing
from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.formats import integers, onnx_files
from secateur.subjects.network import checks, configs, files, flops, proof, remedies, segments
from secateur.subjects.network import offsets as offsets_of
from secateur.subjects.network.attributes import speaks_of_widths, widths
from secateur.subjects.network.coupling import Coupling, couple, keep_mask
from secateur.subjects.network.groups import Groups, find_groups
from secateur.subjects.network.labels import within
from secateur.subjects.network.proof import FAINT, Fault, Silenced, differences, silence
from secateur.subjects.network.recording import Example, Run, evaluate, record, tensors_of
from secateur.subjects.network.shrinking import Plan, history, plan, remember, shrink, twin
from secateur.vocabulary import Cut, Notes, Selection, Site, Term, Units, html_table

__all__ = ["CutError", "Traced", "open_traced", "reload_traced"]

Slices = dict[str, list[tuple[Tensor, int, Tensor]]]
"""Site -> (parameter, dimension, unit of each index or -1)."""


_ROUNDED, _WIDE = 8, 64
"""What kept channels are multiples of unless told otherwise, and from how many channels of a site on."""


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
        self._plans = plans or history(model).plans
        self.masks: dict[str, Tensor] = {}
        """Name of a parameter -> booleans of its shape, False where a weight was pruned on its own and stays zero."""
        self.forms: dict[str, integers.Form] = {}
        """Name of a masked parameter -> the pattern of its mask, where it has one."""
        self.error = 0.0
        """Largest relative difference of outputs between this cut and the silenced original, as it was proved.

        Where outputs tell nothing (last weights of zero), that of the same cut under weights drawn anew.
        """
        self.constraints = remedies.Constraints()
        """What stays or goes together though the recorded pass does not say so."""
        self._unmended: remedies.Constraints | None = None
        """The constraints of the caller alone, without what failed cuts have shown; None before one has failed."""
        self._freed = False
        """Whether sites that can be cut alone were freed again."""
        self._channels: float | None = None if plans else history(model).channels
        """How many channels an earlier cut has left, as it counted them."""
        self._priced: tuple[Coupling, Any, tuple[list[Term], dict[str, float]]] | None = None
        self._pending: Callable[[], tuple[str, ...]] | None = None
        """What brings the configs up to date after a cut, and gives the notes on that."""
        self._config_notes: tuple[str, ...] = ()

    # --------------------------------------------------------------------------------------------- configs

    # The search for a config that describes a cut takes longer than the cut of a small network, and many a cut is only
    # tried. So it waits until the network is handed out, saved, or the notes are read: nobody sees the config of old.

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self._model.parameters())
        return f"Traced({type(self._model).__name__}, {count:,} parameters)"

    def _repr_html_(self) -> str:
        count = sum(parameter.numel() for parameter in self._model.parameters())
        rows = [("Parameters", f"{count:,}"), ("Cuts", f"{len(self._plans)}")]
        if self._plans:
            rows.append(("Difference from the silenced original", f"{self.error:.2g}"))
        return html_table(f"Traced: {type(self._model).__name__}", ("What", "How much"), rows)

    @property
    def model(self) -> nn.Module:
        """The network; its configs say what it is, where one of their kind can."""
        self._describe_config()
        said = history(self._model)
        if said.plans is not self._plans or said.channels != self._channels:
            remember(self._model, replace(said, plans=self._plans, channels=self._channels))
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        """Put another network in its place, whose configs are its own matter."""
        self._model, self._pending = model, None

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What was done to the original, cut after cut."""
        self._describe_config()
        return self._plans

    def _describe_config(self) -> tuple[str, ...]:
        """Bring the configs up to date, if that was not done yet; the notes on it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                self._config_notes = pending()
            except BaseException:
                self._pending = pending
                raise
        return self._config_notes

    # --------------------------------------------------------------------------------------------- structure

    @cached_property
    def run(self) -> Run:
        """The recorded pass."""
        shadow = twin(self.model, share=True).eval()
        where = [""]
        try:
            # Where torch's compiler is not loaded, no code is compiled; elsewhere it would compile the recorder along.
            loaded = "torch._dynamo" in sys.modules
            with torch.compiler.set_stance("fail_on_recompile") if loaded else nullcontext():
                return record(shadow, self.inputs, entered=where, whole=self.constraints.whole)
        except Exception as error:
            line = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            place = f" in {where[0]}" if where[0] else ""
            if type(error).__module__.startswith("torch._dynamo") or "fail_on_recompile" in line:
                raise UnsupportedError(
                    f"{type(self.model).__name__} calls compiled code{place} (torch.compile): prune it with the plain "
                    "function, then compile the result"
                ) from error
            raise ModelError(
                f"{type(self.model).__name__} can't run on the example inputs{place}: {type(error).__name__}: {line}; "
                "give inputs with which model(*args, **kwargs) runs, on the model's device, or their shape, such as "
                "--input 1x3x224x224"
            ) from error

    @cached_property
    def coupling(self) -> Coupling:
        """What goes together and what stays."""
        return couple(self.run, self.constraints.atoms, self.constraints.bound)

    @cached_property
    def graph(self) -> segments.Segments:
        """The recorded pass as a graph of operators, with its segments."""
        return segments.trace(self.model, self.inputs, self.constraints.parameters)

    def groups(self) -> Groups:
        """What goes together: print it to see, for each group, module, axis, indices, and what ties them."""
        bound = [(first, second, "a width computed from another") for first, second in self.constraints.bound]
        return find_groups(self.coupling, [*self.run.flow.atoms.joins, *bound])

    @property
    def reasons(self) -> Mapping[str, str]:
        """Dimension of a tensor, as "conv1.weight[0]" -> why it, or a part of it, stays."""
        return self.coupling.reasons

    def protect(self, names: Iterable[str], reason: str = "is protected by the caller") -> None:
        """Let nothing of these modules, parameters or sites go; "layer4.*" is all whose names fit, as in fnmatch.

        A lone string is one name. Raises `InputError` for a name that is none and a pattern that fits none.
        """
        for name in self._matching([names] if isinstance(names, str) else names):
            parameters = [tensor for tensor in tensors_of(self.model) if within(tensor, [name])]
            axes = [axis for axis in self.run.flow.atoms.axes if within(axis.tensor, [name])]
            atoms = [atom for axis in axes for atom in range(axis.start, axis.start + axis.size)]
            if not axes and name in self.coupling.sites:
                atoms = remedies.atoms_of(self, name)
            for one in (self.constraints, self._unmended or self.constraints):
                one.parameters.update(dict.fromkeys(parameters, reason))
                one.atoms.update(dict.fromkeys(atoms, reason))
        self.forget("coupling", "graph", "_zeroable")

    def forget(self, *names: str) -> None:
        """Let these results of the analysis be found anew: constraints have changed."""
        for name in names:
            self.__dict__.pop(name, None)

    def _matching(self, patterns: Iterable[str]) -> list[str]:
        """The names of modules, parameters and sites that fit; nothing inside what is there already."""
        known = dict.fromkeys((*dict(self.model.named_modules()), *tensors_of(self.model), *self.coupling.sites))
        known.pop("", None)
        result: dict[str, None] = {}
        for pattern in patterns:
            fitting = [pattern] if pattern in known else [name for name in known if fnmatchcase(name, pattern)]
            if not fitting:
                near = difflib.get_close_matches(pattern.replace("*", ""), known, n=3, cutoff=0.4)
                raise InputError(
                    f"protect names {pattern!r}, which is no module, parameter or site of this model, and no pattern "
                    f"of such names{'; the nearest: ' if near else ''}{', '.join(near)}"
                )
            for name in fitting:
                if not within(name, result):
                    result[name] = None
        return list(result)

    def without(self, fault: Fault, selection: Selection) -> list[str]:
        """Constrain the subject so that a cut does not fail as this one did, see `remedies`; names of the sites.

        Where nothing is left that way, sites that can be cut alone are free again. Raises `ModelError` where no site
        that was cut explains the fault.
        """
        if self._unmended is None:
            self._unmended = self.constraints.copy()
        names = remedies.find_remedy(self, fault, selection)
        if not self.coupling.sites and not self._freed:
            self._freed = True
            remedies.keep_guilty(self, self._unmended)
        return names

    def copy(self) -> Traced:
        """The same analysed subject on a deep copy of the weights: what was found out is shared, not done again.

        For a recipe that trains before it cuts: the copy's `model` may be trained in place, this one stays.
        """
        model, _ = twin(self.model), self.coupling  # analysed before it is shared
        result = copy.copy(self)
        result.model = model
        result.constraints = self.constraints.copy()
        result._unmended = None if self._unmended is None else self._unmended.copy()
        result.masks, result.forms = dict(self.masks), dict(self.forms)
        return result

    # ------------------------------------------------------------------------------------------------- units

    def units(self, *axes: str, multiple: int | None = 1) -> Units:
        """What could go, on these axes ("channels", "heads"; all if none is named), with exact costs.

        Measures: channels (as they are made: a head counts all of its own); params, bytes and flops (of a forward pass
        on the example inputs), as polynomials of kept counts. Where Python code follows the data (routing to experts),
        FLOPs are those of the recorded pass. `multiple` rounds channels; None rounds to 8 where a site has 64 channels
        or more. At least one unit of each site stays. Raises
        `UnsupportedError` for a network in which nothing can go, with the reasons, `InputError` for a `multiple`
        below 1.

        `units("segments")` gives the operators that can be erased whole instead, one site. They are cut alone; some
        selections of them would break the network, which `cut` refuses and `erasure` tells. A segment costs its own
        parameters and those of what only it feeds or needs; what goes with several of them together comes on top, so
        that never more is left of params and bytes than is said. FLOPs are measured by `cut`.
        """
        if multiple is not None and (not hasattr(multiple, "__index__") or multiple < 1):
            raise InputError(f"multiple={multiple!r}: give a whole number of at least 1, such as 8")
        if segments.SITE in axes:
            if len(axes) > 1:
                raise UnsupportedError("segments are cut alone: cut them first, then the channels of the result")
            return self.graph.units(self.model)
        coupling = self.coupling
        if not coupling.sites:
            raise UnsupportedError(f"nothing of this {type(self.model).__name__} can be cut: {self._why()}")
        sites = {}
        for name, site in coupling.sites.items():
            count = len(site.classes)
            rounded = _ROUNDED if count * site.width >= _WIDE else 1
            rounded = rounded if multiple is None else multiple
            step = math.lcm(rounded // math.gcd(rounded, site.width), site.step // math.gcd(site.step, site.width))
            sites[name] = Site(
                name, count, {"channels": np.full(count, float(site.width))}, multiple=step, minimum=min(step, count)
            )
        found = dict(self.model.named_parameters())
        parameters = {name: p.element_size() for name, p in found.items()}
        shapes = {name: tuple(p.shape) for name, p in found.items()}
        terms, base = self._terms(shapes, parameters)
        whole = Units(sites, tuple(terms), {**base, "channels": self._settled_channels()})
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

    def _settled_channels(self) -> float:
        """What an earlier cut has left beside the sites of now, so that all of it is what that cut said.

        Channels of sites that are down to one unit, which always stays. Below zero where more can go than before, and
        is counted twice: the queries and values of an attention of one head.
        """
        return 0.0 if self._channels is None else self._channels - self._own_channels()

    def _own_channels(self) -> float:
        return sum(float(len(site.classes) * site.width) for site in self.coupling.sites.values())

    def erasure(self, selection: Selection) -> segments.Erasure | None:
        """What goes with the segments that `selection` does not keep; None if the network would break."""
        return self.graph.erase(self.graph.removed_segments(selection))

    def _why(self) -> str:
        most = [reason for reason, _ in Counter(self.reasons.values()).most_common(3)]
        return "; ".join(most) or "it has no parameter with more than one index"

    def slices(self) -> Slices:
        """Site -> (parameter, dimension, unit of each index or -1): every slice that goes with a unit.

        A site that holds buffers only has none, and is left out.
        """
        found: dict[str, Tensor] = dict(self.model.named_parameters())
        of = self.coupling.classes.of
        result: Slices = {}
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

    def producers(self) -> Slices:
        """As `slices`, but only what makes a unit: where all of it is zero, the unit's values are zero.

        Only sites whose cut then equals the network with the zeros, norms and all, are there: see `proof.exact_sites`.
        """
        reads, exact = self._zeroable
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {
            name: [part for part in parts if (names[id(part[0])], part[1]) not in reads]
            for name, parts in self.slices().items()
            if name in exact
        }

    @cached_property
    def _zeroable(self) -> tuple[set[tuple[str, int]], set[str]]:
        return proof.reading_dims(self.model), proof.exact_sites(self.model, self.inputs, self.coupling, self.run)

    def weights(self) -> Slices:
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
        for name in selection.keep:
            if name not in self.coupling.sites:
                raise InputError(f"the selection names {name!r}, which is no site of this network: use units()")
            keep[name] = keep_mask(selection, name, len(self.coupling.sites[name].classes))
            if not keep[name].any():
                raise InputError(f"the selection keeps nothing of {name}: at least one unit must stay")
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
        before = self.count(sum(product.whole for product in self.run.products))
        if not removed:
            unchanged = Traced(twin(self.model), self.inputs, self.plans)
            unchanged._channels = self._settled_channels() + self._own_channels()
            return unchanged, Cut({}, before, before)
        kept = self.coupling.keep_atoms(keep)
        made = plan(self.model, self.coupling, kept, self.run.flow)
        result = Traced(shrink(self.model, made), self.inputs, (*self.plans, made))
        counted = self._prove(result, made, kept) if prove else None
        notes: tuple[str, ...] = ()
        if offsets:
            result._model, made, notes = offsets_of.fold(
                self.model, result._model, made, self.coupling, kept, self.inputs
            )
            result._plans = (*self.plans, made)
        channels = self._settled_channels() + self._own_channels()
        after = result.count(None if offsets else counted)
        gone = sum(float(count * self.coupling.sites[name].width) for name, (count, _) in removed.items())
        result._channels = channels - gone
        pending = []
        if configs.holders(self.model):
            # Of what is there now: offsets may have made biases, which no config gives.
            sizes = widths(self.model, made, kept, self.run.flow.shapings)
            result._pending = lambda: self._update_configs(result, sizes)
            pending = [result._describe_config]
        return result, Cut(
            removed,
            {**before, "channels": channels},
            {**after, "channels": channels - gone},
            Notes(*notes, *pending, *self._notes()),
        )

    def _prove(self, result: Traced, made: Plan, kept: np.ndarray) -> float:
        """Compare a cut with the silenced original; FLOPs of the smaller network. Raises `CutError`."""
        counter = flops.Counter()
        whole = self.constraints.whole
        reference = silence(self.model, kept, whole)
        result.error, fault = proof.compare(result._model, reference, self.inputs, counter, made.rescaled)
        if fault is None and result.error < FAINT:
            result.error, fault = proof.compare_redrawn(self.model, made, kept, self.inputs, whole)
        if fault is None and self.run.late:
            fault = proof.trains(result._model, self.inputs)
        if fault is not None:
            place = f" in {fault.where}" if fault.where else ""
            raise CutError(f"a cut of {type(self.model).__name__} can't be proved: {fault.what}{place}", fault)
        return counter.total

    def _update_configs(self, small: Traced, sizes: Mapping[int, Counter[int]]) -> tuple[str, ...]:
        """Bring the configs of `small`, which was just cut so, up to date; notes for the receipt."""
        holders = configs.holders(self.model)
        made = small.plans[-1]
        changes, numbers, lost = configs.config_changes(self.model, small.model, sizes, speaks_of_widths)
        if changes:
            described = shrink(small.model, Plan(attributes=tuple(numbers), config=tuple(changes)))
            try:
                apart = differences(Traced(described, small.inputs).forward(), small.forward()) > 1e-6
            except Exception:  # code that computes from its config in every pass
                apart = True
            if apart:
                changes, lost = [], list(holders)
            else:
                made = replace(made, attributes=(*made.attributes, *numbers), config=tuple(changes))
                small._model, small._plans = described, (*small.plans[:-1], made)
        old = {path: holder.config for path, holder in holders.items()}
        said = ", ".join(f"{field} {configs.read(old[path], field)} -> {new}" for path, field, new in changes)
        follows = [f"config: {said}; save_pretrained and from_pretrained work as for the original"] if said else []
        return (*follows, *configs.behind(self.model, lost))

    def _erase(self, selection: Selection, prove: bool) -> tuple[Traced, Cut]:
        if len(selection.keep) > 1:
            raise InputError("the selection names segments and more: cut segments first, then channels of the result")
        graph = self.graph
        before, gone = self.count(), graph.removed_segments(selection)
        if not gone:
            return Traced(twin(self.model), self.inputs, self.plans), Cut({}, before, before)
        erasure = graph.erase(gone)
        if erasure is None:
            raise InputError(
                f"without {', '.join(gone)} no way leads from the input to the output of this "
                f"{type(self.model).__name__}: keep one of them"
            )
        made = graph.plan(self.model, erasure)
        result = Traced(shrink(self.model, made), self.inputs, (*self.plans, made))
        if prove:
            result.error, fault = proof.same(result.model, self.silence(selection).model, self.inputs)
            if fault is not None:
                raise CutError(f"erasing {', '.join(gone)} can't be proved: {fault.what}", fault)
        after, count = result.count(), len(graph.removable)
        notes = [f"erased: {', '.join(erasure.removed)}"]
        said = graph.units(self.model).cost(selection.keep)["params"]
        if said > after["params"]:
            notes.append(
                f"params: {after['params']:.0f} are left, where prices of single segments said at most {said:.0f}: "
                "the rest goes with several of them together"
            )
        if erasure.dead:
            notes.append(f"erased because only erased parts took their results: {', '.join(erasure.dead)}")
        notes += [f"stays: {segment.name}: {segment.reason}" for segment in graph.segments if segment.reason]
        notes += configs.behind(self.model)
        before[segments.SITE], after[segments.SITE] = float(count), float(count - len(gone))
        return result, Cut({segments.SITE: (len(gone), count)}, before, after, tuple(notes))

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
            own = {segment.name: segment.parameters for segment in self.graph.segments}
            gone = erasure.removed if erasure else self.graph.removed_segments(selection)
            changed = {name: torch.zeros_like(parameters[name]) for segment in gone for name in own[segment]}
            return Traced(twin(self.model, changed), self.inputs, self.plans)
        kept = self.coupling.keep_atoms(self._keep(selection))
        return Traced(silence(self.model, kept, self.constraints.whole), self.inputs, self.plans)

    def forward(self, inputs: object = None) -> Any:
        """Run the network, in evaluation mode, on the CPU, on the example inputs or others of the same form."""
        model = self._model if isinstance(self._model, Silenced) else twin(self._model, share=True).eval()
        return evaluate(model, self.inputs if inputs is None else Example.of(inputs))

    def flops(self) -> float:
        """FLOPs of a forward pass on the example inputs, multiply and add counted as two."""
        try:
            with flops.Counter() as counter:
                self.forward()
        except Exception as error:
            raise ModelError(f"{type(self.model).__name__} can't run on the example inputs: {error}") from error
        return float(counter.total)

    def count(self, flops: float | None = None) -> dict[str, float]:
        """Parameters, bytes and FLOPs (counted unless given) of the network as it is."""
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
        files.write(folder, files.Stored(self.model, history(self.model), self.masks, self.forms))
        if program:
            files.write_program(folder, self.model, self.inputs)

    def export_onnx(self, file: str | Path) -> tuple[str, ...]:
        """Write the network as an ONNX file, in evaluation mode and float32; returns notes.

        Inputs are named as the arguments of its `forward`. They take any batch where the network lets them; a note
        says where not, and where the network itself casts to half precision. The file is run under onnxruntime
        beside the network before it is put in place. Raises `MissingExtraError` without the `onnx` extra,
        `UnsupportedError` for what ONNX can't hold, `NumericalError` where outputs differ by more than 1e-4.
        """
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        args, kwargs = self.inputs.fresh()
        model = twin(self.model, share=True).eval()
        with writing(file) as place:
            try:
                return onnx_files.write_module(model, args, kwargs, place)
            except Exception as error:  # a network that casts to half precision itself can't run in float32
                whole = twin(self.model).cpu().eval()
                return onnx_files.write_widened(partial(onnx_files.program, whole, args, kwargs), place, error)


def open_traced(
    model: nn.Module | Traced, example_inputs: object = None, *, protect: Iterable[str] = (), prove: bool = True
) -> Traced:
    """`model` as something to prune; it stays as it is.

    model: a network, or a `Traced`, whose inputs are its own. example_inputs: a tensor (one positional input), a tuple
    (positional), or a dict (keywords). prove: cut half of everything once, then unequal shares, and let stay what can't
    be cut, so that `units` promises no more than can be kept; without it, a cut may raise `CutError`. Raises
    `ModelError` for a model that can't run on the inputs or holds NaN, `UnsupportedError` for compiled, scripted and
    quantised models, for one in which nothing can go, and for one that chooses by its data what to run, where the
    inputs leave something out.
    """
    subject = model if isinstance(model, Traced) else Traced(model, Example.of(example_inputs))
    checks.check_model(subject.model, subject.inputs)
    checks.check_branches(subject.model, subject.run)
    if subject is model:
        subject = subject.copy()  # what turns out to stay is noted there
    if protect:
        subject.protect(protect)
    _check_units(subject)
    if prove:
        for turn in (None, 0.0, 0.5):
            _settle(subject, turn)
        _check_units(subject)
    return subject


def _settle(subject: Traced, turn: float | None) -> None:
    """Cut once, and let stay what can't be cut so."""
    while subject.coupling.sites:
        selection = remedies.trial_selection(subject, turn)
        try:
            subject.cut(selection)
            return
        except CutError as error:
            subject.without(error.fault, selection)


def _check_units(subject: Traced) -> None:
    """Raise `UnsupportedError` where neither a channel nor a segment can go."""
    if subject.coupling.sites or not subject.graph.removable:
        subject.units()


def reload_traced(folder: str | Path, model: nn.Module, example_inputs: object) -> Traced:
    """A saved result again: `model` is the original architecture, with any weights; it stays as it is.

    Raises `ModelError` where files are missing or of another architecture.
    """
    stored = files.read(Path(folder), model)
    result = Traced(stored.model, Example.of(example_inputs))
    result.masks, result.forms = dict(stored.masks), dict(stored.forms)
    return result
