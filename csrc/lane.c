/* lane.c: the lane's threads and its life.
 *
 *  1. Each request gets one answer, by the descriptor that it came by: from here, from Python or
 *     from the library. Requests that make no sense are answered with an error and go no further.
 *  2. Every answer leaves inside the gate, and what a request served here changes, it changes
 * inside the gate too: no answer leaves while the gate is shut. Who is inside waits for nothing.
 *     Notifications reveal nothing, may wait for the kernel, and don't pass the gate.
 *  3. Served is only what pages and known vouch for; all else Python decides. The lane is only ever
 *     faster, never different.
 *  4. A READ or WRITE that is served without waiting allocates no memory and takes no lock but
 * those of pages, of known and of columns; a whole page written is never copied after the kernel
 * did.
 *  5. What the lane holds on to is bounded by what the kernel has outstanding.
 *
 * The threads: one worker per descriptor of the device (lane_serve.c); the returner takes answers
 * from the library (lane_forward.c); the notifier passes its notifications on; the servant does
 * what had to wait, for the gate, for credits or for members (lane_servant.c).
 */
#define _GNU_SOURCE
#include "lane.h"

#include <errno.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "lane_inner.h"

enum {
    KERNEL_PAGE_BYTES = 4096,
    CELL_BYTES_MAX = 65536,
    WRITE_BYTES_MAX = 64 << 20,
    NOTIFIER_PATIENCE_MS = 2000,
    SOCKET_MESSAGE_ROOM = 4096, /* of its buffer, not for messages */
};
static const int64_t LATE_NS = 10000000, SECOND_NS = 1000000000;
static const uint64_t SLICE_NS = 100000;

/* ---- the signal that interrupts reads ---- */

static int stop_signal(void)
{
    return SIGRTMIN + 7;
}

static void do_nothing(int number)
{
    (void)number;
}

static void catch_stop_signal(void)
{
    struct sigaction action = {.sa_handler = do_nothing}; /* without SA_RESTART */
    sigemptyset(&action.sa_mask);
    ENSURE(sigaction(stop_signal(), &action, NULL) == 0);
}

/* ---- crew ---- */

