"""Many models of one shape trained as one: their weights lie in stacks, and one pass goes through all of them.

None sees another: the loss is the sum of theirs, so that each gradient is that of one model alone, and optimisers that
work number by number (SGD, AdamW) take for each the step that it would take alone. torch.func's vmap makes the pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur._utils import devices
from secateur._utils.modes import evaluating
from secateur.recover.training import optimizers
from secateur.recover.training.optimizers import MakeOptimizer
from secateur.vocabulary import Training

__all__ = ["Ask", "Stacked", "adjust_optimizer", "count_bytes", "stackable", "why_not"]

Batch: TypeAlias = Mapping[str, Any]
Ask: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) -> what it answers."""
Groups: TypeAlias = list[dict[str, Any]]
"""Of parameters, as optimisers take them."""

_ALONE = ("sam", "lora", "dora", "compile", "checkpointing")
"""Settings of a training that mix models, or do not run under vmap."""


class Stacked(nn.Module):
    """K models of one structure with weights [K, ...]; asked with one batch it gives [K, ...] answers.

    models: stay as they are. ask: (model, batch) -> logits.
    """

    def __init__(self, models: Sequence[nn.Module], ask: Ask) -> None:
        super().__init__()
        self.count, self.ask = len(models), ask
        self.base = copy.deepcopy(models[0])
        """Holds the stacks under its own names, so that whatever looks for parameters, modes or dropout finds them."""
        others = [_tensors(model) for model in models]
        _replace_tensors(self.base, lambda name, _: torch.stack([other[name].detach() for other in others]))

    def forward(self, batch: Batch) -> Tensor:
        """[K, ...]: what each model answers."""
        weights: dict[str, Tensor] = {**dict(self.base.named_parameters()), **dict(self.base.named_buffers())}
        batch = devices.move(batch, self.base)
        base = _Asked(self.base, self.ask)

        def one(own: dict[str, Tensor]) -> Tensor:
            answer: Tensor = functional_call(base, {f"model.{name}": tensor for name, tensor in own.items()}, (batch,))
            return answer

        with sdpa_kernel(SDPBackend.MATH):  # vmap goes through the others model by model
            answers: Tensor = torch.vmap(one, randomness="same")(weights)  # as for each alone, under one seed
        return answers

    def unstack(self, number: int) -> nn.Module:
        """A copy of one of the models, in memory of its own."""
        model = copy.deepcopy(self.base)
        _replace_tensors(model, lambda _, stack: stack.detach()[number].clone())
        return model


class _Asked(nn.Module):
    """A model that is asked in a way of its own, as one whose weights can be given to a call."""

    def __init__(self, model: nn.Module, ask: Ask) -> None:
        super().__init__()
        self.model, self._ask = model, ask

    def forward(self, batch: Batch) -> Tensor:
        return self._ask(self.model, batch)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(named)


def _replace_tensors(model: nn.Module, make: Callable[[str, Tensor], Tensor]) -> None:
    """Put make(its name, itself) in the place of each parameter and buffer; a tied one stays tied."""
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        owners = cast(list[dict[str, Tensor | None]], [module._parameters, module._buffers])
        for own in owners:
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in made:
                    new = make(f"{path}.{name}" if path else name, tensor)
                    learns = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if learns else new
                if tensor is not None:
                    own[name] = made[id(tensor)]


def why_not(training: Training) -> str:
    """The setting for which models can't be trained in a stack; "" where there is none."""
    for name in _ALONE:
        if getattr(training, name):
            return name
    if training.clip is not None and training.clip != math.inf:
        return "clip"  # by the norm of all gradients together
    return "optimizer" if training.optimizer == "adamw8bit" else ""


def stackable(models: Sequence[nn.Module], ask: Ask, batch: Batch) -> bool:
    """Whether a stack of the models answers a batch as each does alone, to 1e-4 of the largest answer.

    False for models of several shapes or that learn unequal parts, and for what vmap can't run: Python code that
    follows the data. Raises torch's error where memory is out, which says nothing of them.
    """
    shapes = [{n: (one.shape, one.requires_grad) for n, one in _tensors(model).items()} for model in models]
    if any(one != shapes[0] for one in shapes):
        return False
    stack = Stacked(models, ask)
    try:
        with torch.random.fork_rng(devices=[]):
            stack.train()(batch).float().sum().backward()
        stack = Stacked(models, ask).eval()  # the pass has moved running statistics
        with torch.no_grad():
            together = stack(batch)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if devices.is_out_of_memory(error):
            raise
        return False
    with torch.no_grad():
        for number in {0, len(models) - 1}:
            alone = ask(models[number].eval(), devices.move(batch, models[number]))
            if not torch.allclose(together[number], alone, atol=1e-4 * float(alone.abs().max().clamp(min=1e-6))):
                return False
    return True


def count_bytes(model: nn.Module, ask: Ask, batch: Batch) -> int:
    """Bytes of one more model in a stack in training: seven of itself, and what a pass keeps for the way back.

    Seven: the model as it is given, the stack, gradients, two states of an optimiser, and two for what is made on the
    way.
    """
    own = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(model).values()
    }
    kept = dict[int, int]()

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    watch = torch.autograd.graph.saved_tensors_hooks(count, lambda one: one)
    with torch.enable_grad(), evaluating(model), sdpa_kernel(SDPBackend.MATH), watch:
        answer = ask(model, devices.move(batch, model))  # held, for addresses of what is freed are given out anew
    del answer
    return 7 * sum(own.values()) + sum(kept.values())


def adjust_optimizer(training: Training, *, momentum: float, betas: tuple[float, float]) -> MakeOptimizer:
    """The optimiser that `training` names, for stacks: a stack of vectors [K, n] is spared decay as a vector is."""

    def make(groups: Groups) -> torch.optim.Optimizer:
        decay = max(group["weight_decay"] for group in groups)
        parameters = [parameter for group in groups for parameter in group["params"]]
        split = [
            {"params": [one for one in parameters if one.dim() > 2], "weight_decay": decay},
            {"params": [one for one in parameters if one.dim() <= 2], "weight_decay": 0.0},
        ]
        split = [group for group in split if group["params"]]
        build = partial(optimizers.make_optimizer, lr=training.number("lr"), betas=betas, momentum=momentum)
        return build(training.optimizer or "adamw", split, parameters[0].device)

    return make
