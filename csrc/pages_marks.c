/* pages_marks.c: pages that become holes or share a cell with another page.
 *
 * Words, invariants and costs stand at the head of pages.c.
 *
 *  1. A mark replaces what its layer has of the page; a later write replaces the mark.
 *  2. A hole is marked only where something below might show: nothing is where the lookup rule, or
 *     the leaf if it is cached, says so already. Behind the last layer the cached leaf is the
 * truth: it changes only together with a generation that is still a layer then.
 */
#include <errno.h>

#include "pages_inner.h"

/* The open layer with room for `count` more marks, and `before`, its cells. */
static struct layer *layer_for_marks(struct rf_pages *pages, struct file *file, uint64_t count,
                                     uint32_t *before)
{
    struct layer *layer = layer_open(pages, file);
    if (!layer || layer_reserve(pages, layer, count) < 0)
        return NULL;
    *before = layer_cells(layer);
    return layer;
}

static void make_hole(struct rf_pages *pages, struct file *file, struct layer *layer,
                      uint64_t index)
{
    layer_forget(pages, layer, index);
    struct found found = look_up_leaf(pages, file, index);
    if (found.place != ZERO)
        layer_put_mark(pages, layer, index, 0);
}

int64_t rf_pages_punch(struct rf_pages *pages, uint64_t ino, uint64_t first_page, uint64_t count,
                       int64_t now_ns)
{
    int error;
    uint32_t before = 0;
    if (count > RF_MARKS_AT_ONCE || first_page > SIZE_MAX_BYTES >> pages->cell_shift)
        return -EINVAL;
    struct file *file = file_enter(pages, ino, &error);
    if (!file)
        return error;
    uint64_t end = page_count(pages, file->size);
    end = first_page + count < end ? first_page + count : end;
    int64_t freed = 0;
    count = end > first_page ? end - first_page : 0;
    struct layer *layer = layer_for_marks(pages, file, count, &before);
    if (!layer) {
        freed = -ENOMEM;
    } else {
        for (uint64_t index = first_page; index < end; index++)
            make_hole(pages, file, layer, index);
        file->mtime_ns = file->ctime_ns = now_ns;
        freed = before - (int64_t)layer_cells(layer);
    }
    pthread_mutex_unlock(&pages->mutex);
    return freed;
}

int64_t rf_pages_share(struct rf_pages *pages, uint64_t ino, uint64_t first_page,
                       const uint64_t *addresses, uint64_t count, uint64_t size, int64_t now_ns)
{
    int error;
    uint32_t before = 0;
    if (count > RF_MARKS_AT_ONCE || size > SIZE_MAX_BYTES ||
        first_page > SIZE_MAX_BYTES >> pages->cell_shift)
        return -EINVAL;
    struct file *file = file_enter(pages, ino, &error);
    if (!file)
        return error;
    int64_t freed = -EINVAL;
    size = size > file->size ? size : file->size;
    if (first_page + count > page_count(pages, size))
        goto out;
    freed = -ENOMEM;
    struct layer *layer = layer_for_marks(pages, file, count, &before);
    if (!layer)
        goto out;
    for (uint64_t i = 0; i < count; i++)
        if (addresses[i])
            layer_put_mark(pages, layer, first_page + i, addresses[i]);
        else
            make_hole(pages, file, layer, first_page + i);
    file->size = size;
    file->mtime_ns = file->ctime_ns = now_ns;
    freed = before - (int64_t)layer_cells(layer);
out:
    pthread_mutex_unlock(&pages->mutex);
    return freed;
}

int rf_pages_map(struct rf_pages *pages, uint64_t ino, uint64_t first_page, uint64_t count,
                 uint8_t *kinds, uint64_t *addresses)
{
    pthread_mutex_lock(&pages->mutex);
    const struct file *file = file_find(pages, ino);
    for (uint64_t i = 0; file && i < count; i++) {
        struct found found = look_up(pages, file, first_page + i);
        kinds[i] = found.place == ZERO      ? RF_PAGE_ZERO
                   : found.place == IN_CELL ? RF_PAGE_CELL
                   : found.place == SHARED  ? RF_PAGE_SHARED
                                            : RF_PAGE_LEAF;
        addresses[i] = found.address;
    }
    pthread_mutex_unlock(&pages->mutex);
    return file ? 0 : -ENOENT;
}

/* The lowest page of the layer in [first, *end), which becomes *end then. */
static void lowest_entry(const struct rf_pages *pages, const struct layer *layer, uint64_t first,
                         uint64_t *end)
{
    enum { NEAR = 16 };
    if (layer->count == 0)
        return;
    for (uint64_t index = first; index < first + NEAR && index < *end; index++)
        if (layer_find(pages, layer, index)) {
            *end = index;
            return;
        }
    for (uint64_t i = 0; i <= layer->mask; i++) {
        const struct entry *entry = &layer->entries[i];
        if (entry->kind != FREE && entry->index >= first && entry->index < *end)
            *end = entry->index;
    }
}

int rf_pages_next_entry(struct rf_pages *pages, uint64_t ino, uint64_t first_page, uint64_t *index)
{
    const uint64_t none = UINT64_MAX;
    *index = none;
    pthread_mutex_lock(&pages->mutex);
    const struct file *file = file_find(pages, ino);
    for (const struct layer *layer = file ? file->newest : NULL; layer; layer = layer->older)
        lowest_entry(pages, layer, first_page, index);
    pthread_mutex_unlock(&pages->mutex);
    return *index != none;
}
