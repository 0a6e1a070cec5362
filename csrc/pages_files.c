/* pages_files.c: making files resident, forgetting them, their attributes.
 *
 * Words, invariants and costs stand at the head of pages.c.
 */
#include <errno.h>

#include "pages_inner.h"

struct file *file_enter(struct rf_pages *pages, uint64_t ino, int *error)
{
    pthread_mutex_lock(&pages->mutex);
    struct file *file = file_find(pages, ino);
    *error = !file ? -ENOENT : file->dropped ? -ESTALE : 0;
    if (*error == 0)
        return file;
    pthread_mutex_unlock(&pages->mutex);
    return NULL;
}

int rf_pages_load(struct rf_pages *pages, uint64_t ino, uint64_t size, int64_t mtime_ns,
                  int64_t ctime_ns, int64_t atime_ns)
{
    if (ino == 0 || size > SIZE_MAX_BYTES)
        return -EINVAL;
    int result = 0;
    pthread_mutex_lock(&pages->mutex);
    if (!file_find(pages, ino)) {
        struct file *file = file_add(pages, ino);
        if (file) {
            file->size = size;
            file->mtime_ns = mtime_ns;
            file->ctime_ns = ctime_ns;
            file->atime_ns = atime_ns;
        }
        result = file ? 1 : -ENOMEM;
    }
    pthread_mutex_unlock(&pages->mutex);
    return result;
}

int rf_pages_resident(struct rf_pages *pages, uint64_t ino)
{
    pthread_mutex_lock(&pages->mutex);
    bool found = file_find(pages, ino) != NULL;
    pthread_mutex_unlock(&pages->mutex);
    return found;
}

int rf_pages_evict(struct rf_pages *pages, uint64_t ino)
{
    pthread_mutex_lock(&pages->mutex);
    struct file *file = file_find(pages, ino);
    bool needed = file && file->newest;
    if (!needed) {
        leaf_cache_forget(&pages->leaves, ino, 0);
        if (file)
            file_remove(pages, file);
    }
    pthread_mutex_unlock(&pages->mutex);
    return !needed;
}

int rf_pages_drop(struct rf_pages *pages, uint64_t ino)
{
    if (ino == 0)
        return -EINVAL;
    int result = 0;
    pthread_mutex_lock(&pages->mutex);
    struct file *file = file_find(pages, ino);
    bool added = !file;
    if (added) /* its leaves are to be removed all the same */
        file = file_add(pages, ino);
    struct layer *layer = !file ? NULL : file->dropped ? file->newest : layer_open(pages, file);
    if (!layer) {
        if (added && file)
            file_remove(pages, file);
        result = -ENOMEM;
    } else if (!file->dropped) {
        layer_cut(pages, layer, 0, UINT64_MAX);
        if (layer->cut == NO_CUT)
            pages->open->cuts++;
        layer->cut = 0;
        pages->open->files--;
        file->dropped = 1;
        file->vouched = 0;
        file->size = 0;
    }
    pthread_mutex_unlock(&pages->mutex);
    return result;
}

static struct rf_attributes attributes_of(const struct file *file)
{
    return (struct rf_attributes){file->size, file->mtime_ns, file->ctime_ns, file->atime_ns};
}

static uint64_t cells_of(const struct file *file)
{
    uint64_t cells = 0;
    for (const struct layer *layer = file->newest; layer; layer = layer->older)
        cells += layer->count - layer->holes;
    return cells;
}

int rf_pages_attributes(struct rf_pages *pages, uint64_t ino, struct rf_attributes *out)
{
    pthread_mutex_lock(&pages->mutex);
    const struct file *file = file_find(pages, ino);
    if (file)
        *out = attributes_of(file);
    pthread_mutex_unlock(&pages->mutex);
    return file ? 0 : -ENOENT;
}

int rf_pages_lane_attributes(struct rf_pages *pages, uint64_t ino, struct rf_attributes *out,
                             uint64_t *cells)
{
    pthread_mutex_lock(&pages->mutex);
    const struct file *file = file_find(pages, ino);
    if (file) {
        *out = attributes_of(file);
        *cells = cells_of(file);
    }
    pthread_mutex_unlock(&pages->mutex);
    return file ? 0 : -ENOENT;
}

int64_t rf_pages_cells(struct rf_pages *pages, uint64_t ino)
{
    pthread_mutex_lock(&pages->mutex);
    const struct file *file = file_find(pages, ino);
    int64_t cells = file ? (int64_t)cells_of(file) : 0;
    pthread_mutex_unlock(&pages->mutex);
    return cells;
}

int rf_pages_set_times(struct rf_pages *pages, uint64_t ino, const int64_t *mtime_ns,
                       const int64_t *ctime_ns, const int64_t *atime_ns)
{
    int result;
    struct file *file = file_enter(pages, ino, &result);
    if (!file)
        return result;
    if ((mtime_ns || ctime_ns || atime_ns) && !layer_open(pages, file)) {
        result = -ENOMEM;
    } else {
        file->mtime_ns = mtime_ns ? *mtime_ns : file->mtime_ns;
        file->ctime_ns = ctime_ns ? *ctime_ns : file->ctime_ns;
        file->atime_ns = atime_ns ? *atime_ns : file->atime_ns;
    }
    pthread_mutex_unlock(&pages->mutex);
    return result;
}
