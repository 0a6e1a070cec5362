/* pages.c: what memory knows of files that is newer than what lies on the members.
 *
 * The words:
 *   resident    a file whose size and times are here (and are the truth), and of which any page is
 *               either here or where its leaf says.
 *   generation  what changed between two cuts of the volume. One is open and takes all changes;
 *               older ones are sealed: immutable, being written to members by the flusher, and
 *               retired, oldest first, when the leaves say what they said.
 *   layer       what one generation changed in one file: cells and at most one cut.
 *   cell        the content of one page as of the end of a generation: cell_bytes at an address
 *               that doesn't change until the generation is retired.
 *   cut         of a layer: pages from there up, of all older layers and the leaves, are holes.
 *               (Not the cut of the volume, which is what seals a generation.)
 *   base        the content of a page on the members, given by the caller where a change needs it.
 *
 * Invariants:
 *  1. Cells and cuts of a sealed generation never change; a change copies the cell first.
 *  2. Bytes beyond the size in the last page are zero: in every cell, and in the base of it.
 *  3. No older layer or leaf shows content at or above ceil(size / cell_bytes): whatever shrank the
 *     file recorded a cut there. So growing exposes zeros, and only the size changes.
 *  4. A cut stands below the cells it freed, never the later ones of its own layer: of one layer,
 *     apply the cut first, then the cells.
 *  5. Every layer of the open generation belongs to a file whose attributes the seal reports, or to
 *     a dropped one. The seal ends layers with neither cells nor cut; so sealed layers have some.
 *  6. A file with a layer is resident and is not evicted. A dropped one is forgotten with its last.
 *  7. What fails has changed nothing: all memory is reserved before the first change. (Out of
 *     memory may leave an empty layer: the next seal then reports the file as it was.)
 *
 * The lookup rule, of page p: at or above ceil(size / cell_bytes) zero; else, from the newest layer
 * of the file to the oldest: its cell, if it has one; zero, if p is at or above its cut; else
 * further; behind the last layer the leaf decides, which is the caller's business.
 *
 * Costs: each page touched by a read or write is O(1), times the file's layers not yet retired;
 * a truncate is O(open cells of the file); seal O(files dirtied); sealed_cells O(n log n);
 * retire O(its cells). One mutex covers all of it, as nothing here waits for anything.
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

/* ---- the lookup rule ---- */

/* What memory knows of a page. */
enum place { IN_CELL, ZERO, ELSEWHERE };

static uint64_t page_count(const struct rf_pages *pages, uint64_t size)
{
    return (size + pages->cell_bytes - 1) >> pages->cell_shift;
}

/* The lookup rule. `cell` is set for IN_CELL only. */
static enum place look_up(const struct rf_pages *pages, const struct file *file, uint64_t index,
                          uint8_t **cell)
{
    if (index >= page_count(pages, file->size))
        return ZERO;
    for (const struct layer *layer = file->newest; layer; layer = layer->older) {
        if ((*cell = layer_find(pages, layer, index)))
            return IN_CELL;
        if (index >= layer->cut)
            return ZERO;
    }
    return ELSEWHERE;
}

/* One contiguous range of a file, page by page. */
struct walk {
    uint64_t index;
    uint32_t from, to; /* the part of the page: [from, to), never empty */
    uint64_t done;     /* bytes before it */
};

static bool range_ok(uint64_t offset, uint64_t nbytes)
{
    return offset <= SIZE_MAX_BYTES && nbytes <= SIZE_MAX_BYTES - offset;
}

static void walk_part(const struct rf_pages *pages, uint64_t nbytes, struct walk *walk)
{
    uint64_t left = nbytes - walk->done, room = pages->cell_bytes - walk->from;
    walk->to = walk->from + (uint32_t)(left < room ? left : room);
}

static struct walk walk_start(const struct rf_pages *pages, uint64_t offset, uint64_t nbytes)
{
    struct walk walk = {.index = offset >> pages->cell_shift,
                        .from = (uint32_t)(offset & (pages->cell_bytes - 1))};
    walk_part(pages, nbytes, &walk);
    return walk;
}

