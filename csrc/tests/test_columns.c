/* test_columns.c: columns under sanitizers: zones put, lost, forgotten and replaced while others
 * read them, at once and through the engine; and the edges.
 *
 * The exact comparison with a reference is tests/test_1_columns.py. Here each reader checks what it
 * can know for certain: a cell that it is handed says which zone, row and column it is of, although
 * the place behind it was given from one zone to the next all the time.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../columns.h"
#include "../engine.h"
#include "../erasure.h"

enum {
    CELL = 4096,
    WORDS = CELL / 8,
    ROWS = 300, /* a slab and a bit */
    WIDTH = 4,  /* of which the last is the sum of the others */
    K = 3,
    PLACES = 3, /* where zones lie, one after the other */
    ZONES = 1000,
    READERS = 3,
    CELLS_MAX = 400,
};

static struct rf_columns *columns;
static int files[PLACES][WIDTH];
static atomic_ulong newest[PLACES]; /* the zone that lies there */
static atomic_bool stop;
static atomic_ulong good;

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t address_of(uint64_t zone, uint64_t row, uint64_t column)
{
    return zone << 32 | row << 8 | column;
}

/* Cells of row 7 of column 1 were never written: zeros by definition, anything in the file. */
static bool is_absent(uint64_t row, uint64_t column)
{
    return column == 1 && row % 16 == 7;
}

static uint64_t stamp_of(uint64_t zone, uint64_t row, uint64_t column)
{
    if (column == K) {
        uint64_t sum = 0;
        for (uint64_t c = 0; c < K; c++)
            sum ^= is_absent(row, c) ? 0 : stamp_of(zone, row, c);
        return sum;
    }
    return address_of(zone, row, column) * 0x9e3779b97f4a7c15u | 1;
}

static void cell_fill(uint8_t *cell, uint64_t stamp)
{
    for (size_t w = 0; w < WORDS; w++)
        memcpy(cell + 8 * w, &stamp, 8);
}

static void cell_check(const uint8_t *cell, uint64_t stamp)
{
    for (size_t w = 0; w < WORDS; w++)
        assert(memcmp(cell + 8 * w, &stamp, 8) == 0);
}

static int file_new(void)
{
    char name[] = "columns-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);
    assert(fd >= 0 && unlink(name) == 0);
    return fd;
}

/* Writes a zone to its place; returns its checksums, to be freed. */
static uint32_t *zone_write(uint64_t zone, const int *place, uint32_t rows)
{
    uint8_t *column = malloc((size_t)rows * CELL), zeros[CELL] = {0};
    uint32_t *crcs = malloc(sizeof *crcs * rows * WIDTH);
    for (uint32_t c = 0; c < WIDTH; c++) {
        for (uint32_t row = 0; row < rows; row++) {
            uint8_t *cell = column + (size_t)row * CELL;
            cell_fill(cell, stamp_of(zone, row, c));
            crcs[row * WIDTH + c] = rf_crc32c(0, is_absent(row, c) ? zeros : cell, CELL);
        }
        assert(pwrite(place[c], column, (size_t)rows * CELL, 0) == (ssize_t)rows * CELL);
    }
    free(column);
    return crcs;
}

/* `lost`: the column that nobody has, or WIDTH. */
static int zone_put(uint64_t zone, const int *place, uint32_t rows, uint32_t lost)
{
    int32_t fds[WIDTH], members[WIDTH];
    uint64_t offsets[WIDTH] = {0};
    for (uint32_t c = 0; c < WIDTH; c++) {
        fds[c] = c == lost ? -1 : fcntl(place[c], F_DUPFD_CLOEXEC, 0);
        members[c] = (int32_t)c;
    }
    return rf_columns_zone_put(columns, zone, WIDTH, K, rows, fds, offsets, members);
}

static int recipe_put(uint64_t zone, uint32_t lost)
{
    uint8_t ones[WIDTH];
    for (uint32_t c = 0; c < WIDTH; c++)
        ones[c] = c != lost;
    return rf_columns_recipe_put(columns, zone, lost, ones);
}

