"""Free blocks between held ones go back to the system, but for those that a clock wants to be kept."""

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


PASSES = """
import resource, torch
from secateur._utils import allocator as heap

def fresh():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(3 * 2**22)  # 48 MiB, which glibc maps by itself each time
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

before = fresh()
with heap.keep_memory():
    fresh()
    within = fresh()
print(before, within, fresh())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no other C library is asked to")
def test_what_was_freed_serves_what_comes_next():
    """Else the kernel zeroes fresh pages in every pass, or in none, by what the process did before."""
    done = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, text=True, check=True)
    before, within, after = map(int, done.stdout.split())
    assert within < 0.01 * before
    assert after > 0.9 * before
