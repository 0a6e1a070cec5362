/* lane_protocol.h: the FUSE protocol, as far as <linux/fuse.h> of an older system doesn't know it.
 */
#ifndef RAIDFS_LANE_PROTOCOL_H
#define RAIDFS_LANE_PROTOCOL_H

#include <linux/fuse.h>
#include <stdint.h>

enum {
    OPCODE_TMPFILE = 51,
    OPCODE_STATX = 52,
    OPCODE_COPY_FILE_RANGE_64 = 53,
};

/* The newest version whose answers to INIT are understood here. */
enum { PROTOCOL_MINOR = 45 };

enum { OPEN_PARALLEL_DIRECT_WRITES = 1 << 6 };

/* Flags of INIT: those of the first word, and of the second 32 bits higher. */
static const uint64_t INIT_SPLICE = 7ull << 7;
static const uint64_t INIT_ASYNC_READ = 1ull << 0;
static const uint64_t INIT_BIG_WRITES = 1ull << 5;
static const uint64_t INIT_DONT_MASK = 1ull << 6;
static const uint64_t INIT_AUTO_INVAL_DATA = 1ull << 12;
static const uint64_t INIT_ASYNC_DIO = 1ull << 15;
static const uint64_t INIT_WRITEBACK_CACHE = 1ull << 16;
static const uint64_t INIT_PARALLEL_DIROPS = 1ull << 18;
static const uint64_t INIT_MAX_PAGES = 1ull << 22;
static const uint64_t INIT_EXPLICIT_INVAL_DATA = 1ull << 25;
static const uint64_t INIT_HANDLE_KILLPRIV_V2 = 1ull << 28;
static const uint64_t INIT_EXTENDED = 1ull << 30;
static const uint64_t INIT_DIRECT_IO_ALLOW_MMAP = 1ull << 36;
static const uint64_t INIT_PASSTHROUGH = 1ull << 37;
static const uint64_t INIT_OVER_IO_URING = 1ull << 41;

#endif
