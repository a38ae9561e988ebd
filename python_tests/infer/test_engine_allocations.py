"""The engine's stages ask for no memory: every allocation of a process is counted."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COUNTER = """
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
static long count;
long allocations(void) { return count; }
void *malloc(size_t n) { __sync_fetch_and_add(&count, 1); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { __sync_fetch_and_add(&count, 1); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) {
  __sync_fetch_and_add(&count, 1);
  return __libc_realloc(p, n);
}
void *aligned_alloc(size_t a, size_t n) {
  __sync_fetch_and_add(&count, 1);
  return __libc_memalign(a, n);
}
"""
PROGRAM = """
import ctypes, importlib.util, sys, torch
for name in ("packed_reference", "scenes"):
    spec = importlib.util.spec_from_file_location(name, f"{sys.argv[1]}/{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
from vlakern.ops._native import view
allocations = ctypes.CDLL(None).allocations
allocations.restype = ctypes.c_long
scene = sys.modules["scenes"].Scene("metaworld-small", solver="heun")
for dtype in ("fp32", "bf16", "int8"):
    engine, batch, index = scene.engine(dtype, threads=2), scene.batch(), torch.arange(4).int()
    engine.take_pixels(batch.pixels_V3SS)
    noise, cu, kv = scene.noise(), batch.cu_prefix.int(), engine.kv
    given = [view(one) for one in (noise, index, cu, kv, None, None, None)]
    found = []
    for _ in range(8):
        before = allocations()
        engine._engine.vision(scene.views)
        between = allocations()
        engine.prefix(batch, scene.views)
        begin = allocations()
        engine._engine.integrate(*given)
        found.append(between - before + allocations() - begin)
    print(min(found))
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or shutil.which("cc") is None,
    reason="counts glibc's allocations with a compiled library",
)
def test_vision_and_integration_allocate_nothing(tmp_path: Path) -> None:
    """The least of eight calls: other threads of the process may allocate meanwhile."""
    source, library = tmp_path / "counter.c", tmp_path / "counter.so"
    source.write_text(COUNTER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, Path(__file__).parent],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.split() == ["0", "0", "0"], found.stderr[-2000:]
