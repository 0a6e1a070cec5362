/* columns.c: what is known of zones: descriptors, checksums, recipes; bounded, and forgotten.
 *
 * Promises:
 *  1. A cell that a read hands out was read while its zone was not forgotten, and matches the
 *     checksum put for it. So once rf_columns_zone_forget has returned, the zone's place may be
 *     given to another: a read under way ends with -ENOENT, whatever it has found there.
 *  2. A descriptor is closed exactly once: when its column, zone or member was forgotten or lost
 *     and the last reader that began before is done. The mutex is not held meanwhile.
 *  3. At most zones_max zones and slab_bytes_max of checksums are known; the least recently used
 *     go first. (One zone and one slab may always be known.)
 *  4. Nothing here waits for a member, except the closing of a file.
 *
 * Checksums are copied out under the mutex, so they can be forgotten and added to at any time;
 * zones and descriptors are counted, since reads go on outside of the mutex.
 */
#define _GNU_SOURCE
#include "columns_inner.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "erasure.h"

static const long MAGIC_TMPFS = 0x01021994, MAGIC_RAMFS = 0x858458f6; /* linux/magic.h */

/* ---- lists by age ---- */

static void list_init(struct rf_link *head)
{
    head->newer = head->older = head;
}

void rf_list_remove(struct rf_link *link)
{
    link->newer->older = link->older;
    link->older->newer = link->newer;
}

/* The newest is head->older, the oldest head->newer. */
void rf_list_add(struct rf_link *head, struct rf_link *link)
{
    link->older = head->older;
    link->newer = head;
    head->older->newer = link;
    head->older = link;
}

static void list_touch(struct rf_link *head, struct rf_link *link)
{
    if (head->older == link)
        return;
    rf_list_remove(link);
    rf_list_add(head, link);
}

/* ---- descriptors ---- */

void rf_descriptor_release(struct rf_descriptor *descriptor)
{
    if (atomic_fetch_sub_explicit(&descriptor->references, 1, memory_order_acq_rel) != 1)
        return;
    close(descriptor->fd);
    atomic_fetch_sub_explicit(descriptor->open, 1, memory_order_relaxed);
    free(descriptor);
}

void rf_look_at(int32_t fd, struct rf_look *look)
{
    struct stat status;
    struct statfs system;
    *look = (struct rf_look){0};
    if (fstat(fd, &status) == 0) {
        look->device = status.st_dev;
        look->inode = status.st_ino;
    }
    if (fstatfs(fd, &system) == 0)
        look->never_waits = system.f_type == MAGIC_TMPFS || system.f_type == MAGIC_RAMFS;
    int flags = fcntl(fd, F_GETFL);
    look->is_direct = flags >= 0 && (flags & O_DIRECT);
}

/* Takes over the descriptor, also if there is no memory for it: then NULL. */
static struct rf_descriptor *descriptor_new(struct rf_columns *columns, int fd, int32_t member,
                                            const struct rf_look *look)
{
    struct rf_descriptor *descriptor = calloc(1, sizeof *descriptor);
    if (!descriptor) {
        close(fd);
        return NULL;
    }
    descriptor->device = (dev_t)look->device;
    descriptor->inode = (ino_t)look->inode;
    descriptor->never_waits = look->never_waits;
    atomic_init(&descriptor->references, 1);
    /* direct reads always wait, whatever they are told */
    atomic_init(&descriptor->cannot_tell, look->is_direct);
    descriptor->fd = fd;
    descriptor->member = member;
    descriptor->open = &columns->descriptors;
    atomic_fetch_add_explicit(&columns->descriptors, 1, memory_order_relaxed);
    return descriptor;
}

static struct rf_descriptor **latest_of(struct rf_columns *columns, int32_t member)
{
    return &columns->latest[(uint32_t)member % LATEST_COUNT];
}

/* With the mutex held: the columns of an image or a device all lie in one file, of which one
 * descriptor is enough. Returns the one to use; the other, or NULL, goes to *spare, to be released
 * without the mutex. */
