"""check, or fsck: reads the metadata and every cell of a volume and lists what is not as promised.

It writes nothing: members are opened read-only, and recovery (the log replayed, later epochs
undone) happens in memory. So what is checked is what the next mount would find.

    volume     labels: both copies of each, equal; every page of every copy of the metadata
    snapshots  their table, holds; the figures told of them against a full count
    tree       names, link counts, parents, attributes, orphans, in the present and in each snapshot
    zones      owners, shares, checksums, zones, slots, live counts: each says what the others say.
               A cell may be in several leaves: that of its owner, and such as share it
    leaves     all versions of all leaves: what they refer to is there and theirs
    events     the log: numbers, kinds and details that can be told, and no more than are to be kept
    cells      every written cell of every column against its CRC; parity against an encode of its
               row by the reference arithmetic; zeros beyond the ends of files (promise 8)

Versions never overlap (promise 6), and each is there because the present or a snapshot sees it, or
because a deleted snapshot is still being swept up. The present and all snapshots are looked at
together (ledger.py): that takes time by the number of versions stored, which is what was changed
between the snapshots, and not by their number times the size of the volume.

A *finding* is a violated promise. A *note* is something that a crash may leave and the next mount
clears (files without a name, columns without a zone), or a member that is known to be lost.

Memory: some hundred bytes per version of an inode or a name, 16 bytes per data cell of the zones in
use, and 4 more where there are snapshots.
"""

from .report import FINDINGS_MAX, Finding, Progress, Report
from .volume import check_assembly, check_volume

__all__ = ["FINDINGS_MAX", "Finding", "Progress", "Report", "check_assembly", "check_volume"]
