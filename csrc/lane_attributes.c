/* lane_attributes.c: GETATTR, LOOKUP, GETXATTR, LISTXATTR, FORGET, RELEASE from what Python told.
 *
 *  1. A file whose size and times are in pages has them from there; if it has left them meanwhile,
 *     only Python can answer.
 *  2. A name found counts one reference, unless the kernel didn't take the answer.
 *  3. Extended attributes are answered for only where there are none: ENODATA and an empty list.
 *  4. What the setup calls fleeting, the kernel is told to ask for each time.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lane_inner.h"

enum { UNIT_BYTES = 512, NAME_BYTES_MAX = 255 };
static const int64_t SECOND_NS = 1000000000;

/* ---- attributes ---- */

/* st_blocks, as Inodes._units of fs/inode.py has it. */
static uint64_t units(const struct rf_inode *inode, uint64_t size, uint64_t cells,
                      uint64_t cell_bytes)
{
    if (size <= inode->inline_bytes_max)
        return (size + UNIT_BYTES - 1) / UNIT_BYTES;
    uint64_t most = size / cell_bytes + (size % cell_bytes != 0);
    return (cells < most ? cells : most) * cell_bytes / UNIT_BYTES;
}

static void set_time(uint64_t *seconds, uint32_t *nanoseconds, int64_t time_ns)
{
    int64_t rest = time_ns % SECOND_NS, whole = time_ns / SECOND_NS;
    if (rest < 0) {
        rest += SECOND_NS;
        whole--;
    }
    *seconds = (uint64_t)whole;
    *nanoseconds = (uint32_t)rest;
}

/* False: only Python knows the attributes. */
static bool fill_attributes(struct rf_lane *lane, const struct rf_inode *inode,
                            struct fuse_attr *out)
{
    struct rf_attributes now = {inode->size, inode->mtime_ns, inode->ctime_ns, inode->atime_ns};
    uint64_t cells = 0, cell_bytes = lane->setup.cell_bytes;
    if (inode->resident &&
        rf_pages_lane_attributes(lane->setup.pages, inode->ino, &now, &cells) < 0)
        return false;
    if (S_ISDIR(inode->mode))
        now.size = cell_bytes;
    *out = (struct fuse_attr){.ino = inode->ino,
                              .size = now.size,
                              .mode = inode->mode,
                              .nlink = inode->nlink,
                              .uid = inode->uid,
                              .gid = inode->gid,
                              .rdev = inode->rdev,
                              .blksize = (uint32_t)cell_bytes};
    if (S_ISREG(inode->mode))
        out->blocks = units(inode, now.size, inode->cells + cells, cell_bytes);
    set_time(&out->atime, &out->atimensec, now.atime_ns);
    set_time(&out->mtime, &out->mtimensec, now.mtime_ns);
    set_time(&out->ctime, &out->ctimensec, now.ctime_ns);
    return true;
}

/* For how long the kernel may keep an inode's attributes, or a directory's names. */
static void set_valid(const struct rf_lane *lane, uint64_t ino, uint64_t *seconds,
                      uint32_t *nanoseconds)
{
    uint64_t cache_ns = ino == lane->setup.fleeting_ino ? 0 : lane->setup.cache_ns;
    *seconds = cache_ns / (uint64_t)SECOND_NS;
    *nanoseconds = (uint32_t)(cache_ns % (uint64_t)SECOND_NS);
}

enum outcome serve_getattr(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    const struct fuse_in_header *in = header_of(worker->request.head);
    struct rf_inode inode;
    struct fuse_attr_out out = {0};
    set_valid(lane, in->nodeid, &out.attr_valid, &out.attr_valid_nsec);
    rf_gate_enter(lane->setup.gate);
    bool found = rf_known_getattr(lane->setup.known, in->nodeid, &inode) == 1 &&
                 fill_attributes(lane, &inode, &out.attr);
    if (found)
        lane_answer_inside(lane, worker->request.way, in->unique, 0, &out, sizeof(out));
    rf_gate_leave(lane->setup.gate);
    return found ? DONE : FORWARD;
}

/* ---- names ---- */

/* Bytes of the name that is all of the request after its first `before` bytes; it is made
 * contiguous. 0: it is none that could be known. */
static uint32_t name_of(struct worker *worker, uint64_t before)
{
    struct request *request = &worker->request;
    if (request->nbytes > before + NAME_BYTES_MAX + 1 || header_of(request->head)->total_extlen > 0)
        return 0;
    if (request->nbytes > HEAD_BYTES)
        memcpy(request->head + HEAD_BYTES, request->cells[0], request->nbytes - HEAD_BYTES);
    const uint8_t *name = request->head + before;
    uint32_t nbytes = (uint32_t)(request->nbytes - before) - 1;
    return memchr(name, 0, nbytes) == NULL && name[nbytes] == 0 ? nbytes : 0;
}

/* 1: found or known to be missing, and `out` is the answer; 0: ask Python. */
static int look_up(struct rf_lane *lane, uint64_t parent, const uint8_t *name, uint32_t nbytes,
                   struct fuse_entry_out *out)
{
    struct rf_inode inode;
    set_valid(lane, parent, &out->entry_valid, &out->entry_valid_nsec);
    int found = rf_known_lookup(lane->setup.known, parent, name, nbytes, &inode);
    if (found <= 0)
        return found == 0;
    out->nodeid = inode.ino;
    out->generation = inode.generation;
    set_valid(lane, inode.ino, &out->attr_valid, &out->attr_valid_nsec);
    if (fill_attributes(lane, &inode, &out->attr))
        return 1;
    rf_known_release(lane->setup.known, inode.ino, 1);
    return 0;
}

