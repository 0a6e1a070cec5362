/* self_test.c: compares a kernel with the reference, quickly enough for every mount.
 *
 * Kernel and reference are given the same matrix, so this doesn't tell whether the matrix is a good
 * one; tests do that by an independent route. It tells that this CPU, with this kernel, computes as
 * the reference does: a miscompiled loop, an emulated instruction, a hypervisor that lies about
 * features.
 */
#undef NDEBUG
#include "erasure.h"

#include <stdint.h>
#include <string.h>

#include "crc32c.h"
#include "gf256.h"

enum { TEST_SOURCES = 7, TEST_OUTPUTS = 6, TEST_BYTES = 2 * RF_PIECE_BYTES };
enum { FLAW_NONE, FLAW_COEFFICIENT, FLAW_OUTPUT, FLAW_CRC, FLAW_ENCODE };

struct test_buffers {
    uint8_t data[TEST_SOURCES][TEST_BYTES + 64];
    uint8_t expected[TEST_OUTPUTS][TEST_BYTES];
    uint8_t found[TEST_OUTPUTS][TEST_BYTES + 1];
    uint8_t matrix[TEST_OUTPUTS][TEST_SOURCES];
};

/* Any bytes will do, if only they aren't regular: the multiplicative hash of a counter. */
static void test_fill(struct test_buffers *t)
{
    uint32_t counter = 0;
    for (size_t i = 0; i < TEST_SOURCES; i++) {
        for (size_t b = 0; b < sizeof t->data[i]; b++)
            t->data[i][b] = (uint8_t)(++counter * 2654435761u >> 24);
    }
    for (size_t o = 0; o < TEST_OUTPUTS; o++) {
        for (size_t i = 0; i < TEST_SOURCES; i++) /* the first row is of XOR */
            t->matrix[o][i] = o ? (uint8_t)(++counter * 2654435761u >> 24) : i != 3;
    }
}

static bool test_products(const struct rf_kernel *kernel, struct test_buffers *t, int flaw)
{
    static const uint16_t sizes[] = {0,   1,   15,  16,  31,   33,   63,   64,  127,
                                     129, 255, 257, 511, 1023, 4095, 4097, 8191};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (size_t count = 1; count <= TEST_OUTPUTS; count++) {
            const uint8_t *sources[TEST_SOURCES];
            uint8_t *expected[TEST_OUTPUTS], *found[TEST_OUTPUTS];
            for (size_t i = 0; i < TEST_SOURCES; i++)
                sources[i] = t->data[i] + (s + i * count) % 64;
            for (size_t o = 0; o < count; o++) {
                expected[o] = t->expected[o];
                found[o] = t->found[o] + (s + o) % 2;
            }
            rf_multiply_by(&rf_kernel_scalar, t->matrix[0], count, TEST_SOURCES, sources, expected,
                           sizes[s]);
            t->matrix[count - 1][2] ^= flaw == FLAW_COEFFICIENT;
            rf_multiply_by(kernel, t->matrix[0], count, TEST_SOURCES, sources, found, sizes[s]);
            t->matrix[count - 1][2] ^= flaw == FLAW_COEFFICIENT;
            if (flaw == FLAW_OUTPUT && sizes[s] > 0)
                found[count - 1][sizes[s] - 1] ^= 0x80;
            for (size_t o = 0; o < count; o++) {
                if (memcmp(expected[o], found[o], sizes[s]) != 0)
                    return false;
            }
        }
    }
    return true;
}

static bool test_crcs(const struct rf_kernel *kernel, const struct test_buffers *t, int flaw)
{
    if (kernel->ops.crc32c(0, (const uint8_t *)"123456789", 9) != 0xe3069283) /* RFC 3720's check */
        return false;
    for (size_t nbytes = 0; nbytes < TEST_BYTES; nbytes += 1 + nbytes / 7) {
        const uint8_t *data = t->data[1] + nbytes % 64;
        uint32_t value = flaw == FLAW_CRC ? (uint32_t)nbytes + 1 : (uint32_t)nbytes;
        if (kernel->ops.crc32c(value, data, nbytes) !=
            rf_crc32c_reference((uint32_t)nbytes, data, nbytes))
            return false;
    }
    return true;
}

static bool test_bursts(const struct rf_kernel *kernel, struct test_buffers *t, int flaw)
{
    uint32_t expected[TEST_SOURCES + TEST_OUTPUTS], found[TEST_SOURCES + TEST_OUTPUTS];
    for (size_t absent = 0; absent <= TEST_SOURCES; absent++) {
        uint64_t data[TEST_SOURCES] = {0};
        for (size_t i = 0; i + absent < TEST_SOURCES; i++)
            data[i] = (uintptr_t)(t->data[i] + i);
        rf_encode_by(&rf_kernel_scalar, t->matrix[0], TEST_OUTPUTS, TEST_SOURCES, data,
                     t->expected[0], 1, TEST_BYTES, expected);
        rf_encode_by(kernel, t->matrix[0], TEST_OUTPUTS, TEST_SOURCES, data, t->found[0], 1,
                     TEST_BYTES, found);
        found[absent % (TEST_SOURCES + TEST_OUTPUTS)] ^= flaw == FLAW_ENCODE;
        if (memcmp(t->expected[0], t->found[0], sizeof t->expected) != 0)
            return false;
        if (memcmp(expected, found, sizeof found) != 0)
            return false;
        for (size_t o = 0; o < TEST_OUTPUTS; o++) {
            if (rf_crc32c_reference(0, t->expected[o], TEST_BYTES) != found[TEST_SOURCES + o])
                return false;
        }
    }
    return true;
}

const char *rf_self_test(int index, int flaw)
{
    const struct rf_kernel *kernel = rf_kernel_at(index);
    struct test_buffers t;
    test_fill(&t);
    if (!test_products(kernel, &t, flaw))
        return "products";
    if (!test_crcs(kernel, &t, flaw))
        return "checksums";
    if (!test_bursts(kernel, &t, flaw))
        return "bursts";
    return NULL;
}
