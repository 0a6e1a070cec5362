/* known.c: names and attributes that Python vouches for, and the kernel's references to inodes.
 *
 * Words: a name *leads* to an inode, or is known not to exist. A directory is *complete* while all
 * its names are here, so that a name that isn't here is known not to exist. An inode is *watched*
 * while no name leads to it and the kernel still refers to it.
 *
 *  1. What is answered was put and not forgotten since. Nothing is derived from anything but
 *     completeness, and what isn't here is not known: only Python may answer then.
 *  2. Finding a name, its attributes and counting the reference is one step for all other threads,
 *     so an inode whose name Python has forgotten gains no reference from here any more.
 *  3. References are exact and never evicted. The last release of a watched inode leaves it among
 *     the unreferenced, exactly once.
 *  4. Entries never take more than nbytes_max (plus one while it is being added); the least
 *     recently used go first. When a name of a complete directory goes, so does completeness.
 *  5. Each call is O(1), but for forgetting a directory (its names) and the two that look at all:
 *     rf_known_forget_between, a bounded number of steps at a time, and rf_known_referenced.
 */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "known_inner.h"

struct rf_known *rf_known_new(uint64_t nbytes_max)
{
    struct rf_known *known = calloc(1, sizeof(*known));
    uint64_t key[2] = {0};
    if (!known)
        return NULL;
    /* Without randomness the key is 0 and only the defence against chosen names is lost. */
    (void)!getrandom(key, sizeof(key), GRND_NONBLOCK);
    pthread_mutex_init(&known->mutex, NULL);
    if (entries_start(&known->entries, nbytes_max, key) < 0 ||
        references_start(&known->references, key[0]) < 0) {
        rf_known_free(known);
        return NULL;
    }
    return known;
}

void rf_known_free(struct rf_known *known)
{
    if (!known)
        return;
    entries_end(&known->entries);
    references_end(&known->references);
    pthread_mutex_destroy(&known->mutex);
    free(known);
}

/* ---- attributes ---- */

static int inode_put(struct rf_known *known, const struct rf_inode *inode)
{
    struct known_inode *entry = inode_get(&known->entries, inode->ino);
    if (!entry)
        return -ENOMEM;
    entry->inode = *inode;
    return 0;
}

int rf_known_inode_put(struct rf_known *known, const struct rf_inode *inode)
{
    if (inode->ino == NOWHERE || inode->ino == UNSURE)
        return -EINVAL;
    pthread_mutex_lock(&known->mutex);
    int result = inode_put(known, inode);
    entries_trim(&known->entries);
    pthread_mutex_unlock(&known->mutex);
    return result;
}

int rf_known_inode_forget(struct rf_known *known, uint64_t ino)
{
    pthread_mutex_lock(&known->mutex);
    struct known_inode *entry = inode_find(&known->entries, ino);
    if (entry)
        inode_drop(&known->entries, entry);
    pthread_mutex_unlock(&known->mutex);
    return entry != NULL;
}

int rf_known_getattr(struct rf_known *known, uint64_t ino, struct rf_inode *out)
{
    pthread_mutex_lock(&known->mutex);
    struct known_inode *entry = inode_find(&known->entries, ino);
    if (entry) {
        *out = entry->inode;
        entry_touch(&known->entries, &entry->entry);
    }
    pthread_mutex_unlock(&known->mutex);
    return entry ? 1 : -ENOENT;
}

/* ---- names ---- */

/* Whether it is one that a directory can have: others are for Python to refuse. */
static bool is_name(const uint8_t *name, uint32_t nbytes)
{
    if (nbytes == 0 || nbytes > NAME_BYTES_MAX)
        return false;
    if (name[0] == '.' && (nbytes == 1 || (nbytes == 2 && name[1] == '.')))
        return false;
    return !memchr(name, '/', nbytes) && !memchr(name, 0, nbytes);
}

static int name_put(struct rf_known *known, uint64_t parent, const uint8_t *name, uint32_t nbytes,
                    uint64_t ino)
{
    struct known_name *entry = name_get(&known->entries, parent, name, nbytes);
    if (!entry) { /* what was known of the name before no longer is: nor is the directory */
        struct known_directory *directory = directory_find(&known->entries, parent);
        if (directory)
            directory_drop(&known->entries, directory);
        return -ENOMEM;
    }
    name_lead(entry, ino);
    return 0;
}