static bool walk_more(const struct walk *walk, uint64_t nbytes)
{
    return walk->done < nbytes;
}

static void walk_next(const struct rf_pages *pages, uint64_t nbytes, struct walk *walk)
{
    walk->done += walk->to - walk->from;
    walk->index++;
    walk->from = 0;
    walk_part(pages, nbytes, walk);
}

/* Bytes of the page that lie within the size. */
static uint32_t page_valid(const struct rf_pages *pages, const struct file *file, uint64_t index)
{
    uint64_t start = index << pages->cell_shift;
    if (start >= file->size)
        return 0;
    uint64_t valid = file->size - start;
    return valid < pages->cell_bytes ? (uint32_t)valid : pages->cell_bytes;
}

/* Whether writing [from, to) of a page leaves old content in it. */
static bool keeps_old(const struct rf_pages *pages, const struct file *file,
                      const struct walk *walk)
{
    return walk->from > 0 || walk->to < page_valid(pages, file, walk->index);
}

static bool needs_base(const struct rf_pages *pages, const struct file *file,
                       const struct walk *walk)
{
    uint8_t *cell;
    return keeps_old(pages, file, walk) && look_up(pages, file, walk->index, &cell) == ELSEWHERE;
}

/* Only the first and the last page of a range can be written in part. */
static int pages_missing(const struct rf_pages *pages, const struct file *file, uint64_t offset,
                         uint64_t nbytes, uint64_t *indexes)
{
    int count = 0;
    if (nbytes == 0)
        return 0;
    struct walk first = walk_start(pages, offset, nbytes);
    if (needs_base(pages, file, &first))
        indexes[count++] = first.index;
    uint64_t end = offset + nbytes;
    struct walk last = {.index = (end - 1) >> pages->cell_shift,
                        .to = (uint32_t)((end - 1) & (pages->cell_bytes - 1)) + 1};
    if (last.index != first.index && needs_base(pages, file, &last))
        indexes[count++] = last.index;
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

int64_t rf_pages_cost(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint64_t nbytes)
{
    int error;
    if (!range_ok(offset, nbytes))
        return -EINVAL;
    const struct file *file = file_enter(pages, ino, &error);
    if (!file)
        return error;
    const struct layer *layer = file->newest;
    int64_t cost = 0;
    if (nbytes > 0) {
        uint64_t first = offset >> pages->cell_shift;
        uint64_t end = ((offset + nbytes - 1) >> pages->cell_shift) + 1;
        cost = (int64_t)(end - first);
        if (layer && layer->generation == pages->open && layer->count > 0)
            for (uint64_t index = first; index < end; index++)
                cost -= layer_find(pages, layer, index) != NULL;
    }
    pthread_mutex_unlock(&pages->mutex);
    return cost;
}

static const uint8_t *base_of(const struct rf_base *bases, uint32_t base_count, uint64_t index)
{
    for (uint32_t i = 0; i < base_count; i++)
        if (bases[i].index == index)
            return bases[i].bytes;
    return NULL;
}

/* cell[from, to) becomes what it was in `old` (NULL: zeros), of which `valid` bytes count. */
static void fill_old(uint8_t *cell, const uint8_t *old, uint32_t from, uint32_t to, uint32_t valid)
{
    uint32_t end = !old || valid < from ? from : valid < to ? valid : to;
    if (end > from)
        memcpy(cell + from, old + from, end - from);
    memset(cell + end, 0, to - end);
}

/* The page's cell in the open layer. A new one has the old content outside of [from, to). */
static uint8_t *cell_for_write(struct rf_pages *pages, const struct file *file, struct layer *layer,
                               const struct walk *walk, const uint8_t *base)
{
    uint8_t *cell = layer_find(pages, layer, walk->index);
    if (cell)
        return cell;
    uint8_t *old = NULL;
    const uint8_t *from = NULL;
    if (keeps_old(pages, file, walk)) {
        enum place place = look_up(pages, file, walk->index, &old);
        from = place == IN_CELL ? old : place == ELSEWHERE ? base : NULL;
    }
    uint32_t valid = page_valid(pages, file, walk->index);
    cell = layer_add(pages, layer, walk->index);
    fill_old(cell, from, 0, walk->from, valid);
    fill_old(cell, from, walk->to, pages->cell_bytes, valid);
    return cell;
}

/* Room in the open layer and in the pool for `more` cells; NULL: out of memory. */
static struct layer *layer_open_for(struct rf_pages *pages, struct file *file, uint64_t more)
{
    if (pool_reserve(&pages->cells, more) < 0)
        return NULL;
    struct layer *layer = layer_open(pages, file);
    return layer && layer_reserve(pages, layer, more) == 0 ? layer : NULL;
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
    if (nbytes == 0)
        goto out;
    for (int i = pages_missing(pages, file, offset, nbytes, missing); i > 0; i--)
        if (!base_of(bases, base_count, missing[i - 1])) {
            added = -EAGAIN;
            goto out;
        }
    struct walk walk = walk_start(pages, offset, nbytes);
    uint64_t end = (offset + nbytes - 1) >> pages->cell_shift;
    struct layer *layer = layer_open_for(pages, file, end - walk.index + 1);
    if (!layer) {
        added = -ENOMEM;
        goto out;
    }
    uint32_t before = layer->count;
    for (; walk_more(&walk, nbytes); walk_next(pages, nbytes, &walk)) {
        uint8_t *cell =
            cell_for_write(pages, file, layer, &walk, base_of(bases, base_count, walk.index));
        memcpy(cell + walk.from, data + walk.done, walk.to - walk.from);
    }
    if (offset + nbytes > file->size)
        file->size = offset + nbytes;
    file->mtime_ns = file->ctime_ns = now_ns;
    added = (int64_t)layer->count - before;
    pool_trim(&pages->cells); /* it reserved as if none of the cells were there */
out:
    pthread_mutex_unlock(&pages->mutex);
    return added;
}

int64_t rf_pages_read(struct rf_pages *pages, uint64_t ino, uint64_t offset, uint8_t *out,
                      uint64_t nbytes, uint64_t *elsewhere, uint64_t room)
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
            uint8_t *cell;
            enum place place = look_up(pages, file, walk.index, &cell);
            if (place == IN_CELL)
                memcpy(out + walk.done, cell + walk.from, walk.to - walk.from);
            else if (place == ZERO)
                memset(out + walk.done, 0, walk.to - walk.from);
            else
                elsewhere[count++] = walk.index;
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

int rf_pages_missing_tail(struct rf_pages *pages, uint64_t ino, uint64_t size, uint64_t *index)
{
    int result;
    uint32_t tail;
    uint8_t *cell;
    if (size > SIZE_MAX_BYTES)
        return -EINVAL;
    const struct file *file = file_enter(pages, ino, &result);
    if (!file)
        return result;
    result = splits_page(pages, file, size, index, &tail) &&
             look_up(pages, file, *index, &cell) == ELSEWHERE;
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
    uint8_t *own = layer_find(pages, layer, index), *cell = NULL;
    if (own) {
        memset(own + tail, 0, pages->cell_bytes - tail);
        return;
    }
    enum place place = look_up(pages, file, index, &cell);
    const uint8_t *old = place == IN_CELL ? cell : place == ELSEWHERE ? base : NULL;
    if (!old || all_zero(old + tail, valid - tail))
        return;
    fill_old(layer_add(pages, layer, index), old, 0, pages->cell_bytes, tail);
}

static int truncate_file(struct rf_pages *pages, struct file *file, uint64_t size,
                         const uint8_t *base, int64_t *change)
{
    uint64_t index, old_end = page_count(pages, file->size), end = page_count(pages, size);
    uint32_t tail;
    uint8_t *cell;
    bool split = splits_page(pages, file, size, &index, &tail);
    if (split && !base && look_up(pages, file, index, &cell) == ELSEWHERE)
        return -EAGAIN;
    struct layer *layer = layer_open_for(pages, file, split);
    if (!layer)
        return -ENOMEM;
    uint32_t before = layer->count;
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
    *change = (int64_t)layer->count - before;
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
