/* pages.c: what memory knows of files that is newer than what lies on the members.
 *
 * The words:
 *   resident    a file whose size and times are here (and are the truth), and of which any page is
 *               either here or where its leaf says.
 *   generation  what changed between two cuts of the volume. One is open and takes all changes;
 *               older ones are sealed: immutable, being written to members by the flusher, and
 *               retired, oldest first, when the leaves say what they said.
 *   layer       what one generation changed in one file: cells, marks and at most one cut.
 *   cell        the content of one page as of the end of a generation: cell_bytes at an address
 *               that doesn't change until the generation is retired.
 *   mark        instead of a cell: the page is a hole, or *shared*: its content lies in a cell on
 *               the members that another page has, too.
 *   cut         of a layer: pages from there up, of all older layers and the leaves, are holes.
 *               (Not the cut of the volume, which is what seals a generation.)
 *   base        the content of a page on the members, given by the caller where a change needs it;
 *               of a shared page, the content of the cell that it shares.
 *   lane        the C threads that serve the kernel (pages_lane.c).
 *   credit      the right of the lane to make one more cell dirty.
 *
 * Invariants:
 *  1. Cells, marks and cuts of a sealed generation never change; a change copies the cell first.
 *  2. Bytes beyond the size in the last page are zero: in every cell, and in the base of it.
 *  3. No older layer or leaf shows content at or above ceil(size / cell_bytes): whatever shrank the
 *     file recorded a cut there. So growing exposes zeros, and only the size changes.
 *  4. A cut stands below the cells it freed, never the later ones of its own layer: of one layer,
 *     apply the cut first, then the cells and marks. A page has at most one of these in a layer.
 *  5. Every layer of the open generation belongs to a file whose attributes the seal reports, or to
 *     a dropped one. The seal ends layers that are empty, so sealed ones are not.
 *  6. A file with a layer is resident and is not evicted. A dropped one is forgotten with its last.
 *  7. What fails has changed nothing: all memory is reserved before the first change. (Out of
 *     memory may leave an empty layer: the next seal then reports the file as it was.)
 *
 * The lookup rule, of page p: at or above ceil(size / cell_bytes) zero; else, from the newest layer
 * of the file to the oldest: its cell or mark, if it has one; zero, if p is at or above its cut;
 * else further; behind the last layer the leaf decides, which is the caller's business (the lane's
 * calls ask the cache of leaves).
 *
 * Costs: each page touched by a read or write is O(1), times the file's layers not yet retired;
 * a truncate is O(open cells of the file); seal O(files dirtied); sealed_cells O(n log n);
 * retire O(its cells). One mutex covers all of it, as nothing here waits for anything; what takes
 * long (a retire, the gathering of what is sealed) leaves it to others in between.
 */
#include "pages.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "pages_inner.h"

enum { CELL_BYTES_MIN = 4096, CELL_BYTES_MAX = 65536 };
enum { CELL_CHUNK_BYTES = 2 << 20, LAYER_CHUNK_BYTES = 1 << 16, LAYER_BYTES_KEPT = 1 << 20 };

struct rf_pages *rf_pages_new(uint32_t cell_bytes, uint64_t leaf_bytes_max,
                              uint64_t pool_bytes_kept, uint64_t generation)
{
    if (cell_bytes < CELL_BYTES_MIN || cell_bytes > CELL_BYTES_MAX ||
        (cell_bytes & (cell_bytes - 1)) != 0)
        return NULL;
    struct rf_pages *pages = calloc(1, sizeof(*pages));
    struct generation *open = calloc(1, sizeof(*open));
    if (!pages || !open) {
        free(pages);
        free(open);
        return NULL;
    }
    pages->cell_bytes = cell_bytes;
    pages->cell_shift = (uint32_t)__builtin_ctz(cell_bytes);
    /* Without randomness the key is 0 and only the defence against chosen offsets is lost. */
    (void)!getrandom(&pages->key, sizeof(pages->key), GRND_NONBLOCK);
    open->number = generation;
    pages->oldest = pages->open = open;
    pages->served = RF_SERVE_READS | RF_SERVE_WRITES;
    pthread_mutex_init(&pages->mutex, NULL);
    pool_start(&pages->cells, cell_bytes, CELL_CHUNK_BYTES, 4096, pool_bytes_kept);
    pool_start(&pages->layers, sizeof(struct layer), LAYER_CHUNK_BYTES, 64, LAYER_BYTES_KEPT);
    if (file_table_start(&pages->table) < 0 ||
        leaf_cache_start(&pages->leaves, leaf_bytes_max, pages->key) < 0) {
        rf_pages_free(pages);
        return NULL;
    }
    return pages;
}

