/* lane_init.c: what is agreed with the kernel when a mount begins, beyond what the library asks
 * for.
 *
 *  1. Nothing is asked for that the kernel didn't offer.
 *  2. The library is not offered splicing.
 */
#include <string.h>

#include "lane_inner.h"

enum { KERNEL_PAGE_BYTES = 4096, BACKGROUND_MAX = UINT16_MAX };

/* Offsets within fuse_init_in, which older kernels end after `flags`. */
enum { INIT_IN_BYTES_MIN = 16, INIT_IN_BYTES_EXTENDED = 20 };

static uint64_t always_added(void)
{
    return INIT_ASYNC_READ | INIT_BIG_WRITES | INIT_DONT_MASK | INIT_ASYNC_DIO |
           INIT_PARALLEL_DIROPS | INIT_MAX_PAGES | INIT_EXPLICIT_INVAL_DATA |
           INIT_HANDLE_KILLPRIV_V2 | INIT_EXTENDED | INIT_DIRECT_IO_ALLOW_MMAP;
}

static uint64_t always_removed(void)
{
    return INIT_SPLICE | INIT_AUTO_INVAL_DATA | INIT_WRITEBACK_CACHE | INIT_PASSTHROUGH |
           INIT_OVER_IO_URING;
}

void init_request(struct rf_lane *lane, uint8_t *head, uint64_t nbytes)
{
    if (nbytes < sizeof(struct fuse_in_header) + INIT_IN_BYTES_MIN)
        return;
    struct fuse_init_in *in = (struct fuse_init_in *)(head + sizeof(struct fuse_in_header));
    uint64_t offered = in->flags;
    if ((offered & INIT_EXTENDED) &&
        nbytes >= sizeof(struct fuse_in_header) + INIT_IN_BYTES_EXTENDED)
        offered |= (uint64_t)in->flags2 << 32;
    atomic_store(&lane->offered, offered);
    atomic_store(&lane->offered_minor, in->minor);
    in->flags &= ~(uint32_t)INIT_SPLICE;
}

uint64_t init_answer(struct rf_lane *lane, uint8_t *body, uint64_t nbytes)
{
    const struct rf_lane_setup *setup = &lane->setup;
    struct fuse_init_out out = {0};
    memcpy(&out, body, nbytes < sizeof(out) ? nbytes : sizeof(out));
    uint64_t flags = out.flags;
    if (flags & INIT_EXTENDED)
        flags |= (uint64_t)out.flags2 << 32;
    flags |= always_added();
    flags &= ~always_removed();
    flags |= setup->init_add;
    flags &= ~setup->init_remove & atomic_load(&lane->offered);
    uint32_t minor = atomic_load(&lane->offered_minor);
    out.minor = minor < PROTOCOL_MINOR ? minor : PROTOCOL_MINOR;
    out.flags = (uint32_t)flags;
    out.flags2 = (uint32_t)(flags >> 32);
    out.max_write = setup->max_write;
    out.max_pages = (uint16_t)(setup->max_write / KERNEL_PAGE_BYTES);
    if (setup->max_readahead)
        out.max_readahead = setup->max_readahead;
    if (setup->max_background) {
        uint32_t most =
            setup->max_background < BACKGROUND_MAX ? setup->max_background : BACKGROUND_MAX;
        out.max_background = (uint16_t)most;
        out.congestion_threshold = (uint16_t)(most - most / 4);
    }
    atomic_store(&lane->agreed, flags);
    memcpy(body, &out, sizeof(out));
    return sizeof(out);
}
