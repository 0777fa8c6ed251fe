"""Backend of networks of any kind, which read examples."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur._utils import devices, modes, plugins
from secateur.data import examples, images, labels
from secateur.data.examples import Examples
from secateur.data.images import Images
from secateur.errors import DataError, InputError, MissingExtraError, ModelError, SecateurError
from secateur.formats import integers
from secateur.measure import detection, latency, loyalty, quality, segmentation, size, sparsity
from secateur.methods import indices
from secateur.methods.detector_classes import match_classes, need_boxes
from secateur.recover.training.objectives import logits as logits_of
from secateur.runs import memory_steps, sources
from secateur.runs.backends import Backend, Row, commonest_share, hash_model
from secateur.subjects import matrices as matrices_of
from secateur.subjects.network import checks, detectors, parts, pretrained
from secateur.subjects.network.detectors import Detector
from secateur.subjects.network.files import write_program
from secateur.subjects.network.opening import NetworkSource, is_saved, open_network, open_saved
from secateur.subjects.network.shrinking import history, remember, twin
from secateur.subjects.network.traced import Traced, open_traced, reload_traced
from secateur.vocabulary import Budget, Figure, Training

__all__ = ["Joint", "Network", "run_network"]

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""What a network is called with."""


class Network(Backend[Traced, Examples, Arguments]):
    """Modules, or functions that build one, of PyTorch; transformers models have a backend of their own."""

    family = "networks"
    example = "a function that builds one, such as net.py:build, a folder of transformers, or that of a cut one"
    dense_allowed = True
    has_inputs = True

    def takes(self, source: NetworkSource) -> bool:
        """Modules, names of functions that build one, folders of saved cuts, and of transformers that read no texts."""
        if isinstance(source, nn.Module):
            return not pretrained.is_model(source)
        if plugins.names_function(source) or is_saved(source):
            return True
        return pretrained.is_pretrained(source) and not pretrained.reads_texts(str(source))

    def accepts(self, source: NetworkSource) -> bool:
        """Folders and Hub ids of every model of transformers, too: what reads texts can be cut as any network."""
        return self.takes(source) or pretrained.is_pretrained(source)

    def read(self, data: Any, text: str = "text", label: str = labels.DEFAULT) -> Examples:
        """The examples in `data`, or those that an index keeps; `label` is the array of an .npz file of their classes.

        Raises `DataError` for an array that was named and is not there, and for a column of texts, which is nowhere.
        """
        labels.unnamed("networks read examples, which have no column of texts", text=text)
        return sources.read_index(data, label=label) if indices.is_index(data) else examples.read(data, label=label)

    def open(
        self, source: NetworkSource, device: str | None = None, data: Examples | None = None, inputs: Any = None
    ) -> Traced:
        """A module, a `Traced`, the name of a function that builds a module, or a saved cut's folder, as a subject.

        Its example inputs are `inputs`, or those that the function gives, or the first of the data.
        """
        if device is not None:  # where it will be measured: it is analysed and cut where it is
            modes.check_device(device)
        detects = data is not None and bool(data.targets)
        if isinstance(source, Traced):
            return detectors.open_detector(source) if detects else source
        found = open_network(source, inputs, None if data is None else partial(_first_input, data))
        if not detects or isinstance(found.model, Detector):
            return open_traced(found)
        subject = detectors.open_detector(found)
        remember(subject.model, replace(history(subject.model), built_by=history(found.model).built_by))
        return subject

    def open_whole(
        self, source: NetworkSource, device: str | None = None, data: Examples | None = None, inputs: object = None
    ) -> Traced:
        """As `open`, without the cuts that are tried there; a detector of boxes is as `open` has it."""
        if isinstance(source, Traced) or (data is not None and data.targets):
            return self.open(source, device, data, inputs)
        if device is not None:
            modes.check_device(device)
        found = open_network(source, inputs, None if data is None else partial(_first_input, data))
        checks.check_model(found.model, found.inputs)
        checks.check_branches(found.model, found.run)
        return found

    def open_part(self, source: NetworkSource, part: str) -> Traced:
        """The part of that name, see `subjects.network.parts`."""
        return parts.open_part(source, part)

    def reopen(self, source: NetworkSource, original: Traced, device: str | None = None) -> Traced:
        """Another network on the inputs of `original`, or the folder of one that was cut from it."""
        if isinstance(source, str | Path) and pretrained.is_pretrained(source):
            return _try_inputs(open_network(source, original.inputs), source)
        if isinstance(source, str | Path) and Path(source).is_dir():
            try:
                return reload_traced(source, original.model, original.inputs)
            except ModelError:
                with suppress(SecateurError):  # cut from another network, which is on record
                    return open_saved(source, inputs=original.inputs)
                raise
        module = source if isinstance(source, nn.Module | Traced) else plugins.network(str(source))[0]
        return module if isinstance(module, Traced) else _try_inputs(Traced(module, original.inputs), source)

    def fit_data(self, data: Examples, subject: Traced) -> Examples:
        """The examples, if the subject takes them. Raises `DataError` where it doesn't."""
        taken = tree_leaves((subject.inputs.args, dict(subject.inputs.kwargs)))
        first = next((leaf for leaf in taken if isinstance(leaf, Tensor)), None)
        data = _declare_images(data, subject.model, first)
        if first is not None and first.shape[1:] != data.inputs.shape[1:]:
            raise DataError(
                f"{data.name} holds inputs of shape {tuple(data.inputs.shape[1:])}, the model was built for "
                f"{tuple(first.shape[1:])}: give inputs of that shape"
            )
        _check_arguments(data, subject)
        if data.has_classes and detectors.is_detector(subject.model):
            need_boxes(data)
        _check_type(data, subject)
        if data.has_classes:
            data = _limit_labels(data, subject)
        if data.targets and isinstance(subject.model, Detector):
            data = match_classes(data, subject.model)
            _check_loss(data, subject.model)
        return data

    def environment(
        self, subject: Traced, batch: int | None, length: int | None, threads: int | None, device: str | None = None
    ) -> latency.Environment:
        """Where the subject is measured: on the CPU unless a device is given; networks have no `length`.

        On as many rows as the example inputs have where these belong together, see `_is_repeatable`.
        """
        if length is not None:
            raise InputError(f"length={length}: a network takes inputs as they are; leave it out")
        kind = next((str(p.dtype).removeprefix("torch.") for p in subject.model.parameters()), "float32")
        place = latency.Environment(
            batch or self.batch, None, threads or torch.get_num_threads(), device or "cpu", kind
        )
        rows = _list_rows(subject)
        return place if _is_repeatable(self, subject, rows) else replace(place, batch=rows[0])

    def digest(self, subject: Traced) -> str:
        """sha256 of the structure as it prints, and of every tensor."""
        return hash_model(repr(subject.model), subject.model)

    def make_example(self, subject: Traced, environment: latency.Environment) -> Arguments:
        """The subject's example inputs, repeated to a batch of the size that is timed, on its device."""
        args, kwargs = subject.inputs.fresh()
        rows = next(len(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())

        def repeat_rows(tensor: Tensor) -> Tensor:
            if tensor.dim() and len(tensor) == rows:
                copies = math.ceil(environment.batch / rows)
                tensor = tensor.repeat(copies, *[1] * (tensor.dim() - 1))[: environment.batch]
            return tensor

        repeated = tree_map_only(Tensor, repeat_rows, (args, kwargs))
        return cast(Arguments, devices.move(repeated, torch.device(environment.device)))

    def place(self, subject: Traced, environment: latency.Environment) -> Traced:
        """The subject where it is measured: itself if it is there, else a copy, so that what is cut stays."""
        kind = torch.device(environment.device).type
        if all(tensor.device.type == kind for tensor in subject.model.parameters()):
            return subject
        copied = Traced(twin(subject.model), subject.inputs, subject.plans)
        modes.move_to_device(copied.model, environment.device)
        return copied

    def forward(self, subject: Traced, batch: Any) -> Any:
        """The network in eval mode on `batch`: (args, kwargs), a batch of examples, or one tensor."""
        subject.model.eval()
        return run_network(subject, batch)

    def describe_memory(
        self,
        subject: Traced,
        budgets: Sequence[Budget],
        options: Mapping[str, object],
        environment: latency.Environment,
    ) -> str:
        """Peak memory of scoring, cutting and training the whole network on batches of this size.

        Cutting is to the largest of the budgets. "" where it can't be planned.
        """
        given = options.get("training")
        how = Training().merge(given if isinstance(given, str) else "")
        inputs = self.make_example(subject, replace(environment, device="cpu"))
        share = memory_steps.find_share(budgets, float(sum(weight.numel() for weight in subject.model.parameters())))
        return memory_steps.describe_planned(
            partial(
                memory_steps.plan_network, subject.model, inputs, how, environment.device,
                example=subject.inputs.fresh(), share=share,
            ),
            environment.device,
        )  # fmt: skip

    def matrices(self, subject: Traced) -> dict[str, Tensor]:
        """Name -> weights [d_out, d_in] of its linears and convolutions."""
        return {name: matrix.weight for name, matrix in matrices_of.matrices(subject.model).items()}

    def sizes(self, subject: Traced, batch: Arguments) -> Row:
        """Parameters, zeros, bytes of the weights as they are saved and as packed, and FLOPs of the example inputs.

        Quantised layers are saved as integers of their bits, packed where their masks have a pattern.
        """
        weights = list(subject.model.parameters())
        args, kwargs = subject.inputs.fresh(subject.model)
        layers = integers.quantised_layers(subject.model)
        whole = float(sum(p.numel() * p.element_size() for p in weights))
        whole -= sum(layer.weight.numel() * (layer.weight.element_size() - layer.bits / 8) for layer in layers.values())
        saved = sum(
            layer.weight.numel() * layer.bits / 8 - integers.stored_bytes(layer, subject.forms.get(f"{path}.weight"))
            for path, layer in layers.items()
        )
        bits = {f"{path}.weight": layer.bits for path, layer in layers.items()}
        return {
            "params": Figure(float(sum(p.numel() for p in weights))),
            "bytes": Figure(whole - saved, unit="B"),
            "flops": Figure(size.flops(partial(subject.model.eval(), *args), kwargs)),
            **sparsity.figures(self.matrices(subject), whole, bits),
        }

    def compare(
        self, original: Traced, student: Traced, held_out: Examples, environment: latency.Environment
    ) -> tuple[Row, Row, Row]:
        """(before, after, both): average precision of boxes, IoU of masks, or accuracy of classes and loyalty.

        Without labels in how many pixels two segmenters agree; of others how alike the outputs [N, d] are, and the
        loyalty where each is a row of as many classes. Of one number for each example, [N, 1], correlations and RMSE
        alone: its direction is no more than its sign.
        """
        batches, pair = examples.Ordered(held_out, environment.batch), (original, student)
        if held_out.targets:
            before, after = (_precision(subject, batches, held_out.sizes) for subject in pair)
            return before, after, {}
        answers = [partial(self.forward, subject) for subject in pair]
        tally = loyalty.Tally()
        if held_out.per_pixel:
            asked = [partial(_answer_logits, answer) for answer in answers]
            (first, second), agreement = segmentation.mean_ious(asked, batches, held_out.classes)
            return first, second, {} if agreement is None else {"pixel_agreement": agreement}
        if held_out.labels is not None:
            hit, still = quality.accuracies(answers, batches, watch=tally.add)
            return {"accuracy": hit}, {"accuracy": still}, tally.figures()
        if _tells_pixels(original, held_out):
            asked = [partial(_answer_logits, answer) for answer in answers]
            return {}, {}, {"pixel_agreement": segmentation.agreement(asked, batches)}
        with torch.inference_mode():
            parts = [[_first_tensor(answer(batch)).cpu() for batch in batches] for answer in answers]
        outputs = [torch.cat([part.flatten(1) for part in some]) for some in parts]
        if all(output.shape[1] == 1 for output in outputs):
            return {}, {}, loyalty.numbers(*(output.flatten().tolist() for output in reversed(outputs)))
        both = quality.fidelity(*outputs)
        if any(some[0].dim() > 2 for some in parts) or outputs[0].shape != outputs[1].shape:
            return {}, {}, both
        tally.add(outputs, {})
        return {}, {}, both | tally.figures()

    def chance(self, subject: Traced, held_out: Examples) -> dict[str, float]:
        """The share of the commonest class, of pixels in a sample of the masks; of boxes nothing."""
        if held_out.targets:
            return {"AP50": 0.0}
        if held_out.per_pixel:
            counts = _count_pixels(held_out)
            return {"pixel_accuracy": int(counts.max()) / max(1, int(counts.sum()))}
        return {} if held_out.labels is None else commonest_share(held_out.labels.tolist())

    def inspect(self, source: NetworkSource, *, batch: int, length: int, **options: Any) -> dict[str, Any]:
        """What could go in a network, what stays and why; see `secateur.runs.inspection.inspect`."""
        from secateur.runs import inspection  # draws

        return inspection.inspect(source, **options)

    def save(self, subject: Traced, folder: Path) -> None:
        """Weights, what was cut, and a torch.export program that needs nothing of ours; a folder of transformers where
        it came from one, and its config or a modelling file describes it. Else what came from there has its tokenizer,
        processor and licence beside it, and no program where none can be made.
        """
        subject = parts.assemble(subject, share=True)
        original = history(subject.model).built_by
        known = pretrained.is_pretrained(original)
        if known and pretrained.save(subject, folder, original):
            return
        subject.save(folder)
        # One of transformers opens from its original's folder, whatever torch.export has against its code.
        with suppress(Exception) if known else nullcontext():
            write_program(folder, subject.model, subject.inputs)

    def saved_in(self, folder: Path) -> bool:
        """Whether the folder says what was cut, and has no config of a transformers model."""
        return is_saved(folder)

    def load_line(self, folder: Path, name: str) -> str:
        """The lines of Python that load what stands in `folder`, which the reader knows as `name`: see `save`."""
        if (folder / "config.json").is_file():
            from secateur.runs.backends.language import Language  # which loads transformers

            return Language().load_line(folder, name)
        if not (folder / "model.pt2").is_file():
            return f'import secateur\n\nmodel = secateur.load("{name}")'
        return f'import torch\n\nmodel = torch.export.load("{name}/model.pt2").module()'


# ---------------------------------------------------------------------------------------------------------- opening


def _first_input(data: Examples, model: nn.Module) -> Tensor:
    return _declare_images(data, model).inputs[:1]


def _declare_images(data: Examples, model: nn.Module, example: Tensor | None = None) -> Examples:
    """The examples; images with the transform that the model records where none was declared.

    Images with boxes are letterboxed to what the model was given to run on.
    """
    if not isinstance(data.inputs, Images):
        return data
    sides = None if example is None else tuple(example.shape[1:])
    if data.targets:
        return examples.letterbox(data, None if sides is None else (sides[-2], sides[-1]))
    return replace(data, inputs=images.declare(data.inputs, model, sides, data.name))


# ----------------------------------------------------------------------------------------------------------- checks


def _check_arguments(data: Examples, subject: Traced) -> None:
    """Raise `DataError` where the network can't do with the examples alone: its other inputs have no default."""
    inputs = subject.inputs.with_inputs(data.inputs[:1])
    try:
        inspect.signature(subject.model.forward).bind(*inputs.args, **inputs.kwargs)
    except ValueError:  # it has no signature to look at
        return
    except TypeError as error:
        raise DataError(
            f"{type(subject.model).__name__} takes more than the inputs that {data.name} holds ({error}): give its "
            "other inputs a default, in a module around it"
        ) from error


def _check_type(data: Examples, subject: Traced) -> None:
    """Raise `DataError` where a network in half precision does not take the numbers that the data holds."""
    half = next((p.dtype for p in subject.model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is None or detectors.is_detector(subject.model):
        return
    try:
        with torch.inference_mode():
            Network().forward(subject, data.inputs[:1])
    except RuntimeError as error:
        ours, theirs = (str(one).removeprefix("torch.") for one in (half, data.inputs.dtype))
        raise DataError(
            f"{data.name} holds inputs of {theirs}, and {type(subject.model).__name__} with weights of {ours} does not "
            f"take them ({str(error).splitlines()[0]}): build it in float32, by model.float()"
        ) from error


def _limit_labels(data: Examples, subject: Traced) -> Examples:
    """The examples, where no label is beyond the classes that the network gives.

    Raises `DataError` for one that is; of masks in files in a sample, the others are refused where they are read.
    """
    with torch.inference_mode():
        output = Network().forward(subject, data.inputs[:2])
    given = output.get("out", output) if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(given, Tensor):
        return data
    if given.dim() != (4 if data.per_pixel else 2):
        if data.per_pixel:
            raise DataError(
                f"{data.name} has a class for each pixel, and {type(subject.model).__name__} gives "
                f"{list(given.shape)}: expected [B, C, H, W]"
            )
        return data
    count = given.shape[1]
    if data.per_pixel:
        count = max(2, count)  # one logit tells two classes apart
        low, high = 0, len(_count_pixels(data, count)) - 1
        if data.labels is not None:
            labelled = data.labels[data.labels != segmentation.IGNORED[0]]
            low = int(labelled.min()) if len(labelled) else 0
    else:
        labels_ = cast(Tensor, data.labels)
        low, high = int(labels_.min()), int(labels_.max())
    if low < 0 or high >= count:
        wrong = low if low < 0 else high
        raise DataError(f"{data.name} has the label {wrong}: the model has {count} classes, 0 to {count - 1}")
    return data if data.masks is None else replace(data, masks=data.masks.limit(count))


def _count_pixels(data: Examples, classes: int | None = None) -> NDArray[np.int64]:
    """[classes]: pixels of each class; of masks in files in a sample, as a network of so many `classes` has them."""
    if data.masks is not None and isinstance(data.inputs, Images):
        return data.masks.count_classes(data.inputs, classes)
    masks = cast(Tensor, data.labels)
    counted = (masks >= 0) & (masks != segmentation.IGNORED[1])
    return torch.bincount(masks[counted], minlength=1).numpy()


def _check_loss(data: Examples, model: nn.Module) -> None:
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


# ---------------------------------------------------------------------------------------------------------- running


class Joint(nn.Module):
    """Several networks that answer as one, by what `answer` makes of a whole batch: for measuring only."""

    def __init__(self, answer: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, batch: Any) -> Tensor:
        """Their answer."""
        return self.answer(batch)


def run_network(subject: Traced, batch: Any) -> Any:
    """As `Network.forward`, in the mode in which the network is."""
    model = subject.model
    if isinstance(model, Joint):
        return model(batch)
    if isinstance(batch, tuple):
        args, kwargs = devices.move(batch, model)
        return model(*args, **kwargs)
    return subject.inputs.ask(model, batch["inputs"] if isinstance(batch, Mapping) else batch)


def _list_rows(subject: Traced) -> list[int]:
    """How many rows each tensor of the example inputs has."""
    given = tree_leaves((subject.inputs.args, dict(subject.inputs.kwargs)))
    return [len(leaf) for leaf in given if isinstance(leaf, Tensor) and leaf.dim()]


def _is_repeatable(backend: Network, subject: Traced, rows: Sequence[int]) -> bool:
    """Whether twice as many rows give twice as much, unlike patches of one image beside a grid of how they lie."""
    if len(set(rows)) < 2:
        return True
    sizes = list[int]()
    with suppress(Exception), torch.no_grad():
        for many in (rows[0], 2 * rows[0]):
            output = backend.forward(subject, backend.make_example(subject, latency.Environment(many, None)))
            sizes.append(len(_first_tensor(output)))
    return len(sizes) == 2 and sizes[1] == 2 * sizes[0]


def _answer_logits(answer: Callable[[object], object], batch: object) -> Tensor:
    return logits_of(answer(batch))


def _tells_pixels(subject: Traced, data: Examples) -> bool:
    """Whether a network's outputs are classes of pixels, as far as they tell: maps under a name, or of many channels.

    As many channels as the inputs have, or up to 4, may be an image.
    """
    with torch.inference_mode():
        output = Network().forward(subject, data.inputs[:1])
        try:
            logits = logits_of(output)
        except SecateurError:
            return False
    if logits.dim() != 4 or logits.shape[1] < 2:
        return False
    named = not isinstance(output, Tensor | tuple | list) or isinstance(subject.model, Joint)  # the mean of classes
    return named or logits.shape[1] not in (*range(5), data.inputs.shape[1])


def _try_inputs(subject: Traced, source: NetworkSource) -> Traced:
    """`subject`, if it runs on its inputs, which are another network's. Raises `InputError` where it doesn't."""
    try:
        subject.forward()
    except SecateurError:
        raise
    except Exception as error:  # whatever a class has against inputs of another kind
        line = next(iter(str(error).strip().splitlines()), "")[:200]
        name = source if isinstance(source, str | Path) else type(subject.model).__name__
        raise InputError(
            f"{name} does not take what the other network takes ({type(error).__name__}: {line}): give one of the same "
            "inputs"
        ) from error
    return subject


def _precision(subject: Traced, batches: Iterable[Mapping[str, object]], sizes: Sequence[float]) -> Row:
    model = cast(Detector, subject.model.eval())

    def detect(images: Tensor) -> list[dict[str, Tensor]]:
        return model.detect(devices.move(images, subject.model))

    try:
        return detection.average_precision(detect, batches, sizes=sizes or detection.SIZES)
    except MissingExtraError:
        return {"AP50": detection.all_point(detect, batches)}


def _first_tensor(output: Any) -> Tensor:
    """The first tensor of an output, [N, ...]."""
    first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
    if first is None or first.dim() < 2:
        raise DataError("the outputs can't be compared without classes: give examples with labels")
    return first
