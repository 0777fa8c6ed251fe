"""One interface to detectors of several libraries: loss, detections, feature maps, and a traceable forward pass.

A detector is a module with four names: `taps`, `loss`, `detect` and `features` (see `Detector`). A module of your own
that has them is one. torchvision's and Ultralytics' models are wrapped (`adapt`). Of these, `forward` gives the raw
answers of the heads, without suppression of overlapping boxes: that part has no weights, and follows the data. One of
two stages, that proposes regions and then judges them, has three names more (see `TwoStage`), and one whose answers can
be learned from has `predictions` (see `Predicting`).

Ultralytics is under the AGPL-3.0: this module reads the model that you built with it, and imports it only to suppress
boxes and to train with its own trainer. What you make with it may fall under its licence.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from secateur._utils.modes import evaluating, restore_modes
from secateur.errors import InputError, MissingExtraError, UnsupportedError
from secateur.subjects.network.traced import Traced, open_traced

__all__ = [
    "Classes",
    "Detector",
    "Judged",
    "Predicting",
    "Regions",
    "Torchvision",
    "TwoStage",
    "Ultralytics",
    "adapt",
    "check_predictions",
    "classes_of",
    "is_detector",
    "open_detector",
    "regions",
    "trainer",
    "two_stage",
]

Target = Mapping[str, Tensor]


@runtime_checkable
class Detector(Protocol):
    """What the recipes ask of a detector; the object is an `nn.Module` too."""

    taps: Sequence[str]
    """Names of the modules that give the maps of `features`, finest first."""

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean loss per image of {"inputs" [B, C, H, W], "targets": per image {"boxes" [n, 4], "labels" [n]}}.

        In training mode batch norms learn from it; in evaluation mode they don't.
        """
        ...

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Per image {"boxes" [n, 4] in pixels, "scores" [n], "labels" [n] from 0}, without gradients."""
        ...

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps [B, C_s, H_s, W_s] that the heads read, finest first."""
        ...


@runtime_checkable
class Predicting(Detector, Protocol):
    """A detector from whose answers another can learn.

    `exclusive` says what its logits are: True of a softmax over classes, of which 0 is the background; False of a
    sigmoid for each class. Where a detector of your own has no such attribute, classes are learned by a softmax, and
    boxes where the sigmoid of one of them is above a half, as in the official code for YOLOv4.
    """

    def predictions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, N, 4] in pixels and logits of classes [B, N, K] at all N places, with gradients.

        Of two stages (`staged` is True) the places are regions, which are given too, and `proposals(images)` tells
        which: per image [n, 4]. It may give a box for each class, [1, N, K, 4], and logits [1, N, K] of all images.
        """
        ...


@dataclass(frozen=True, eq=False)
class Judged:
    """What the second stage of a detector says of regions, and which those were; N in all images together."""

    boxes: list[Tensor]
    """Per image [n, 4], in pixels of the images as they were given."""
    features: Tensor
    """[N, D]: what the last layers read."""
    logits: Tensor
    """[N, K]: of the classes, the background among them."""
    maps: list[Tensor]
    """[B, C_s, H_s, W_s]: what regions are cut out of, finest first."""
    labels: Tensor | None = None
    """[N]: the class that each region has by the targets, in the order of the logits."""
    loss: Tensor | None = None
    """The detector's own of this pass, per image."""


@runtime_checkable
class TwoStage(Detector, Protocol):
    """A detector that proposes regions and judges them in a second stage."""

    first: int
    """Where class 0 of the data stands in the logits of the second stage: 1 behind a background."""

    @property
    def reader(self) -> str:
        """Name of the linear layer that gives those logits."""
        ...

    def sample_regions(self, batch: Mapping[str, Any]) -> Judged:
        """One pass of `loss`, and the regions that the second stage learned from in it: all fields."""
        ...

    def judge_regions(self, images: Tensor, boxes: Sequence[Tensor]) -> Judged:
        """What the second stage says of these regions [n, 4] of each image, in pixels of the images as given."""
        ...


