"""A matrix product for compiled networks: the innermost kernel of Inductor's C++ template.

Inductor keeps the sums of a block in an array that its lambdas refer to. GCC computes in registers,
but writes the array back at every step, which takes twice as long as the multiplications
(GCC 12, checked in its assembly). Here the sums are variables of their own.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

# Vector registers of the instruction sets, and multiplications that two units finish while the sum
# of one is under way.
_REGISTERS = {16: 32, 8: 16}
_MOST_ROWS = 16
_IN_FLIGHT = 8

_KERNEL = r"""
typedef float {{kernel_name}}_vector
    __attribute__((vector_size({{lanes * 4}}), aligned(4), may_alias));
{% for rows in range(1, block_m + 1) %}
template <int64_t BLOCK_M, int64_t BLOCK_N, bool accum, bool prefetch,
          std::enable_if_t<BLOCK_M == {{rows}}, int> = 0>
inline void {{kernel_name}}_kernel(
    const float* {{restrict_keyword}} A,
    const float* {{restrict_keyword}} B,
    float* {{restrict_keyword}} C,
    int64_t K,
    int64_t lda,
    int64_t ldb,
    int64_t ldc
) {
    using V = {{kernel_name}}_vector;
    {%- for row in range(rows) %}
    {%- for column in range(columns) %}
    V c{{row}}_{{column}} = {};
    if constexpr (accum)
        c{{row}}_{{column}} = *(const V*)(C + {{row}} * ldc + {{column * lanes}});
    {%- endfor %}
    {%- endfor %}
    for (int64_t k = 0; k < K; ++k) {
        {%- for column in range(columns) %}
        const V b{{column}} = *(const V*)(B + k * ldb + {{column * lanes}});
        {%- endfor %}
        {%- for row in range(rows) %}
        const float a{{row}} = A[{{row}} * lda + k];
        {%- for column in range(columns) %}
        c{{row}}_{{column}} += a{{row}} * b{{column}};
        {%- endfor %}
        {%- endfor %}
    }
    {%- for row in range(rows) %}
    {%- for column in range(columns) %}
    *(V*)(C + {{row}} * ldc + {{column * lanes}}) = c{{row}}_{{column}};
    {%- endfor %}
    {%- endfor %}
}
{% endfor %}
"""


def blocks(lanes: int) -> list[tuple[int, int]]:
    """Return the rows and vectors of columns whose sums fit into the registers."""
    return [
        (rows, columns)
        for columns in (1, 2, 3, 4)
        for rows in range(4, _MOST_ROWS + 1)
        # The row's number may come from memory, the columns' may not.
        if rows * columns + columns < _REGISTERS[lanes]
    ]


def steps(m: int, n: int, threads: int, rows: int, columns: int, lanes: int) -> float:
    """Return how many steps the slowest thread takes for each number that is summed over.

    In a step two multiplications of vectors start, or two vectors are loaded.

    Args:
        m, n: of the product.
        threads: that share it as Inductor has them share it: in squares.
        rows, columns: computed at a time; columns in vectors.
        lanes: of a vector.
    """
    width = columns * lanes
    high, wide = math.ceil(m / rows), math.ceil(n / width)
    shares = []
    for across in range(threads, 0, -1):
        if threads % across == 0 and wide >= across and high >= threads // across:
            share = math.ceil(high / (threads // across)), math.ceil(wide / across)
            shares.append((share[0] * rows + share[1] * width, -across, share))
    blocks_high, blocks_wide = min(shares)[2] if shares else (high, wide)

    def block(height: int) -> float:
        return max(height * columns, height + columns, _IN_FLIGHT) / 2

    rest = m - (high - 1) * rows if blocks_high == high else rows
    return blocks_wide * ((blocks_high - 1) * block(rows) + block(rest))


def best_block(m: int, n: int, threads: int, lanes: int) -> tuple[int, int]:
    """Return the rows and vectors of columns to compute a product of this size in."""

    def cost(block: tuple[int, int]) -> tuple[float, int]:
        rows, columns = block
        found = steps(m, n, threads, rows, columns, lanes)
        # What is no whole number of blocks wide goes through memory once more.
        found *= 1.02 if n % (columns * lanes) else 1.0
        return found, -rows * columns

    return min(blocks(lanes), key=cost)


def _is_best(config: Any, m: Any, n: Any, k: Any, alpha: Any, num_threads: int, **_: Any) -> bool:
    """Return whether this is the block to compute the product in; Inductor asks for each."""
    from torch._inductor.cpu_vec_isa import VecAVX512

    lanes = 16 if config.vec_isa_cls is VecAVX512 else 8
    rows, columns = best_block(int(m), int(n), num_threads, lanes)
    block = config.register_blocking
    return bool((block.block_m, block.block_n) == (rows, columns * lanes))


@contextlib.contextmanager
def own_products() -> Iterator[None]:
    """Have Inductor compute float32 products on x86 like this; elsewhere change nothing.

    These are inner parts of PyTorch. Where a version has others, its own kernels are used.
    """
    try:
        import torch._inductor.compile_fx  # in any other order the next is circular
        from torch._inductor.codegen import cpp_micro_gemm as inductor
        from torch._inductor.codegen.common import KernelTemplate
        from torch._inductor.cpu_vec_isa import VecAVX2, VecAVX512, pick_vec_isa

        registry, stock = inductor.micro_gemm_configs, inductor.CppMicroGemmFP32Vec
        entry = stock.TEMPLATE_ENTRY
    except (ImportError, AttributeError):
        yield
        return
    if sys.platform == "win32":
        yield
        return

    class Product(stock):  # type: ignore[misc, valid-type]
        def codegen_define(self, kernel: Any) -> str:
            """Return the kernel's C++."""
            if self.trans_b or self.tail_n or self.alpha != 1:
                found: str = super().codegen_define(kernel)
                return found
            block = self.register_blocking
            lanes = 16 if isinstance(pick_vec_isa(), VecAVX512) else 8
            options = {
                "declare_kernel": self.get_kernel_declaration(),
                "kernel": kernel,
                "block_m": block.block_m,
                "block_n": block.block_n,
                "block_k": block.block_k,
                "trans_b": False,
                "tail_n": False,
                "lanes": lanes,
                "columns": block.block_n // lanes,
                **self.get_common_options(),
            }
            text = _KERNEL + entry
            defined: str = KernelTemplate._template_from_string(text).render(options)
            return defined

    ours = []
    for lanes, isa in ((16, VecAVX512), (8, VecAVX2)):
        sizes = [(rows, columns * lanes, 1) for rows, columns in blocks(lanes)]
        ours += inductor.generate_gemm_config(
            isa, sizes, input_dtype=torch.float, extra_check=_is_best
        )
    before = dict(registry)
    try:
        registry[stock] = [
            config
            for config in before[stock]
            if config.input_dtype != torch.float or config.vec_isa_cls not in (VecAVX512, VecAVX2)
        ]
        registry[Product] = ours
        yield
    finally:
        registry.clear()
        registry.update(before)
