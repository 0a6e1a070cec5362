"""A name moved within a snapshot: there it is, and nowhere else does anything differ."""

import pytest
from volumes import VolumeCase