int rf_known_name_put(struct rf_known *known, uint64_t parent, const uint8_t *name, uint32_t nbytes,
                      uint64_t ino)
{
    if (!is_name(name, nbytes) || ino == UNSURE)
        return -EINVAL;
    pthread_mutex_lock(&known->mutex);
    int result = name_put(known, parent, name, nbytes, ino);
    entries_trim(&known->entries);
    pthread_mutex_unlock(&known->mutex);
    return result;
}

void rf_known_name_forget(struct rf_known *known, uint64_t parent, const uint8_t *name,
                          uint32_t nbytes)
{
    if (!is_name(name, nbytes))
        return;
    pthread_mutex_lock(&known->mutex);
    struct known_directory *directory = directory_find(&known->entries, parent);
    if (directory && directory->complete) {
        (void)name_put(known, parent, name, nbytes, UNSURE);
        entries_trim(&known->entries);
    } else if (directory) {
        struct known_name *entry = name_find(&known->entries, parent, name, nbytes);
        if (entry)
            name_drop(&known->entries, entry);
    }
    pthread_mutex_unlock(&known->mutex);
}

void rf_known_name_removed(struct rf_known *known, uint64_t parent, const uint8_t *name,
                           uint32_t nbytes)
{
    if (!is_name(name, nbytes))
        return;
    pthread_mutex_lock(&known->mutex);
    struct known_name *entry = name_find(&known->entries, parent, name, nbytes);
    if (entry) {
        name_lead(entry, NOWHERE);
        name_drop(&known->entries, entry);
    }
    pthread_mutex_unlock(&known->mutex);
}

int rf_known_directory_put(struct rf_known *known, uint64_t ino, uint64_t names)
{
    if (ino == NOWHERE || ino == UNSURE)
        return -EINVAL;
    pthread_mutex_lock(&known->mutex);
    int result = 0;
    struct known_directory *directory = directory_find(&known->entries, ino);
    if (names == 0 && !directory)
        directory = directory_get(&known->entries, ino);
    if (!directory)
        result = names == 0 ? -ENOMEM : 0;
    else if (directory->existing == names)
        result = 1;
    if (result == 1) {
        directory_complete(&known->entries, directory, true);
        entries_trim(&known->entries);
        directory = directory_find(&known->entries, ino);
        result = directory && directory->complete;
    }
    pthread_mutex_unlock(&known->mutex);
    return result;
}

void rf_known_directory_forget(struct rf_known *known, uint64_t ino)
{
    pthread_mutex_lock(&known->mutex);
    struct known_directory *directory = directory_find(&known->entries, ino);
    if (directory)
        directory_drop(&known->entries, directory);
    pthread_mutex_unlock(&known->mutex);
}

uint64_t rf_known_forget_between(struct rf_known *known, uint64_t first, uint64_t last, uint64_t at)
{
    enum { BUCKETS_AT_ONCE = 16384 };
    pthread_mutex_lock(&known->mutex);
    uint64_t next = entries_forget_between(&known->entries, first, last, at, BUCKETS_AT_ONCE);
    pthread_mutex_unlock(&known->mutex);
    return next;
}

/* ---- looking up ---- */

static int lookup(struct rf_known *known, uint64_t parent, const uint8_t *name, uint32_t nbytes,
                  struct rf_inode *out)
{
    struct known_name *entry = name_find(&known->entries, parent, name, nbytes);
    struct known_directory *directory =
        entry ? entry->directory : directory_find(&known->entries, parent);
    if (entry)
        entry_touch(&known->entries, &entry->entry);
    if (directory)
        entry_touch(&known->entries, &directory->entry);
    if (entry ? entry->ino == NOWHERE : directory && directory->complete)
        return 0;
    if (!entry || entry->ino == UNSURE)
        return -ENOENT;
    struct known_inode *inode = inode_find(&known->entries, entry->ino);
    if (!inode)
        return -ENOENT;
    if (references_add(&known->references, entry->ino, 1) < 0)
        return -ENOMEM;
    entry_touch(&known->entries, &inode->entry);
    *out = inode->inode;
    return 1;
}

