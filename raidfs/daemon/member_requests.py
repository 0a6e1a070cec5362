"""What is asked of a volume's members and jobs, and what is answered.

See members.py and job_service.py for what is done about it.

Members are named by *words*: a number, a path, or the last part of a path if only one has it.
Relative paths are those of whoever asks, so `cwd` comes with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import msgspec

from raidfs.daemon.control import Request
from raidfs.daemon.jobs import Job
from raidfs.daemon.status import VolumeStatus
from raidfs.errors import UsageError
from raidfs.raid.label import MemberEntry


class MemberAnswer(msgspec.Struct, frozen=True):
    """`said`: what was done, or would be, sentence by sentence; `warned`: what to think of before.
    `done` false: nothing was changed (yet, or ever). `columns`, `bytes`: that are to be made anew
    for it, in the background. `copied_bytes`, `copy_bytes`: of metadata, while that is under way:
    then other answers follow. `ids`: the members that it is about, `jobs`: those that it began.
    `usable_bytes`: of the volume, before and after."""

    verb: str
    done: bool
    said: list[str] = []
    warned: list[str] = []
    ids: list[int] = []
    columns: int = 0
    bytes: int = 0
    usable_bytes: tuple[int, int] | None = None
    copied_bytes: int = 0
    copy_bytes: int = 0
    jobs: list[str] = []
    status: VolumeStatus | None = None
    version: int = 1


class MemberRequest(Request, frozen=True):
    """Answered with MemberAnswers. `dry_run`: only what it would do; refused as it would be."""

    ANSWER: ClassVar[Any] = MemberAnswer
    dry_run: bool = False
    cwd: str = "/"

    def changes(self) -> bool:
        return not self.dry_run


class MemberAddRequest(MemberRequest, frozen=True, tag="member-add"):
    """`size_bytes`: room to take on each, 0: all there is. `force`: over what looks like data."""

    paths: tuple[str, ...] = ()
    spare: bool = False
    domain: str = ""
    size_bytes: int = 0
    force: bool = False


class MemberRemoveRequest(MemberRequest, frozen=True, tag="member-remove"):
    """What is on them goes elsewhere; then they are no members any more."""

    members: tuple[str, ...] = ()


class MemberReplaceRequest(MemberRequest, frozen=True, tag="member-replace"):
    """`pairs`: OLD, a member, and NEW, a spare or a place for a new member."""

    pairs: tuple[tuple[str, str], ...] = ()
    size_bytes: int = 0
    force: bool = False


class MemberFailRequest(MemberRequest, frozen=True, tag="member-fail"):
    """It is lost from now on. `offline`: it is expected back, so nothing is made anew elsewhere."""

    members: tuple[str, ...] = ()
    offline: bool = False
    reason: str = ""


class MemberOnlineRequest(MemberRequest, frozen=True, tag="member-online"):
    """One that was lost is back. `path`: where it is now, if not where it was."""

    member: str = ""
    path: str = ""


class MemberSpareRequest(MemberRequest, frozen=True, tag="member-spare"):
    """A member without columns becomes a spare, a place a member that is one. `data`: a spare
    becomes an ordinary member."""

    word: str = ""
    data: bool = False
    domain: str = ""
    size_bytes: int = 0
    force: bool = False


class MemberEvacuateRequest(MemberRequest, frozen=True, tag="member-evacuate"):
    """They become empty, and stay members. `cancel`: they are ordinary members again, also those
    that were to be removed or replaced."""

    members: tuple[str, ...] = ()
    cancel: bool = False


class MemberDomainRequest(MemberRequest, frozen=True, tag="member-domain"):
    """Members of one failure domain fail together. Empty: it is in none."""

    member: str = ""
    name: str = ""


class MemberPolicyRequest(MemberRequest, frozen=True, tag="member-policy"):
    """What is done when a member is lost and nobody was named to replace it; empty: only told."""

    rebuild: Literal["", "auto", "spare", "manual"] = ""

    def changes(self) -> bool:
        return bool(self.rebuild) and not self.dry_run


# -- jobs -----------------------------------------------------------------------------------------


class JobsAnswer(msgspec.Struct, frozen=True):
    """`said`: of a command. `more`: it is told again (`wait`)."""

    jobs: list[Job] = []
    said: list[str] = []
    more: bool = False
    version: int = 1


class JobRequest(Request, frozen=True):
    """`job`: the id of one, or the kind of some; empty: all."""

    ANSWER: ClassVar[Any] = JobsAnswer
    job: str = ""


class JobListRequest(JobRequest, frozen=True, tag="job-list"):
    """All that there are, also those that have ended since the mount."""


class JobWaitRequest(JobRequest, frozen=True, tag="job-wait"):
    """Answered again and again until none of those that there are now goes on, or after so many
    seconds (0: however long)."""

    timeout_s: float = 0.0

    def changes(self) -> bool:
        return True  # on a volume that isn't mounted, they are worked on meanwhile


class JobPauseRequest(JobRequest, frozen=True, tag="job-pause"):
    """They stand still until `resume`, also after the next mount."""

    def changes(self) -> bool:
        return True


class JobResumeRequest(JobRequest, frozen=True, tag="job-resume"):
    """They go on."""

    def changes(self) -> bool:
        return True


class JobLimitRequest(JobRequest, frozen=True, tag="job-limit"):
    """No faster than so many bytes a second, from now on; 0: as fast as users leave room for."""

    rate_bytes_s: int = 0

    def changes(self) -> bool:
        return True


# -- words ----------------------------------------------------------------------------------------


def find_entry(entries: Iterable[MemberEntry], word: str, cwd: str = "/") -> MemberEntry | None:
    """The member that a word names; None: no member. UsageError: several have that last part."""
    entries = list(entries)
    if word.isdecimal() and word.isascii():
        for entry in entries:
            if entry.id == int(word):
                return entry
    if not word:
        return None
    full = os.path.normpath(os.path.join(cwd, word))
    for entry in entries:
        if entry.path == full:
            return entry
    real = os.path.realpath(full)
    for entry in entries:
        if os.path.realpath(entry.path) == real:
            return entry
    alike = [entry for entry in entries if os.path.basename(entry.path) == word]
    if len(alike) > 1:
        several = " and ".join(f"{entry.id} {entry.path}" for entry in alike)
        raise UsageError(f"{word} may mean members {several}; name one by its number or whole path")
    return alike[0] if alike else None


def require_entry(entries: Iterable[MemberEntry], word: str, cwd: str = "/") -> MemberEntry:
    """UsageError: it names none."""
    entries = list(entries)
    found = find_entry(entries, word, cwd)
    if found is None:
        listing = ", ".join(f"{entry.id} {entry.path}" for entry in entries)
        raise UsageError(f"{word} is no member of this volume; its members are: {listing}")
    return found


def require_entries(
    entries: Iterable[MemberEntry], words: Iterable[str], cwd: str = "/"
) -> list[MemberEntry]:
    """At least one, and each once."""
    entries, found = list(entries), list[MemberEntry]()
    for word in words:
        one = require_entry(entries, word, cwd)
        if one in found:
            raise UsageError(f"member {one.id} ({one.path}) was named twice")
        found.append(one)
    if not found:
        raise UsageError("name at least one member, by its number or path")
    return found
