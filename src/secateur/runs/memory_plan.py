"""Peak memory of scoring, cutting and training a language model, before any of it: from its configuration alone.

The very forward and backward passes are run on tensors without memory (`measure.memory.simulate`), so that activations
of any architecture are counted and not guessed; weights, moments of the optimiser and copies are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from secateur._utils.modes import default_dtype
from secateur.errors import InputError, SecateurError, UnsupportedError
from secateur.formats import expert_tensors
from secateur.measure import memory
from secateur.recover.quantization import quantise
from secateur.recover.training import objectives
from secateur.runs import keywords, memory_steps, places
from secateur.score import gradient
from secateur.subjects import Moe, Transformer
from secateur.subjects.network import parts as network_parts
from secateur.subjects.network.pretrained import find_gguf
from secateur.subjects.network.recording import Example
from secateur.subjects.network.traced import Traced
from secateur.subjects.transformer import loading, parts
from secateur.subjects.transformer.loading import check_outline, open_outline
from secateur.vocabulary import Training

__all__ = [
    "SCORED", "MemoryPlan", "adapt", "describe", "estimate", "outline", "plan_memory",
    "with_even_experts",
]  # fmt: skip

SCORED = 16
"""Sequences of a batch that recipes score on."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes at the highest point of each stage, the model's own weights included.

    score: a forward pass over 16 sequences. gradients: the same with a loss and its gradients, reduced one by one, as
    the taylor scores take them. cut: the original and the student that is cut from it. training: the student in
    float32, its gradients, what the optimiser keeps of it and an average where there is one, and the original, which
    teaches it; activations in bfloat16 on a card, unless training says otherwise. Of a training of adapters (lora,
    dora) gradients, and what the optimiser keeps, are of the adapters alone; with lora_bits, weights beside them take a
    byte, in which torchao holds integers of 4 bits, too.
    """

    model: str
    params: float
    weights: float
    score: float
    gradients: float
    cut: float
    training: float

    def stages(self) -> dict[str, float]:
        """Stage -> bytes."""
        return {name: getattr(self, name) for name in ("weights", "score", "gradients", "cut", "training")}


def estimate(
    model: str | Path,
    *,
    share: float = 0.5,
    batch: int = 16,
    length: int = 128,
    device: str = "cpu",
    training: str = "",
    part: str | None = None,
) -> MemoryPlan:
    """What scoring, cutting and training the model at `model` take, from its config.json: no weights are read.

    Args:
        model: a folder that holds a config.json, with weights or without, the file itself, a GGUF file, or a Hub id.
        share: of the parameters that stay.
        batch: sequences of a training step's micro-batch.
        length: tokens per sequence.
        device: where it would run, such as cuda.
        training: what else it is trained with, such as optimizer=adamw8bit,checkpointing=true,ema=0.999.
        part: of models of several, such as those that read images, too, the one that is pruned: language_model or
            vision_tower, say. The weights of the others stay in memory beside it. What reads no texts gets one image or
            sound at a time.
    """
    how = Training().merge(training)
    if not 0.0 < share <= 1.0:
        raise InputError(f"share={share:g} is not above 0 and at most 1: give the share of parameters that stays")
    keywords.check_counts(batch=batch, length=length)
    try:
        torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={device!r} is no device of torch: give cpu or cuda") from error
    if find_gguf(model) is None:
        places.refuse_other(model)
    name = Path(model).parent.name if Path(model).name == "config.json" else Path(model).name
    make: Callable[[], Transformer] = partial(open_outline, model)
    beside = 0.0
    if part is None:
        check_outline(model)
    elif not parts.reads_tokens(model, part):
        return _plan_part(loading.outline_any(model), part, f"{part} of {name}", share, device, how)
    else:
        make, beside = parts.outline_part(model, part)
        name = f"{part} of {name}"
    plan = plan_memory(make, name, share=share, batch=batch, length=length, device=device, training=how)
    weights, score, gradients, cut, trained = (value + beside for value in plan.stages().values())
    return MemoryPlan(name, plan.params, weights, score, gradients, cut, trained)


def _plan_part(whole: PreTrainedModel, part: str, name: str, share: float, device: str, how: Training) -> MemoryPlan:
    """The plan for a part of `whole`, which has no weights, that is cut as a network."""
    path = network_parts.find_path(whole, part)
    for example in network_parts.list_inputs(Traced(whole, Example()), path):
        module = whole.get_submodule(path)
        try:
            inputs = (example.args, dict(example.kwargs))
            plan = memory_steps.plan_network(module, inputs, how, device, share=share)
        except Exception:  # whatever a class says against inputs of another layout
            continue
        params, own = _count(module)
        beside = _count(whole)[1] - own
        return MemoryPlan(name, params, **{stage: value + beside for stage, value in plan.items()})
    raise UnsupportedError(
        f"the memory of {name} can't be planned: its passes need values; measure it with `secateur measure`"
    )


def plan_memory(
    make: Callable[[], Transformer],
    name: str,
    *,
    share: float,
    batch: int,
    length: int,
    device: str = "cpu",
    training: Training = Training(),
    asks: bool = True,
) -> MemoryPlan:
    """The plan for the model that `make` gives when it is called in `memory.simulate`; see `estimate`.

    asks: whether training asks the original, which is held beside the student in any case; else a task is learned.
    Raises `UnsupportedError` for a model whose forward pass can't be run without values.
    """
    try:
        return _plan_memory(make, name, share=share, batch=batch, length=length, device=device, how=training, asks=asks)
    except SecateurError:
        raise
    except Exception as error:
        raise UnsupportedError(
            f"the memory of {name} can't be planned: its passes need values ({type(error).__name__}); measure it with "
            "`secateur measure`"
        ) from error


def _plan_memory(
    make: Callable[[], Transformer],
    name: str,
    *,
    share: float,
    batch: int,
    length: int,
    device: str,
    how: Training,
    asks: bool,
) -> MemoryPlan:
    with memory.simulate() as ledger:
        subject = with_even_experts(make())
        params, weights = _count(subject.model)
        own = [*subject.model.parameters(), *subject.model.buffers()]
        score = memory_steps.find_peak(ledger, own, lambda: _forward(subject, SCORED, length))
        gradients = memory_steps.find_peak(ledger, own, lambda: _score_by_gradients(subject, length))
    with memory.simulate() as ledger:
        teacher, student = with_even_experts(make()), with_even_experts(make())
        if how.lora or how.dora:
            adapt(student.model, how.lora or how.whole("dora"), dora=how.dora is not None, bits=how.adapter_bits)
        _widen(student.model)
        trained = [parameter for parameter in student.model.parameters() if parameter.requires_grad]
        beside = memory_steps.bytes_beside(how)
        state = [torch.zeros(round(beside * parameter.numel()), dtype=torch.uint8) for parameter in trained]
        held = [
            *student.model.parameters(),
            *student.model.buffers(),
            *teacher.model.parameters(),
            *teacher.model.buffers(),
            *state,
        ]
        with memory_steps.forward_passes(student.model, how, torch.device(device)):
            learn = partial(_learn, student, teacher if asks else None, batch, length)
            training = memory_steps.find_peak(ledger, held, partial(memory_steps.take_step, student.model, learn, how))
        learned = sum(parameter.numel() for parameter in trained)
        frozen = _count(student.model)[1] - 4.0 * learned  # bytes of weights beside which adapters are trained
    kept = frozen + (8.0 + beside) * learned  # float32 weights and gradients, and what stands beside them
    at_once = memory_steps.bytes_at_once(how, device) * learned
    left = share if asks else 1.0  # what asks no teacher is tuned whole, and cut behind that
    step = weights + (kept + at_once) * left
    training = max(training - (1.0 - left) * kept, step)
    score = memory_steps.add_heap("score", score, device)
    training = memory_steps.add_heap("training", training, device)
    return MemoryPlan(name, params, weights, score, gradients, weights * (1.0 + share), training)


def outline(subject: Transformer) -> Transformer:
    """A subject of the same configuration and number type, made anew; in `memory.simulate` it takes no memory."""
    with no_init_weights(), default_dtype(subject.model.dtype):
        model = type(subject.model)(subject.model.config)
        model.tie_weights()
    return type(subject)(model.eval(), subject.family)


def describe(plan: MemoryPlan, device: str = "cpu") -> str:
    """A line on the plan beside what the device has."""
    return memory_steps.describe(plan.stages(), device)


def _count(model: nn.Module) -> tuple[float, float]:
    parameters = list(model.parameters())
    return float(sum(p.numel() for p in parameters)), float(sum(p.numel() * p.element_size() for p in parameters))


def _widen(model: nn.Module) -> None:
    """Have all trained parameters in float32; tied ones stay tied."""
    wide: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if parameter not in wide:
                wide[parameter] = nn.Parameter(parameter.detach().float())
            module.register_parameter(name, wide[parameter])


def adapt(model: PreTrainedModel, rank: int, *, dora: bool, bits: int = 0) -> None:
    """What `lora.adapt` adds, in place, and nothing else trained: peft itself can't move tensors without memory.

    Weights in integers of either number of bits take a byte in memory, and a scale beside each row or group.
    """
    head = model.get_output_embeddings()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]
    packed = [weight for weight in model.parameters() if weight.dim() == 3]  # of all experts of a layer
    model.requires_grad_(requires_grad=False)
    for module in linears:
        rows, columns = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
        module.register_forward_hook(_Adapter(module, rank, int(rows), int(columns), dora=dora))
    for module in linears if bits else ():
        if isinstance(module, nn.Linear) and not quantise.unfit(module.in_features, bits):
            _round(module, bits)
    for number, weight in enumerate(packed):
        experts, rows, columns = weight.shape
        model.register_parameter(f"adapters_{number}", nn.Parameter(torch.zeros(experts, rank, rows + columns)))


def _round(linear: nn.Linear, bits: int) -> None:
    """Have the weight of a linear in integers, in place, of which each pass makes floats: see `quantise.multiply`."""
    rows, columns, dtype = linear.out_features, linear.in_features, linear.weight.dtype
    groups = columns // quantise.GROUP if bits == 4 else 1
    held = {
        "weight": torch.zeros(rows, columns, dtype=torch.int8),
        "scale": torch.zeros(rows, groups, dtype=dtype),
        "zero_point": torch.zeros(rows, groups, dtype=torch.int8),
    }
    for name, tensor in held.items():
        linear.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(x: Tensor) -> Tensor:
        return quantise.multiply(x, lambda: linear.weight.to(dtype), linear.bias)

    linear.forward = forward  # type: ignore[method-assign, assignment]


class _Adapter:
    """A linear's output with the branch B A x beside it, and under DoRA with rows of a learned length."""

    def __init__(self, module: nn.Linear | Conv1D, rank: int, rows: int, columns: int, *, dora: bool) -> None:
        self.down, self.up = nn.Parameter(torch.zeros(rank, columns)), nn.Parameter(torch.zeros(rows, rank))
        self.lengths = nn.Parameter(torch.zeros(rows)) if dora else None
        for name, parameter in (("down", self.down), ("up", self.up), ("lengths", self.lengths)):
            module.register_parameter(f"adapter_{name}", parameter)

    def __call__(self, module: nn.Linear | Conv1D, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        total: Tensor = out + nn.functional.linear(
            nn.functional.linear(given[0].to(self.down.dtype), self.down), self.up
        )
        if self.lengths is None:
            return total.to(out.dtype)
        with torch.no_grad():
            weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
            lengths: Tensor = torch.linalg.vector_norm(weight.float() + self.up @ self.down, dim=1)
        return (self.lengths / lengths * total).to(out.dtype)


def _batch(subject: Transformer, batch: int, length: int) -> dict[str, Tensor]:
    tokens = torch.zeros(batch, length, dtype=torch.long)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _forward(subject: Transformer, batch: int, length: int) -> None:
    with torch.no_grad():
        subject.forward(_batch(subject, batch, length))


def _score_by_gradients(subject: Transformer, length: int) -> None:
    weights = [p for name, p in subject.model.named_parameters() if name.endswith(("weight", "_proj"))]

    def loss(item: Mapping[str, Tensor]) -> Tensor:
        prediction = subject.forward(item).prediction
        if not subject.causal:
            return prediction.float().square().mean()
        return objectives.task_loss(prediction, item, objectives.count(item), causal=True)

    list(gradient.reduce_gradients(loss, subject.model, [_batch(subject, SCORED, length)], weights, lambda w, g: None))


def _learn(student: Transformer, teacher: Transformer | None, batch: int, length: int) -> Tensor:
    forward, task = (None, 1.0) if teacher is None else (teacher.forward, 0.0)
    objective = objectives.distil(student.forward, forward, output=student.output, task=task, fused=True)
    item = _batch(student, batch, length)
    loss: Tensor = objective(item, objectives.count(item))[0]
    return loss


def with_even_experts(subject: Transformer) -> Transformer:
    """`subject`, where experts run as one of them on the rows of all: without values, no token can choose."""
    if isinstance(subject, Moe):
        for mixture in subject.mixtures().values():
            mixture.experts.forward = _OneForAll(mixture.experts)
    return subject


class _OneForAll:
    """Forward pass of packed experts where every row passes the first: the same tensors as of evenly spread tokens."""

    def __init__(self, experts: nn.Module) -> None:
        self.experts = experts

    def __call__(self, states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        rows = states.repeat_interleave(chosen.shape[-1], 0)
        inner = expert_tensors.run_first(self.experts, 0, rows)
        out = nn.functional.linear(inner, expert_tensors.matrix(self.experts, "down_proj")[0])
        weighted = out * shares.reshape(-1, 1).to(out.dtype)
        summed: Tensor = weighted.unflatten(0, (-1, chosen.shape[-1])).sum(1)
        return summed
