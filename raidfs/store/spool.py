"""The number of the file in which a stream is kept while it comes in (fs/receive.py).

It has no name, as a file that was removed while open, but stays over mounts until the stream is
complete or given up. Its number is above all that are ever handed out, and no stream may hold it.
"""

from __future__ import annotations

from .past import FIRST_VIEW

SPOOL_INO = FIRST_VIEW - 1
