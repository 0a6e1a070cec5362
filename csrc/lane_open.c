/* lane_open.c: opens with O_DIRECT get what neither the library nor Python knows: writes side by
 * side.
 *
 * Without FOPEN_DIRECT_IO the kernel would take the page cache's way with direct requests, one
 * writer at a time; with it such an open can be mapped only where DIRECT_IO_ALLOW_MMAP was agreed.
 */
#define _GNU_SOURCE
#include <fcntl.h>

#include "lane_inner.h"

bool open_is_direct(const uint8_t *head, uint64_t nbytes)
{
    /* fuse_open_in and fuse_create_in, also that of TMPFILE, begin with the flags of open(2). */
    if (nbytes < sizeof(struct fuse_in_header) + sizeof(uint32_t))
        return false;
    uint32_t opcode = header_of(head)->opcode, flags = *(const uint32_t *)body_of(head);
    return (opcode == FUSE_OPEN || opcode == FUSE_CREATE || opcode == OPCODE_TMPFILE) &&
           (flags & O_DIRECT);
}

void open_answer(struct rf_lane *lane, uint32_t opcode, uint8_t *body, uint64_t nbytes)
{
    uint64_t at = opcode == FUSE_OPEN ? 0 : sizeof(struct fuse_entry_out);
    if (nbytes < at + sizeof(struct fuse_open_out) ||
        !(atomic_load(&lane->agreed) & INIT_DIRECT_IO_ALLOW_MMAP))
        return;
    struct fuse_open_out *out = (struct fuse_open_out *)(body + at);
    out->open_flags |= FOPEN_DIRECT_IO | OPEN_PARALLEL_DIRECT_WRITES;
}
