"""What pyproject.toml can't say: the C extension is described by csrc/ffi_build.py."""

from setuptools import setup

setup(cffi_modules=["csrc/ffi_build.py:ffibuilder"])
