"""Free blocks between held ones go back to the system."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import gc, torch, psutil
from secateur._utils import allocator as heap
del (big := [torch.ones(2**22)])[:]  # 16 MiB: from here on blocks up to that size lie on the heap
blocks = [torch.ones(2**18) for _ in range(128)]  # 1 MiB each
del blocks[:-1:2]
before = psutil.Process().memory_info().rss
heap.release_memory()
print((before - psutil.Process().memory_info().rss) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library is asked to")
def test_free_blocks_between_held_ones_go_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 48  # of 64
