"""Check the image for GPUs while it is built: its packages load, and Triton compiles for an H100. Needs no GPU.

Whether kernels compute correctly needs a GPU: `mini-r1 doctor --smoke`.
"""

from importlib.metadata import version

import bitsandbytes
import deepspeed
import jinja2
import matplotlib.figure
import triton
import triton.language as tl
import trl
import vllm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

H100 = GPUTarget("cuda", 90, 32)


@triton.jit
def double(values, n: tl.constexpr):
    """Multiply n float32 in place."""
    place = values + tl.arange(0, n)
    tl.store(place, tl.load(place) * 2)


compiled = triton.compile(ASTSource(fn=double, signature={0: "*fp32"}, constants={1: 64}), target=H100)
assert compiled.asm["cubin"], "Triton made no machine code"
for package in (bitsandbytes, deepspeed, jinja2, matplotlib, trl, vllm):
    print(package.__name__, version(package.__name__))
