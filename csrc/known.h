/* known.h: names and attributes that Python vouches for, and the kernel's references to inodes.
 *
 * The only interface to it, for Python (through raidfs/known.py) and for C threads alike. Any
 * thread may call any function at any time, except rf_known_free. What is promised stands at the
 * head of known.c.
 *
 * What is put stays until it is forgotten, or until room is needed for others (least recently used
 * first); references stay until they are released. Functions that return int return 0 or more, or
 * a negative errno; after an error nothing has changed.
 */
#ifndef RAIDFS_KNOWN_H
#define RAIDFS_KNOWN_H

#include <stdint.h>

struct rf_known;

/* What stat(2) tells of an inode. `cells`: those of its leaves, without dirty ones. */
struct rf_inode {
    uint64_t ino, generation, size, cells;
    int64_t atime_ns, mtime_ns, ctime_ns;
    uint32_t mode, nlink, uid, gid, rdev;
    uint32_t inline_bytes_max; /* a file no larger takes no cells of its own: st_blocks */
    uint32_t resident;  /* 1: size and times here are of no use: pages has them, and if it hasn't
                         * any more, only Python can answer. Ask here first, then pages. */
    uint32_t no_xattrs; /* 1: it has no extended attributes; 0: ask Python */
};

struct rf_known_statistics {
    uint64_t inodes, names, directories, complete; /* entries; directories wholly known */
    uint64_t nbytes, nbytes_max;                   /* of entries */
    uint64_t evicted;
    uint64_t hits, negative_hits, misses; /* of rf_known_lookup */
    uint64_t referenced;                  /* inodes */
    uint64_t reference_bytes;
    uint64_t watched, unreferenced;
};

/* nbytes_max bounds the entries; references come on top. NULL: out of memory. */
struct rf_known *rf_known_new(uint64_t nbytes_max);
void rf_known_free(struct rf_known *known);

/* ---- attributes ---- */

int rf_known_inode_put(struct rf_known *known, const struct rf_inode *inode);
/* 1: it was known until now; 0: it wasn't. */
int rf_known_inode_forget(struct rf_known *known, uint64_t ino);
/* 1 and *out, or -ENOENT: not known. */
int rf_known_getattr(struct rf_known *known, uint64_t ino, struct rf_inode *out);

/* ---- names ---- */

/* ino 0: the name is known not to exist. */
int rf_known_name_put(struct rf_known *known, uint64_t parent, const uint8_t *name, uint32_t nbytes,
                      uint64_t ino);
/* Whether the name exists is not known from here on, not even in a directory wholly known. */
void rf_known_name_forget(struct rf_known *known, uint64_t parent, const uint8_t *name,
                          uint32_t nbytes);
/* The name is gone: a directory wholly known stays so; elsewhere the name is just forgotten. */
void rf_known_name_removed(struct rf_known *known, uint64_t parent, const uint8_t *name,
                           uint32_t nbytes);
/* The directory holds `names` names. If so many are known to exist, the directory is wholly known
 * now (returns 1): what isn't there, doesn't exist. Losing one of its names ends that. 0: not so
 * many are known. */
int rf_known_directory_put(struct rf_known *known, uint64_t ino, uint64_t names);
/* With all its names. */
void rf_known_directory_forget(struct rf_known *known, uint64_t ino);
/* Attributes of the inodes first..last and the names in them, in steps that keep nobody waiting for
 * long: begin with `at` 0, go on with what is returned, until that is 0. */
uint64_t rf_known_forget_between(struct rf_known *known, uint64_t first, uint64_t last,
                                 uint64_t at);

/* 1: found, *out filled and one reference counted, in one step; 0: known not to exist; -ENOENT:
 * not known, ask Python (always so for ".", ".." and what can't be a name); -ENOMEM. */
int rf_known_lookup(struct rf_known *known, uint64_t parent, const uint8_t *name, uint32_t nbytes,
                    struct rf_inode *out);

/* What a reply to the kernel says, in one step: `count` references, and (if `put`) the attributes
 * and (if nbytes > 0) the name. Without memory only the references must succeed: 0 or -ENOMEM. */
int rf_known_tell(struct rf_known *known, const struct rf_inode *inode, uint64_t parent,
                  const uint8_t *name, uint32_t nbytes, uint64_t count);

/* ---- references: the kernel's nlookup ---- */

int rf_known_refer(struct rf_known *known, uint64_t ino, uint64_t count); /* 0 or -ENOMEM */
uint64_t rf_known_references(struct rf_known *known, uint64_t ino);
/* At most all are released; returns what is left. If that is 0 and the inode is watched, it is no
 * longer watched, and among the unreferenced. */
uint64_t rf_known_release(struct rf_known *known, uint64_t ino, uint64_t count);
/* All inodes with references, in no order, as far as there is room; how many there are. */
uint64_t rf_known_referenced(struct rf_known *known, uint64_t *inos, uint64_t room);
/* Watch an inode without names; returns its references: if 0 it is not watched (the caller knows
 * now), or -ENOMEM. */
int64_t rf_known_watch(struct rf_known *known, uint64_t ino);
/* Takes inodes that were watched and lost their last reference; how many. */
uint32_t rf_known_unreferenced(struct rf_known *known, uint64_t *inos, uint32_t room);
/* Whether there are any: cheap. Ask after rf_known_release. */
int rf_known_any_unreferenced(struct rf_known *known);

void rf_known_statistics(struct rf_known *known, struct rf_known_statistics *out);

#endif
