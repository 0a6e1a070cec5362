/* test_lane.c: the lane under sanitizers, with all that it serves from: kernels, cuts, a Python.
 *
 * Each kernel is a thread with a socket in the place of the device, and a file of its own that it
 * writes and reads at random: what it reads must be what it wrote, wherever that lies by now. The
 * flusher cuts, writes what was sealed to a file, which is a zone of one column, puts checksums and
 * leaves, and retires; every few rounds it moves a file into another zone and gives the old one
 * away. Python grants credits, answers what is carried, and tells names.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../columns.h"
#include "../engine.h"
#include "../erasure.h"
#include "../gate.h"
#include "../known.h"
#include "../lane.h"
#include "../lane_protocol.h"
#include "../pages.h"

enum {
    CELL = 4096,
    KERNELS = 3,
    PAGES = 48,
    FILE_BYTES = PAGES * CELL,
    WRITE_MAX = 16 * CELL,
    REQUESTS = 8000,
    ZONE_ROWS = 512,
    LEAF = 256,
    DIRTY_MAX = 60,
    NAMES_PARENT = 1000,
    NAMED = 2000,
};

static struct rf_pages *pages;
static struct rf_columns *columns;
static struct rf_known *known;
static struct rf_gate *gate;
static struct rf_engine *engine;
static struct rf_lane *lane;
static atomic_bool stop;
static atomic_uint kernels_left;
static char directory[] = "test_lane.XXXXXX";

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* ---- kernels ---- */

struct kernel {
    pthread_t thread;
    int socket;
    uint64_t ino, state, unique, looked_up, retried, without_xattrs;
    uint8_t model[FILE_BYTES];
    uint64_t size;
    struct {
        struct fuse_in_header in;
        union {
            struct fuse_write_in write;
            struct fuse_read_in read;
            struct fuse_getattr_in getattr;
            struct fuse_forget_in forget;
            struct fuse_release_in release;
            struct {
                struct fuse_getxattr_in in;
                char name[8];
            } xattr;
            uint8_t name[32];
        };
        uint8_t data[WRITE_MAX];
    } request;
    struct {
        struct fuse_out_header out;
        uint8_t data[WRITE_MAX + CELL];
    } answer;
};

static void ask(struct kernel *kernel, uint32_t opcode, uint64_t ino, uint64_t nbytes)
{
    struct fuse_in_header *in = &kernel->request.in;
    *in = (struct fuse_in_header){.len = (uint32_t)(sizeof(*in) + nbytes),
                                  .opcode = opcode,
                                  .unique = kernel->unique += 2,
                                  .nodeid = ino};
    assert(send(kernel->socket, in, in->len, 0) == (ssize_t)in->len);
}

static int answered(struct kernel *kernel, uint64_t *nbytes)
{
    ssize_t got = recv(kernel->socket, &kernel->answer, sizeof(kernel->answer), 0);
    assert(got >= (ssize_t)sizeof(struct fuse_out_header));
    assert(kernel->answer.out.len == got && kernel->answer.out.unique == kernel->unique);
    *nbytes = (uint64_t)got - sizeof(struct fuse_out_header);
    return -kernel->answer.out.error;
}

/* Asks until Python, which can do nothing by itself here, isn't asked. */
static uint64_t call(struct kernel *kernel, uint32_t opcode, uint64_t body_bytes)
{
    uint64_t nbytes;
    int error;
    for (;;) {
        ask(kernel, opcode, kernel->ino, body_bytes);
        if ((error = answered(kernel, &nbytes)) != EAGAIN)
            break;
        kernel->retried++;
    }
    assert(error == 0);
    return nbytes;
}

