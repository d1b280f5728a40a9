"""What setup.cfg has no words for: C++ for optimised networks, which do without where it fails.

Everything else is in setup.cfg. The C++ knows nothing of Python: it is read by ctypes, so that one
wheel is for every Python on a kind of machine.
"""

import os
import platform
import sys
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

# For each kind of CPU a library of its own; movinet_port/fast/library.py chooses one.
FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}

# GCC keeps what it has loaded for a later pixel, in more registers than there are: 15 % slower.
REGISTERS = ["-fno-predictive-commoning", "-fno-tree-pre", "-fno-gcse"]


class Build(build_ext):
    """Compiles libraries."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return a name without the version of Python that it is built by."""
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        """Compile a library; one that lies in place and is newer than its sources is taken."""
        there, to = self.get_ext_filename(ext.name), self.get_ext_fullpath(ext.name)
        if self.force or newer_group([*ext.sources, *ext.depends], there):
            return super().build_extension(ext)
        self.mkpath(os.path.dirname(to))
        self.copy_file(there, to)


class Wheel(bdist_wheel):
    """Packs a wheel."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return that it is for every Python; with libraries, on one kind of machine."""
        return "py3", "none", super().get_tag()[2]


here = sys.platform == "linux" and platform.machine() == "x86_64"
setup(
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            f"movinet_port.fast._{kind}",
            ["movinet_port/fast/extension.cpp"],
            depends=["setup.py", *glob("movinet_port/fast/*.cpp"), *glob("movinet_port/fast/*.h")],
            extra_compile_args=["-std=gnu++17", "-O2", "-g0", *REGISTERS, "-fopenmp", *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for kind, flags in FLAGS.items()
        if here
    ],
)
