"""Code in an interpreter that has never seen secateur, without paying seconds of imports for each.

One such interpreter is started on first use; it imports torch and the part of transformers that loads models, and forks
for each piece of code. secateur can't be imported there.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["run_without_secateur"]

SERVER = """
import json, os, signal, sys, traceback

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "secateur":
            raise ImportError("secateur is not here")

sys.meta_path.insert(0, Guard())
import torch
import safetensors.torch
import torch.export
import transformers.models.llama.modeling_llama
torch.set_num_threads(1)
for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, path in ((1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["-c", *asked["arguments"]]
        os.chdir(asked["folder"])
        code = 1
        try:
            exec(compile(asked["code"], "<code>", "exec"), {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def run_without_secateur(code: str, folder: Path, *arguments: str) -> str:
    """What the code prints that runs in `folder`, `arguments` being its `sys.argv[1:]`; fails where the code does."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place, name) for name in ("out", "err"))
        asked = {"code": code, "folder": str(folder), "arguments": arguments, "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        assert server.stdout.readline() == "0\n", err.read_text()[-3000:]
        return out.read_text()


@functools.cache
def _server() -> subprocess.Popen[str]:
    home = tempfile.TemporaryDirectory()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": home.name, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def end() -> None:
        server.kill()
        server.wait()
        home.cleanup()

    atexit.register(end)
    return server
