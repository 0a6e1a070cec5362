/* pages_table.c: the two hash tables: files by inode number, what a layer has of pages by their
 * index.
 *
 * Both use open addressing with linear probing, and removal moves the entries behind back instead
 * of leaving marks, so a table never degrades by use.
 *
 *  1. Finding, adding and removing one entry is O(1), amortized over growing and shrinking.
 *  2. The table of files is at most 3/4 full, and shrinks when less than 1/8 of it is used: files
 *     that come and go leave nothing behind.
 *  3. The table of a layer is at most half full, but for the first FEW_ENTRIES cells, which lie in
 *     the layer itself and fill it wholly.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "pages_inner.h"

enum { FILES_MIN = 64 };

/* ---- files ---- */

/* Zeroed. Not by malloc: freeing a large piece teaches glibc to keep the next ones. */
static struct file *files_map(uint64_t places)
{
    void *files = mmap(NULL, places * sizeof(struct file), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return files == MAP_FAILED ? NULL : files;
}

int file_table_start(struct file_table *table)
{
    *table = (struct file_table){.mask = FILES_MIN - 1, .files = files_map(FILES_MIN)};
    return table->files ? 0 : -ENOMEM;
}

void file_table_end(struct file_table *table)
{
    if (table->files)
        munmap(table->files, (table->mask + 1) * sizeof(struct file));
    table->files = NULL;
}

static uint64_t file_home(const struct rf_pages *pages, uint64_t ino)
{
    return hash_u64(ino ^ pages->key) & pages->table.mask;
}

/* The place of the file, or the free place where it would go. */
static struct file *file_place(const struct rf_pages *pages, uint64_t ino)
{
    const struct file_table *table = &pages->table;
    uint64_t place = file_home(pages, ino);
    while (table->files[place].ino && table->files[place].ino != ino)
        place = (place + 1) & table->mask;
    return &table->files[place];
}

struct file *file_find(const struct rf_pages *pages, uint64_t ino)
{
    struct file *file = file_place(pages, ino);
    return file->ino ? file : NULL;
}

static int file_table_resize(struct rf_pages *pages, uint64_t places)
{
    struct file_table *table = &pages->table;
    struct file *old = table->files;
    uint64_t old_places = table->mask + 1;
    struct file *files = files_map(places);
    if (!files)
        return -ENOMEM;
    table->files = files;
    table->mask = places - 1;
    for (uint64_t i = 0; i < old_places; i++)
        if (old[i].ino)
            *file_place(pages, old[i].ino) = old[i];
    munmap(old, old_places * sizeof(struct file));
    return 0;
}

struct file *file_add(struct rf_pages *pages, uint64_t ino)
{
    struct file_table *table = &pages->table;
    uint64_t places = table->mask + 1;
    if ((table->count + 1) * 4 > places * 3 && file_table_resize(pages, places * 2) < 0)
        return NULL;
    struct file *file = file_place(pages, ino);
    ENSURE(!file->ino);
    *file = (struct file){.ino = ino};
    table->count++;
    return file;
}

void file_remove(struct rf_pages *pages, struct file *file)
{
    struct file_table *table = &pages->table;
    uint64_t hole = (uint64_t)(file - table->files);
    for (uint64_t place = (hole + 1) & table->mask; table->files[place].ino;
         place = (place + 1) & table->mask) {
        uint64_t home = file_home(pages, table->files[place].ino);
        /* It may move to the hole unless its home lies behind the hole. */
        if (((place - home) & table->mask) >= ((place - hole) & table->mask)) {
            table->files[hole] = table->files[place];
            hole = place;
        }
    }
    table->files[hole] = (struct file){0};
    table->count--;
    uint64_t places = table->mask + 1;
    if (places > FILES_MIN && table->count * 8 < places)
        (void)file_table_resize(pages, places / 2); /* without memory it just stays large */
}

/* ---- layers ---- */

struct layer *layer_open(struct rf_pages *pages, struct file *file)
{
    struct generation *open = pages->open;
    if (layer_is_open(pages, file))
        return file->newest;
    if (pool_reserve(&pages->layers, 1) < 0)
        return NULL;
    struct layer *layer = pool_take(&pages->layers);
    *layer = (struct layer){
        .ino = file->ino,
        .generation = open,
        .older = file->newest,
        .cut = NO_CUT,
        .mask = FEW_ENTRIES - 1,
        .entries = layer->few,
    };
    file->newest = layer;
    if (open->last)
        open->last->next = layer;
    else
        open->first = layer;
    open->last = layer;
    open->files++;
    return layer;
}

/* Four neighbours share a home line of the CPU's cache: pages are mostly written in order. */
static uint32_t entry_home(const struct rf_pages *pages, const struct layer *layer, uint64_t index)
{
    uint64_t hash = hash_u64((index >> 2) ^ pages->key);
    return (uint32_t)(hash << 2 | (index & 3)) & layer->mask;
}

static struct entry *entry_find(const struct rf_pages *pages, const struct layer *layer,
                                uint64_t index)
{
    if (layer->count == 0)
        return NULL;
    uint32_t place = entry_home(pages, layer, index);
    for (uint32_t probes = 0; probes <= layer->mask; probes++) { /* the few may all be used */
        struct entry *entry = &layer->entries[place];
        if (entry->kind == FREE)
            return NULL;
        if (entry->index == index)
            return entry;
        place = (place + 1) & layer->mask;
    }
    return NULL;
}

const struct entry *layer_find(const struct rf_pages *pages, const struct layer *layer,
                               uint64_t index)
{
    return entry_find(pages, layer, index);
}

static void entry_put(const struct rf_pages *pages, struct layer *layer, struct entry entry)
{
    uint32_t place = entry_home(pages, layer, entry.index);
    while (layer->entries[place].kind != FREE)
        place = (place + 1) & layer->mask;
    layer->entries[place] = entry;
}

static int layer_resize(const struct rf_pages *pages, struct layer *layer, uint64_t places)
{
    struct entry *old = layer->entries, *entries = calloc(places, sizeof(struct entry));
    uint64_t old_places = (uint64_t)layer->mask + 1;
    if (!entries)
        return -ENOMEM;
    layer->entries = entries;
    layer->mask = (uint32_t)(places - 1);
    for (uint64_t i = 0; i < old_places; i++)
        if (old[i].kind != FREE)
            entry_put(pages, layer, old[i]);
    if (old == layer->few)
        memset(layer->few, 0, sizeof(layer->few));
    else
        free(old);
    return 0;
}

int layer_reserve(struct rf_pages *pages, struct layer *layer, uint64_t more)
{
    uint64_t count = layer->count + more, places = (uint64_t)layer->mask + 1;
    if (count <= FEW_ENTRIES || count * 2 <= places)
        return 0;
    while (places < count * 2)
        places *= 2;
    return places > (uint64_t)1 << 31 ? -ENOMEM : layer_resize(pages, layer, places);
}

/* An entry begins (sign 1) or ends (sign -1) to count. */
static void entry_count(struct rf_pages *pages, struct layer *layer, const struct entry *entry,
                        int sign)
{
    bool mark = entry->kind == MARK;
    layer->count += (uint32_t)sign;
    layer->marks += mark ? (uint32_t)sign : 0;
    layer->holes += mark && !entry->address ? (uint32_t)sign : 0;
    *(mark ? &layer->generation->marks : &layer->generation->cells) += (uint64_t)sign;
    *(mark ? &pages->marks : &pages->dirty_cells) += (uint64_t)sign;
}

static void entry_end(struct rf_pages *pages, struct layer *layer, const struct entry *entry)
{
    if (entry->kind == CELL)
        pool_give(&pages->cells, entry->cell);
    entry_count(pages, layer, entry, -1);
}

static void entry_replace(struct rf_pages *pages, struct layer *layer, struct entry entry)
{
    ENSURE(layer->generation == pages->open);
    struct entry *old = entry_find(pages, layer, entry.index);
    if (old) {
        entry_end(pages, layer, old);
        *old = entry;
    } else {
        ENSURE(layer->count <= layer->mask);
        entry_put(pages, layer, entry);
    }
    entry_count(pages, layer, &entry, 1);
}

void layer_put_cell(struct rf_pages *pages, struct layer *layer, uint64_t index, uint8_t *cell)
{
    entry_replace(pages, layer, (struct entry){.index = index, .kind = CELL, .cell = cell});
}

void layer_put_mark(struct rf_pages *pages, struct layer *layer, uint64_t index, uint64_t address)
{
    entry_replace(pages, layer, (struct entry){.index = index, .kind = MARK, .address = address});
}

/* Frees the place and moves back what lies behind it and would no longer be found. */
static void entry_remove(struct rf_pages *pages, struct layer *layer, uint32_t hole)
{
    entry_end(pages, layer, &layer->entries[hole]);
    layer->entries[hole] = (struct entry){0};
    for (uint32_t place = (hole + 1) & layer->mask; layer->entries[place].kind != FREE;
         place = (place + 1) & layer->mask) {
        uint32_t home = entry_home(pages, layer, layer->entries[place].index);
        if (((place - home) & layer->mask) >= ((place - hole) & layer->mask)) {
            layer->entries[hole] = layer->entries[place];
            layer->entries[place] = (struct entry){0};
            hole = place;
        }
    }
}

/* Of the few in the layer itself: they may fill all places, where moving back would run in circles.
 */
static void few_cut(struct rf_pages *pages, struct layer *layer, uint64_t first, uint64_t end)
{
    struct entry old[FEW_ENTRIES];
    memcpy(old, layer->few, sizeof(old));
    memset(layer->few, 0, sizeof(old));
    for (int i = 0; i < FEW_ENTRIES; i++)
        if (old[i].kind != FREE && old[i].index >= first && old[i].index < end)
            entry_end(pages, layer, &old[i]);
        else if (old[i].kind != FREE)
            entry_put(pages, layer, old[i]);
}

void layer_forget(struct rf_pages *pages, struct layer *layer, uint64_t index)
{
    const struct entry *entry = entry_find(pages, layer, index);
    if (entry && layer->entries == layer->few)
        few_cut(pages, layer, index, index + 1);
    else if (entry)
        entry_remove(pages, layer, (uint32_t)(entry - layer->entries));
}

void layer_cut(struct rf_pages *pages, struct layer *layer, uint64_t first, uint64_t end)
{
    if (layer->count == 0 || first >= end)
        return;
    if (layer->entries == layer->few) {
        few_cut(pages, layer, first, end);
        return;
    }
    if (end - first <= layer->count) { /* few pages: one by one */
        for (uint64_t index = first; index < end; index++) {
            struct entry *entry = entry_find(pages, layer, index);
            if (entry)
                entry_remove(pages, layer, (uint32_t)(entry - layer->entries));
        }
    } else {
        /* What moves back to a freed place comes from places not yet seen, or, around the end of
         * the table, from kept ones: looking at the freed place again is enough. */
        for (uint32_t place = 0; place <= layer->mask;) {
            const struct entry *entry = &layer->entries[place];
            if (entry->kind != FREE && entry->index >= first && entry->index < end)
                entry_remove(pages, layer, place);
            else
                place++;
        }
    }
    if (layer->count == 0) {
        free(layer->entries);
        layer->entries = layer->few;
        layer->mask = FEW_ENTRIES - 1;
    } else if (layer->mask >= 64 && layer->count * 8 < layer->mask) {
        (void)layer_resize(pages, layer, ((uint64_t)layer->mask + 1) / 4);
    }
}

uint64_t layer_drain(struct rf_pages *pages, struct layer *layer, uint64_t place, uint64_t places)
{
    uint32_t before = layer->count;
    uint64_t end = place + places <= layer->mask ? place + places : (uint64_t)layer->mask + 1;
    for (; place < end && layer->count > 0; place++)
        if (layer->entries[place].kind != FREE) {
            entry_end(pages, layer, &layer->entries[place]);
            layer->entries[place] = (struct entry){0};
        }
    return before - layer->count;
}

void layer_end(struct rf_pages *pages, struct layer *layer)
{
    (void)layer_drain(pages, layer, 0, (uint64_t)layer->mask + 1);
    ENSURE(layer->count == 0);
    if (layer->entries != layer->few)
        free(layer->entries);
    pool_give(&pages->layers, layer);
}
