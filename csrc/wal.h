/* wal.h: reads SQLite's write-ahead log far enough to say which of several copies to believe. */
#ifndef RAIDFS_WAL_H
#define RAIDFS_WAL_H

#include <stddef.h>
#include <stdint.h>

/* What is known of one log after its header and `frames` frames were found valid. */
struct rf_wal {
    uint32_t big_endian;       /* byte order in which this log's checksums take words */
    uint32_t page_bytes;       /* 512 to 65536 */
    uint32_t sequence;         /* the checkpoint sequence number */
    uint32_t salt[2];          /* each frame of this generation of the log repeats them */
    uint32_t sum[2];           /* running checksum, up to the last valid frame */
    uint32_t committed_sum[2]; /* the running checksum at the last commit */
    uint32_t ended;            /* an invalid frame was met: what follows is of no interest */
    uint32_t committed_pages;  /* pages of the database after the last commit */
    uint64_t frames;           /* valid ones, committed or not */
    uint64_t committed;        /* those up to and with the last that commits */
    uint64_t first;            /* number of the last valid frame that holds page 1; 0: none */
    uint64_t committed_first;  /* the same among the committed frames; they are numbered from 1 */
};

/* Starts with the 32 bytes of the header. Returns 1 if it is valid, 0 if there is no log here. */
int rf_wal_begin(struct rf_wal *wal, const uint8_t *header);

/* Goes on with the frames in `data` (each 24 + page_bytes; a last one that is cut off is left for
 * the caller to bring again). Stops at the first invalid frame. Returns the bytes of whole frames
 * looked at. */
size_t rf_wal_scan(struct rf_wal *wal, const uint8_t *data, size_t nbytes);

#endif
