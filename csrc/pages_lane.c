/* pages_lane.c: what C threads do with files without asking Python.
 *
 * Words, invariants and costs stand at the head of pages.c; besides:
 *
 *  1. Nothing happens to a file but what Python vouched for, and what is vouched for needs no
 *     decision: neither room (credits stand for it) nor a new version of the inode (the files
 *     allowed stand for those) nor a look at privileges.
 *  2. Dirty cells and credits together change only when Python changes them: a cell that becomes
 *     dirty takes a credit with it, one that is dirty already costs none.
 *  3. A base is taken only if the cell it was read from is still the one that the page has. A cell
 * on the members is written once, so its address stands for its content.
 *  4. The cells of a payload are linked, not copied, and what they replace is given back.
 */
#include <errno.h>
#include <string.h>

#include "pages_inner.h"

static const int64_t DAY_NS = (int64_t)24 * 3600 * 1000000000;

/* ---- what Python says ---- */

int rf_pages_vouch(struct rf_pages *pages, uint64_t ino, uint32_t flags)
{
    int result;
    struct file *file = file_enter(pages, ino, &result);
    if (!file)
        return result;
    file->vouched = flags;
    pthread_mutex_unlock(&pages->mutex);
    return 0;
}

void rf_pages_serve(struct rf_pages *pages, uint32_t flags)
{
    pthread_mutex_lock(&pages->mutex);
    pages->served = flags;
    pthread_mutex_unlock(&pages->mutex);
}

void rf_pages_grant(struct rf_pages *pages, uint64_t cells)
{
    pthread_mutex_lock(&pages->mutex);
    pages->credits += cells;
    pthread_mutex_unlock(&pages->mutex);
}

uint64_t rf_pages_take_back(struct rf_pages *pages, uint64_t cells_max)
{
    pthread_mutex_lock(&pages->mutex);
    uint64_t cells = cells_max < pages->credits ? cells_max : pages->credits;
    pages->credits -= cells;
    pthread_mutex_unlock(&pages->mutex);
    return cells;
}

void rf_pages_claims(struct rf_pages *pages, uint64_t *dirty, uint64_t *credits)
{
    pthread_mutex_lock(&pages->mutex);
    *dirty = pages->dirty_cells;
    *credits = pages->credits;
    pthread_mutex_unlock(&pages->mutex);
}

void rf_pages_allow_files(struct rf_pages *pages, uint64_t files_max)
{
    pthread_mutex_lock(&pages->mutex);
    pages->lane_files_max = files_max;
    pthread_mutex_unlock(&pages->mutex);
}

/* ---- cells to land in ---- */

int rf_pages_cells_take(struct rf_pages *pages, uint32_t count, uint8_t **cells)
{
    pthread_mutex_lock(&pages->mutex);
    int result = pool_reserve(&pages->cells, count);
    for (uint32_t i = 0; result == 0 && i < count; i++)
        cells[i] = pool_take(&pages->cells);
    if (result < 0)
        pool_trim(&pages->cells);
    pthread_mutex_unlock(&pages->mutex);
    return result;
}

void rf_pages_cells_give(struct rf_pages *pages, uint32_t count, uint8_t **cells)
{
    pthread_mutex_lock(&pages->mutex);
    for (uint32_t i = 0; i < count; i++)
        if (cells[i])
            pool_give(&pages->cells, cells[i]);
    pthread_mutex_unlock(&pages->mutex);
}

/* ---- writing ---- */

/* Locks the mutex and finds a file that may be served that way. NULL: as file_enter. */
static struct file *lane_enter(struct rf_pages *pages, uint64_t ino, uint32_t way, int *error)
{
    struct file *file = file_enter(pages, ino, error);
    if (!file || (file->vouched & pages->served & way))
        return file;
    *error = -EPERM;
    pthread_mutex_unlock(&pages->mutex);
    return NULL;
}

/* Whether the lane may change the file in the open generation. */
static bool may_dirty(const struct rf_pages *pages, const struct file *file)
{
    return layer_is_open(pages, file) || pages->lane_files < pages->lane_files_max;
}