static void write_something(struct kernel *kernel)
{
    static const uint64_t granules[] = {1, 512, CELL, CELL, CELL};
    uint64_t granule = granules[random_next(&kernel->state) % 5];
    uint64_t offset = random_next(&kernel->state) % (FILE_BYTES / granule) * granule;
    uint64_t nbytes = (1 + random_next(&kernel->state) % (WRITE_MAX / granule)) * granule;
    if (random_next(&kernel->state) % 2 && granule <= CELL)
        nbytes = granule == CELL ? CELL : 1 + random_next(&kernel->state) % CELL;
    if (nbytes > FILE_BYTES - offset)
        nbytes = FILE_BYTES - offset;
    uint8_t *data = kernel->request.data, seed = (uint8_t)random_next(&kernel->state);
    for (uint64_t i = 0; i < nbytes; i++)
        data[i] = (uint8_t)(seed + i + (i >> 8));
    kernel->request.write = (struct fuse_write_in){.offset = offset, .size = (uint32_t)nbytes};
    assert(call(kernel, FUSE_WRITE, sizeof(struct fuse_write_in) + nbytes) ==
           sizeof(struct fuse_write_out));
    assert(((struct fuse_write_out *)kernel->answer.data)->size == nbytes);
    memcpy(kernel->model + offset, data, nbytes);
    if (offset + nbytes > kernel->size)
        kernel->size = offset + nbytes;
}

static void read_something(struct kernel *kernel)
{
    uint64_t offset = random_next(&kernel->state) % FILE_BYTES;
    uint64_t nbytes = 1 + random_next(&kernel->state) % WRITE_MAX;
    if (random_next(&kernel->state) % 2) {
        offset = offset / CELL * CELL;
        nbytes = CELL;
    }
    uint64_t left = offset < kernel->size ? kernel->size - offset : 0;
    kernel->request.read = (struct fuse_read_in){.offset = offset, .size = (uint32_t)nbytes};
    uint64_t got = call(kernel, FUSE_READ, sizeof(struct fuse_read_in));
    assert(got == (nbytes < left ? nbytes : left));
    assert(memcmp(kernel->answer.data, kernel->model + offset, got) == 0);
}

static void ask_for_names(struct kernel *kernel)
{
    uint64_t nbytes;
    int length = snprintf((char *)kernel->request.name, sizeof(kernel->request.name), "%u",
                          (uint32_t)(random_next(&kernel->state) % 8));
    ask(kernel, FUSE_LOOKUP, NAMES_PARENT, (uint64_t)length + 1);
    int error = answered(kernel, &nbytes);
    if (error == 0 && ((struct fuse_entry_out *)kernel->answer.data)->nodeid)
        kernel->looked_up++;
    assert(error == 0 || error == EREMOTE);
    memset(&kernel->request.getattr, 0, sizeof(kernel->request.getattr));
    ask(kernel, FUSE_GETATTR, kernel->ino, sizeof(struct fuse_getattr_in));
    if (answered(kernel, &nbytes) == 0)
        assert(((struct fuse_attr_out *)kernel->answer.data)->attr.size == kernel->size);
    memset(&kernel->request.release, 0, sizeof(kernel->request.release));
    ask(kernel, FUSE_RELEASE, kernel->ino, sizeof(struct fuse_release_in));
    assert(answered(kernel, &nbytes) == 0);
    ask(kernel, FUSE_FSYNC, kernel->ino, 16);
    assert(answered(kernel, &nbytes) == EAGAIN);
}

static void ask_for_xattrs(struct kernel *kernel)
{
    uint64_t nbytes, ino = NAMED + random_next(&kernel->state) % 8;
    kernel->request.xattr.in = (struct fuse_getxattr_in){0};
    strcpy(kernel->request.xattr.name, "user.a");
    ask(kernel, FUSE_GETXATTR, ino, sizeof(struct fuse_getxattr_in) + sizeof("user.a"));
    int error = answered(kernel, &nbytes);
    assert((error == ENODATA || error == EREMOTE) && nbytes == 0);
    kernel->without_xattrs += error == ENODATA;
    kernel->request.xattr.in.size = random_next(&kernel->state) % 2 ? 4096 : 0;
    ask(kernel, FUSE_LISTXATTR, ino, sizeof(struct fuse_getxattr_in));
    error = answered(kernel, &nbytes);
    assert(error == EREMOTE || (error == 0 && nbytes == (kernel->request.xattr.in.size ? 0 : 8)));
}

