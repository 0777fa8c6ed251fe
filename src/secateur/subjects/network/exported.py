"""Detectors that run from an ONNX file, so that their detections can be measured.

An exported graph ends at the raw answers of the heads; boxes are made of them by the model's own code. That is what is
used here, with onnxruntime's answers in the place of the network's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.errors import InputError, ModelError, UnsupportedError
from secateur.formats import onnx_files
from secateur.subjects.network.detectors import Detector, Torchvision

__all__ = ["Exported"]


class Exported:
    """`detect` of a detector, with the answers that onnxruntime gives for `file`, which was exported from it.

    model: that detector, or the one it was cut from: their answers have one form. Raises `UnsupportedError` for two
    stages, whose exported graph judges fixed regions and not those of the first, and for a `detect` that goes another
    way than through `forward`; `ModelError` for a file that can't be read.
    """

    def __init__(self, model: nn.Module, file: str | Path) -> None:
        onnx_files.check_installed()
        import onnxruntime

        if getattr(model, "staged", False):
            raise UnsupportedError(
                f"the graph of {type(cast(Any, model).detector).__name__} judges fixed regions, not those that its "
                "first stage proposes, so no boxes can be read from it: measure the network itself"
            )
        self.model = model
        try:
            self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(
                f"{file} can't be read as ONNX ({type(error).__name__}): export the network anew"
            ) from error
        self.given = self.session.get_inputs()[0]

    def answers(self, images: Tensor) -> list[Tensor]:
        """What the file gives of images [B, C, H, W], in as many calls as its own batch asks for."""
        size = self.given.shape[0]
        step = size if isinstance(size, int) else len(images)
        rows = []
        for part in images.split(step):
            whole = torch.cat([part, part[-1:].expand(step - len(part), *part.shape[1:])])
            found = self.session.run(None, {self.given.name: whole.numpy()})
            rows.append([torch.from_numpy(one)[: len(part)] for one in found])
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Per image boxes, scores and labels, as the detector makes them of the file's answers."""
        inner: Any = self.model.detector.head if isinstance(self.model, Torchvision) else self.model
        own, calls = inner.forward, list[bool]()

        def forward(given: Any) -> Any:
            calls.append(True)
            # A head of torchvision is given maps; the file has looked at the images.
            answers = self.answers(images if isinstance(self.model, Torchvision) else given)
            parts, form = tree_flatten(own(given))
            if [one.shape for one in answers] != [one.shape for one in parts]:
                raise InputError(
                    f"the ONNX file answers {[list(one.shape) for one in answers]}, the detector "
                    f"{[list(one.shape) for one in parts]}: give the file that was exported from it"
                )
            return tree_unflatten(answers, form)

        with _replace_forward(inner, forward):
            found = cast(Detector, self.model).detect(images)
        if not calls:
            raise UnsupportedError(
                f"{type(self.model).__name__}.detect does not go through forward, which is what was exported: let it"
            )
        return found


@contextlib.contextmanager
def _replace_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    before: Mapping[str, Any] = dict(vars(module))
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if "forward" in before:
            module.forward = before["forward"]