/* ---- the parts, by themselves ---- */

static void read_all(uint32_t rows, uint64_t zone, int expected)
{
    uint32_t count = rows * K;
    uint64_t *addresses = malloc(sizeof *addresses * count);
    uint8_t *out = malloc((size_t)count * CELL + 1); /* exactly: the sanitizer watches the ends */
    for (uint32_t i = 0; i < count; i++) {
        uint64_t row = i % rows, column = i / rows;
        addresses[i] = is_absent(row, column) ? 0 : address_of(zone, row, column);
    }
    for (int turn = 0; turn < 2; turn++) { /* in the second, row by row: one vector for each cell */
        memset(out, 0x5a, (size_t)count * CELL + 1);
        assert(rf_columns_read(columns, addresses, count, out + 1, 0) == expected);
        for (uint32_t i = 0; expected == 0 && i < count; i++) {
            const uint8_t *cell = out + 1 + (size_t)i * CELL;
            if (addresses[i])
                cell_check(cell, stamp_of(zone, addresses[i] >> 8 & 0xffffff, addresses[i] & 0xff));
            else
                cell_check(cell, 0x5a5a5a5a5a5a5a5au);
        }
        for (uint32_t i = 0; i < count; i++) {
            uint64_t row = i / K, column = i % K;
            addresses[i] = is_absent(row, column) ? 0 : address_of(zone, row, column);
        }
    }
    free(addresses);
    free(out);
}

static void test_one_zone(uint32_t rows)
{
    columns = rf_columns_new(CELL, 2, 1 << 20);
    uint32_t *crcs = zone_write(7, files[0], rows);
    read_all(rows, 7, -ENOENT);
    assert(zone_put(7, files[0], rows, WIDTH) == 0);
    read_all(rows, 7, -ENOENT);
    rf_columns_rows_put(columns, 7, 0, rows, crcs);
    read_all(rows, 7, 0);
    rf_columns_lose(columns, 2);
    read_all(rows, 7, -ENOENT);
    assert(recipe_put(7, 1) == -EINVAL);
    assert(recipe_put(7, 2) == 0);
    read_all(rows, 7, 0);
    rf_columns_lose(columns, 5); /* none of this zone */
    read_all(rows, 7, 0);
    rf_columns_lose(columns, 0);
    read_all(rows, 7, -ENOENT);
    assert(recipe_put(7, 0) == -EINVAL);
    assert(zone_put(7, files[0], rows, 0) == 0); /* anew */
    for (uint32_t slab = 0; slab * 256 < rows; slab++) {
        uint32_t here = rows - slab * 256 < 256 ? rows - slab * 256 : 256;
        assert(rf_columns_slab_put(columns, 7, slab, crcs + slab * 256 * WIDTH, here) == 0);
        assert(rf_columns_slab_put(columns, 7, slab, crcs, 257) == -EINVAL);
    }
    assert(recipe_put(7, 0) == 0);
    read_all(rows, 7, 0);
    assert(ftruncate(files[0][1], (off_t)(rows - 1) * CELL + 100) == 0);
    read_all(rows, 7, -EIO);
    struct rf_columns_statistics statistics;
    rf_columns_statistics(columns, &statistics);
    assert(statistics.cells_rebuilt > 0 && statistics.zones == 1);
    rf_columns_free(columns);
    free(crcs);
}

