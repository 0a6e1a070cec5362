"""raidfs: a FUSE filesystem over a RAID array of directories, image files and block devices.

The floors of the house, what each may rely on, and the promises are in docs/ARCHITECTURE.md.
"""

__version__ = "0.1.0"
