"""What setup.cfg has no words for: C++ for optimised networks, which do without where it fails.

Everything else is in setup.cfg.
"""

import platform
import sys

from setuptools import Extension, setup

# For each kind of CPU a library of its own; movinet_port/fast/extension.py chooses one.
FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}

# GCC keeps what it has loaded for a later pixel, in more registers than there are: 15 % slower.
REGISTERS = ["-fno-predictive-commoning", "-fno-tree-pre", "-fno-gcse"]

here = sys.platform == "linux" and platform.machine() == "x86_64"
setup(
    ext_modules=[
        Extension(
            f"movinet_port.fast._{kind}",
            ["movinet_port/fast/extension.cpp"],
            depends=["movinet_port/fast/frame.cpp", "movinet_port/fast/clip.cpp"],
            extra_compile_args=["-std=gnu++17", "-O2", "-g0", *REGISTERS, "-fopenmp", *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for kind, flags in FLAGS.items()
        if here
    ]
)