static struct rf_descriptor *share(struct rf_columns *columns, struct rf_descriptor *descriptor,
                                   struct rf_descriptor **spare)
{
    struct rf_descriptor **latest = latest_of(columns, descriptor->member), *known = *latest;
    *spare = NULL;
    if (known && known->member == descriptor->member && known->inode == descriptor->inode &&
        known->device == descriptor->device && descriptor->inode != 0) {
        *spare = descriptor;
        known->shared = true;
        atomic_fetch_add_explicit(&known->references, 1, memory_order_relaxed);
        return known;
    }
    *spare = known;
    *latest = descriptor;
    atomic_fetch_add_explicit(&descriptor->references, 1, memory_order_relaxed);
    return descriptor;
}

/* ---- members ---- */

/* With the mutex held; NULL: not known yet. */
static struct rf_member *member_find(const struct rf_columns *columns, int32_t id)
{
    struct rf_member *member = columns->members;
    while (member && member->id != id)
        member = member->next;
    return member;
}

/* With the mutex held; NULL: out of memory. */
static struct rf_member *member_made(struct rf_columns *columns, int32_t id)
{
    struct rf_member *member = member_find(columns, id);
    if (member || !(member = calloc(1, sizeof *member)))
        return member;
    member->id = id;
    member->next = columns->members;
    columns->members = member;
    return member;
}

/* With the mutex held: recipes of the zone that need a column of the member. */
static void forget_recipes_with(struct rf_zone *zone, int32_t member)
{
    for (uint32_t c = 0; c < zone->width; c++) {
        if (zone->columns[c].member != member)
            continue;
        for (uint32_t lost = 0; lost < zone->width; lost++) {
            uint8_t *recipe = zone->columns[lost].recipe;
            if (recipe && recipe[c]) {
                free(recipe);
                zone->columns[lost].recipe = NULL;
            }
        }
    }
}

void rf_columns_sit_out(struct rf_columns *columns, int32_t id, int sits_out)
{
    pthread_mutex_lock(&columns->mutex);
    struct rf_member *member = member_made(columns, id);
    if (member)
        member->sits_out = sits_out;
    struct rf_link *link = columns->zones.newer;
    for (; sits_out && link != &columns->zones; link = link->newer)
        forget_recipes_with((struct rf_zone *)link, id);
    pthread_mutex_unlock(&columns->mutex);
}

void rf_columns_latencies(struct rf_columns *columns, int32_t id, uint64_t counts[RF_LATENCIES])
{
    pthread_mutex_lock(&columns->mutex);
    struct rf_member *member = member_find(columns, id);
    pthread_mutex_unlock(&columns->mutex);
    for (uint32_t i = 0; i < LATENCIES; i++)
        counts[i] = member ? atomic_load_explicit(&member->latencies[i], memory_order_relaxed) : 0;
}

/* ---- what was taken out under the mutex and is let go without it ---- */

struct leaving {
    struct rf_zone *zones; /* by next */
    uint32_t descriptors_count;
    struct rf_descriptor *descriptors[COLUMNS_MAX + 1];
};

static void let_go(struct leaving *leaving)
{
    for (uint32_t d = 0; d < leaving->descriptors_count; d++)
        rf_descriptor_release(leaving->descriptors[d]);
    leaving->descriptors_count = 0;
    while (leaving->zones) {
        struct rf_zone *zone = leaving->zones;
        leaving->zones = zone->next;
        rf_zone_release(zone);
    }
}

/* ---- zones ---- */

void rf_zone_release(struct rf_zone *zone)
{
    if (atomic_fetch_sub_explicit(&zone->references, 1, memory_order_acq_rel) != 1)
        return;
    for (uint32_t c = 0; c < zone->width; c++) {
        if (zone->columns[c].descriptor)
            rf_descriptor_release(zone->columns[c].descriptor);
        free(zone->columns[c].recipe);
    }
    free(zone->slabs);
    free(zone);
}

static struct rf_zone **bucket_of(struct rf_columns *columns, uint64_t number)
{
    return &columns->buckets[(number * 0x9e3779b97f4a7c15u >> 32) & columns->buckets_mask];
}

struct rf_zone *rf_columns_find(struct rf_columns *columns, uint64_t number)
{
    struct rf_zone *zone = *bucket_of(columns, number);
    while (zone && zone->number != number)
        zone = zone->next;
    if (zone)
        list_touch(&columns->zones, &zone->link);
    return zone;
}

static void slab_drop(struct rf_columns *columns, struct rf_slab *slab)
{
    slab->zone->slabs[slab->number] = NULL;
    rf_list_remove(&slab->link);
    columns->slabs_count--;
    columns->slab_bytes -= (uint64_t)SLAB_ROWS * slab->zone->width * sizeof slab->crcs[0];
    free(slab);
}

