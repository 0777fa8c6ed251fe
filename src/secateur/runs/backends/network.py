"""Networks of any kind and examples, as things to run a recipe on."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur._utils import plugins
from secateur._utils.modes import held, there
from secateur.data import examples, labels
from secateur.data.examples import Examples
from secateur.errors import DataError, InputError, MissingExtraError
from secateur.formats import integers
from secateur.measure import detection, latency, loyalty, quality, size, sparsity
from secateur.runs import sources
from secateur.subjects import matrices as every
from secateur.subjects.network import detectors
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.shrinking import twin
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Figure

__all__ = [
    "BATCH",
    "LENGTH",
    "NOUN",
    "Joint",
    "Model",
    "again",
    "answer",
    "built",
    "called",
    "check",
    "compared",
    "digest",
    "example",
    "fitted",
    "forward",
    "loading",
    "matrices",
    "opened",
    "placed",
    "read",
    "save",
    "sizes",
    "where",
]

BATCH: int = 32
LENGTH: int | None = None
"""The environment of measurements, for recipes that have none of their own; inputs have no length of their own."""

NOUN: str = "examples"
"""What the data holds, in messages."""

Model: TypeAlias = str | Path | nn.Module | Traced


def read(data: str | Path | Examples, text: str = "text", label: str = labels.DEFAULT) -> Examples:
    """The examples in `data`, or those that an index keeps; `label` is the array of an .npz file with their classes.

    Raises `DataError` for an array that was named and that is not there, and for a column of texts, which is nowhere.
    """
    labels.unnamed("networks read examples, which have no column of texts", text=text)
    return sources.kept(data, label=label) if sources.are(data) else examples.read(data, label=label)


def opened(model: Model, device: str | None = None, data: Examples | None = None, inputs: Any = None) -> Traced:
    """`model` as a subject: a module, a `Traced`, or the name of a function that builds a module.

    Its example inputs are `inputs`, or those that the function gives, or the first of the data.
    """
    if device is not None:  # where it will be measured: it is analysed and cut where it is
        there(device)
    if isinstance(model, Traced):
        return detectors.open_detector(model) if data is not None and data.targets else model
    module, given = built(model, inputs, None if data is None else data.inputs[:1])
    return detectors.open_detector(module, given) if data is not None and data.targets else open_traced(module, given)


def built(model: str | Path | nn.Module, inputs: Any = None, first: Tensor | None = None) -> tuple[nn.Module, Any]:
    """(module, example inputs) of a module, or of the name of a function that builds one.

    inputs: what it runs on, or a shape such as "1x3x224x224"; what the function gives, or `first`, if None.
    """
    module, given = plugins.network(str(model)) if isinstance(model, str | Path) else (model, None)
    given = _random(inputs) if isinstance(inputs, str) else given if inputs is None else inputs
    given = first if given is None else given
    if given is None:
        what = model if isinstance(model, str | Path) else type(model).__name__
        raise InputError(
            f"{what} comes without example inputs: give their shape, such as --input 1x3x224x224, "
            "or let its function return (model, inputs)"
        )
    return module, given


def _random(shape: str) -> Tensor:
    """Random numbers of a shape such as 1x3x224x224."""
    sizes = shape.lower().split("x")
    if not all(one.isdigit() and int(one) for one in sizes):
        raise InputError(f"input {shape!r} is no shape: say for example 1x3x224x224")
    return torch.rand([int(one) for one in sizes], generator=torch.Generator().manual_seed(0))


def again(model: Model, original: Traced, device: str | None = None) -> Traced:
    """Another network on the inputs of `original`, or the folder of one that was cut from it."""
    if isinstance(model, str | Path) and Path(model).is_dir():
        return reload_traced(model, original.model, original.inputs)
    module = model if isinstance(model, nn.Module | Traced) else plugins.network(str(model))[0]
    return module if isinstance(module, Traced) else Traced(module, original.inputs)


def fitted(data: Examples, subject: Traced) -> Examples:
    """The examples, if the subject takes them. Raises `DataError` where it doesn't."""
    taken = tree_leaves((subject.inputs.args, dict(subject.inputs.kwargs)))
    first = next((one for one in taken if isinstance(one, Tensor)), None)
    if first is not None and first.shape[1:] != data.inputs.shape[1:]:
        raise DataError(
            f"{data.name} holds inputs of shape {tuple(data.inputs.shape[1:])}, the model was built for "
            f"{tuple(first.shape[1:])}: give inputs of that shape"
        )
    _takes(data, subject)
    if data.labels is not None:
        with torch.inference_mode():
            output = forward(subject, data.inputs[:2])
        logits = getattr(output, "logits", output)
        if isinstance(logits, Tensor) and logits.dim() == 2:
            count, low, high = logits.shape[1], int(data.labels.min()), int(data.labels.max())
            if low < 0 or high >= count:
                wrong = low if low < 0 else high
                raise DataError(f"{data.name} has the label {wrong}: the model has {count} classes, 0 to {count - 1}")
    if data.targets and isinstance(subject.model, Detector):
        _learnt(data, subject.model)
    return data


