/* pages_generation.c: sealing, handing sealed generations to the flusher, retiring them.
 *
 * Words, invariants and costs stand at the head of pages.c.
 */
#include <errno.h>
#include <string.h>

#include "pages_inner.h"

uint64_t rf_pages_open_files(struct rf_pages *pages)
{
    pthread_mutex_lock(&pages->mutex);
    uint64_t files = pages->open->files;
    pthread_mutex_unlock(&pages->mutex);
    return files;
}

uint64_t rf_pages_generation(struct rf_pages *pages)
{
    pthread_mutex_lock(&pages->mutex);
    uint64_t number = pages->open->number;
    pthread_mutex_unlock(&pages->mutex);
    return number;
}

uint64_t rf_pages_open_cells(struct rf_pages *pages)
{
    pthread_mutex_lock(&pages->mutex);
    uint64_t cells = pages->open->cells;
    pthread_mutex_unlock(&pages->mutex);
    return cells;
}

uint64_t rf_pages_dirty_cells(struct rf_pages *pages)
{
    pthread_mutex_lock(&pages->mutex);
    uint64_t cells = pages->dirty_cells;
    pthread_mutex_unlock(&pages->mutex);
    return cells;
}

void rf_pages_statistics(struct rf_pages *pages, struct rf_pages_statistics *out)
{
    pthread_mutex_lock(&pages->mutex);
    const struct pool *cells = &pages->cells;
    *out = (struct rf_pages_statistics){
        .generation = pages->open->number,
        .generations_sealed = pages->generations_sealed,
        .resident = pages->table.count,
        .open_files = pages->open->files,
        .open_cells = pages->open->cells,
        .dirty_cells = pages->dirty_cells,
        .marks = pages->marks,
        .credits = pages->credits,
        .lane_files = pages->lane_files,
        .table_bytes = (pages->table.mask + 1) * sizeof(struct file),
        .layer_bytes = pages->layers.chunks * pages->layers.chunk_bytes,
        .cell_pool_bytes = cells->chunks * cells->chunk_bytes,
        .cell_pool_free_bytes = cells->things_free * cells->thing_bytes,
        .leaves = pages->leaves.leaves,
        .leaf_bytes = pages->leaves.nbytes,
        .leaf_hits = pages->leaves.hits,
        .leaf_misses = pages->leaves.misses,
    };
    pthread_mutex_unlock(&pages->mutex);
}

/* ---- sealing ---- */

/* Reports the files of the open generation and ends the layers that nobody needs any more. */
static void seal_layers(struct rf_pages *pages, uint64_t *inos, int64_t *sizes, int64_t *mtimes_ns,
                        int64_t *ctimes_ns, int64_t *atimes_ns)
{
    struct generation *open = pages->open;
    struct layer **link = &open->first, *layer;
    uint64_t count = 0;
    while ((layer = *link)) {
        struct file *file = file_find(pages, layer->ino);
        ENSURE(file && file->newest == layer);
        if (!file->dropped) {
            inos[count] = file->ino;
            sizes[count] = (int64_t)file->size;
            mtimes_ns[count] = file->mtime_ns;
            ctimes_ns[count] = file->ctime_ns;
            atimes_ns[count] = file->atime_ns;
            count++;
        }
        if (layer->count == 0 && layer->cut == NO_CUT) {
            file->newest = layer->older;
            *link = layer->next;
            layer_end(pages, layer);
        } else {
            link = &layer->next;
        }
    }
    open->last = NULL; /* only a list that grows needs it */
    ENSURE(count == open->files);
}

