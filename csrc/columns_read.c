/* columns_read.c: cells from their columns: what a reading will do, and doing it at once.
 *
 * A read is planned under the mutex: which cells lie one row after the other in one column (a
 * *run*), what their checksums must be, and, for runs of lost columns, which *sources* their
 * recipes need and where each will be in memory: among the cells asked for, among sources fetched
 * already, or in a buffer of their own. Then it is done without the mutex, here or through the
 * engine (columns_wait.c): every run of a column that is there is one read of the file, cells that
 * aren't neighbours in `out` as one vector.
 *
 *  1. Every cell read is compared with its checksum, sources too; what comes out of a recipe again.
 *     A source whose checksum is that of a cell of zeros is taken for zeros and not read: cells
 *     that were never written have that, and if it isn't so, what comes out doesn't match.
 *  2. A read that ends well has read nothing from a zone forgotten before its end.
 *  3. Up to CELLS_FEW cells of columns that are there need no memory but the stack.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include "columns_reading.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/uio.h>

#include "erasure.h"

enum {
    CELLS_FEW = 264,     /* 1 MiB in pages of 4 KiB, and a bit */
    RUNS_OPEN = 32,      /* how many of the latest runs a cell may continue: pages dealt out one by
                            one over the columns make as many runs as there are columns */
    VECTORS = 128,       /* in one system call */
    FETCHES_LOOKED = 64, /* latest fetches looked through for a source */
    SPARE_BYTES_MAX = 8 << 20,
};
static const uint32_t NO_RUN = UINT32_MAX;

/* ---- planning: with the mutex held ---- */

/* Checksum of a cell, or false. */
static bool crc_of(struct rf_columns *columns, struct rf_zone *zone, uint32_t row, uint32_t column,
                   uint32_t *crc)
{
    const struct rf_slab *slab = rf_columns_find_slab(columns, zone, row / SLAB_ROWS);
    if (!slab || row % SLAB_ROWS >= slab->rows)
        return false;
    *crc = slab->crcs[row % SLAB_ROWS * zone->width + column];
    return true;
}

static uint64_t following(const struct rf_zone *zone, uint32_t row, uint64_t address)
{
    return row + 1 < zone->rows ? address + (1u << ADDRESS_ROW_SHIFT) : 0;
}

static int run_begin(struct reading *reading, uint64_t address)
{
    struct rf_zone *zone = rf_columns_find(reading->columns, address >> ADDRESS_ZONE_SHIFT);
    uint32_t row = (uint32_t)address >> ADDRESS_ROW_SHIFT, column = address & 0xff;
    if (!zone || row >= zone->rows || column >= zone->width)
        return -ENOENT;
    struct run *run = &reading->runs[reading->runs_count++];
    const struct rf_column *from = &zone->columns[column];
    run->zone = zone;
    run->descriptor = rf_column_usable(from);
    run->offset = from->offset + (uint64_t)row * reading->columns->cell_bytes;
    run->row = row;
    run->column = column;
    run->count = 0;
    return 0;
}

/* Gives every cell its run and its checksum. */
static int plan_runs(struct reading *reading)
{
    reading->runs_count = reading->cells = reading->lost_count = 0;
    for (uint32_t i = 0; i < reading->count; i++) {
        uint64_t address = reading->addresses[i];
        reading->run_of[i] = NO_RUN;
        if (address == 0)
            continue;
        uint32_t r = reading->runs_count, end = r > RUNS_OPEN ? r - RUNS_OPEN : 0;
        while (r > end && reading->runs[r - 1].next != address)
            r--;
        if (r == end) {
            int error = run_begin(reading, address);
            if (error)
                return error;
            r = reading->runs_count;
        }
        struct run *run = &reading->runs[r - 1];
        uint32_t row = run->row + run->count++;
        if (!crc_of(reading->columns, run->zone, row, run->column, &reading->crcs[i]))
            return -ENOENT;
        run->next = following(run->zone, row, address);
        reading->run_of[i] = r - 1;
        reading->cells++;
        reading->lost_count += run->descriptor == NULL;
    }
    return 0;
}

/* Fills `order`, so that each run's cells stand together. */
static void plan_order(struct reading *reading)
{
    uint32_t first = 0;
    for (uint32_t r = 0; r < reading->runs_count; r++) {
        reading->runs[r].first = first;
        first += reading->runs[r].count;
        reading->runs[r].count = 0;
    }
    for (uint32_t i = 0; i < reading->count; i++) {
        if (reading->run_of[i] == NO_RUN)
            continue;
        struct run *run = &reading->runs[reading->run_of[i]];
        reading->order[run->first + run->count++] = i;
    }
}