/* Threads of the lane take no signal but their own: the others are for Python's main thread. */
static int crew_start(struct crew *crew, void *(*main)(void *), void *argument)
{
    sigset_t others, before;
    sigfillset(&others);
    sigdelset(&others, stop_signal());
    pthread_sigmask(SIG_SETMASK, &others, &before);
    int error = pthread_create(&crew->thread, NULL, main, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    crew->started = error == 0;
    return -error;
}

static void sleep_ms(int ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

/* Interrupts whatever the thread waits in, again and again, since a signal may come just before it
 * begins to wait. False: it has not ended in time. */
static bool crew_stop(struct crew *crew, int patience_ms)
{
    if (!crew->started)
        return true;
    for (int waited_ms = 0; !atomic_load(&crew->ended); waited_ms++) {
        if (patience_ms > 0 && waited_ms >= patience_ms)
            return false;
        pthread_kill(crew->thread, stop_signal());
        sleep_ms(1);
    }
    pthread_join(crew->thread, NULL);
    crew->started = false;
    return true;
}

/* ---- buffers for READs ---- */

static struct read_buffer *buffer_new(struct rf_lane *lane)
{
    struct read_buffer *buffer = calloc(1, sizeof(*buffer));
    uint64_t *addresses = calloc(lane->buffer_pages, sizeof(*addresses));
    uint8_t *out = aligned_alloc(KERNEL_PAGE_BYTES, lane->buffer_bytes);
    if (!buffer || !addresses || !out) {
        free(buffer);
        free(addresses);
        free(out);
        return NULL;
    }
    buffer->lane = lane;
    buffer->addresses = addresses;
    buffer->out = out;
    return buffer;
}

void lane_buffer_free(struct read_buffer *buffer)
{
    if (!buffer)
        return;
    free(buffer->addresses);
    free(buffer->out);
    free(buffer);
}

struct read_buffer *lane_buffer_take(struct rf_lane *lane)
{
    pthread_mutex_lock(&lane->buffers_mutex);
    struct read_buffer *buffer = lane->buffers;
    if (buffer) {
        lane->buffers = buffer->next;
        lane->buffers_kept--;
    }
    pthread_mutex_unlock(&lane->buffers_mutex);
    return buffer ? buffer : buffer_new(lane);
}

void lane_buffer_give(struct read_buffer *buffer)
{
    if (!buffer)
        return;
    struct rf_lane *lane = buffer->lane;
    pthread_mutex_lock(&lane->buffers_mutex);
    bool keep = lane->buffers_kept < BUFFERS_KEPT;
    if (keep) {
        buffer->next = lane->buffers;
        lane->buffers = buffer;
        lane->buffers_kept++;
    }
    pthread_mutex_unlock(&lane->buffers_mutex);
    if (!keep)
        lane_buffer_free(buffer);
}

/* ---- workers ---- */

_Thread_local struct counters *lane_own_counters;

static void worker_free(struct worker *worker)
{
    if (!worker)
        return;
    worker_end_cells(worker);
    lane_buffer_free(worker->buffer);
    free(worker->bases.bytes);
    free(worker);
}

static struct worker *worker_new(struct rf_lane *lane, uint32_t way)
{
    struct worker *worker = aligned_alloc(64, sizeof(*worker));
    if (!worker)
        return NULL;
    memset(worker, 0, sizeof(*worker));
    worker->lane = lane;
    worker->fd = lane->ways[way];
    worker->request.way = way;
    worker->buffer = buffer_new(lane);
    if (!worker->buffer || worker_start_cells(worker) < 0) {
        worker_free(worker);
        return NULL;
    }
    return worker;
}

/* A request is served in microseconds, and mostly while a flush has a core for milliseconds: who
 * asks for short slices is let in sooner when it wakes (EEVDF, Linux 6.12; older kernels take no
 * notice). Struct sched_attr, version 0, as sched_setattr(2) has it: glibc may lack both. */
static void take_short_slices(void)
{
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attributes = {.size = 48};
    if (syscall(SYS_sched_getattr, 0, &attributes, attributes.size, 0))
        return;
    attributes.runtime = SLICE_NS;
    syscall(SYS_sched_setattr, 0, &attributes, 0);
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct rf_lane *lane = worker->lane;
    take_short_slices();
    lane_own_counters = &worker->counters;
    while (!lane_stopping(lane)) {
        int64_t nbytes = lane->transport->take(worker);
        if (nbytes < 0) {
            lane_end(lane);
            break;
        }
        if (nbytes == 0)
            continue;
        worker->request.nbytes = (uint64_t)nbytes;
        lane_serve(worker);
        if (!worker_refill(worker, lane_cells_used(lane, (uint64_t)nbytes)))
            break;
    }
    atomic_store(&worker->crew.ended, true);
    return NULL;
}

/* ---- life ---- */

static bool setup_makes_sense(const struct rf_lane_setup *setup)
{
    return setup->pages && setup->columns && setup->known && setup->gate &&
           setup->cell_bytes >= KERNEL_PAGE_BYTES && setup->cell_bytes <= CELL_BYTES_MAX &&
           (setup->cell_bytes & (setup->cell_bytes - 1)) == 0 && setup->max_write > 0 &&
           setup->max_write <= WRITE_BYTES_MAX && setup->max_write % setup->cell_bytes == 0;
}

struct rf_lane *rf_lane_new(const struct rf_lane_setup *setup)
{
    if (!setup_makes_sense(setup))
        return NULL;
    struct rf_lane *lane = calloc(1, sizeof(*lane));
    if (!lane)
        return NULL;
    lane->setup = *setup;
    lane->transport = &device_transport;
    lane->socket_fd = -1;
    /* One more than a WRITE's payload, since other requests may be as long without its head. */
    lane->cells_count = setup->max_write / setup->cell_bytes + 1;
    lane->buffer_pages = setup->max_write / setup->cell_bytes + 2;
    lane->buffer_bytes = (uint64_t)lane->buffer_pages * setup->cell_bytes;
    lane->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    lane->late_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    pthread_mutex_init(&lane->buffers_mutex, NULL);
    pthread_mutex_init(&lane->notifier.mutex, NULL);
    pthread_cond_init(&lane->notifier.wanted, NULL);
    lane->notifier.last = &lane->notifier.first;
    if (lane->event_fd < 0 || lane->late_fd < 0 || servant_begin(lane) < 0 ||
        carry_begin(lane) < 0) {
        rf_lane_free(lane);
        return NULL;
    }
    return lane;
}

static int threads_start(struct rf_lane *lane)
{
    int error = crew_start(&lane->servant.crew, servant_main, lane);
    if (error == 0)
        error = crew_start(&lane->notifier.crew, notifier_main, lane);
    if (error == 0)
        error = crew_start(&lane->returner, returner_main, lane);
    for (uint32_t way = 0; error == 0 && way < lane->ways_count; way++)
        error = crew_start(&lane->workers[way]->crew, worker_main, lane->workers[way]);
    return error;
}

int rf_lane_start(struct rf_lane *lane, const int *device_fds, uint32_t count, int socket_fd)
{
    if (lane->started || count == 0 || count > RF_LANE_THREADS_MAX)
        return -EINVAL;
    int buffer_bytes = 0;
    socklen_t length = sizeof(buffer_bytes);
    if (getsockopt(socket_fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, &length) < 0)
        return -errno;
    if (buffer_bytes < 2 * SOCKET_MESSAGE_ROOM)
        return -EINVAL;
    lane->library_bytes_max = (uint32_t)buffer_bytes - SOCKET_MESSAGE_ROOM;
    lane->socket_fd = socket_fd;
    lane->started = true;
    for (uint32_t way = 0; way < count; way++)
        lane->ways[way] = device_fds[way];
    for (; lane->ways_count < count; lane->ways_count++)
        if (!(lane->workers[lane->ways_count] = worker_new(lane, lane->ways_count)))
            return -ENOMEM;
    catch_stop_signal();
    int error = threads_start(lane);
    if (error < 0)
        rf_lane_stop(lane);
    return error;
}

int rf_lane_clone(int device_fd)
{
    uint32_t device = (uint32_t)device_fd;
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, FUSE_DEV_IOC_CLONE, &device) == 0)
        return fd;
    int error = errno;
    close(fd);
    return -error;
}

