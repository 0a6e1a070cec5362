"""The calls of csrc/pages.h that only C threads make, for tests: results as C returns them."""

from raidfs._native import ffi, lib


def _bases(bases):
    """[(index, bytes, address)] as C wants them, and what must stay alive meanwhile."""
    keep = [ffi.from_buffer("uint8_t[]", content) for _, content, _ in bases]
    array = [(i, at, a) for (i, _, a), at in zip(bases, keep, strict=True)]
    return ffi.new("struct rf_base[]", array), keep


def take_cells(pages, count):
    cells = ffi.new("uint8_t *[]", count)
    result = lib.rf_pages_cells_take(pages.handle, count, cells)
    assert result == 0, result
    return cells


def give_cells(pages, cells):
    lib.rf_pages_cells_give(pages.handle, len(cells), cells)


def write(pages, ino, offset, data, now_ns, bases=()):
    array, keep = _bases(bases)
    source = ffi.from_buffer("uint8_t[]", data)
    return lib.rf_pages_lane_write(
        pages.handle, ino, offset, source, len(data), now_ns, array, len(keep)
    )


def put(pages, ino, offset, data, now_ns, bases=()):
    """The payload lands in cells, with rubbish behind it, as the kernel would leave it."""
    array, keep = _bases(bases)
    count = -(-len(data) // pages.cell_bytes)
    cells = take_cells(pages, count)
    for i in range(count):
        part = data[i * pages.cell_bytes : (i + 1) * pages.cell_bytes]
        ffi.memmove(cells[i], part.ljust(pages.cell_bytes, b"\xab"), pages.cell_bytes)
    result = lib.rf_pages_lane_put(
        pages.handle, ino, offset, len(data), cells, now_ns, array, len(keep)
    )
    assert all((cell == ffi.NULL) == (result >= 0) for cell in cells)
    give_cells(pages, cells)
    return result


def missing(pages, ino, offset, nbytes):
    """[(index, address or None if that isn't known)], or an error."""
    indexes, addresses = ffi.new("uint64_t[2]"), ffi.new("uint64_t[2]")
    known = ffi.new("uint8_t[2]")
    result = lib.rf_pages_lane_missing(pages.handle, ino, offset, nbytes, indexes, addresses, known)
    if result < 0:
        return result
    assert all(known[i] or not addresses[i] for i in range(result))
    return [(indexes[i], addresses[i] if known[i] else None) for i in range(result)]


def read(pages, ino, offset, nbytes, now_ns, room=None):
    """(result, content of the pages touched, address of each)"""
    cell = pages.cell_bytes
    count = -(-(offset % cell + nbytes) // cell) if room is None else room
    out = ffi.new("uint8_t[]", b"\xcc" * (count * cell) or b"\0")
    addresses = ffi.new("uint64_t[]", max(count, 1))
    result = lib.rf_pages_lane_read(
        pages.handle, ino, offset, nbytes, now_ns, out, addresses, count
    )
    return result, bytes(ffi.buffer(out, count * cell)), list(addresses)[:count]


def attributes(pages, ino):
    """(size, mtime, ctime, atime, cells), or an error."""
    out, cells = ffi.new("struct rf_attributes *"), ffi.new("uint64_t *")
    result = lib.rf_pages_lane_attributes(pages.handle, ino, out, cells)
    if result < 0:
        return result
    return out.size, out.mtime_ns, out.ctime_ns, out.atime_ns, cells[0]