static void *kernel_main(void *argument)
{
    struct kernel *kernel = argument;
    for (int i = 0; i < REQUESTS; i++) {
        if (random_next(&kernel->state) % 8 == 0) {
            ask_for_names(kernel);
            ask_for_xattrs(kernel);
        } else if (random_next(&kernel->state) % 2)
            write_something(kernel);
        else
            read_something(kernel);
    }
    atomic_fetch_sub(&kernels_left, 1);
    return NULL;
}

/* ---- members ---- */

/* Each file lies in one of two zones in turn: in a place that it has left come other pages of it.
 */
static struct members {
    uint64_t zone;
    uint32_t rows;       /* of the zone, in use */
    int fds[2];          /* by zone % 2 */
    uint64_t leaf[LEAF]; /* of the file */
} members[KERNELS];

static void name_of_zone(char *name, size_t room, uint64_t zone)
{
    snprintf(name, room, "%s/%u", directory, (uint32_t)zone);
}

static void open_zone(struct members *mine, uint64_t zone)
{
    char name[64];
    name_of_zone(name, sizeof(name), zone);
    mine->zone = zone;
    mine->rows = 0;
    if (mine->fds[zone % 2] == 0)
        mine->fds[zone % 2] = open(name, O_RDWR | O_CREAT, 0600);
    int fd = open(name, O_RDONLY | O_DIRECT);
    if (fd < 0)
        fd = open(name, O_RDONLY);
    int32_t fds[] = {fd}, ids[] = {0};
    uint64_t offsets[] = {0};
    assert(rf_columns_zone_put(columns, zone, 1, 1, ZONE_ROWS, fds, offsets, ids) == 0);
}

static uint64_t put_row(struct members *mine, const uint8_t *cell)
{
    uint32_t row = mine->rows++, crc = rf_crc32c(0, cell, CELL);
    assert(row < ZONE_ROWS);
    assert(pwrite(mine->fds[mine->zone % 2], cell, CELL, (off_t)row * CELL) == CELL);
    rf_columns_rows_put(columns, mine->zone, row, 1, &crc);
    return mine->zone << 32 | (uint64_t)row << 8;
}

/* Everything of a file moves to its other zone, and the one that it leaves is given away. */
static void move_file(uint64_t ino)
{
    struct members *mine = &members[ino - 1];
    uint64_t before = mine->zone;
    uint8_t *cell = aligned_alloc(CELL, CELL);
    assert(cell);
    open_zone(mine, before ^ 1);
    for (uint32_t page = 0; page < PAGES; page++) {
        if (!mine->leaf[page])
            continue;
        assert(mine->leaf[page] >> 32 == before);
        off_t row = (off_t)(mine->leaf[page] >> 8 & 0xffffff);
        assert(pread(mine->fds[before % 2], cell, CELL, row * CELL) == CELL);
        mine->leaf[page] = put_row(mine, cell);
    }
    assert(rf_pages_leaf_put(pages, ino, 0, mine->leaf) == 0);
    rf_columns_zone_forget(columns, before);
    memset(cell, 0x55, CELL);
    for (off_t row = 0; row < ZONE_ROWS; row++)
        assert(pwrite(mine->fds[before % 2], cell, CELL, row * CELL) == CELL);
    free(cell);
}

/* One cut and its flush. */
static void flush(void)
{
    uint64_t inos[KERNELS + 8], generation, cells, cuts, marks;
    int64_t values[4][KERNELS + 8];
    rf_gate_shut(gate);
    int64_t files = rf_pages_seal(pages, KERNELS + 8, inos, values[0], values[1], values[2],
                                  values[3], &generation);
    rf_gate_open(gate);
    assert(files >= 0);
    assert(rf_pages_sealed_counts(pages, generation, &cells, &cuts, &marks) == 0);
    assert(cuts == 0 && marks == 0);
    uint64_t *owners = malloc(3 * (cells + 1) * sizeof(uint64_t));
    uint64_t *indexes = owners + cells + 1, *addresses = indexes + cells + 1;
    assert(rf_pages_sealed_cells(pages, generation, owners, indexes, addresses) == 0);
    for (uint32_t file = 0; file < KERNELS; file++) {
        if (members[file].rows + PAGES > ZONE_ROWS)
            move_file(file + 1);
        for (uint64_t i = 0; i < cells; i++)
            if (owners[i] == file + 1)
                members[file].leaf[indexes[i]] =
                    put_row(&members[file], (const uint8_t *)(uintptr_t)addresses[i]);
        assert(rf_pages_leaf_put(pages, file + 1, 0, members[file].leaf) == 0);
    }
    free(owners);
    assert(rf_pages_retire(pages, generation) == 0);
}