static void tell_unreferenced(struct rf_lane *lane)
{
    if (rf_known_any_unreferenced(lane->setup.known))
        lane_raise_late(lane);
}

enum outcome serve_lookup(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    const struct fuse_in_header *in = header_of(worker->request.head);
    uint32_t nbytes = name_of(worker, sizeof(*in));
    struct fuse_entry_out out = {0};
    if (nbytes == 0)
        return FORWARD;
    rf_gate_enter(lane->setup.gate);
    int found = look_up(lane, in->nodeid, body_of(worker->request.head), nbytes, &out);
    int told =
        found ? lane_answer_inside(lane, worker->request.way, in->unique, 0, &out, sizeof(out)) : 0;
    rf_gate_leave(lane->setup.gate);
    if (told < 0 && out.nodeid)
        rf_known_release(lane->setup.known, out.nodeid, 1);
    if (out.nodeid && (told < 0 || !found))
        tell_unreferenced(lane);
    return found ? DONE : FORWARD;
}

/* ---- extended attributes ---- */

/* Whether one may be called so, as `_check` of fs/xattr.py has it. What is wrong with others, only
 * Python says. */
static bool is_xattr_name(const uint8_t *name, uint32_t nbytes)
{
    static const char *const acls[] = {"system.posix_acl_access", "system.posix_acl_default"};
    static const char *const namespaces[] = {"user.", "trusted.", "security."};
    for (size_t i = 0; i < sizeof(acls) / sizeof(*acls); i++)
        if (nbytes == strlen(acls[i]) && memcmp(name, acls[i], nbytes) == 0)
            return true;
    for (size_t i = 0; i < sizeof(namespaces) / sizeof(*namespaces); i++) {
        size_t prefix = strlen(namespaces[i]);
        if (nbytes > prefix && memcmp(name, namespaces[i], prefix) == 0)
            return true;
    }
    return false;
}

/* Answers so if the inode is known to have no extended attributes. */
static enum outcome answer_without(struct worker *worker, int32_t error, const void *data,
                                   uint64_t nbytes)
{
    struct rf_lane *lane = worker->lane;
    const struct fuse_in_header *in = header_of(worker->request.head);
    struct rf_inode inode;
    rf_gate_enter(lane->setup.gate);
    bool none = rf_known_getattr(lane->setup.known, in->nodeid, &inode) == 1 && inode.no_xattrs;
    if (none)
        lane_answer_inside(lane, worker->request.way, in->unique, error, data, nbytes);
    rf_gate_leave(lane->setup.gate);
    return none ? DONE : FORWARD;
}

enum outcome serve_getxattr(struct worker *worker)
{
    uint64_t before = sizeof(struct fuse_in_header) + sizeof(struct fuse_getxattr_in);
    uint32_t nbytes = name_of(worker, before);
    if (nbytes == 0 || !is_xattr_name(worker->request.head + before, nbytes))
        return FORWARD;
    return answer_without(worker, ENODATA, NULL, 0);
}

/* Who has no room (size 0) asks how much the list takes. */
enum outcome serve_listxattr(struct worker *worker)
{
    const struct fuse_getxattr_in *list = body_of(worker->request.head);
    struct fuse_getxattr_out nothing = {0};
    return answer_without(worker, 0, &nothing, list->size == 0 ? sizeof(nothing) : 0);
}

/* ---- what the kernel gives back ---- */

enum outcome serve_forget(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    const struct fuse_forget_in *forget = body_of(worker->request.head);
    rf_known_release(lane->setup.known, header_of(worker->request.head)->nodeid, forget->nlookup);
    tell_unreferenced(lane);
    return DONE;
}

/* The pairs follow the count; none lies in two pieces of the request, whose lengths are multiples
 * of theirs. */
enum outcome serve_batch_forget(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    const struct request *request = &worker->request;
    const struct fuse_batch_forget_in *batch = body_of(request->head);
    uint64_t at = sizeof(struct fuse_in_header) + sizeof(*batch);
    uint64_t most = (request->nbytes - at) / sizeof(struct fuse_forget_one);
    if (batch->count > most) {
        count(&tally(lane)->refused, 1);
        return COUNTED;
    }
    for (uint32_t i = 0; i < batch->count; i++, at += sizeof(struct fuse_forget_one)) {
        struct fuse_forget_one one;
        uint64_t behind = at - HEAD_BYTES, cell_bytes = lane->setup.cell_bytes;
        const uint8_t *place = at < HEAD_BYTES
                                   ? request->head + at
                                   : request->cells[behind / cell_bytes] + behind % cell_bytes;
        memcpy(&one, place, sizeof(one));
        rf_known_release(lane->setup.known, one.nodeid, one.nlookup);
    }
    tell_unreferenced(lane);
    return DONE;
}

enum outcome serve_release(struct worker *worker)
{
    struct rf_lane *lane = worker->lane;
    const struct fuse_in_header *in = header_of(worker->request.head);
    if (!carry_released(lane, in->nodeid))
        return FORWARD;
    lane_answer(lane, worker->request.way, in->unique, 0, NULL, 0);
    return DONE;
}