void rf_pages_free(struct rf_pages *pages)
{
    if (!pages)
        return;
    for (struct generation *generation = pages->oldest, *newer; generation; generation = newer) {
        newer = generation->newer;
        for (struct layer *layer = generation->first, *next; layer; layer = next) {
            next = layer->next;
            layer_end(pages, layer);
        }
        free(generation);
    }
    leaf_cache_end(&pages->leaves);
    file_table_end(&pages->table);
    pool_end(&pages->cells);
    pool_end(&pages->layers);
    pthread_mutex_destroy(&pages->mutex);
    free(pages);
}

void rf_pages_keep(struct rf_pages *pages, uint64_t pool_bytes_kept)
{
    pthread_mutex_lock(&pages->mutex);
    pool_keep(&pages->cells, pool_bytes_kept);
    pthread_mutex_unlock(&pages->mutex);
}

/* ---- the lookup rule ---- */

struct found look_up(const struct rf_pages *pages, const struct file *file, uint64_t index)
{
    if (index >= page_count(pages, file->size))
        return (struct found){.place = ZERO};
    for (const struct layer *layer = file->newest; layer; layer = layer->older) {
        const struct entry *entry = layer_find(pages, layer, index);
        if (entry && entry->kind == CELL)
            return (struct found){.place = IN_CELL, .cell = entry->cell};
        if (entry && entry->address)
            return (struct found){.place = SHARED, .address = entry->address};
        if (entry || index >= layer->cut)
            return (struct found){.place = ZERO};
    }
    return (struct found){.place = ELSEWHERE};
}

struct found look_up_leaf(struct rf_pages *pages, const struct file *file, uint64_t index)
{
    struct found found = look_up(pages, file, index);
    if (found.place == ELSEWHERE &&
        leaf_cache_address(&pages->leaves, file->ino, index, &found.address))
        found.place = found.address ? AT : ZERO;
    return found;
}

uint32_t page_valid(const struct rf_pages *pages, const struct file *file, uint64_t index)
{
    uint64_t start = index << pages->cell_shift;
    if (start >= file->size)
        return 0;
    uint64_t valid = file->size - start;
    return valid < pages->cell_bytes ? (uint32_t)valid : pages->cell_bytes;
}

bool keeps_old(const struct rf_pages *pages, const struct file *file, const struct walk *walk)
{
    return walk->from > 0 || walk->to < page_valid(pages, file, walk->index);
}

int range_ends(const struct rf_pages *pages, uint64_t offset, uint64_t nbytes, struct walk *ends)
{
    if (nbytes == 0)
        return 0;
    ends[0] = walk_start(pages, offset, nbytes);
    uint64_t end = offset + nbytes;
    ends[1] = (struct walk){.index = (end - 1) >> pages->cell_shift,
                            .to = (uint32_t)((end - 1) & (pages->cell_bytes - 1)) + 1};
    return ends[1].index != ends[0].index ? 2 : 1;
}

static int pages_missing(const struct rf_pages *pages, const struct file *file, uint64_t offset,
                         uint64_t nbytes, uint64_t *indexes)
{
    struct walk ends[2];
    int count = 0;
    for (int i = 0, n = range_ends(pages, offset, nbytes, ends); i < n; i++)
        if (keeps_old(pages, file, &ends[i])) {
            struct found found = look_up(pages, file, ends[i].index);
            if (needs_base(&found))
                indexes[count++] = ends[i].index;
        }
    return count;
}

int rf_pages_missing(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes,
                     uint64_t *indexes)
{
    int result;
    if (!range_ok(offset, nbytes))
        return -EINVAL;
    const struct file *file = file_enter(pages, ino, &result);
    if (!file)
        return result;
    result = pages_missing(pages, file, offset, nbytes, indexes);
    pthread_mutex_unlock(&pages->mutex);
    return result;
}

uint64_t write_cost(const struct rf_pages *pages, const struct file *file, uint64_t offset,
                    uint64_t nbytes)
{
    if (nbytes == 0)
        return 0;
    uint64_t first = offset >> pages->cell_shift;
    uint64_t end = ((offset + nbytes - 1) >> pages->cell_shift) + 1, cost = end - first;
    const struct layer *layer = layer_is_open(pages, file) ? file->newest : NULL;
    if (layer && layer_cells(layer) > 0)
        for (uint64_t index = first; index < end; index++) {
            const struct entry *entry = layer_find(pages, layer, index);
            cost -= entry && entry->kind == CELL;
        }
    return cost;
}