static void *flusher_main(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop)) {
        flush();
        usleep(500);
    }
    return NULL;
}

/* ---- Python ---- */

static uint64_t answered_by_python, released;

static void tell_names(uint64_t turn)
{
    char name[8];
    int length = snprintf(name, sizeof(name), "%u", (uint32_t)(turn % 8));
    struct rf_inode inode = {
        .ino = NAMED + turn % 8, .mode = S_IFREG | 0644, .nlink = 1, .no_xattrs = turn / 8 % 2};
    rf_known_tell(known, &inode, NAMES_PARENT, (const uint8_t *)name, (uint32_t)length, 0);
    if (turn % 3 == 0)
        rf_known_name_forget(known, NAMES_PARENT, (const uint8_t *)name, (uint32_t)length);
    for (uint64_t file = 1; file <= KERNELS; file++) {
        struct rf_inode resident = {.ino = file, .mode = S_IFREG | 0644, .resident = 1};
        if (turn % 2)
            rf_known_inode_put(known, &resident);
        else
            rf_known_inode_forget(known, file);
    }
}

static void serve_python(void)
{
    struct rf_request request;
    uint64_t inos[16], cells, dirty, credits;
    while (rf_lane_take(lane, &request)) {
        assert(request.nbytes == ((const struct fuse_in_header *)request.bytes)->len);
        assert(rf_lane_reply(lane, request.id, EAGAIN, NULL, 0) == 0);
        answered_by_python++;
    }
    for (uint32_t n; (n = rf_lane_released(lane, inos, 16)) > 0;)
        released += n;
    rf_lane_wants(lane, &cells);
    rf_pages_claims(pages, &dirty, &credits);
    if (dirty + credits < DIRTY_MAX) {
        rf_pages_grant(pages, DIRTY_MAX - dirty - credits);
        rf_lane_resume(lane);
    }
}

static void *python_main(void *argument)
{
    (void)argument;
    struct pollfd wait = {.fd = rf_lane_eventfd(lane), .events = POLLIN};
    uint64_t events;
    for (uint64_t turn = 0; !atomic_load(&stop); turn++) {
        if (poll(&wait, 1, 1) > 0)
            assert(read(wait.fd, &events, sizeof(events)) == sizeof(events));
        serve_python();
        tell_names(turn);
        if (turn % 50 == 0)
            rf_lane_pass_on(lane);
    }
    return NULL;
}

/* The library knows nothing but who to answer. */
static void *library_main(void *argument)
{
    int fd = *(int *)argument;
    static uint8_t bytes[CELL];
    while (recv(fd, bytes, sizeof(bytes), 0) >= (ssize_t)sizeof(struct fuse_in_header)) {
        const struct fuse_in_header *in = (const struct fuse_in_header *)bytes;
        struct fuse_out_header out = {.len = sizeof(out), .error = -EREMOTE, .unique = in->unique};
        assert(send(fd, &out, sizeof(out), 0) == sizeof(out));
    }
    return NULL;
}

/* ---- all of it ---- */

static void start_all(void)
{
    int error = 0;
    pages = rf_pages_new(CELL, 1 << 20, 1 << 20, 1);
    columns = rf_columns_new(CELL, 64, 1 << 20);
    known = rf_known_new(1 << 16);
    gate = rf_gate_new();
    engine = rf_engine_new(0, 2, &error);
    assert(pages && columns && known && gate && engine && mkdtemp(directory));
    rf_pages_allow_files(pages, 100);
    for (uint32_t file = 0; file < KERNELS; file++) {
        open_zone(&members[file], 2 * file + 2);
        assert(rf_pages_load(pages, file + 1, 0, 0, 0, 0) == 1);
        assert(rf_pages_leaf_put(pages, file + 1, 0, members[file].leaf) == 0);
        assert(rf_pages_vouch(pages, file + 1, RF_SERVE_READS | RF_SERVE_WRITES) == 0);
    }
    struct rf_lane_setup setup = {.pages = pages,
                                  .columns = columns,
                                  .known = known,
                                  .gate = gate,
                                  .engine = engine,
                                  .cell_bytes = CELL,
                                  .max_write = WRITE_MAX,
                                  .cache_ns = 1000,
                                  .carry =
                                      1ull << FUSE_READ | 1ull << FUSE_WRITE | 1ull << FUSE_FSYNC,
                                  .serve = 255,
                                  .ask_cells = 50};
    lane = rf_lane_new(&setup);
    assert(lane);
}