def _takes(data: Examples, subject: Traced) -> None:
    """Raise `DataError` where the network can't do with the examples alone: its other inputs have no default."""
    given = subject.inputs.given(data.inputs[:1])
    try:
        inspect.signature(subject.model.forward).bind(*given.args, **given.kwargs)
    except ValueError:  # it has no signature to look at
        return
    except TypeError as error:
        raise DataError(
            f"{type(subject.model).__name__} takes more than the inputs that {data.name} holds ({error}): give its "
            "other inputs a default, in a module around it"
        ) from error


def _learnt(data: Examples, model: nn.Module) -> None:
    """Raise `DataError` where the loss of a detector fails on the highest label, and runs if the labels are all 0.

    How many classes it has, a detector does not say. What fails for another reason is left to those who ask for it.
    """
    highest = [int(target["labels"].max()) if len(target["labels"]) else -1 for target in data.targets]
    batch = data.take([int(np.argmax(highest))]).batch()
    first = [{**target, "labels": torch.zeros_like(target["labels"])} for target in batch["targets"]]
    loss = cast(Detector, twin(model, share=True).eval()).loss
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            loss(batch)
        except (IndexError, RuntimeError) as error:
            with suppress(IndexError, RuntimeError):
                loss({**batch, "targets": first})
                raise DataError(
                    f"{data.name} has the label {max(highest)}, on which the loss of the detector fails "
                    f"({type(error).__name__}): build it for {max(highest) + 1} classes, or leave such boxes out"
                ) from error


def where(subject: Traced, batch: int | None, length: int | None, threads: int | None) -> latency.Environment:
    """Where the subject's time is measured; networks have no `length`."""
    if length is not None:
        raise InputError(f"length={length}: a network takes inputs as they are; leave it out")
    kind = next((str(p.dtype).removeprefix("torch.") for p in subject.model.parameters()), "float32")
    return latency.Environment(batch or BATCH, None, threads or torch.get_num_threads(), "cpu", kind)


def check(subject: Traced, options: Mapping[str, Any]) -> None:
    """Nothing: there is no option which a network could make wrong."""