/* What is left to check of a write; the bases that it takes go into `checked`. 0 or an error. */
static int lane_check(struct rf_pages *pages, struct file *file, uint64_t offset, uint64_t nbytes,
                      const struct rf_base *bases, uint32_t base_count, struct rf_base *checked,
                      uint32_t *checked_count)
{
    uint64_t most =
        ((offset + nbytes - 1) >> pages->cell_shift) - (offset >> pages->cell_shift) + 1;
    struct walk ends[2];
    *checked_count = 0;
    if (!may_dirty(pages, file))
        return -EUSERS;
    if (pages->credits < most && pages->credits < write_cost(pages, file, offset, nbytes))
        return -EDQUOT;
    for (int i = 0, n = range_ends(pages, offset, nbytes, ends); i < n; i++) {
        if (!keeps_old(pages, file, &ends[i]))
            continue;
        struct found found = look_up_leaf(pages, file, ends[i].index);
        if (!needs_base(&found))
            continue;
        const struct rf_base *base = base_find(bases, base_count, ends[i].index);
        if (found.place == ELSEWHERE || !base || base->address != found.address)
            return -EAGAIN;
        checked[(*checked_count)++] = *base;
    }
    return 0;
}

/* After a change that made `added` cells dirty (or an error); `first`: no layer was open before. */
static int64_t lane_count(struct rf_pages *pages, bool first, int64_t added)
{
    if (added < 0)
        return added;
    ENSURE((uint64_t)added <= pages->credits);
    pages->credits -= (uint64_t)added;
    pages->lane_files += first;
    return added;
}

int rf_pages_lane_missing(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes,
                          uint64_t *indexes, uint64_t *addresses, uint8_t *known)
{
    int result, count = 0;
    struct walk ends[2];
    if (!range_ok(offset, nbytes))
        return -EINVAL;
    const struct file *file = lane_enter(pages, ino, RF_SERVE_WRITES, &result);
    if (!file)
        return result;
    for (int i = 0, n = range_ends(pages, offset, nbytes, ends); i < n; i++) {
        if (!keeps_old(pages, file, &ends[i]))
            continue;
        struct found found = look_up_leaf(pages, file, ends[i].index);
        if (!needs_base(&found))
            continue;
        indexes[count] = ends[i].index;
        addresses[count] = found.address;
        known[count++] = found.place != ELSEWHERE;
    }
    pthread_mutex_unlock(&pages->mutex);
    return count;
}

int64_t rf_pages_lane_write(struct rf_pages *pages, uint64_t ino, uint64_t offset,
                            const uint8_t *data, uint64_t nbytes, int64_t now_ns,
                            const struct rf_base *bases, uint32_t base_count)
{
    int error;
    struct rf_base checked[2];
    uint32_t count;
    if (!range_ok(offset, nbytes) || nbytes == 0)
        return -EINVAL;
    struct file *file = lane_enter(pages, ino, RF_SERVE_WRITES, &error);
    if (!file)
        return error;
    bool first = !layer_is_open(pages, file);
    int64_t added = lane_check(pages, file, offset, nbytes, bases, base_count, checked, &count);
    if (added == 0)
        added = lane_count(pages, first,
                           write_range(pages, file, offset, data, nbytes, now_ns, checked, count));
    pthread_mutex_unlock(&pages->mutex);
    return added;
}

/* Links the cells into the open layer. `base`: for the last page, if it keeps old content. */
static int64_t put_cells(struct rf_pages *pages, struct file *file, uint64_t offset,
                         uint64_t nbytes, uint8_t **cells, int64_t now_ns,
                         const struct rf_base *base)
{
    struct walk ends[2];
    const struct walk *last = &ends[range_ends(pages, offset, nbytes, ends) - 1];
    uint64_t first = offset >> pages->cell_shift, count = last->index - first + 1;
    struct layer *layer = layer_open(pages, file);
    if (!layer || layer_reserve(pages, layer, count) < 0)
        return -ENOMEM;
    uint32_t before = layer_cells(layer);
    if (last->to < pages->cell_bytes) {
        const uint8_t *old =
            keeps_old(pages, file, last) ? old_content(pages, file, last->index, base) : NULL;
        fill_old(cells[count - 1], old, last->to, pages->cell_bytes,
                 page_valid(pages, file, last->index));
    }
    for (uint64_t i = 0; i < count; i++) {
        layer_put_cell(pages, layer, first + i, cells[i]);
        cells[i] = NULL;
    }
    if (offset + nbytes > file->size)
        file->size = offset + nbytes;
    file->mtime_ns = file->ctime_ns = now_ns;
    return (int64_t)layer_cells(layer) - before;
}