static bool holds(const struct run *run, const struct rf_zone *zone, uint32_t row, uint32_t column)
{
    return run->zone == zone && run->column == column && run->descriptor && row >= run->row &&
           row - run->row < run->count;
}

/* Where a source will lie that is read anyway, or NULL. */
static const uint8_t *source_planned(const struct reading *reading, const struct rf_zone *zone,
                                     uint32_t row, uint32_t column)
{
    const struct rf_rebuild *rebuild = reading->rebuild;
    const size_t cell_bytes = reading->columns->cell_bytes;
    for (uint32_t r = 0; r < reading->runs_count; r++) {
        const struct run *run = &reading->runs[r];
        if (holds(run, zone, row, column))
            return rf_cell_at(reading, reading->order[run->first + row - run->row]);
    }
    uint32_t end =
        rebuild->fetches_count > FETCHES_LOOKED ? rebuild->fetches_count - FETCHES_LOOKED : 0;
    for (uint32_t f = rebuild->fetches_count; f > end; f--) {
        const struct run *fetch = &rebuild->fetches[f - 1];
        if (holds(fetch, zone, row, column))
            return rebuild->sources + (fetch->first + row - fetch->row) * cell_bytes;
    }
    return NULL;
}

/* One more source to fetch: it continues `*fetch`, if that is of the same column and the row
 * before, or begins another. Returns where it will lie. */
static const uint8_t *source_fetched(struct reading *reading, struct rf_zone *zone, uint32_t row,
                                     uint32_t column, uint32_t crc, struct run **fetch)
{
    struct rf_rebuild *rebuild = reading->rebuild;
    const uint32_t cell_bytes = reading->columns->cell_bytes;
    struct run *run = *fetch;
    if (!run || run->row + run->count != row) {
        run = *fetch = &rebuild->fetches[rebuild->fetches_count++];
        *run = (struct run){.zone = zone,
                            .descriptor = zone->columns[column].descriptor,
                            .offset = zone->columns[column].offset + (uint64_t)row * cell_bytes,
                            .row = row,
                            .column = column,
                            .first = rebuild->sources_count};
    }
    run->count++;
    rebuild->crcs[rebuild->sources_count] = crc;
    return rebuild->sources + (size_t)rebuild->sources_count++ * cell_bytes;
}

/* Where the sources of one lost run lie. */
static int plan_recipe(struct reading *reading, uint32_t r)
{
    struct rf_rebuild *rebuild = reading->rebuild;
    const struct run *lost = &reading->runs[r];
    struct rf_zone *zone = lost->zone;
    const uint8_t *coefficients = zone->columns[lost->column].recipe;
    struct recipe *recipe = &rebuild->recipes[rebuild->recipes_count++];
    recipe->run = r;
    recipe->first = rebuild->places_count;
    recipe->sources_count = 0;
    for (uint32_t c = 0; c < zone->width; c++) {
        if (coefficients[c]) {
            recipe->coefficients[recipe->sources_count] = coefficients[c];
            recipe->columns[recipe->sources_count++] = (uint8_t)c;
        }
    }
    rebuild->places_count += lost->count * recipe->sources_count;
    for (uint32_t s = 0; s < recipe->sources_count; s++) {
        uint32_t column = recipe->columns[s], crc;
        struct run *fetch = NULL;
        for (uint32_t i = 0; i < lost->count; i++) {
            const uint8_t **place = &rebuild->places[recipe->first + i * recipe->sources_count + s];
            if (!crc_of(reading->columns, zone, lost->row + i, column, &crc))
                return -ENOENT;
            *place = NULL;
            if (crc == reading->columns->zero_crc)
                continue;
            *place = source_planned(reading, zone, lost->row + i, column);
            if (!*place)
                *place = source_fetched(reading, zone, lost->row + i, column, crc, &fetch);
        }
    }
    return 0;
}

/* How much room the lost runs' recipes and sources need. */
static int rebuild_needs(const struct reading *reading, uint32_t *recipes, uint32_t *sources)
{
    *recipes = *sources = 0;
    for (uint32_t r = 0; r < reading->runs_count; r++) {
        const struct run *run = &reading->runs[r];
        if (run->descriptor)
            continue;
        const uint8_t *coefficients = run->zone->columns[run->column].recipe;
        if (!coefficients)
            return -ENOENT;
        uint32_t used = 0;
        for (uint32_t c = 0; c < run->zone->width; c++)
            used += coefficients[c] != 0;
        *recipes += 1;
        *sources += run->count * used;
    }
    return 0;
}