int64_t rf_pages_cost(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes)
{
    int error;
    if (!range_ok(offset, nbytes))
        return -EINVAL;
    const struct file *file = file_enter(pages, ino, &error);
    if (!file)
        return error;
    int64_t cost = (int64_t)write_cost(pages, file, offset, nbytes);
    pthread_mutex_unlock(&pages->mutex);
    return cost;
}

const struct rf_base *base_find(const struct rf_base *bases, uint32_t base_count, uint64_t index)
{
    for (uint32_t i = 0; i < base_count; i++)
        if (bases[i].index == index)
            return &bases[i];
    return NULL;
}

void fill_old(uint8_t *cell, const uint8_t *old, uint32_t from, uint32_t to, uint32_t valid)
{
    uint32_t end = !old || valid < from ? from : valid < to ? valid : to;
    if (end > from)
        memcpy(cell + from, old + from, end - from);
    memset(cell + end, 0, to - end);
}

const uint8_t *old_content(const struct rf_pages *pages, const struct file *file, uint64_t index,
                           const struct rf_base *base)
{
    struct found found = look_up(pages, file, index);
    if (found.place == IN_CELL)
        return found.cell;
    return needs_base(&found) && base ? base->bytes : NULL;
}

/* The page's cell in the open layer. A new one has the old content outside of [from, to). */
static uint8_t *cell_for_write(struct rf_pages *pages, const struct file *file, struct layer *layer,
                               const struct walk *walk, const struct rf_base *base)
{
    const struct entry *own = layer_find(pages, layer, walk->index);
    if (own && own->kind == CELL)
        return own->cell;
    const uint8_t *old =
        keeps_old(pages, file, walk) ? old_content(pages, file, walk->index, base) : NULL;
    uint32_t valid = page_valid(pages, file, walk->index);
    uint8_t *cell = pool_take(&pages->cells);
    fill_old(cell, old, 0, walk->from, valid);
    fill_old(cell, old, walk->to, pages->cell_bytes, valid);
    layer_put_cell(pages, layer, walk->index, cell);
    return cell;
}

struct layer *layer_open_for(struct rf_pages *pages, struct file *file, uint64_t more)
{
    if (pool_reserve(&pages->cells, more) < 0)
        return NULL;
    struct layer *layer = layer_open(pages, file);
    return layer && layer_reserve(pages, layer, more) == 0 ? layer : NULL;
}

int64_t write_range(struct rf_pages *pages, struct file *file, uint64_t offset, const uint8_t *data,
                    uint64_t nbytes, int64_t now_ns, const struct rf_base *bases,
                    uint32_t base_count)
{
    struct walk walk = walk_start(pages, offset, nbytes);
    uint64_t end = (offset + nbytes - 1) >> pages->cell_shift;
    struct layer *layer = layer_open_for(pages, file, end - walk.index + 1);
    if (!layer)
        return -ENOMEM;
    uint32_t before = layer_cells(layer);
    for (; walk_more(&walk, nbytes); walk_next(pages, nbytes, &walk)) {
        uint8_t *cell =
            cell_for_write(pages, file, layer, &walk, base_find(bases, base_count, walk.index));
        memcpy(cell + walk.from, data + walk.done, walk.to - walk.from);
    }
    if (offset + nbytes > file->size)
        file->size = offset + nbytes;
    file->mtime_ns = file->ctime_ns = now_ns;
    pool_trim(&pages->cells); /* it reserved as if none of the cells were there */
    return (int64_t)layer_cells(layer) - before;
}

int64_t rf_pages_write(struct rf_pages *pages, uint64_t ino, uint64_t offset, const uint8_t *data,
                       uint64_t nbytes, int64_t now_ns, const struct rf_base *bases,
                       uint32_t base_count)
{
    int error;
    uint64_t missing[2];
    if (!range_ok(offset, nbytes))
        return -EINVAL;
    struct file *file = file_enter(pages, ino, &error);
    if (!file)
        return error;
    int64_t added = 0;
    for (int i = pages_missing(pages, file, offset, nbytes, missing); i > 0; i--)
        if (!base_find(bases, base_count, missing[i - 1]))
            added = -EAGAIN;
    if (added == 0 && nbytes > 0)
        added = write_range(pages, file, offset, data, nbytes, now_ns, bases, base_count);
    pthread_mutex_unlock(&pages->mutex);
    return added;
}