/* Takes a zone out of the table. A reader may still hold it. */
static void zone_take_out(struct rf_columns *columns, struct rf_zone *zone, struct leaving *leaving)
{
    struct rf_zone **at = bucket_of(columns, zone->number);
    while (*at != zone)
        at = &(*at)->next;
    *at = zone->next;
    rf_list_remove(&zone->link);
    columns->zones_count--;
    for (uint32_t s = 0; s < zone->slabs_count; s++) {
        if (zone->slabs[s])
            slab_drop(columns, zone->slabs[s]);
    }
    zone->next = leaving->zones;
    leaving->zones = zone;
}

/* A removed column's file would keep its room for as long as it is open. */
static void forget_latest(struct rf_columns *columns, struct rf_zone *zone, struct leaving *leaving)
{
    for (uint32_t c = 0; c < zone->width; c++) {
        struct rf_descriptor **latest = latest_of(columns, zone->columns[c].member);
        if (*latest && *latest == zone->columns[c].descriptor && !(*latest)->shared) {
            leaving->descriptors[leaving->descriptors_count++] = *latest;
            *latest = NULL;
        }
    }
}

static struct rf_zone *zone_new(uint64_t number, uint32_t width, uint32_t rows)
{
    struct rf_zone *zone = calloc(1, sizeof *zone + width * sizeof zone->columns[0]);
    if (!zone)
        return NULL;
    zone->number = number;
    zone->width = width;
    zone->rows = rows;
    zone->slabs_count = (rows + SLAB_ROWS - 1) / SLAB_ROWS;
    zone->slabs = calloc(zone->slabs_count, sizeof zone->slabs[0]);
    if (!zone->slabs) {
        free(zone);
        return NULL;
    }
    atomic_init(&zone->references, 1);
    atomic_init(&zone->forgotten, false);
    return zone;
}

/* With the mutex held. */
static void zone_enter(struct rf_columns *columns, struct rf_zone *zone, struct leaving *leaving)
{
    struct rf_zone *known = rf_columns_find(columns, zone->number);
    if (known)
        zone_take_out(columns, known, leaving);
    while (columns->zones_count > 0 && columns->zones_count >= columns->zones_max)
        zone_take_out(columns, (struct rf_zone *)columns->zones.newer, leaving);
    struct rf_zone **bucket = bucket_of(columns, zone->number);
    zone->next = *bucket;
    *bucket = zone;
    rf_list_add(&columns->zones, &zone->link);
    columns->zones_count++;
}

int rf_columns_zone_put(struct rf_columns *columns, uint64_t zone, uint32_t width, uint32_t k,
                        uint32_t rows, const int32_t *fds, const uint64_t *offsets,
                        const int32_t *members)
{
    struct rf_look looks[COLUMNS_MAX];
    for (uint32_t c = 0; c < width && c < COLUMNS_MAX; c++) {
        if (fds[c] >= 0)
            rf_look_at(fds[c], &looks[c]);
    }
    return rf_columns_zone_put_seen(columns, zone, width, k, rows, fds, offsets, members, looks);
}

int rf_columns_zone_put_seen(struct rf_columns *columns, uint64_t zone, uint32_t width, uint32_t k,
                             uint32_t rows, const int32_t *fds, const uint64_t *offsets,
                             const int32_t *members, const struct rf_look *looks)
{
    bool sensible = zone > 0 && zone <= UINT32_MAX && width > 0 && width <= COLUMNS_MAX && k > 0 &&
                    k <= width && rows > 0 && rows <= ROWS_MAX;
    struct rf_zone *new = sensible ? zone_new(zone, width, rows) : NULL;
    struct rf_descriptor *descriptors[COLUMNS_MAX] = {NULL};
    int result = !sensible ? -EINVAL : new ? 0 : -ENOMEM;
    for (uint32_t c = 0; c < width; c++) {
        if (fds[c] < 0)
            continue;
        if (result != 0) {
            close(fds[c]);
            continue;
        }
        descriptors[c] = descriptor_new(columns, fds[c], members[c], &looks[c]);
        if (!descriptors[c])
            result = -ENOMEM;
    }
    if (result != 0) {
        for (uint32_t c = 0; c < width && c < COLUMNS_MAX; c++) {
            if (descriptors[c])
                rf_descriptor_release(descriptors[c]);
        }
        if (new)
            rf_zone_release(new);
        return result;
    }
    struct leaving leaving = {.zones = NULL};
    pthread_mutex_lock(&columns->mutex);
    for (uint32_t c = 0; c < width; c++) {
        struct rf_descriptor *spare = NULL, *used = NULL;
        if (descriptors[c]) {
            descriptors[c]->whose = member_made(columns, members[c]);
            used = share(columns, descriptors[c], &spare);
        }
        new->columns[c] = (struct rf_column){used, offsets[c], members[c], NULL};
        if (spare)
            leaving.descriptors[leaving.descriptors_count++] = spare;
    }
    zone_enter(columns, new, &leaving);
    pthread_mutex_unlock(&columns->mutex);
    let_go(&leaving);
    return 0;
}