int64_t rf_pages_lane_put(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes,
                          uint8_t **cells, int64_t now_ns, const struct rf_base *bases,
                          uint32_t base_count)
{
    int error;
    struct rf_base checked[2];
    uint32_t count;
    if (!range_ok(offset, nbytes) || nbytes == 0 || (offset & (pages->cell_bytes - 1)))
        return -EINVAL;
    struct file *file = lane_enter(pages, ino, RF_SERVE_WRITES, &error);
    if (!file)
        return error;
    bool first = !layer_is_open(pages, file);
    int64_t added = lane_check(pages, file, offset, nbytes, bases, base_count, checked, &count);
    if (added == 0)
        added = lane_count(
            pages, first,
            put_cells(pages, file, offset, nbytes, cells, now_ns, count ? &checked[0] : NULL));
    pthread_mutex_unlock(&pages->mutex);
    return added;
}

/* ---- reading ---- */

/* The rule of Files.accessed in fs/file.py. */
static bool atime_due(const struct rf_pages *pages, const struct file *file, int64_t now_ns)
{
    if ((file->vouched & RF_NO_ATIME) || !(pages->served & RF_SERVE_WRITES))
        return false;
    /* As differences of unsigned numbers: times of the format may lie 2^64 apart. */
    bool old =
        now_ns > file->atime_ns && (uint64_t)now_ns - (uint64_t)file->atime_ns >= (uint64_t)DAY_NS;
    return file->mtime_ns >= file->atime_ns || file->ctime_ns >= file->atime_ns || old;
}

/* Page by page; -EAGAIN: a leaf isn't cached. */
static int lane_fill(struct rf_pages *pages, const struct file *file, uint64_t first,
                     uint64_t count, uint8_t *out, uint64_t *addresses)
{
    for (uint64_t i = 0; i < count; i++, out += pages->cell_bytes) {
        struct found found = look_up_leaf(pages, file, first + i);
        if (found.place == ELSEWHERE)
            return -EAGAIN;
        addresses[i] = found.address;
        if (found.place == IN_CELL)
            memcpy(out, found.cell, pages->cell_bytes);
        else if (found.place == ZERO)
            memset(out, 0, pages->cell_bytes);
    }
    return 0;
}

int64_t rf_pages_lane_read(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes,
                           int64_t now_ns, uint8_t *out, uint64_t *addresses, uint64_t room)
{
    int error = 0;
    struct file *file = lane_enter(pages, ino, RF_SERVE_READS, &error);
    if (!file)
        return error == -ESTALE ? -ENOENT : error;
    uint64_t left = offset < file->size ? file->size - offset : 0;
    int64_t reply = (int64_t)(nbytes < left ? nbytes : left);
    bool touch = nbytes > 0 && atime_due(pages, file, now_ns);
    if (touch && !may_dirty(pages, file)) {
        error = -EUSERS;
    } else if (reply > 0) {
        uint64_t first = offset >> pages->cell_shift;
        uint64_t count = ((offset + (uint64_t)reply - 1) >> pages->cell_shift) - first + 1;
        error = count > room ? -EINVAL : lane_fill(pages, file, first, count, out, addresses);
    }
    bool opens = touch && !layer_is_open(pages, file);
    if (error == 0 && opens && !layer_open(pages, file))
        error = -ENOMEM;
    if (error == 0 && touch) {
        file->atime_ns = now_ns;
        pages->lane_files += opens;
    }
    pthread_mutex_unlock(&pages->mutex);
    return error < 0 ? error : reply;
}