static void end_all(void)
{
    char name[64];
    rf_engine_free(engine);
    rf_columns_free(columns);
    rf_pages_free(pages);
    rf_known_free(known);
    rf_gate_free(gate);
    for (uint64_t zone = 2; zone < 2 + 2 * KERNELS; zone++) {
        close(members[zone / 2 - 1].fds[zone % 2]);
        name_of_zone(name, sizeof(name), zone);
        unlink(name);
    }
    assert(rmdir(directory) == 0);
}

static void check_end(const struct kernel *kernels)
{
    struct rf_lane_statistics told;
    uint64_t looked_up = 0, references = 0, retried = 0, without_xattrs = 0;
    rf_lane_statistics(lane, &told);
    for (int k = 0; k < KERNELS; k++) {
        looked_up += kernels[k].looked_up;
        retried += kernels[k].retried;
        without_xattrs += kernels[k].without_xattrs;
    }
    for (uint64_t ino = NAMED; ino < NAMED + 8; ino++)
        references += rf_known_references(known, ino);
    assert(references == looked_up);
    assert(told.served[FUSE_GETXATTR] == without_xattrs);
    assert(told.parked_now == 0 && told.carried_now == 0 && told.lost == 0 && told.refused == 0);
    printf("lane ok: %llu reads (%llu by the engine), %llu writes (%llu put, %llu bases, "
           "%llu parked), %llu asked again, %llu answers queued, %llu lookups\n",
           (unsigned long long)told.served[FUSE_READ], (unsigned long long)told.reads_engine,
           (unsigned long long)told.served[FUSE_WRITE], (unsigned long long)told.writes_put,
           (unsigned long long)told.bases_read, (unsigned long long)told.parked,
           (unsigned long long)retried, (unsigned long long)told.queued,
           (unsigned long long)told.served[FUSE_LOOKUP]);
}

int main(void)
{
    static struct kernel kernels[KERNELS];
    pthread_t flusher, python, library;
    int devices[KERNELS], pair[2], room = 1 << 20;
    start_all();
    for (int k = 0; k < KERNELS; k++) {
        assert(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
        kernels[k].socket = pair[0];
        kernels[k].ino = (uint64_t)k + 1;
        kernels[k].state = 0x9e3779b97f4a7c15ull * (uint64_t)(k + 1);
        devices[k] = pair[1];
    }
    assert(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    assert(setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)) == 0);
    assert(rf_lane_start(lane, devices, KERNELS, pair[0]) == 0);
    atomic_store(&kernels_left, KERNELS);
    assert(pthread_create(&flusher, NULL, flusher_main, NULL) == 0);
    assert(pthread_create(&python, NULL, python_main, NULL) == 0);
    assert(pthread_create(&library, NULL, library_main, &pair[1]) == 0);
    for (int k = 0; k < KERNELS; k++)
        assert(pthread_create(&kernels[k].thread, NULL, kernel_main, &kernels[k]) == 0);
    for (int k = 0; k < KERNELS; k++)
        pthread_join(kernels[k].thread, NULL);
    atomic_store(&stop, true);
    pthread_join(flusher, NULL);
    pthread_join(python, NULL);
    serve_python();
    check_end(kernels);
    rf_lane_stop(lane);
    shutdown(pair[0], SHUT_RDWR);
    pthread_join(library, NULL);
    rf_lane_free(lane);
    end_all();
    for (int k = 0; k < KERNELS; k++) {
        close(kernels[k].socket);
        close(devices[k]);
    }
    close(pair[0]);
    close(pair[1]);
    return 0;
}