int rf_columns_zone_known(struct rf_columns *columns, uint64_t zone)
{
    pthread_mutex_lock(&columns->mutex);
    bool known = rf_columns_find(columns, zone) != NULL;
    pthread_mutex_unlock(&columns->mutex);
    return known;
}

void rf_columns_zone_forget(struct rf_columns *columns, uint64_t zone)
{
    struct leaving leaving = {.zones = NULL};
    atomic_fetch_add(&columns->forgets, 1);
    pthread_mutex_lock(&columns->mutex);
    struct rf_zone *known = rf_columns_find(columns, zone);
    if (known) {
        atomic_store(&known->forgotten, true);
        forget_latest(columns, known, &leaving);
        zone_take_out(columns, known, &leaving);
    }
    pthread_mutex_unlock(&columns->mutex);
    let_go(&leaving);
}

uint64_t rf_columns_forgets(struct rf_columns *columns)
{
    return atomic_load(&columns->forgets);
}

void rf_columns_clear(struct rf_columns *columns)
{
    struct leaving leaving = {.zones = NULL};
    atomic_fetch_add(&columns->forgets, 1);
    struct rf_descriptor *latest[LATEST_COUNT];
    pthread_mutex_lock(&columns->mutex);
    while (columns->zones_count > 0) {
        struct rf_zone *zone = (struct rf_zone *)columns->zones.newer;
        atomic_store(&zone->forgotten, true);
        zone_take_out(columns, zone, &leaving);
    }
    memcpy(latest, columns->latest, sizeof latest);
    memset(columns->latest, 0, sizeof columns->latest);
    pthread_mutex_unlock(&columns->mutex);
    let_go(&leaving);
    for (uint32_t m = 0; m < LATEST_COUNT; m++) {
        if (latest[m])
            rf_descriptor_release(latest[m]);
    }
}

/* With the mutex held: the zone's columns on the member are lost; their descriptors, at most
 * COLUMNS_MAX, go to `gone`. Returns how many. */
static uint32_t zone_lose(struct rf_zone *zone, int32_t member, struct rf_descriptor **gone)
{
    uint32_t count = 0;
    for (uint32_t c = 0; c < zone->width; c++) {
        struct rf_column *column = &zone->columns[c];
        if (column->member == member && column->descriptor) {
            gone[count++] = column->descriptor;
            column->descriptor = NULL;
        }
    }
    for (uint32_t c = 0; count > 0 && c < zone->width; c++) {
        free(zone->columns[c].recipe);
        zone->columns[c].recipe = NULL;
    }
    return count;
}

void rf_columns_lose(struct rf_columns *columns, int32_t member)
{
    struct rf_descriptor *gone[4 * COLUMNS_MAX];
    bool more = true;
    while (more) { /* some at a time, since they are closed without the mutex */
        uint32_t count = 0;
        more = false;
        pthread_mutex_lock(&columns->mutex);
        struct rf_descriptor **latest = latest_of(columns, member);
        if (*latest && (*latest)->member == member) {
            gone[count++] = *latest;
            *latest = NULL;
        }
        struct rf_link *link = columns->zones.newer;
        for (; link != &columns->zones && !more; link = link->newer) {
            count += zone_lose((struct rf_zone *)link, member, gone + count);
            more = count > 3 * COLUMNS_MAX;
        }
        pthread_mutex_unlock(&columns->mutex);
        for (uint32_t d = 0; d < count; d++)
            rf_descriptor_release(gone[d]);
    }
}

/* ---- recipes ---- */