static void test_edges(void)
{
    assert(rf_columns_new(1000, 1, 1) == NULL && rf_columns_new(CELL, 0, 1) == NULL);
    columns = rf_columns_new(CELL, 1, 0); /* one zone and one slab are known all the same */
    uint8_t out[CELL];
    uint64_t addresses[3] = {0, 0, 0};
    assert(rf_columns_read(columns, addresses, 0, out, 0) == 0);
    assert(rf_columns_read(columns, addresses, 3, NULL, 0) == 0);
    addresses[0] = UINT64_MAX;
    assert(rf_columns_read(columns, addresses, 1, out, 0) == -ENOENT);
    uint32_t *crcs = zone_write(1, files[1], ROWS);
    assert(zone_put(1, files[1], ROWS, WIDTH) == 0);
    assert(rf_columns_slab_put(columns, 1, 0, crcs, 256) == 0);
    assert(rf_columns_slab_put(columns, 1, 1, crcs + 256 * WIDTH, ROWS - 256) == 0);
    assert(!rf_columns_slab_known(columns, 1, 0) && rf_columns_slab_known(columns, 1, 1));
    addresses[0] = address_of(1, ROWS - 1, 0);
    assert(rf_columns_read(columns, addresses, 1, out, 0) == 0);
    for (uint64_t beyond = 0; beyond < 2; beyond++) {
        addresses[0] = address_of(1, ROWS - beyond, beyond ? WIDTH : 0);
        assert(rf_columns_read(columns, addresses, 1, out, 0) == -ENOENT);
    }
    assert(zone_put(2, files[1], ROWS, WIDTH) == 0);
    assert(!rf_columns_zone_known(columns, 1) && rf_columns_zone_known(columns, 2));
    rf_columns_rows_put(columns, 2, 0, 10, crcs);
    rf_columns_rows_put(columns, 2, 20, 10, crcs); /* a gap: then the slab isn't known at all */
    assert(!rf_columns_slab_known(columns, 2, 0));
    rf_columns_rows_put(columns, 2, ROWS - 5, 10, crcs); /* beyond its end */
    rf_columns_rows_put(columns, 3, 0, 10, crcs);
    uint64_t forgets = rf_columns_forgets(columns);
    rf_columns_zone_forget(columns, 3); /* not known, and told all the same */
    assert(rf_columns_forgets(columns) == forgets + 1);
    struct rf_columns_statistics statistics;
    rf_columns_statistics(columns, &statistics);
    assert(statistics.slabs == 0 && statistics.zones == 1);
    rf_columns_free(columns);
    free(crcs);
}

/* ---- all at once ---- */

struct request {
    uint64_t addresses[CELLS_MAX];
    uint32_t count;
    uint8_t *out;
    sem_t done;
    int result;
};

static void request_done(void *context, int result)
{
    struct request *request = context;
    request->result = result;
    sem_post(&request->done);
}

/* Some rows of some columns of what was the newest zone of a place. */
static void request_make(struct request *request, uint64_t *state)
{
    uint64_t zone = atomic_load(&newest[random_next(state) % PLACES]);
    uint64_t height = 1 + random_next(state) % 60, first = random_next(state) % (ROWS - height);
    bool dealt = random_next(state) % 2;
    uint64_t pages = random_next(state) % 4 ? 1 : height * K;
    request->count = 0;
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t row = first + (dealt ? page / K : page % height);
        uint64_t column = dealt ? page % K : page / height;
        request->addresses[request->count++] =
            zone == 0 || is_absent(row, column) ? 0 : address_of(zone, row, column);
    }
}

static void request_check(const struct request *request)
{
    for (uint32_t i = 0; i < request->count; i++) {
        uint64_t address = request->addresses[i];
        if (address)
            cell_check(request->out + (size_t)i * CELL,
                       stamp_of(address >> 32, address >> 8 & 0xffffff, address & 0xff));
    }
    atomic_fetch_add(&good, 1);
}

