"""The cffi module built from csrc; its own types are declared in csrc/*.h."""

from typing import Any

ffi: Any
lib: Any