static int recipe_check(const struct rf_zone *zone, uint32_t column, const uint8_t *coefficients)
{
    if (column >= zone->width || rf_column_usable(&zone->columns[column]))
        return -EINVAL;
    for (uint32_t c = 0; c < zone->width; c++) {
        if (coefficients[c] && !rf_column_usable(&zone->columns[c]))
            return -EINVAL;
    }
    return 0;
}

int rf_columns_recipe_put(struct rf_columns *columns, uint64_t zone, uint32_t column,
                          const uint8_t *coefficients)
{
    uint8_t *copy = calloc(1, COLUMNS_MAX);
    if (!copy)
        return -ENOMEM;
    pthread_mutex_lock(&columns->mutex);
    struct rf_zone *known = rf_columns_find(columns, zone);
    int result = known ? recipe_check(known, column, coefficients) : -ENOENT;
    if (result == 0) {
        memcpy(copy, coefficients, known->width);
        uint8_t *old = known->columns[column].recipe;
        known->columns[column].recipe = copy;
        copy = old;
    }
    pthread_mutex_unlock(&columns->mutex);
    free(copy);
    return result;
}

/* ---- checksums ---- */

struct rf_slab *rf_columns_find_slab(struct rf_columns *columns, struct rf_zone *zone,
                                     uint32_t number)
{
    struct rf_slab *slab = number < zone->slabs_count ? zone->slabs[number] : NULL;
    if (slab)
        list_touch(&columns->slabs, &slab->link);
    return slab;
}

/* With the mutex held: the zone's slab, made if it isn't there; NULL: out of memory. */
static struct rf_slab *slab_made(struct rf_columns *columns, struct rf_zone *zone, uint32_t number)
{
    struct rf_slab *slab = rf_columns_find_slab(columns, zone, number);
    if (slab)
        return slab;
    uint64_t nbytes = (uint64_t)SLAB_ROWS * zone->width * sizeof slab->crcs[0];
    slab = malloc(sizeof *slab + nbytes);
    if (!slab)
        return NULL;
    slab->zone = zone;
    slab->number = number;
    slab->rows = 0;
    while (columns->slabs_count > 0 && columns->slab_bytes + nbytes > columns->slab_bytes_max)
        slab_drop(columns, (struct rf_slab *)columns->slabs.newer);
    zone->slabs[number] = slab;
    rf_list_add(&columns->slabs, &slab->link);
    columns->slabs_count++;
    columns->slab_bytes += nbytes;
    return slab;
}

int rf_columns_slab_put(struct rf_columns *columns, uint64_t zone, uint32_t slab,
                        const uint32_t *crcs, uint32_t rows)
{
    int result = 0;
    pthread_mutex_lock(&columns->mutex);
    struct rf_zone *known = rf_columns_find(columns, zone);
    if (!known)
        result = -ENOENT;
    else if (slab >= known->slabs_count || rows > SLAB_ROWS ||
             (uint64_t)slab * SLAB_ROWS + rows > known->rows)
        result = -EINVAL;
    struct rf_slab *made = result == 0 ? slab_made(columns, known, slab) : NULL;
    if (made) {
        memcpy(made->crcs, crcs, (size_t)rows * known->width * sizeof crcs[0]);
        made->rows = rows;
    }
    pthread_mutex_unlock(&columns->mutex);
    return result == 0 && !made ? -ENOMEM : result;
}

int rf_columns_slab_known(struct rf_columns *columns, uint64_t zone, uint32_t slab)
{
    pthread_mutex_lock(&columns->mutex);
    struct rf_zone *known = rf_columns_find(columns, zone);
    bool found = known && rf_columns_find_slab(columns, known, slab);
    pthread_mutex_unlock(&columns->mutex);
    return found;
}

/* With the mutex held. Rows of one slab, from `first` of it on. */
static void slab_extend(struct rf_columns *columns, struct rf_zone *zone, uint32_t number,
                        uint32_t first, uint32_t rows, const uint32_t *crcs)
{
    struct rf_slab *slab = rf_columns_find_slab(columns, zone, number);
    if (!slab && first == 0)
        slab = slab_made(columns, zone, number);
    if (!slab)
        return;
    if (first > slab->rows) { /* what lies between isn't known, and a slab knows no gaps */
        slab_drop(columns, slab);
        return;
    }
    memcpy(slab->crcs + (size_t)first * zone->width, crcs,
           (size_t)rows * zone->width * sizeof crcs[0]);
    if (slab->rows < first + rows)
        slab->rows = first + rows;
}

