"""Which members a new zone takes, and how many zones fit onto unequal members.

1. A zone lies on `width` distinct members: those with most free slots. Taking the fullest last is
   what lets unequal members be used up together; `usable_zones` is the number it reaches.
2. Among members equally free a hash of (zone, member) decides, so that with more members than
   width the sets differ from zone to zone, and a rebuild reads from all of them (declustering).
3. Parity lies where the code's placement says: rotated over the members from zone to zone, or
   always on the highest ids ("dedicated"); of pairs, column c and its copy k + c are neighbours.
4. No two columns lie in one failure domain as long as there are `width` domains with room; else as
   few as can be do (orthogonal RAID in the survey: what fails together costs a row one column).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from raidfs.raid.code import Code

_T = TypeVar("_T")
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def choose_members(
    free_slots: Mapping[int, int],
    code: Code,
    zone: int,
    domains: Mapping[int, str] | None = None,
) -> list[int] | None:
    """Member ids by column; None if fewer than `width` members have a free slot. domains: of those
    members that are in one."""
    open_ids = [member for member, free in free_slots.items() if free > 0]
    if len(open_ids) < code.width:
        return None
    open_ids.sort(key=lambda member: (-free_slots[member], _mix(zone, member)))
    chosen = sorted(spread(open_ids, domains or {})[: code.width])
    if code.placement == "dedicated":
        return chosen
    if code.placement == "pairs":
        pairs = _rotated([tuple(chosen[i : i + 2]) for i in range(0, code.width, 2)], zone)
        turn = zone & 1  # reads prefer the first of a pair: take turns
        return [pair[turn] for pair in pairs] + [pair[1 - turn] for pair in pairs]
    return _rotated(chosen, zone)


def spread(members: Sequence[int], domains: Mapping[int, str]) -> list[int]:
    """The same in the order of preference (promise 4): the first of each domain, then each second,
    and so on; among these the order is kept."""
    seen: dict[str, int] = {}
    turns = []
    for at, member in enumerate(members):
        domain = domains.get(member, "")
        turn = seen.get(domain, 0) if domain else 0
        seen[domain] = turn + 1
        turns.append((turn, at, member))
    return [member for _, _, member in sorted(turns)]


def usable_zones(slots: Sequence[int], code: Code) -> int:
    """The most zones that fit: the largest Z with sum(min(slots, Z)) >= Z * width."""
    low, high = 0, sum(slots) // code.width
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(count, middle) for count in slots) >= middle * code.width:
            low = middle
        else:
            high = middle - 1
    return low


def _rotated(items: list[_T], by: int) -> list[_T]:
    by %= len(items)
    return items[by:] + items[:by]


def _mix(zone: int, member: int) -> int:
    """A fixed scrambling (splitmix64's): placement must be the same for the same zone."""
    value = (zone * _GOLDEN + member * 0xD1B54A32D192ED03 + _GOLDEN) & _WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31
