"""Builds the native CPU backend; everything else is declared in pyproject.toml.

The library is plain C loaded by ctypes, so it depends neither on the Python version nor on torch's, and one wheel per
platform serves all. The environment variable CYCLOFOCAL_NATIVE says what happens without a working C compiler:

* ``optional`` (the default): the build continues without the library, and the plain kernels serve;
* ``require``: the build fails, so that no release for a platform lacks the library;
* ``skip``: the library is not built, and the wheel is for any platform.
"""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

COMPILE = [
    "-O2",
    "-std=c++17",
    "-g0",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-fno-trapping-math",
]


NATIVE = os.environ.get("CYCLOFOCAL_NATIVE", "optional")
if NATIVE not in ("optional", "require", "skip"):
    sys.exit(f"CYCLOFOCAL_NATIVE is {NATIVE!r}; it must be optional (the default), require or skip")


class build_library(build_ext):  # noqa: N801
    """Compile with the C compiler's driver, so that CC alone decides and no C++ runtime is needed."""

    def build_extension(self, ext: Extension) -> None:
        objects = self.compiler.compile(ext.sources, output_dir=self.build_temp, extra_postargs=COMPILE)
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), libraries=ext.libraries, build_temp=self.build_temp
        )

    def build_extensions(self) -> None:
        # setuptools prefers CXX for a .cpp file.
        for kind in ("compiler_so", "linker_so"):
            if hasattr(self.compiler, f"{kind}_cxx"):
                setattr(self.compiler, f"{kind}_cxx", getattr(self.compiler, kind))
        super().build_extensions()

    def get_ext_filename(self, ext_name: str) -> str:
        return os.path.join(*ext_name.split(".")) + ".so"  # no tag of a Python version


class platform_wheel(bdist_wheel):  # noqa: N801
    """py3-none-PLATFORM, or py3-none-any without the library: any Python 3, no Python ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


native = Extension(
    "cyclofocal.kernels._native",
    ["src/cyclofocal/kernels/native.cpp"],
    libraries=["m"] if sys.platform != "win32" else [],
    language="c++",
    optional=NATIVE == "optional",
)
setup(
    ext_modules=[native] if NATIVE != "skip" else [],
    cmdclass={"build_ext": build_library, "bdist_wheel": platform_wheel},
)