int rf_known_lookup(struct rf_known *known, uint64_t parent, const uint8_t *name, uint32_t nbytes,
                    struct rf_inode *out)
{
    if (!is_name(name, nbytes))
        return -ENOENT;
    pthread_mutex_lock(&known->mutex);
    int result = lookup(known, parent, name, nbytes, out);
    if (result > 0)
        known->hits++;
    else if (result == 0)
        known->negative_hits++;
    else
        known->misses++;
    pthread_mutex_unlock(&known->mutex);
    return result;
}

int rf_known_tell(struct rf_known *known, const struct rf_inode *inode, uint64_t parent,
                  const uint8_t *name, uint32_t nbytes, uint64_t count)
{
    if (inode->ino == NOWHERE || inode->ino == UNSURE)
        return -EINVAL;
    pthread_mutex_lock(&known->mutex);
    int result = references_add(&known->references, inode->ino, count);
    if (result == 0) {
        if (is_name(name, nbytes))
            (void)name_put(known, parent, name, nbytes, inode->ino);
        (void)inode_put(known, inode);
        entries_trim(&known->entries);
    }
    pthread_mutex_unlock(&known->mutex);
    return result;
}

/* ---- references ---- */

int rf_known_refer(struct rf_known *known, uint64_t ino, uint64_t count)
{
    pthread_mutex_lock(&known->mutex);
    int result = references_add(&known->references, ino, count);
    pthread_mutex_unlock(&known->mutex);
    return result;
}

uint64_t rf_known_references(struct rf_known *known, uint64_t ino)
{
    pthread_mutex_lock(&known->mutex);
    uint64_t count = references_count(&known->references, ino);
    pthread_mutex_unlock(&known->mutex);
    return count;
}

uint64_t rf_known_release(struct rf_known *known, uint64_t ino, uint64_t count)
{
    pthread_mutex_lock(&known->mutex);
    uint64_t left = references_take(&known->references, ino, count);
    pthread_mutex_unlock(&known->mutex);
    return left;
}

uint64_t rf_known_referenced(struct rf_known *known, uint64_t *inos, uint64_t room)
{
    pthread_mutex_lock(&known->mutex);
    uint64_t count = references_all(&known->references, inos, room);
    pthread_mutex_unlock(&known->mutex);
    return count;
}

int64_t rf_known_watch(struct rf_known *known, uint64_t ino)
{
    pthread_mutex_lock(&known->mutex);
    int64_t result = references_watch(&known->references, ino);
    pthread_mutex_unlock(&known->mutex);
    return result;
}

uint32_t rf_known_unreferenced(struct rf_known *known, uint64_t *inos, uint32_t room)
{
    pthread_mutex_lock(&known->mutex);
    uint32_t count = references_unreferenced(&known->references, inos, room);
    pthread_mutex_unlock(&known->mutex);
    return count;
}

int rf_known_any_unreferenced(struct rf_known *known)
{
    return atomic_load(&known->references.unreferenced_count) > 0;
}

void rf_known_statistics(struct rf_known *known, struct rf_known_statistics *out)
{
    pthread_mutex_lock(&known->mutex);
    const struct entry_table *entries = &known->entries;
    const struct reference_table *references = &known->references;
    *out = (struct rf_known_statistics){
        .inodes = entries->counts[KIND_INODE],
        .names = entries->counts[KIND_NAME],
        .directories = entries->counts[KIND_DIRECTORY],
        .complete = entries->complete,
        .nbytes = entries->nbytes,
        .nbytes_max = entries->nbytes_max,
        .evicted = entries->evicted,
        .hits = known->hits,
        .negative_hits = known->negative_hits,
        .misses = known->misses,
        .referenced = references->inodes,
        .reference_bytes = references_nbytes(references),
        .watched = references->watched,
        .unreferenced = atomic_load(&references->unreferenced_count),
    };
    pthread_mutex_unlock(&known->mutex);
}