int64_t rf_pages_read(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint8_t *out,
                      uint64_t nbytes, uint64_t *elsewhere, uint64_t *addresses, uint64_t room)
{
    if (!range_ok(offset, nbytes))
        return -EINVAL;
    if (nbytes > 0 &&
        ((offset + nbytes - 1) >> pages->cell_shift) - (offset >> pages->cell_shift) >= room)
        return -EINVAL;
    int64_t count = 0;
    pthread_mutex_lock(&pages->mutex);
    const struct file *file = file_find(pages, ino);
    if (!file) {
        count = -ENOENT;
    } else if (nbytes > 0) {
        for (struct walk walk = walk_start(pages, offset, nbytes); walk_more(&walk, nbytes);
             walk_next(pages, nbytes, &walk)) {
            struct found found = look_up(pages, file, walk.index);
            if (found.place == IN_CELL) {
                memcpy(out + walk.done, found.cell + walk.from, walk.to - walk.from);
            } else if (found.place == ZERO) {
                memset(out + walk.done, 0, walk.to - walk.from);
            } else {
                addresses[count] = found.address;
                elsewhere[count++] = walk.index;
            }
        }
    }
    pthread_mutex_unlock(&pages->mutex);
    return count;
}

/* ---- truncate ---- */

/* Whether a truncate to `size` cuts a page in two; then its part to be kept is [0, *tail). */
static bool splits_page(const struct rf_pages *pages, const struct file *file, uint64_t size,
                        uint64_t *index, uint32_t *tail)
{
    *index = size >> pages->cell_shift;
    *tail = (uint32_t)(size & (pages->cell_bytes - 1));
    return *tail > 0 && size < file->size;
}

/* Whether it needs the base of the page that it splits. */
static bool tail_missing(const struct rf_pages *pages, const struct file *file, uint64_t size,
                         uint64_t *index)
{
    uint32_t tail;
    if (!splits_page(pages, file, size, index, &tail))
        return false;
    struct found found = look_up(pages, file, *index);
    return needs_base(&found);
}

int rf_pages_missing_tail(struct rf_pages *pages, uint64_t ino, uint64_t size, uint64_t *index)
{
    int result;
    if (size > SIZE_MAX_BYTES)
        return -EINVAL;
    const struct file *file = file_enter(pages, ino, &result);
    if (!file)
        return result;
    result = tail_missing(pages, file, size, index);
    pthread_mutex_unlock(&pages->mutex);
    return result;
}

static bool all_zero(const uint8_t *bytes, uint32_t count)
{
    return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0);
}

/* Zeroes the page from `tail` on; a page that is zero there already costs no cell. */
static void zero_tail(struct rf_pages *pages, const struct file *file, struct layer *layer,
                      uint64_t index, uint32_t tail, const uint8_t *base)
{
    uint32_t valid = page_valid(pages, file, index);
    const struct entry *own = layer_find(pages, layer, index);
    if (own && own->kind == CELL) {
        memset(own->cell + tail, 0, pages->cell_bytes - tail);
        return;
    }
    const struct rf_base given = {.bytes = base};
    const uint8_t *old = old_content(pages, file, index, &given);
    if (!old || all_zero(old + tail, valid - tail))
        return;
    uint8_t *cell = pool_take(&pages->cells);
    fill_old(cell, old, 0, pages->cell_bytes, tail);
    layer_put_cell(pages, layer, index, cell);
}

static int truncate_file(struct rf_pages *pages, struct file *file, uint64_t size,
                         const uint8_t *base, int64_t *change)
{
    uint64_t index, old_end = page_count(pages, file->size), end = page_count(pages, size);
    uint32_t tail;
    if (!base && tail_missing(pages, file, size, &index))
        return -EAGAIN;
    bool split = splits_page(pages, file, size, &index, &tail);
    struct layer *layer = layer_open_for(pages, file, split);
    if (!layer)
        return -ENOMEM;
    uint32_t before = layer_cells(layer);
    if (end < old_end) {
        layer_cut(pages, layer, end, old_end);
        if (layer->cut == NO_CUT)
            pages->open->cuts++;
        if (end < layer->cut)
            layer->cut = end;
    }
    if (split)
        zero_tail(pages, file, layer, index, tail, base);
    file->size = size;
    *change = (int64_t)layer_cells(layer) - before;
    pool_trim(&pages->cells);
    return 0;
}

int rf_pages_truncate(struct rf_pages *pages, uint64_t ino, uint64_t size, int64_t now_ns,
                      const uint8_t *base, int64_t *change)
{
    int result;
    if (size > SIZE_MAX_BYTES)
        return -EINVAL;
    struct file *file = file_enter(pages, ino, &result);
    if (!file)
        return result;
    result = truncate_file(pages, file, size, base, change);
    if (result == 0)
        file->mtime_ns = file->ctime_ns = now_ns;
    pthread_mutex_unlock(&pages->mutex);
    return result;
}