static void hold(const struct run *runs, uint32_t count)
{
    for (uint32_t r = 0; r < count; r++) {
        atomic_fetch_add_explicit(&runs[r].zone->references, 1, memory_order_relaxed);
        if (runs[r].descriptor)
            atomic_fetch_add_explicit(&runs[r].descriptor->references, 1, memory_order_relaxed);
    }
}

/* The whole plan; zones and descriptors are held if it is made. -ENOBUFS: *recipes and *sources
 * say for how much there must be room. */
static int plan(struct reading *reading, uint32_t *recipes, uint32_t *sources)
{
    int error = plan_runs(reading);
    if (error)
        return error;
    plan_order(reading);
    struct rf_rebuild *rebuild = reading->rebuild;
    if (reading->lost_count > 0) {
        error = rebuild_needs(reading, recipes, sources);
        if (error)
            return error;
        if (!rebuild || rebuild->recipes_room < *recipes || rebuild->sources_room < *sources)
            return -ENOBUFS;
        for (uint32_t r = 0; r < reading->runs_count; r++) {
            error = reading->runs[r].descriptor ? 0 : plan_recipe(reading, r);
            if (error)
                return error;
        }
        hold(rebuild->fetches, rebuild->fetches_count);
    }
    hold(reading->runs, reading->runs_count);
    return 0;
}

/* ---- memory for rebuilding ---- */

void rf_rebuild_free(struct rf_rebuild *rebuild)
{
    if (rebuild)
        free(rebuild->sources);
    free(rebuild);
}

/* One piece of memory for all but the cells. `sources` is also enough for the fetches. */
static struct rf_rebuild *rebuild_new(uint32_t recipes, uint32_t sources, uint32_t cell_bytes)
{
    struct rf_rebuild *rebuild =
        malloc(sizeof *rebuild + recipes * sizeof rebuild->recipes[0] +
               (size_t)sources * (sizeof rebuild->fetches[0] + sizeof rebuild->places[0] +
                                  sizeof rebuild->crcs[0]));
    if (!rebuild)
        return NULL;
    *rebuild = (struct rf_rebuild){.recipes_room = recipes, .sources_room = sources};
    rebuild->fetches = (struct run *)(rebuild + 1);
    rebuild->places = (const uint8_t **)(rebuild->fetches + sources);
    rebuild->recipes = (struct recipe *)(rebuild->places + sources);
    rebuild->crcs = (uint32_t *)(rebuild->recipes + recipes);
    void *cells = NULL;
    if (sources > 0 && posix_memalign(&cells, 4096, (size_t)sources * cell_bytes) != 0) {
        free(rebuild);
        return NULL;
    }
    rebuild->sources = cells;
    return rebuild;
}

/* With as much room, of those kept, or new; NULL: out of memory. */
static struct rf_rebuild *rebuild_take(struct rf_columns *columns, uint32_t recipes,
                                       uint32_t sources)
{
    struct rf_rebuild *found = NULL;
    pthread_mutex_lock(&columns->mutex);
    for (int s = 0; s < SPARES && !found; s++) {
        struct rf_rebuild *spare = columns->spares[s];
        if (spare && spare->recipes_room >= recipes && spare->sources_room >= sources) {
            found = spare;
            columns->spares[s] = NULL;
        }
    }
    pthread_mutex_unlock(&columns->mutex);
    if (!found)
        return rebuild_new(recipes, sources, columns->cell_bytes);
    found->recipes_count = found->fetches_count = found->sources_count = found->places_count = 0;
    return found;
}

/* Keeps it for the next, in place of a smaller one, unless it is very large. */
static void rebuild_give(struct rf_columns *columns, struct rf_rebuild *rebuild)
{
    if (!rebuild)
        return;
    pthread_mutex_lock(&columns->mutex);
    if ((uint64_t)rebuild->sources_room * columns->cell_bytes <= SPARE_BYTES_MAX) {
        int least = 0;
        for (int s = 0; s < SPARES; s++) {
            if (!columns->spares[s] ||
                (columns->spares[least] &&
                 columns->spares[s]->sources_room < columns->spares[least]->sources_room))
                least = s;
        }
        struct rf_rebuild *other = columns->spares[least];
        if (!other || other->sources_room < rebuild->sources_room) {
            columns->spares[least] = rebuild;
            rebuild = other;
        }
    }
    pthread_mutex_unlock(&columns->mutex);
    rf_rebuild_free(rebuild);
}