static void *reader(void *argument)
{
    struct rf_engine *engine = argument;
    struct request request;
    uint64_t state = 0x1234567 + (uint64_t)(uintptr_t)&request;
    request.out = malloc((size_t)CELLS_MAX * CELL);
    sem_init(&request.done, 0, 0);
    while (!atomic_load(&stop)) {
        request_make(&request, &state);
        int result;
        if (engine) {
            result = rf_columns_read_start(columns, engine, request.addresses, request.count,
                                           request.out, request_done, &request);
            if (result == 0) {
                while (sem_wait(&request.done) != 0)
                    continue;
                result = request.result;
            }
        } else {
            int nowait = random_next(&state) % 2;
            result =
                rf_columns_read(columns, request.addresses, request.count, request.out, nowait);
            assert(result != -EWOULDBLOCK || nowait);
        }
        assert(result == 0 || result == -ENOENT || result == -EWOULDBLOCK || result == -EIO);
        if (result == 0)
            request_check(&request);
    }
    sem_destroy(&request.done);
    free(request.out);
    return NULL;
}

/* Gives each place to one zone after the other, as the store does: forgotten, then written over. */
static void zones_pass(uint64_t zones)
{
    uint64_t state = 99;
    for (uint64_t zone = 1; zone <= zones; zone++) {
        uint64_t place = zone % PLACES, before = atomic_load(&newest[place]);
        if (before)
            rf_columns_zone_forget(columns, before);
        uint32_t *crcs = zone_write(zone, files[place], ROWS);
        uint32_t lost = random_next(&state) % 3 ? WIDTH : random_next(&state) % WIDTH;
        assert(zone_put(zone, files[place], ROWS, lost) == 0);
        if (random_next(&state) % 2) {
            rf_columns_rows_put(columns, zone, 0, ROWS, crcs);
        } else {
            rf_columns_slab_put(columns, zone, 0, crcs, 200);
            rf_columns_rows_put(columns, zone, 200, ROWS - 200, crcs + 200 * WIDTH);
        }
        atomic_store(&newest[place], zone);
        if (lost < WIDTH)
            assert(recipe_put(zone, lost) == 0);
        if (random_next(&state) % 5 == 0) {
            uint32_t member = random_next(&state) % WIDTH;
            rf_columns_lose(columns, (int32_t)member);
            if (lost == WIDTH)
                assert(recipe_put(zone, member) == 0);
        }
        if (random_next(&state) % 40 == 0)
            rf_columns_clear(columns);
        struct rf_columns_statistics statistics;
        rf_columns_statistics(columns, &statistics);
        assert(statistics.zones <= PLACES);
        free(crcs);
    }
}

static void test_readers_while_zones_pass(uint64_t zones)
{
    int error = 0;
    struct rf_engine *engines[READERS] = {NULL};
    engines[1] = rf_engine_new(0, 2, &error);
    engines[2] = rf_engine_new(1, 2, &error);
    if (!engines[2])
        engines[2] = rf_engine_new(0, 1, &error);
    columns = rf_columns_new(CELL, PLACES, 1 << 20);
    pthread_t threads[READERS];
    for (int t = 0; t < READERS; t++)
        assert(pthread_create(&threads[t], NULL, reader, engines[t]) == 0);
    zones_pass(zones);
    atomic_store(&stop, true);
    for (int t = 0; t < READERS; t++)
        pthread_join(threads[t], NULL);
    for (int t = 0; t < READERS; t++) {
        if (engines[t])
            rf_engine_free(engines[t]);
    }
    rf_columns_clear(columns);
    struct rf_columns_statistics statistics;
    rf_columns_statistics(columns, &statistics);
    assert(statistics.descriptors == 0 && statistics.slab_bytes == 0);
    assert(atomic_load(&good) > zones / 10);
    rf_columns_free(columns);
}

int main(int argc, char **argv)
{
    uint64_t zones = argc > 1 ? strtoull(argv[1], NULL, 10) : ZONES;
    for (int place = 0; place < PLACES; place++) {
        for (int c = 0; c < WIDTH; c++)
            files[place][c] = file_new();
    }
    test_one_zone(1);
    test_one_zone(100);
    test_one_zone(ROWS);
    test_edges();
    test_readers_while_zones_pass(zones);
    printf("columns: %lu reads while zones passed\n", atomic_load(&good));
    return 0;
}