int64_t rf_pages_seal(struct rf_pages *pages, uint64_t room, uint64_t *inos, int64_t *sizes,
                      int64_t *mtimes_ns, int64_t *ctimes_ns, int64_t *atimes_ns, uint64_t *sealed)
{
    struct generation *next = calloc(1, sizeof(*next));
    if (!next)
        return -ENOMEM;
    int64_t files = -EAGAIN;
    pthread_mutex_lock(&pages->mutex);
    struct generation *open = pages->open;
    if (open->files <= room) {
        seal_layers(pages, inos, sizes, mtimes_ns, ctimes_ns, atimes_ns);
        files = (int64_t)open->files;
        *sealed = open->number;
        next->number = open->number + 1;
        open->newer = next;
        pages->open = next;
        pages->generations_sealed++;
        pages->lane_files = 0;
    }
    pthread_mutex_unlock(&pages->mutex);
    if (files < 0)
        free(next);
    return files;
}

/* ---- what is sealed ---- */

/* It is immutable until retired, and only whoever flushes it retires it: so what follows reads it
 * without the mutex, and a flush of millions of cells holds up no writer. */
static const struct generation *sealed_find(struct rf_pages *pages, uint64_t number)
{
    pthread_mutex_lock(&pages->mutex);
    const struct generation *generation = pages->oldest, *open = pages->open;
    while (generation != open && generation->number != number)
        generation = generation->newer;
    pthread_mutex_unlock(&pages->mutex);
    return generation != open ? generation : NULL;
}

int rf_pages_sealed_counts(struct rf_pages *pages, uint64_t generation, uint64_t *cells,
                           uint64_t *cuts, uint64_t *marks)
{
    const struct generation *sealed = sealed_find(pages, generation);
    if (!sealed)
        return -EINVAL;
    *cells = sealed->cells;
    *cuts = sealed->cuts;
    *marks = sealed->marks;
    return 0;
}

static int by_ino(const void *a, const void *b)
{
    uint64_t left = (*(const struct layer *const *)a)->ino;
    uint64_t right = (*(const struct layer *const *)b)->ino;
    return (left > right) - (left < right);
}

static int by_index(const void *a, const void *b)
{
    uint64_t left = ((const struct entry *)a)->index;
    uint64_t right = ((const struct entry *)b)->index;
    return (left > right) - (left < right);
}

enum what { CELLS, MARKS, CUTS };

static uint32_t layer_has(const struct layer *layer, enum what what)
{
    return what == CUTS ? layer->cut != NO_CUT : what == MARKS ? layer->marks : layer_cells(layer);
}

/* The layers that have some, by ino; `most` gets the largest number of them in one. */
static const struct layer **layers_sorted(const struct generation *sealed, enum what what,
                                          uint64_t *count, uint64_t *most)
{
    *count = *most = 0;
    for (const struct layer *layer = sealed->first; layer; layer = layer->next)
        *count += layer_has(layer, what) > 0;
    const struct layer **layers = malloc((*count + 1) * sizeof(*layers));
    if (!layers)
        return NULL;
    uint64_t place = 0;
    for (const struct layer *layer = sealed->first; layer; layer = layer->next) {
        uint32_t has = layer_has(layer, what);
        if (has)
            layers[place++] = layer;
        if (has > *most)
            *most = has;
    }
    qsort(layers, place, sizeof(*layers), by_ino);
    return layers;
}

/* Cells or marks; returns how many, or -ENOMEM. */
static int64_t sealed_entries(const struct generation *sealed, enum what what, uint64_t *inos,
                              uint64_t *indexes, uint64_t *addresses)
{
    const enum entry_kind kind = what == CELLS ? CELL : MARK;
    uint64_t count, most, place = 0;
    const struct layer **layers = layers_sorted(sealed, what, &count, &most);
    struct entry *entries = malloc((most + 1) * sizeof(*entries));
    if (!layers || !entries) {
        free(layers);
        free(entries);
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < count; i++) {
        const struct layer *layer = layers[i];
        uint32_t found = 0;
        for (uint64_t j = 0; j <= layer->mask; j++)
            if (layer->entries[j].kind == kind)
                entries[found++] = layer->entries[j];
        ENSURE(found == layer_has(layer, what));
        qsort(entries, found, sizeof(*entries), by_index);
        for (uint32_t j = 0; j < found; j++, place++) {
            inos[place] = layer->ino;
            indexes[place] = entries[j].index;
            addresses[place] =
                kind == MARK ? entries[j].address : (uint64_t)(uintptr_t)entries[j].cell;
        }
    }
    free(layers);
    free(entries);
    return (int64_t)place;
}