int rf_reading_plan(struct reading *reading)
{
    struct rf_columns *columns = reading->columns;
    while (true) {
        uint32_t recipes = 0, sources = 0;
        pthread_mutex_lock(&columns->mutex);
        int error = plan(reading, &recipes, &sources);
        pthread_mutex_unlock(&columns->mutex);
        if (error != -ENOBUFS)
            return error;
        rebuild_give(columns, reading->rebuild);
        reading->rebuild = rebuild_take(columns, recipes, sources);
        if (!reading->rebuild)
            return -ENOMEM;
    }
}

bool rf_reading_arrays(struct reading *reading)
{
    size_t count = reading->count;
    struct run *runs =
        malloc(count * (sizeof *runs + sizeof reading->memory[0] + 3 * sizeof(uint32_t)) + 1);
    if (!runs)
        return false;
    reading->runs = runs;
    reading->memory = (uint64_t *)(runs + count);
    reading->order = (uint32_t *)(reading->memory + count);
    reading->crcs = reading->order + count;
    reading->run_of = reading->crcs + count;
    return true;
}

/* ---- the end ---- */

static void let_go(const struct run *runs, uint32_t count, bool *forgotten)
{
    for (uint32_t r = 0; r < count; r++) {
        *forgotten |= atomic_load(&runs[r].zone->forgotten);
        if (runs[r].descriptor)
            rf_descriptor_release(runs[r].descriptor);
        rf_zone_release(runs[r].zone);
    }
}

int rf_reading_finish(struct reading *reading, bool planned, int result)
{
    struct rf_columns *columns = reading->columns;
    bool forgotten = false;
    if (planned) {
        atomic_thread_fence(memory_order_seq_cst); /* the reads come before the looks */
        let_go(reading->runs, reading->runs_count, &forgotten);
        if (reading->lost_count > 0)
            let_go(reading->rebuild->fetches, reading->rebuild->fetches_count, &forgotten);
    }
    if (forgotten && result != -EWOULDBLOCK)
        result = -ENOENT;
    atomic_ulong *counter = result == 0              ? &columns->reads
                            : result == -ENOENT      ? &columns->unknown
                            : result == -EWOULDBLOCK ? &columns->waiting
                                                     : &columns->failed;
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
    if (result == 0) {
        atomic_fetch_add_explicit(&columns->cells_read, reading->cells, memory_order_relaxed);
        if (reading->lost_count > 0)
            atomic_fetch_add_explicit(&columns->cells_rebuilt, reading->lost_count,
                                      memory_order_relaxed);
    }
    rebuild_give(columns, reading->rebuild);
    return result;
}

/* ---- checking and rebuilding ---- */

static bool matches(const struct reading *reading, const uint8_t *cell, uint32_t crc)
{
    return rf_crc32c(0, cell, reading->columns->cell_bytes) == crc;
}

int rf_reading_check_run(const struct reading *reading, const struct run *run)
{
    for (uint32_t o = run->first; o < run->first + run->count; o++) {
        uint32_t i = reading->order[o];
        if (!matches(reading, rf_cell_at(reading, i), reading->crcs[i]))
            return -EIO;
    }
    return 0;
}

int rf_reading_check_fetch(const struct reading *reading, const struct run *fetch)
{
    const struct rf_rebuild *rebuild = reading->rebuild;
    for (uint32_t s = fetch->first; s < fetch->first + fetch->count; s++) {
        const uint8_t *cell = rebuild->sources + (size_t)s * reading->columns->cell_bytes;
        if (!matches(reading, cell, rebuild->crcs[s]))
            return -EIO;
    }
    return 0;
}

int rf_reading_rebuild(const struct reading *reading)
{
    const struct rf_rebuild *rebuild = reading->rebuild;
    for (uint32_t p = 0; p < rebuild->recipes_count; p++) {
        const struct recipe *recipe = &rebuild->recipes[p];
        const struct run *run = &reading->runs[recipe->run];
        const uint8_t **places = rebuild->places + recipe->first;
        for (uint32_t o = run->first; o < run->first + run->count; o++) {
            uint32_t i = reading->order[o];
            uint8_t *cell = rf_cell_at(reading, i);
            rf_multiply(recipe->coefficients, 1, recipe->sources_count, places, &cell,
                        reading->columns->cell_bytes);
            if (!matches(reading, cell, reading->crcs[i]))
                return -EIO;
            places += recipe->sources_count;
        }
    }
    return 0;
}

/* ---- at once ---- */