static void wake_all(pthread_mutex_t *mutex, pthread_cond_t *wanted)
{
    pthread_mutex_lock(mutex);
    pthread_cond_broadcast(wanted);
    pthread_mutex_unlock(mutex);
}

void rf_lane_stop(struct rf_lane *lane)
{
    /* While the kernel makes it wait, the others must go on; but not forever. */
    atomic_store(&lane->notifier.crew.stopping, true);
    wake_all(&lane->notifier.mutex, &lane->notifier.wanted);
    if (!crew_stop(&lane->notifier.crew, NOTIFIER_PATIENCE_MS))
        lane->abandoned = true;
    atomic_store(&lane->stopping, true);
    for (uint32_t way = 0; way < lane->ways_count; way++)
        crew_stop(&lane->workers[way]->crew, 0);
    crew_stop(&lane->returner, 0);
    while (atomic_load(&lane->in_engine) > 0)
        sleep_ms(1);
    wake_all(&lane->servant.mutex, &lane->servant.wanted);
    crew_stop(&lane->servant.crew, 0);
    atomic_store(&lane->stopped, true);
}

void rf_lane_free(struct rf_lane *lane)
{
    if (!lane)
        return;
    ENSURE(!lane->returner.started);
    if (lane->abandoned)
        return; /* a thread that can't be ended may still look at it */
    servant_end(lane);
    notifier_end(lane);
    carry_end(lane);
    for (uint32_t way = 0; way < lane->ways_count; way++)
        worker_free(lane->workers[way]);
    for (struct read_buffer *buffer = lane->buffers, *next; buffer; buffer = next) {
        next = buffer->next;
        lane_buffer_free(buffer);
    }
    pthread_mutex_destroy(&lane->buffers_mutex);
    if (lane->event_fd >= 0)
        close(lane->event_fd);
    if (lane->late_fd >= 0)
        close(lane->late_fd);
    free(lane);
}