static int sealed_of(struct rf_pages *pages, uint64_t generation, enum what what, uint64_t *inos,
                     uint64_t *indexes, uint64_t *addresses)
{
    const struct generation *sealed = sealed_find(pages, generation);
    if (!sealed)
        return -EINVAL;
    int64_t count = sealed_entries(sealed, what, inos, indexes, addresses);
    ENSURE(count < 0 || (uint64_t)count == (what == MARKS ? sealed->marks : sealed->cells));
    return count < 0 ? (int)count : 0;
}

int rf_pages_sealed_cells(struct rf_pages *pages, uint64_t generation, uint64_t *inos,
                          uint64_t *indexes, uint64_t *addresses)
{
    return sealed_of(pages, generation, CELLS, inos, indexes, addresses);
}

int rf_pages_sealed_marks(struct rf_pages *pages, uint64_t generation, uint64_t *inos,
                          uint64_t *indexes, uint64_t *addresses)
{
    return sealed_of(pages, generation, MARKS, inos, indexes, addresses);
}

int rf_pages_sealed_cuts(struct rf_pages *pages, uint64_t generation, uint64_t *inos,
                         uint64_t *first_pages)
{
    const struct generation *sealed = sealed_find(pages, generation);
    if (!sealed)
        return -EINVAL;
    uint64_t count, most;
    const struct layer **layers = layers_sorted(sealed, CUTS, &count, &most);
    if (!layers)
        return -ENOMEM;
    ENSURE(count == sealed->cuts);
    for (uint64_t i = 0; i < count; i++) {
        inos[i] = layers[i]->ino;
        first_pages[i] = layers[i]->cut;
    }
    free(layers);
    return 0;
}

/* ---- retiring ---- */

/* The layer is the oldest of its file, as its generation is the oldest of all. */
static void layer_unlink(struct rf_pages *pages, struct layer *layer)
{
    struct file *file = file_find(pages, layer->ino);
    ENSURE(file);
    struct layer **link = &file->newest;
    while (*link != layer)
        link = &(*link)->older;
    ENSURE(!layer->older);
    *link = NULL;
    if (file->dropped && !file->newest) {
        leaf_cache_forget(&pages->leaves, file->ino, 0);
        file_remove(pages, file);
    }
}

/* Lets the others have the mutex for a moment. */
static void breathe(struct rf_pages *pages)
{
    pthread_mutex_unlock(&pages->mutex);
    pthread_mutex_lock(&pages->mutex);
}

int rf_pages_retire(struct rf_pages *pages, uint64_t generation)
{
    enum { AT_ONCE = 512 }; /* cells: some ten microseconds */
    pthread_mutex_lock(&pages->mutex);
    struct generation *oldest = pages->oldest;
    if (oldest == pages->open || oldest->number != generation) {
        pthread_mutex_unlock(&pages->mutex);
        return -EINVAL;
    }
    for (struct layer *layer = oldest->first; layer; layer = layer->next)
        layer_unlink(pages, layer);
    /* Nobody finds the layers any more: their cells can go bit by bit. */
    uint64_t given = 0;
    for (struct layer *layer = oldest->first, *next; layer; layer = next) {
        next = layer->next;
        for (uint64_t place = 0; place <= layer->mask; place += AT_ONCE) {
            given += layer_drain(pages, layer, place, AT_ONCE);
            if (given >= AT_ONCE) {
                breathe(pages);
                given = 0;
            }
        }
        layer_end(pages, layer);
    }
    ENSURE(oldest->cells == 0 && oldest->marks == 0);
    pages->oldest = oldest->newer;
    pages->generations_sealed--;
    pthread_mutex_unlock(&pages->mutex);
    free(oldest);
    return 0;
}
