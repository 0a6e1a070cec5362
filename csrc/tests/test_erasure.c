/* test_erasure.c: every kernel against the reference, in buffers that end where the memory ends.
 *
 * Each buffer is its own piece of pages between two that can't be touched, and lies once at the
 * start and once at the end of it, so that a byte read or written outside stops the program. Built
 * for the sanitizers (tools/sanitize.sh) and for Arm (tools/cross_arm.sh); Python's tests go
 * further.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../erasure.h"

enum { SOURCES = 16, OUTPUTS = 8, ROOM_BYTES = 16384, CELL_BYTES = 8192 };

static size_t page_bytes;
static uint8_t *rooms[SOURCES + 2 * OUTPUTS];
static uint8_t matrix[OUTPUTS * SOURCES];
static uint32_t counter;

static uint8_t any_byte(void)
{
    return (uint8_t)(++counter * 2654435761u >> 24);
}

static uint8_t *make_room(void)
{
    size_t all_bytes = ROOM_BYTES + 2 * page_bytes;
    uint8_t *all = mmap(NULL, all_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(all != MAP_FAILED);
    assert(mprotect(all + page_bytes, ROOM_BYTES, PROT_READ | PROT_WRITE) == 0);
    for (size_t i = 0; i < ROOM_BYTES; i++)
        all[page_bytes + i] = any_byte();
    return all + page_bytes;
}

/* Buffer i of nbytes: even ones of a variant start, odd ones end at the border. */
static uint8_t *buffer(size_t i, size_t nbytes, size_t variant)
{
    return rooms[i] + ((i + variant) % 2 ? ROOM_BYTES - nbytes : 0);
}

static void compare(int kernel, size_t outputs, size_t sources, size_t nbytes, size_t variant)
{
    const uint8_t *in[SOURCES];
    uint8_t *expected[OUTPUTS], *found[OUTPUTS];
    for (size_t i = 0; i < sources; i++)
        in[i] = (i + variant) % 5 == 4 ? NULL : buffer(i, nbytes, variant);
    for (size_t o = 0; o < outputs; o++) {
        expected[o] = buffer(SOURCES + o, nbytes, variant);
        found[o] = buffer(SOURCES + OUTPUTS + o, nbytes, variant + 1);
        memset(found[o], 0xa5, nbytes);
    }
    rf_kernel_select(0);
    rf_multiply(matrix, outputs, sources, in, expected, nbytes);
    rf_kernel_select(kernel);
    rf_multiply(matrix, outputs, sources, in, found, nbytes);
    for (size_t o = 0; o < outputs; o++)
        assert(memcmp(expected[o], found[o], nbytes) == 0);
}

static void fill_matrix(int xor_rows)
{
    for (int o = 0; o < OUTPUTS; o++) {
        for (int i = 0; i < SOURCES; i++)
            matrix[o * SOURCES + i] = o < xor_rows ? any_byte() & 1 : any_byte();
    }
}

static void test_products(int kernel)
{
    static const size_t sizes[] = {0,  1,   7,   15,  16,   17,   63,  64,
                                   65, 255, 256, 257, 1000, 4096, 8191};
    for (int xor_rows = 0; xor_rows <= OUTPUTS; xor_rows += 2) {
        fill_matrix(xor_rows);
        for (size_t outputs = 0; outputs <= OUTPUTS; outputs++) {
            for (size_t sources = 0; sources <= SOURCES; sources += 1 + sources / 2) {
                for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                    compare(kernel, outputs, sources, sizes[s], s + outputs);
            }
        }
    }
}

static void test_checksums(int kernel)
{
    for (size_t nbytes = 0; nbytes <= ROOM_BYTES; nbytes += 1 + nbytes / 50) {
        for (size_t variant = 0; variant < 2; variant++) {
            const uint8_t *data = buffer(0, nbytes, variant);
            rf_kernel_select(0);
            uint32_t expected = rf_crc32c(77, data, nbytes);
            rf_kernel_select(kernel);
            assert(rf_crc32c(77, data, nbytes) == expected);
        }
    }
    assert(rf_crc32c(0, "123456789", 9) == 0xe3069283);
    uint8_t sum = 0;
    for (size_t i = 0; i < 1001; i++)
        sum ^= rooms[0][ROOM_BYTES - 1001 + i];
    assert(rf_read_all(rooms[0] + ROOM_BYTES - 1001, 1001) == sum);
}

static void test_bursts(int kernel)
{
    enum { COLUMNS = 5, ROWS = 3, CELLS = (COLUMNS + OUTPUTS) * ROWS };
    static uint8_t parities[2][OUTPUTS * ROWS * CELL_BYTES];
    uint32_t crcs[2][CELLS];
    uint64_t data[COLUMNS * ROWS];
    fill_matrix(1);
    for (size_t i = 0; i < COLUMNS * ROWS; i++)
        data[i] = i % ROWS == 2 && i / ROWS > 1 ? 0 : (uintptr_t)buffer(i, CELL_BYTES, 0);
    for (size_t outputs = 0; outputs <= OUTPUTS; outputs++) {
        rf_kernel_select(0);
        rf_encode(matrix, outputs, COLUMNS, data, parities[0], ROWS, CELL_BYTES, crcs[0]);
        rf_kernel_select(kernel);
        rf_encode(matrix, outputs, COLUMNS, data, parities[1], ROWS, CELL_BYTES, crcs[1]);
        assert(memcmp(parities[0], parities[1], outputs * ROWS * CELL_BYTES) == 0);
        assert(memcmp(crcs[0], crcs[1], (COLUMNS + outputs) * ROWS * sizeof **crcs) == 0);
        for (size_t i = 0; i < COLUMNS * ROWS; i++)
            assert(!data[i] ||
                   crcs[1][i] == rf_crc32c(0, (const void *)(uintptr_t)data[i], CELL_BYTES));
        for (size_t i = 0; i < outputs * ROWS; i++)
            assert(crcs[1][COLUMNS * ROWS + i] ==
                   rf_crc32c(0, parities[1] + i * CELL_BYTES, CELL_BYTES));
    }
}

int main(void)
{
    page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++)
        rooms[i] = make_room();
    for (int kernel = 0; kernel < rf_kernel_count(); kernel++) {
        assert(rf_self_test(kernel, 0) == NULL);
        for (int flaw = 1; flaw <= 4; flaw++)
            assert(rf_self_test(kernel, flaw) != NULL);
        test_products(kernel);
        test_checksums(kernel);
        test_bursts(kernel);
        printf("%s ok\n", rf_kernel_name(kernel));
    }
    return 0;
}