/* ---- what others ask ---- */

bool lane_stopping(struct rf_lane *lane)
{
    return atomic_load_explicit(&lane->stopping, memory_order_relaxed);
}

void lane_end(struct rf_lane *lane)
{
    if (!atomic_exchange(&lane->ended, true))
        lane_raise(lane);
}

void lane_raise(struct rf_lane *lane)
{
    uint64_t one = 1;
    while (write(lane->event_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

void lane_raise_late(struct rf_lane *lane)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t now_ns = now.tv_sec * SECOND_NS + now.tv_nsec;
    int64_t set_ns = atomic_load(&lane->late_ns), late_ns = now_ns + LATE_NS;
    /* While the timer has yet to expire, it will tell of this too: whoever is told by it looks
     * after that time. */
    if (now_ns < set_ns || !atomic_compare_exchange_strong(&lane->late_ns, &set_ns, late_ns))
        return;
    struct itimerspec time = {.it_value = {late_ns / SECOND_NS, late_ns % SECOND_NS}};
    ENSURE(timerfd_settime(lane->late_fd, TFD_TIMER_ABSTIME, &time, NULL) == 0);
}

uint32_t lane_cells_used(const struct rf_lane *lane, uint64_t nbytes)
{
    if (nbytes <= HEAD_BYTES)
        return 0;
    return (uint32_t)((nbytes - HEAD_BYTES + lane->setup.cell_bytes - 1) / lane->setup.cell_bytes);
}

int rf_lane_eventfd(struct rf_lane *lane)
{
    return lane->event_fd;
}

int rf_lane_late_fd(struct rf_lane *lane)
{
    return lane->late_fd;
}

int rf_lane_ended(struct rf_lane *lane)
{
    return atomic_load(&lane->ended);
}

int rf_lane_wants(struct rf_lane *lane, uint64_t *cells)
{
    bool asking = atomic_exchange(&lane->asking, false);
    if (asking)
        atomic_store(&lane->spent_lately, 0);
    pthread_mutex_lock(&lane->servant.mutex);
    *cells = lane->servant.parked_cells;
    pthread_mutex_unlock(&lane->servant.mutex);
    return asking;
}

static void add_counters(atomic_ulong *sum, atomic_ulong *counters)
{
    for (size_t i = 0; i < sizeof(struct counters) / sizeof(*sum); i++)
        sum[i] += atomic_load_explicit(&counters[i], memory_order_relaxed);
}

void rf_lane_statistics(struct rf_lane *lane, struct rf_lane_statistics *out)
{
    struct counters sum = {0};
    add_counters((atomic_ulong *)&sum, (atomic_ulong *)&lane->counters);
    for (uint32_t way = 0; way < lane->ways_count; way++)
        add_counters((atomic_ulong *)&sum, (atomic_ulong *)&lane->workers[way]->counters);
    memset(out, 0, sizeof(*out));
    for (int i = 0; i < RF_LANE_OPCODES; i++) {
        out->served[i] = sum.served[i];
        out->carried[i] = sum.carried[i];
        out->forwarded[i] = sum.forwarded[i];
    }
    out->bytes_read = sum.bytes_read;
    out->bytes_written = sum.bytes_written;
    out->reads_memory = sum.reads_memory;
    out->reads_engine = sum.reads_engine;
    out->writes_put = sum.writes_put;
    out->bases_read = sum.bases_read;
    out->parked = sum.parked;
    out->parked_now = atomic_load(&lane->servant.parked_count);
    pthread_mutex_lock(&lane->queue.mutex);
    out->carried_now = lane->queue.count;
    pthread_mutex_unlock(&lane->queue.mutex);
    out->queued = sum.queued;
    out->refused = sum.refused;
    out->lost = sum.lost;
    out->notified = sum.notified;
    out->credits_spent = sum.credits_spent;
}
