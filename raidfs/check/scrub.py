"""What is kept of the last scrub: it can be told, and gone on with."""

from __future__ import annotations

from ..errors import FormatError
from ..store.meta import Meta
from ..store.scrub_record import (
    FILES_MAX,
    FILES_SETTING,
    SETTING,
    decode_files,
    decode_record,
)
from .report import Report


def check_scrub(meta: Meta, report: Report) -> None:
    """Members and zones that it names may have gone since."""
    try:
        record = decode_record(meta.setting(SETTING))
        files = decode_files(meta.setting(FILES_SETTING))
    except FormatError as error:
        report.add("scrub.record", str(error))
        return
    if len(files) > FILES_MAX or (files and record is None):
        report.add("scrub.files", f"{len(files)} files are listed, {FILES_MAX} are allowed")
    if record is None:
        return
    if not 0 <= record.cursor <= meta.next_zone or not 0 <= record.end <= meta.next_zone:
        text = f"it is at zone {record.cursor} of {record.end}, but {meta.next_zone} is the next"
        report.add("scrub.cursor", text)
    for member, figures in record.members.items():
        if figures.healed > figures.bad or figures.left > figures.bad:
            text = f"member {member}: {figures.healed} healed, {figures.left} left of {figures.bad}"
            report.add("scrub.figures", text)
