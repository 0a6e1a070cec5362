/* columns.h: cells of members for whoever has their addresses: descriptors of columns, checksums,
 * and how to do without a lost column.
 *
 * Python puts what it knows of zones (through raidfs/columns.py); C threads read by it. Any thread
 * may call any function at any time, except rf_columns_free. What is promised stands at the head of
 * columns.c.
 *
 * A cell's address is zone << 32 | row << 8 | column; 0 is no cell. Functions that return an int
 * return 0 or a negative errno:
 *   -ENOENT       a zone, slab or recipe is not known: ask Python, which will put it
 *   -EIO          a cell can't be read or doesn't match its checksum: Python looks closer and heals
 *   -EWOULDBLOCK  only if `nowait`: a cell is not in the kernel's page cache
 *   -EINVAL       an argument makes no sense
 *   -ENOMEM       out of memory
 *   -ETIMEDOUT    given up by rf_columns_give_up; see rf_columns_read_start
 */
#ifndef RAIDFS_COLUMNS_H
#define RAIDFS_COLUMNS_H

#include <stdint.h>

struct rf_columns;
struct rf_engine;

enum { RF_LATENCIES = 128 };

struct rf_columns_statistics {
    uint64_t zones;
    uint64_t slabs;
    uint64_t slab_bytes;
    uint64_t descriptors;   /* open now, also those that only readers still hold */
    uint64_t reads;         /* that ended well */
    uint64_t cells_read;    /* asked for, by those */
    uint64_t cells_rebuilt; /* of these */
    uint64_t unknown;       /* reads that ended with -ENOENT */
    uint64_t waiting;       /* with -EWOULDBLOCK */
    uint64_t failed;        /* with anything else */
    uint64_t given_up;      /* of these, by rf_columns_give_up */
    uint64_t stuck;         /* of these, whose member still has not answered */
};

/* What putting a column needs to know of its file. */
struct rf_look {
    uint64_t device, inode; /* 0: unknown */
    int32_t never_waits;    /* its file system keeps all in memory */
    int32_t is_direct;      /* opened so */
};
/* Asks the file's system, which may not answer. */
void rf_look_at(int32_t fd, struct rf_look *look);

/* Reads by the engine that a member has not answered yet. */
struct rf_columns_wait {
    int32_t member;
    uint32_t reads;
    uint64_t oldest_ns; /* so long ago the first of them began */
};

/* The least recently used zones and slabs are forgotten beyond zones_max and slab_bytes_max.
 * NULL: out of memory or arguments wrong. */
struct rf_columns *rf_columns_new(uint32_t cell_bytes, uint32_t zones_max, uint64_t slab_bytes_max);
/* Nobody may be reading, but for reads that were given up. */
void rf_columns_free(struct rf_columns *columns);

/* By column: a descriptor (-1: the column is lost), where in the file the column begins, and the
 * id of its member. The descriptors are taken over, also on error, and closed when nobody needs
 * them. A zone that is known already is replaced. */
int rf_columns_zone_put(struct rf_columns *columns, uint64_t zone, uint32_t width, uint32_t k,
                        uint32_t rows, const int32_t *fds, const uint64_t *offsets,
                        const int32_t *members);
/* The same, where the files were looked at before: this asks no member anything. */
int rf_columns_zone_put_seen(struct rf_columns *columns, uint64_t zone, uint32_t width, uint32_t k,
                             uint32_t rows, const int32_t *fds, const uint64_t *offsets,
                             const int32_t *members, const struct rf_look *looks);
int rf_columns_zone_known(struct rf_columns *columns, uint64_t zone);
/* Its rows hold nothing any more: reads under way end with -ENOENT. */
void rf_columns_zone_forget(struct rf_columns *columns, uint64_t zone);
/* How often a zone was forgotten, known or not. Who looks up an address, reads by it and finds this
 * unchanged has read what the address stood for: its zone was not given to others meanwhile. */
uint64_t rf_columns_forgets(struct rf_columns *columns);
/* All zones, as if each had been forgotten. */
void rf_columns_clear(struct rf_columns *columns);
/* The member's columns are lost from now on; recipes of zones that have one are forgotten. */
void rf_columns_lose(struct rf_columns *columns, int32_t member);

/* 1: from now on the member's columns are read as if they were lost, and recipes that need one are
 * forgotten; 0: they are read again. Which members sit out is kept whatever zones come and go. */
void rf_columns_sit_out(struct rf_columns *columns, int32_t member, int sits_out);

/* A lost column is the sum of coefficients[c] times column c, over c < width; 0: not used. -EINVAL
 * if it isn't lost (or its member doesn't sit out) or a column used is. */
int rf_columns_recipe_put(struct rf_columns *columns, uint64_t zone, uint32_t column,
                          const uint8_t *coefficients);
/* Checksums of the first `rows` rows of a slab of 256: crcs[row * width + column]. */
int rf_columns_slab_put(struct rf_columns *columns, uint64_t zone, uint32_t slab,
                        const uint32_t *crcs, uint32_t rows);
int rf_columns_slab_known(struct rf_columns *columns, uint64_t zone, uint32_t slab);
/* Checksums of rows just written, for slabs that are known or begin among them. */
void rf_columns_rows_put(struct rf_columns *columns, uint64_t zone, uint32_t row, uint32_t rows,
                         const uint32_t *crcs);

/* Reads cell addresses[i] to out + i * cell_bytes, for each i with addresses[i] != 0; the rest of
 * `out` stays as it is. All cells or none are to be believed. With descriptors made for direct IO,
 * `out` must be aligned to 4096. */
int rf_columns_read(struct rf_columns *columns, const uint64_t *addresses, uint32_t count,
                    uint8_t *out, int nowait);
/* The same through the engine; `out` is the engine's until then, `addresses` only until this
 * returns. 0: done(context, result) will be called once, on the engine's
 * thread or, where there is nothing to wait for, at once; else an error, and it won't be.
 * With -ETIMEDOUT it is called by rf_columns_give_up, and once more, with -ECANCELED, when the
 * members have answered: until then `out` is the engine's, and its content nobody's. Whoever began
 * the read may be gone by then; the second call is told only what `context` and `out` are. */
int rf_columns_read_start(struct rf_columns *columns, struct rf_engine *engine,
                          const uint64_t *addresses, uint32_t count, uint8_t *out,
                          void (*done)(void *context, int result), void *context);

/* For each member that has not answered a read yet, at most `room`; how many. */
uint32_t rf_columns_waiting(struct rf_columns *columns, struct rf_columns_wait *waits,
                            uint32_t room);
/* Ends all reads that began at least so long ago and that the member has not answered; how many. */
uint32_t rf_columns_give_up(struct rf_columns *columns, int32_t member, uint64_t older_than_ns);
/* How many reads of the member by the engine took how long, by rf_latency. */
void rf_columns_latencies(struct rf_columns *columns, int32_t member,
                          uint64_t counts[RF_LATENCIES]);
/* Which count a time belongs to: four for each doubling. */
uint32_t rf_latency(uint32_t took_us);

void rf_columns_statistics(struct rf_columns *columns, struct rf_columns_statistics *out);

#endif
