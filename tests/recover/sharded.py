"""Steps under moving masks, alone or sharded by FSDP2."""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from recover.students import Batches, llama, logit_objective
from secateur.recover.sparsity import adaptive
from secateur.recover.training import objectives
from secateur.select.pattern import n_of_m


def run(*, sharded=False):
    """The student's weights and flip rates after six steps; every process sees the same batches."""
    student, teacher, batches = llama(0).double(), llama(1).double(), Batches()
    names = [name for name, _ in student.named_parameters() if name.endswith("proj.weight")]
    objective = logit_objective(student, teacher)
    choose = dict.fromkeys(names, lambda weight: n_of_m(weight.abs(), 2, 4))
    with adaptive.moving(student, choose, steps=6, refresh=2) as masks:
        if sharded:
            mesh = torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
            for layer in (*student.model.layers, student):
                fully_shard(layer, mesh=mesh)
        optimizer = masks.adamw(decay=1e-3, ramp=2)([{"params": list(student.parameters()), "lr": 1e-2}])
        for step in range(6):
            loss, _ = objective(batches[step], objectives.count(batches[step]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in student.named_parameters()}
    return {"flips": masks.flips} | {name: tensor.detach().clone() for name, tensor in whole.items()}


def write(out: Path) -> None:
    """What one of several processes finds; the first writes it."""
    torch.distributed.init_process_group("gloo")
    tensors = run(sharded=True)
    if int(os.environ["RANK"]) == 0:
        save_file(tensors, out)
    torch.distributed.destroy_process_group()