/* Reads all of vectors[0..count), which it uses up, or -EIO, or -EWOULDBLOCK. */
static int read_vectors(struct rf_descriptor *descriptor, uint64_t offset, struct iovec *vectors,
                        int count, bool nowait)
{
    nowait = nowait && !descriptor->never_waits;
    if (nowait && atomic_load_explicit(&descriptor->cannot_tell, memory_order_relaxed))
        return -EWOULDBLOCK;
    while (count > 0) {
        ssize_t got =
            preadv2(descriptor->fd, vectors, count, (off_t)offset, nowait ? RWF_NOWAIT : 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && nowait && errno == EOPNOTSUPP)
            atomic_store_explicit(&descriptor->cannot_tell, true, memory_order_relaxed);
        if (got < 0 && nowait && (errno == EAGAIN || errno == EOPNOTSUPP))
            return -EWOULDBLOCK;
        if (got <= 0)
            return -EIO; /* 0: the file has become shorter than a column is */
        offset += (uint64_t)got;
        size_t left = (size_t)got;
        while (count > 0 && left >= vectors->iov_len) {
            left -= vectors->iov_len;
            vectors++;
            count--;
        }
        if (count > 0) {
            vectors->iov_base = (char *)vectors->iov_base + left;
            vectors->iov_len -= left;
        }
    }
    return 0;
}

/* Reads the cells of one run; those that are neighbours in memory become one vector. */
static int read_run(const struct reading *reading, const struct run *run, bool nowait)
{
    const size_t cell_bytes = reading->columns->cell_bytes;
    struct iovec vectors[VECTORS];
    uint64_t offset = run->offset;
    uint32_t done = 0;
    while (done < run->count) {
        int used = 0;
        size_t nbytes = 0;
        const uint8_t *end = NULL;
        for (; done < run->count; done++) {
            uint8_t *cell = rf_cell_at(reading, reading->order[run->first + done]);
            if (cell == end) {
                vectors[used - 1].iov_len += cell_bytes;
            } else {
                if (used == VECTORS)
                    break;
                vectors[used++] = (struct iovec){cell, cell_bytes};
            }
            end = cell + cell_bytes;
            nbytes += cell_bytes;
        }
        int error = read_vectors(run->descriptor, offset, vectors, used, nowait);
        if (error)
            return error;
        offset += nbytes;
    }
    return rf_reading_check_run(reading, run);
}

static int read_fetch(const struct reading *reading, const struct run *fetch, bool nowait)
{
    const size_t cell_bytes = reading->columns->cell_bytes;
    struct iovec whole = {reading->rebuild->sources + fetch->first * cell_bytes,
                          fetch->count * cell_bytes};
    int error = read_vectors(fetch->descriptor, fetch->offset, &whole, 1, nowait);
    return error ? error : rf_reading_check_fetch(reading, fetch);
}

static int read_all(const struct reading *reading, bool nowait)
{
    for (uint32_t r = 0; r < reading->runs_count; r++) {
        const struct run *run = &reading->runs[r];
        int error = run->descriptor ? read_run(reading, run, nowait) : 0;
        if (error)
            return error;
    }
    if (reading->lost_count == 0)
        return 0;
    for (uint32_t f = 0; f < reading->rebuild->fetches_count; f++) {
        int error = read_fetch(reading, &reading->rebuild->fetches[f], nowait);
        if (error)
            return error;
    }
    return rf_reading_rebuild(reading);
}

static int read_planned(struct reading *reading, bool nowait)
{
    int error = rf_reading_plan(reading);
    bool planned = error == 0;
    if (planned)
        error = read_all(reading, nowait);
    return rf_reading_finish(reading, planned, error);
}

int rf_columns_read(struct rf_columns *columns, const uint64_t *addresses, uint32_t count,
                    uint8_t *out, int nowait)
{
    struct reading reading = {
        .columns = columns, .addresses = addresses, .count = count, .out = out};
    if (count > CELLS_MOST)
        return -EINVAL;
    if (count > CELLS_FEW) {
        if (!rf_reading_arrays(&reading))
            return -ENOMEM;
        int result = read_planned(&reading, nowait != 0);
        free(reading.runs);
        return result;
    }
    struct run runs[CELLS_FEW];
    uint32_t order[CELLS_FEW], crcs[CELLS_FEW], run_of[CELLS_FEW];
    reading.runs = runs;
    reading.order = order;
    reading.crcs = crcs;
    reading.run_of = run_of;
    return read_planned(&reading, nowait != 0);
}