def digest(subject: Traced) -> str:
    """sha256 of the structure as it prints, and of every tensor."""
    found = hashlib.sha256(repr(subject.model).encode())
    for name, tensor in sorted(subject.model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def example(subject: Traced, place: latency.Environment) -> Any:
    """A batch of the size that is timed, on its device: the subject's example inputs, repeated: (args, kwargs)."""
    args, kwargs = subject.inputs.fresh()
    rows = next(len(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.dim())

    def repeated(tensor: Tensor) -> Tensor:
        if tensor.dim() and len(tensor) == rows:
            tensor = tensor.repeat(-(-place.batch // rows), *[1] * (tensor.dim() - 1))[: place.batch]
        return tensor.to(place.device)

    return tree_map_only(Tensor, repeated, (args, kwargs))


def placed(subject: Traced, place: latency.Environment) -> Traced:
    """The subject where it is measured: itself where it is there already, else a copy, so that what is cut stays."""
    if all(tensor.device.type == torch.device(place.device).type for tensor in subject.model.parameters()):
        return subject
    copied = Traced(twin(subject.model), subject.inputs, subject.plans)
    held(copied.model, place.device)
    return copied


def forward(subject: Traced, batch: Any) -> Any:
    """The network in eval mode on `batch`: (args, kwargs), a batch of examples, or one tensor."""
    subject.model.eval()
    return called(subject, batch)


def answer(subject: Traced, batch: Any) -> Any:
    """As `forward`, of a batch from anywhere; the answer is on the CPU, where it is judged."""
    return _carried(subject.model, partial(forward, subject))(batch)


def _carried(model: nn.Module, ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`ask` of a batch from anywhere, with its answer on the CPU, where it is judged."""
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    if device.type == "cpu":
        return ask
    return lambda batch: tree_map_only(
        Tensor, Tensor.cpu, ask(tree_map_only(Tensor, lambda one: one.to(device), batch))
    )


class Joint(nn.Module):
    """Several networks that answer as one, by what `say` makes of a whole batch: for measuring only."""

    def __init__(self, say: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.say = say

    def forward(self, batch: Any) -> Tensor:
        """Their answer."""
        return self.say(batch)


def called(subject: Traced, batch: Any) -> Any:
    """As `forward`, in the mode in which the network is."""
    model = subject.model
    if isinstance(model, Joint):
        return model(batch)
    if isinstance(batch, tuple):
        args, kwargs = batch
        return model(*args, **kwargs)
    return subject.inputs.ask(model, batch["inputs"] if isinstance(batch, Mapping) else batch)


def loading(folder: Path, name: str) -> str:
    """The lines of Python that load the model in `folder`, which the reader knows as `name`."""
    return f'import torch\n\nmodel = torch.export.load("{name}/model.pt2").module()'


def save(subject: Traced, folder: Path) -> None:
    """Weights, what was cut, and a torch.export program that needs nothing of ours."""
    subject.save(folder, program=True)


def matrices(subject: Traced) -> dict[str, Tensor]:
    """Name -> weights [d_out, d_in] of its linears and convolutions."""
    return {name: matrix.weight for name, matrix in every.matrices(subject.model).items()}


def sizes(subject: Traced, batch: Any) -> dict[str, Figure]:
    """Parameters, zeros, bytes of the weights as they are saved and as packed, and FLOPs of the example inputs.

    Quantised layers are saved as integers of their bits, packed where their masks have a pattern.
    """
    weights = list(subject.model.parameters())
    args, kwargs = subject.inputs.fresh()
    layers = integers.quantised(subject.model)
    whole = float(sum(p.numel() * p.element_size() for p in weights))
    whole -= sum(one.weight.numel() * (one.weight.element_size() - one.bits / 8) for one in layers.values())
    saved = sum(
        one.weight.numel() * one.bits / 8 - integers.stored_bytes(one, subject.forms.get(f"{path}.weight"))
        for path, one in layers.items()
    )
    bits = {f"{path}.weight": one.bits for path, one in layers.items()}
    return {
        "params": Figure(float(sum(p.numel() for p in weights))),
        "bytes": Figure(whole - saved, unit="B"),
        "flops": Figure(size.flops(partial(subject.model.eval(), *args), kwargs)),
        **sparsity.figures(matrices(subject), whole, bits),
    }


Row = dict[str, Figure]


def compared(original: Traced, student: Traced, held_out: Examples, place: latency.Environment) -> tuple[Row, Row, Row]:
    """(before, after, both): average precision of boxes, accuracy of classes and the student's loyalty to the
    original's; without labels how alike the outputs [N, d] are, and the loyalty where each is a row of as many classes.
    Of one number for each example, [N, 1], correlations and RMSE alone: its direction is no more than its sign.
    """
    batches = list(held_out.in_order(place.batch))
    if held_out.targets:
        before, after = (_precision(one, batches, held_out.sizes) for one in (original, student))
        return before, after, {}
    if held_out.labels is not None:
        tally = loyalty.Tally()
        found = quality.accuracies([partial(answer, one) for one in (original, student)], batches, watch=tally.add)
        return {"accuracy": found[0]}, {"accuracy": found[1]}, tally.figures()
    with torch.inference_mode():
        given = [[_tensor(answer(one, batch)) for batch in batches] for one in (original, student)]
    outputs = [torch.cat([part.flatten(1) for part in parts]) for parts in given]
    if all(one.shape[1] == 1 for one in outputs):
        return {}, {}, loyalty.numbers(*(one.flatten().tolist() for one in reversed(outputs)))
    both = quality.fidelity(*outputs)
    if any(parts[0].dim() > 2 for parts in given) or outputs[0].shape != outputs[1].shape:
        return {}, {}, both
    tally = loyalty.Tally()
    tally.add(outputs, {})
    return {}, {}, both | tally.figures()


def _precision(subject: Traced, batches: Sequence[Mapping[str, Any]], sizes: Sequence[float]) -> Row:
    detect = _carried(subject.model, cast(Detector, subject.model.eval()).detect)
    try:
        return detection.average_precision(detect, batches, sizes=sizes or detection.SIZES)
    except MissingExtraError:
        return {"AP50": detection.all_point(detect, batches)}


def _tensor(output: Any) -> Tensor:
    """The first tensor of an output, [N, ...]."""
    first = next((one for one in tree_leaves(output) if isinstance(one, Tensor)), None)
    if first is None or first.dim() < 2:
        raise DataError("the outputs can't be compared without classes: give examples with labels")
    return first