def two_stage(model: nn.Module) -> TwoStage:
    """`model` if it is a detector of two stages. Raises `UnsupportedError` for another."""
    if getattr(model, "staged", True) and isinstance(model, TwoStage):
        return model
    inner = model.detector if isinstance(model, Torchvision | Ultralytics) else model
    raise UnsupportedError(
        f"{type(inner).__name__} is no detector of two stages: give torchvision's Faster R-CNN or its kin, or a module "
        "that has reader, sampled(batch) and judged(images, boxes), too"
    )


@dataclass(frozen=True, eq=False)
class Regions:
    """A detector of two stages as a classifier of regions: those that a student samples stand for its inputs."""

    subject: Traced
    model: TwoStage
    width: int
    classes: int
    shapes: Sequence[tuple[int, int, int]]
    """Channels, height and width of the maps."""
    name: str = "regions"

    @classmethod
    def of(cls, subject: Traced, image: Tensor) -> Regions:
        """Raises `UnsupportedError` for a detector that has no second stage."""
        model = two_stage(subject.model)
        with torch.no_grad(), evaluating(subject.model):
            judged = model.judge_regions(image, [regions(image.shape[2], image.shape[3]).to(image)])
        shapes = [(one.shape[1], one.shape[2], one.shape[3]) for one in judged.maps]
        return cls(subject, model, judged.features.shape[1], judged.logits.shape[1], shapes)

    @property
    def readers(self) -> tuple[str, ...]:
        """The linear layer that gives the classes of regions."""
        return (self.model.reader,)

    def rows(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(features [N, D], classes [N]) of the regions that the detector samples."""
        judged = self.model.sample_regions(batch)
        assert judged.labels is not None
        return judged.features, judged.labels

    def labels_in(self, targets: Sequence[Target]) -> Tensor:
        """The classes of the boxes, in the order of the logits, and the background's."""
        labels = torch.cat([target["labels"] for target in targets]) + self.model.first
        return torch.cat([labels, labels.new_zeros(1)])

    def beside_teacher(self, teacher: Regions, batch: Mapping[str, Any]) -> tuple[Judged, Judged]:
        """The student proposes, samples and learns; the teacher judges the same regions of its own maps."""
        ours = self.model.sample_regions(batch)
        with torch.no_grad():
            return ours, teacher.model.judge_regions(batch["inputs"], ours.boxes)


def check_predictions(model: nn.Module, images: Tensor) -> None:
    """Raise `UnsupportedError` or `InputError` where nothing can learn from what `model` answers (see `Predicting`)."""
    if not callable(getattr(model, "predictions", None)):
        raise UnsupportedError(
            f"outputs: {type(model).__name__} has no predictions(images), which gives boxes [B, N, 4] and "
            "logits of classes [B, N, K]; leave outputs out, or give a module that has it"
        )
    asked: Any = model
    with torch.no_grad(), evaluating(model):
        regions = [asked.proposals(images)] if getattr(model, "staged", False) else []
        boxes, logits = asked.predictions(images, *regions)
    if boxes.shape[-1] != 4 or logits.dim() != 3 or boxes.shape[:-1] != logits.shape[: boxes.dim() - 1]:
        raise InputError(
            f"outputs: {type(model).__name__}.predictions gives boxes {list(boxes.shape)} and logits "
            f"{list(logits.shape)}: they have to be [B, N, 4] and [B, N, K]"
        )


@dataclass(frozen=True)
class Classes:
    """Which classes a detector tells, with labels that count from 0 as in `Detector.detect`."""

    names: Mapping[int, str]
    """Label -> name; empty where nothing says."""
    stated: bool
    """Whether the model says these names itself; else they follow from its number of classes."""
    count: int
    """How many labels there are; 0 where that is not known."""
    first: int
    """What the model's own number of a class is above its label: 1 behind a background."""


COCO_OUTPUTS = 91
"""Of torchvision's detectors trained on COCO: its original ids, 1 to 90 with gaps, and the background."""


def classes_of(model: nn.Module) -> Classes:
    """The classes of a detector, as it says them itself.

    Names are taken from `categories` (a list with the background, as in the `meta` of torchvision's weights), `names`
    (Ultralytics; a list or a mapping) or `config.id2label` (transformers), of the detector or of what it wraps. A
    detector of torchvision that has 91 classes and no such list is taken to know COCO's, by their original ids. Names
    that only number the classes are none.
    """
    inner: Any = getattr(model, "detector", model)
    first = model.first if isinstance(model, Torchvision) else 0
    count = model.count_classes() if isinstance(model, Torchvision) else int(getattr(model, "nc", 0) or 0)
    for owner in (model, inner):
        if categories := getattr(owner, "categories", None):
            return Classes(_real_names(enumerate(categories, -first)), True, count or len(categories) - first, first)
        given = getattr(owner, "names", None) or getattr(getattr(owner, "config", None), "id2label", None)
        if isinstance(given, Sequence):
            given = dict(enumerate(given))
        if isinstance(given, Mapping):
            names = _real_names((int(label), name) for label, name in given.items())
            return Classes(names, bool(names), len(given), first)
    if isinstance(model, Torchvision) and count + first == COCO_OUTPUTS:
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        return Classes(_real_names(enumerate(categories, -first)), False, count, first)
    return Classes({}, False, count, first)


def _real_names(names: Iterable[tuple[int, object]]) -> dict[int, str]:
    """Without the background, gaps, and what only numbers a class."""
    return {
        label: str(name)
        for label, name in names
        if label >= 0
        and str(name) not in ("__background__", "N/A")
        and not re.fullmatch(r"(LABEL_|class_?)?\d+", str(name), re.IGNORECASE)
    }


def is_detector(model: object) -> bool:
    """Whether `adapt` knows the model."""
    if isinstance(model, Detector):
        return True
    bases = {f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__}
    return "ultralytics.nn.tasks.DetectionModel" in bases or _is_torchvision(model)


def _is_torchvision(model: object) -> bool:
    return any(kind.__module__.startswith("torchvision.models.detection.") for kind in type(model).__mro__)


def adapt(model: nn.Module) -> nn.Module:
    """`model` as a `Detector`: itself if it is one, else wrapped. Raises `UnsupportedError` for one not known."""
    if isinstance(model, Detector):
        return model
    if is_detector(model):
        return Torchvision(model) if _is_torchvision(model) else Ultralytics(model)
    if hasattr(model, "model") and any(kind.__module__.startswith("ultralytics.") for kind in type(model).__mro__):
        return adapt(cast(nn.Module, model.model))
    raise UnsupportedError(
        f"{type(model).__name__} is no detector that is known here: give torchvision's or Ultralytics', or a module "
        "with taps, loss(batch), detect(images) and features(images)"
    )


def open_detector(model: nn.Module | Traced, images: Tensor | None = None) -> Traced:
    """The detector in `model` as something to prune, traced on `images` [B, C, H, W]; a `Traced` of one stays itself.

    Raises as `adapt` and `open_traced`.
    """
    if isinstance(model, Traced):
        if isinstance(model.model, Detector):
            return model
        inputs = images if images is not None else next(iter(model.inputs.fresh()[0]), None)
        if isinstance(inputs, Sequence):
            inputs = torch.stack(list(inputs))
        return open_traced(adapt(model.model), inputs)
    if images is None:
        raise InputError("a detector is traced on images: give some")
    return open_traced(adapt(model), images)


# --------------------------------------------------------------------------------------------------- torchvision


class Torchvision(nn.Module):
    """A detector of torchvision: Faster R-CNN and its kin, SSD, RetinaNet, FCOS.

    first: the number that the model has for class 0 of the data: 1 where 0 is the background (R-CNN, SSD), else 0.
    In a forward pass, two-stage models look at fixed regions in place of their own proposals, so that no shape follows
    the data; `detect` is the whole model.
    """

    taps: Sequence[str] = ("detector.backbone",)

    def __init__(self, detector: nn.Module, first: int | None = None) -> None:
        super().__init__()
        self.detector: Any = detector
        self.staged = hasattr(detector, "roi_heads")
        background = self.staged or type(detector).__name__.startswith("SSD")
        self.first = (1 if background else 0) if first is None else first
        self.exclusive = background

    @property
    def reader(self) -> str:
        """The first linear layer of the box predictor; "" where there is none."""
        last: nn.Module = self.detector.roi_heads.box_predictor
        linears = [name for name, module in last.named_modules() if isinstance(module, nn.Linear)]
        return f"detector.roi_heads.box_predictor.{linears[0]}" if linears else ""

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps of the backbone."""
        return list(self._maps(self._prepare(images).tensors).values())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the heads say, before boxes are decoded."""
        prepared = self._prepare(images)
        maps = self._maps(prepared.tensors)
        if not self.staged:
            return tuple(_tensors(self.detector.head(list(maps.values()))))
        found = self.detector.rpn.head(list(maps.values()))
        boxes = [regions(height, width).to(images) for height, width in prepared.image_sizes]
        return (*_tensors(found), *_tensors(self._second(maps, boxes, prepared.image_sizes)[1]))

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The sum of the model's own losses."""
        targets = [{"boxes": one["boxes"], "labels": one["labels"] + self.first} for one in batch["targets"]]
        known = self.count_classes() + self.first
        highest = max((int(one["labels"].max()) for one in targets if len(one["labels"])), default=0)
        if known > self.first and highest >= known:
            raise InputError(
                f"a box has the label {highest - self.first}: this detector knows 0 to {known - 1 - self.first}; build "
                f"it for {highest + 1} classes, or leave such boxes out"
            )
        with _asked_for_a_loss(self):
            found: Mapping[str, Tensor] = self.detector(list(batch["inputs"]), targets)
        return torch.stack(list(found.values())).sum()

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """The model's own detections, with classes from 0."""
        with evaluating(self):
            found = self.detector(list(images))
        result = []
        for one in found:
            labels = one["labels"] - self.first
            stays = labels >= 0
            result.append({"boxes": one["boxes"][stays], "scores": one["scores"][stays], "labels": labels[stays]})
        return result

    def sample_regions(self, batch: Mapping[str, Any]) -> Judged:
        """The model's own loss, and the regions that its second stage drew of the first one's and the true boxes."""
        heads, seen = self.detector.roi_heads, dict[str, Any]()
        with contextlib.ExitStack() as stack:
            hook = heads.box_roi_pool.register_forward_pre_hook(lambda module, args: seen.update(pooled=args))
            stack.callback(hook.remove)
            for name in ("box_head", "box_predictor"):
                keep = partial(lambda name, module, args, output: seen.update({name: output}), name)
                stack.callback(heads.get_submodule(name).register_forward_hook(keep).remove)
            loss = self.loss(batch)
        maps, boxes, sizes = seen["pooled"]
        given = tuple(batch["inputs"].shape[2:])
        true = [_resize_boxes(one["boxes"], given, size) for one, size in zip(batch["targets"], sizes, strict=True)]
        kinds = [one["labels"] + self.first for one in batch["targets"]]
        labels = heads.assign_targets_to_proposals(boxes, true, kinds)[1]
        back = [_resize_boxes(one, size, given) for one, size in zip(boxes, sizes, strict=True)]
        logits = next(iter(_tensors(seen["box_predictor"])))
        return Judged(back, seen["box_head"].flatten(1), logits, list(maps.values()), torch.cat(labels), loss)

    def judge_regions(self, images: Tensor, boxes: Sequence[Tensor]) -> Judged:
        """What box head and box predictor say of these regions."""
        prepared, given = self._prepare(images), (images.shape[2], images.shape[3])
        maps = self._maps(prepared.tensors)
        own = [_resize_boxes(one, given, size) for one, size in zip(boxes, prepared.image_sizes, strict=True)]
        features, found = self._second(maps, own, prepared.image_sizes)
        return Judged(list(boxes), features.flatten(1), _tensors(found)[0], list(maps.values()))

    def predictions(self, images: Tensor, at: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Boxes [B, N, 4] in pixels of the images as given, and logits [B, N, K], of all anchors.

        Of two stages, of the regions `at` [n, 4] of each image: a box for each class [1, N, K, 4], logits [1, N, K].
        """
        inner, given = self.detector, (images.shape[2], images.shape[3])
        with evaluating(inner.transform):  # in training it may draw another size
            prepared = self._prepare(images)
        maps, size = self._maps(prepared.tensors), prepared.image_sizes[0]
        if self.staged:
            own = [_resize_boxes(one, given, size) for one in at]
            logits, moves = _tensors(self._second(maps, own, prepared.image_sizes)[1])
            return _resize_boxes(inner.roi_heads.box_coder.decode(moves, own), size, given)[None], logits[None]
        found = inner.head(list(maps.values()))
        anchors = torch.stack(inner.anchor_generator(prepared, list(maps.values())))
        decode = getattr(inner.box_coder, "decode_single", inner.box_coder.decode)
        boxes = decode(found["bbox_regression"].flatten(0, 1), anchors.flatten(0, 1)).view_as(anchors)
        return _resize_boxes(boxes, size, given), found["cls_logits"]

    @torch.no_grad()
    def proposals(self, images: Tensor) -> list[Tensor]:
        """Per image [n, 4] in its pixels: the regions that the first of two stages proposes, in evaluation mode."""
        with evaluating(self):
            prepared = self._prepare(images)
            found = self.detector.rpn(prepared, self._maps(prepared.tensors))[0]
        given = (images.shape[2], images.shape[3])
        return [_resize_boxes(one, size, given) for one, size in zip(found, prepared.image_sizes, strict=True)]

    def _second(self, maps: Mapping[str, Tensor], boxes: Sequence[Tensor], sizes: Any) -> tuple[Tensor, Any]:
        """What the box head gives of boxes in pixels of the prepared images, and what the predictor makes of that."""
        heads = self.detector.roi_heads
        features: Tensor = heads.box_head(heads.box_roi_pool(maps, list(boxes), sizes))
        return features, heads.box_predictor(features)

    def count_classes(self) -> int:
        """How many classes the model tells, without its background; 0 where that is not known."""
        if self.staged:
            reader: Any = self.get_submodule(self.reader) if self.reader else None
            outputs = int(reader.out_features) if reader is not None else 0
        else:
            head: Any = getattr(getattr(self.detector, "head", None), "classification_head", None)
            outputs = int(getattr(head, "num_classes", 0) or getattr(head, "num_columns", 0))
        return max(0, outputs - self.first)

    def _prepare(self, images: Tensor) -> Any:
        return self.detector.transform(list(images))[0]

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        found = self.detector.backbone(images)
        return {"0": found} if isinstance(found, Tensor) else dict(found)


def _resize_boxes(boxes: Tensor, given: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] of an image of `given` (height, width), in the same image at the size `wanted`."""
    high, wide = wanted[0] / given[0], wanted[1] / given[1]
    return boxes * boxes.new_tensor([wide, high, wide, high])


def regions(height: int, width: int) -> Tensor:
    """[5, 4]: the whole image and its quarters."""
    h, w = height / 2, width / 2
    return torch.tensor(
        [[0, 0, width, height], [0, 0, w, h], [w, 0, width, h], [0, h, w, height], [w, h, width, height]]
    )


# --------------------------------------------------------------------------------------------------- Ultralytics


class Ultralytics(nn.Module):
    """A DetectionModel of Ultralytics (YOLOv5 to YOLO11 with the usual heads); AGPL-3.0, see the top of this module.

    Their checkpoints hold frozen weights. Where all are, they are to be trained again, as their own trainer has it: all
    but those that turn distributions into boxes.
    """

    taps: Sequence[str]
    exclusive = False

    def __init__(self, detector: nn.Module, confidence: float = 0.001, overlap: float = 0.7) -> None:
        super().__init__()
        self.detector = detector
        self.confidence, self.overlap = confidence, overlap
        self.taps = tuple(f"detector.model.{index}" for index in self._head().f)
        if not any(weight.requires_grad for weight in detector.parameters()):
            for name, weight in detector.named_parameters():
                weight.requires_grad_(weight.is_floating_point() and ".dfl." not in f".{name}")

    def _head(self) -> Any:
        inner: Any = self.detector
        return inner.model[-1]

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps that Detect reads."""
        found: list[Tensor] = []
        hook = self._head().register_forward_pre_hook(lambda module, args: found.extend(args[0]))
        try:
            self.detector(images)
        finally:
            hook.remove()
        return found

    def forward(self, images: Tensor) -> Tensor:
        """[B, 4 + classes, places]: decoded boxes (x, y, w, h) in pixels, and classes; in evaluation mode."""
        found = self.detector(images)
        answer: Tensor = found[0] if isinstance(found, list | tuple) else found
        return answer

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The model's own loss of boxes, classes and distributions."""
        images, targets = batch["inputs"], batch["targets"]
        scale = torch.tensor([images.shape[3], images.shape[2]] * 2, device=images.device)
        corners = torch.cat([one["boxes"] for one in targets]).to(images) / scale
        middle, side = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        given = {
            "img": images,
            "bboxes": torch.cat([middle, side], 1),
            "cls": torch.cat([one["labels"] for one in targets]).to(images)[:, None],
            "batch_idx": torch.cat([torch.full((len(one["labels"]),), float(i)) for i, one in enumerate(targets)]).to(
                images
            ),
        }
        inner: Any = self.detector
        settings = getattr(inner, "args", None) or {}
        known = dict(settings) if isinstance(settings, Mapping) else vars(settings)
        # The criterion that such a model keeps holds tensors of the device on which it was first asked.
        criterion = getattr(inner, "criterion", None)
        inner.args, inner.criterion = SimpleNamespace(**({"box": 7.5, "cls": 0.5, "dfl": 1.5} | known)), None
        try:
            with _asked_for_a_loss(self):
                total: Tensor = inner.loss(given)[0].sum() / len(images)
        finally:
            inner.args, inner.criterion = settings, criterion
        return total

    def predictions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, N, 4] in pixels and logits of classes [B, N, K] at all places."""
        head = self._head()
        # The head decodes in evaluation mode only; the norms within keep theirs. What it remembers of the places it may
        # have made where no gradient can follow.
        mode, head.training, head.shape = head.training, False, None
        try:
            found = self.detector(images)
        finally:
            head.training = mode
        if isinstance(found, Tensor) or (isinstance(found[1], Mapping) and "one2one" in found[1]):
            raise UnsupportedError("outputs: the head of this model gives boxes of its own choice: leave outputs out")
        decoded, raw = found[0].transpose(1, 2), found[1]
        kinds = decoded.shape[2] - 4
        parts = [raw["scores"]] if isinstance(raw, Mapping) else [one.flatten(2)[:, -kinds:] for one in raw]
        boxes, logits = decoded[..., :4], torch.cat(parts, 2).transpose(1, 2)
        if not getattr(head, "xyxy", False):
            half = boxes[..., 2:] / 2
            boxes = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], -1)
        return boxes, logits

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Detections after the library's own suppression."""
        try:
            suppress = importlib.import_module("ultralytics.utils.nms").non_max_suppression
        except ImportError as error:
            raise MissingExtraError(
                "detections of such a model need ultralytics 8.3.200 or later (AGPL-3.0): pip install ultralytics"
            ) from error
        with evaluating(self):
            rows = suppress(self(images), self.confidence, self.overlap)
        return [{"boxes": row[:, :4], "scores": row[:, 4], "labels": row[:, 5].long()} for row in rows]


def trainer(model: nn.Module) -> type:
    """A trainer class of Ultralytics that trains `model`, cut as it is, where its own would build the YAML's again.

    `YOLO("yolov8n.yaml").train(data=..., trainer=trainer(small.model))`. Needs ultralytics (AGPL-3.0).
    """
    try:
        base = importlib.import_module("ultralytics.models.yolo.detect").DetectionTrainer
    except ImportError as error:
        raise MissingExtraError("Ultralytics' trainer needs ultralytics (AGPL-3.0): pip install ultralytics") from error
    inner = model.detector if isinstance(model, Ultralytics) else model

    def get_model(self: Any, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        return inner

    return type("CutTrainer", (base,), {"get_model": get_model, "__doc__": "Trains a cut model as it is."})


# --------------------------------------------------------------------------------------------------------- modes


@contextlib.contextmanager
def _asked_for_a_loss(model: nn.Module) -> Iterator[None]:
    """These models give a loss in training mode only: in evaluation mode, norms and dropout stay in theirs."""
    if model.training:
        yield
        return
    still = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    with restore_modes(model):
        for module in model.modules():
            module.training = not isinstance(module, still)
        yield


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    parts = found.values() if isinstance(found, Mapping) else found
    return [one for part in parts for one in _tensors(part)]
