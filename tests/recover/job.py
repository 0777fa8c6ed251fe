"""A training run, in a process of its own too: `python job.py OUT CHECKPOINT STEPS PAUSE ACCUMULATE [KILOBYTES]`."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from recover.students import Batches, bert, token_objective
from secateur.errors import SecateurError
from secateur.recover.training import loop


def run(checkpoint=None, *, steps, pause=0.0, accumulate=1, double=False):
    """The student's weights, loss curve and tokens after distilling one BERT with dropout from another."""
    student, teacher = bert(1), bert(2)
    if double:
        student, teacher = student.double(), teacher.double()
    inner = token_objective(student, teacher)

    def objective(batch, totals):
        time.sleep(pause)
        return inner(batch, totals)

    options = {"accumulate": accumulate, "checkpoint": checkpoint, "every": 3}
    done = loop.train(student, Batches(), objective, steps=steps, lr=1e-3, **options)
    losses = torch.tensor([value for _, value in done.losses], dtype=torch.float64)
    return {**student.state_dict(), "losses": losses, "tokens": torch.tensor(done.tokens)}


def main(out, checkpoint, steps, pause, accumulate, kilobytes=None):
    torch.set_num_threads(1)
    if kilobytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(kilobytes) * 1024,) * 2)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        options = {"pause": float(pause), "accumulate": int(accumulate), "double": "DOUBLE" in os.environ}
        tensors = run(checkpoint, steps=int(steps), **options)
    except SecateurError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    if int(os.environ.get("RANK", 0)) == 0:
        save_file(tensors, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