void rf_columns_rows_put(struct rf_columns *columns, uint64_t zone, uint32_t row, uint32_t rows,
                         const uint32_t *crcs)
{
    pthread_mutex_lock(&columns->mutex);
    struct rf_zone *known = rf_columns_find(columns, zone);
    if (known && (uint64_t)row + rows <= known->rows) {
        while (rows > 0) {
            uint32_t first = row % SLAB_ROWS, here = SLAB_ROWS - first;
            here = here < rows ? here : rows;
            slab_extend(columns, known, row / SLAB_ROWS, first, here, crcs);
            crcs += (size_t)here * known->width;
            row += here;
            rows -= here;
        }
    }
    pthread_mutex_unlock(&columns->mutex);
}

/* ---- the whole ---- */

struct rf_columns *rf_columns_new(uint32_t cell_bytes, uint32_t zones_max, uint64_t slab_bytes_max)
{
    if (cell_bytes < 4096 || cell_bytes > 65536 || (cell_bytes & (cell_bytes - 1)) ||
        zones_max == 0 || zones_max > 1 << 24)
        return NULL;
    struct rf_columns *columns = calloc(1, sizeof *columns);
    void *zeros = calloc(1, cell_bytes);
    uint32_t buckets = 64;
    while (buckets < zones_max)
        buckets *= 2;
    if (columns)
        columns->buckets = calloc(buckets, sizeof columns->buckets[0]);
    if (!columns || !zeros || !columns->buckets) {
        if (columns)
            free(columns->buckets);
        free(columns);
        free(zeros);
        return NULL;
    }
    pthread_mutex_init(&columns->mutex, NULL);
    pthread_mutex_init(&columns->waits_mutex, NULL);
    list_init(&columns->waits);
    columns->cell_bytes = cell_bytes;
    columns->zones_max = zones_max;
    columns->slab_bytes_max = slab_bytes_max;
    columns->buckets_mask = buckets - 1;
    columns->zero_crc = rf_crc32c(0, zeros, cell_bytes);
    list_init(&columns->zones);
    list_init(&columns->slabs);
    free(zeros);
    return columns;
}

void rf_columns_free(struct rf_columns *columns)
{
    if (!columns)
        return;
    rf_columns_clear(columns);
    pthread_mutex_lock(&columns->waits_mutex);
    columns->orphaned = columns->stuck > 0; /* whoever reads last ends it */
    bool orphaned = columns->orphaned;
    pthread_mutex_unlock(&columns->waits_mutex);
    if (!orphaned)
        rf_columns_end(columns);
}

void rf_columns_end(struct rf_columns *columns)
{
    for (struct rf_member *member = columns->members, *next; member; member = next) {
        next = member->next;
        free(member);
    }
    pthread_mutex_destroy(&columns->waits_mutex);
    for (uint32_t s = 0; s < SPARES; s++)
        rf_rebuild_free(columns->spares[s]);
    pthread_mutex_destroy(&columns->mutex);
    free(columns->buckets);
    free(columns);
}

void rf_columns_statistics(struct rf_columns *columns, struct rf_columns_statistics *out)
{
    pthread_mutex_lock(&columns->mutex);
    out->zones = columns->zones_count;
    out->slabs = columns->slabs_count;
    out->slab_bytes = columns->slab_bytes;
    pthread_mutex_unlock(&columns->mutex);
    out->descriptors = atomic_load_explicit(&columns->descriptors, memory_order_relaxed);
    out->reads = atomic_load_explicit(&columns->reads, memory_order_relaxed);
    out->cells_read = atomic_load_explicit(&columns->cells_read, memory_order_relaxed);
    out->cells_rebuilt = atomic_load_explicit(&columns->cells_rebuilt, memory_order_relaxed);
    out->unknown = atomic_load_explicit(&columns->unknown, memory_order_relaxed);
    out->waiting = atomic_load_explicit(&columns->waiting, memory_order_relaxed);
    out->failed = atomic_load_explicit(&columns->failed, memory_order_relaxed);
    out->given_up = atomic_load_explicit(&columns->given_up, memory_order_relaxed);
    pthread_mutex_lock(&columns->waits_mutex);
    out->stuck = columns->stuck;
    pthread_mutex_unlock(&columns->waits_mutex);
}
