/* encode.c: parity and checksums of a burst, row by row, each byte brought near the CPU once.
 *
 *  1. A row is done in one pass (product and checksums from the same registers) where the kernel
 * can, else in two over pieces that stay in the nearest cache; both give the same.
 *  2. An absent cell is zeros: it takes no part in the product, and its checksum is that of zeros.
 *  3. While a row is done, the next one is fetched into the cache: cells lie anywhere in memory,
 * and a CPU by itself doesn't fetch beyond a page. A burst from main memory takes half the time so.
 *  4. The checksum of a parity of XOR is added up from the checksums of its sources (head of
 * gf256.c).
 */
#undef NDEBUG
#include "erasure.h"

#include <assert.h>
#include <string.h>

#include "crc32c.h"
#include "gf256.h"

struct burst {
    const struct rf_kernel *kernel;
    size_t columns, parities, cell_bytes;
    uint32_t crc_zeros; /* of an absent cell */
    struct rf_plan plan;
    uint8_t present[RF_SOURCES_MAX]; /* columns of the plan's sources */
    const uint8_t *next_sources[RF_SOURCES_MAX];
    uint8_t *outputs[RF_OUTPUTS_MAX];
    uint32_t crcs[RF_SOURCES_MAX + RF_OUTPUTS_MAX]; /* of one row: columns, then parities */
    uint8_t folds[RF_SOURCES_MAX + RF_OUTPUTS_MAX][RF_FOLD_BYTES] __attribute__((aligned(64)));
};

/* Checksums of what can't be had by addition: the present sources and the outputs that multiply. */
static void row_in_two_passes(struct burst *b)
{
    for (size_t at = 0; at < b->cell_bytes; at += RF_PIECE_BYTES) {
        for (size_t g = 0; g < b->plan.groups_count; g++)
            b->kernel->ops.multiply(&b->plan.groups[g], at, RF_PIECE_BYTES);
        for (size_t i = 0; i < b->plan.sources_count; i++) {
            uint32_t *crc = &b->crcs[b->present[i]];
            *crc = b->kernel->ops.crc32c(*crc, b->plan.sources[i] + at, RF_PIECE_BYTES);
        }
        for (size_t o = 0; o < b->parities; o++) {
            uint32_t *crc = &b->crcs[b->columns + o];
            if (!b->plan.xor_only[o])
                *crc = b->kernel->ops.crc32c(*crc, b->outputs[o] + at, RF_PIECE_BYTES);
        }
    }
}

/* A fold is 64 bytes whose checksum is that of all bytes folded into it: the end of one. */
static uint32_t fold_end(const struct burst *b, const uint8_t *fold)
{
    return b->kernel->ops.crc32c(0xffffffff, fold, RF_FOLD_BYTES); /* register starts at 0 */
}

static void row_in_one_pass(struct burst *b)
{
    size_t sources_count = b->plan.sources_count;
    for (size_t i = 0; i < sources_count + b->parities; i++)
        memcpy(b->folds[i], rf_crc.fold_start, RF_FOLD_BYTES);
    b->plan.groups[0].source_folds = b->folds;
    for (size_t o = 0; o < b->parities; o++) {
        uint8_t *fold = b->plan.xor_only[o] ? NULL : b->folds[sources_count + o];
        b->plan.groups[o / RF_GROUP_MAX].output_folds[o % RF_GROUP_MAX] = fold;
    }
    size_t piece_bytes = b->plan.groups_count > 1 ? RF_PIECE_BYTES : b->cell_bytes;
    for (size_t at = 0; at < b->cell_bytes; at += piece_bytes) {
        for (size_t g = 0; g < b->plan.groups_count; g++)
            b->kernel->ops.multiply_crc(&b->plan.groups[g], at, piece_bytes);
    }
    for (size_t i = 0; i < sources_count; i++)
        b->crcs[b->present[i]] = fold_end(b, b->folds[i]);
    for (size_t o = 0; o < b->parities; o++) {
        if (!b->plan.xor_only[o])
            b->crcs[b->columns + o] = fold_end(b, b->folds[sources_count + o]);
    }
}

/* With Z = crc of zeros, crc(x) ^ Z is linear, so a sum of cells has the sum of those. */
static void crcs_of_xor_rows(struct burst *b)
{
    for (size_t o = 0; o < b->parities; o++) {
        if (!b->plan.xor_only[o])
            continue;
        uint32_t crc = b->crc_zeros;
        for (size_t i = 0; i < b->plan.sources_count; i++) {
            if (b->plan.coefficients[o][i])
                crc ^= b->crcs[b->present[i]] ^ b->crc_zeros;
        }
        b->crcs[b->columns + o] = crc;
    }
}

static void encode_row(struct burst *b)
{
    for (size_t c = 0; c < b->columns; c++)
        b->crcs[c] = b->crc_zeros;
    for (size_t i = 0; i < b->plan.sources_count; i++)
        b->crcs[b->present[i]] = 0;
    for (size_t o = 0; o < b->parities; o++)
        b->crcs[b->columns + o] = 0;
    /* A single fold would wait for its own result, and without parity there is no pass to join. */
    if (b->kernel->ops.multiply_crc && b->parities > 0 && b->plan.sources_count > 1)
        row_in_one_pass(b);
    else
        row_in_two_passes(b);
    crcs_of_xor_rows(b);
}

static uint32_t crc_of_zeros(const struct rf_kernel *kernel, size_t nbytes)
{
    static const uint8_t zeros[RF_PIECE_BYTES];
    uint32_t crc = 0;
    for (size_t at = 0; at < nbytes; at += RF_PIECE_BYTES)
        crc = kernel->ops.crc32c(crc, zeros, RF_PIECE_BYTES);
    return crc;
}

/* Sets sources and outputs of the plan to those of `row`. */
static void plan_row(struct burst *b, const uint64_t *data, size_t row, size_t rows,
                     uint8_t *parity)
{
    for (size_t i = 0; i < b->plan.sources_count; i++) {
        const uint64_t *address = &data[b->present[i] * rows + row];
        uint64_t next = row + 1 < rows ? address[1] : 0;
        b->plan.sources[i] = (const uint8_t *)(uintptr_t)address[0];
        b->next_sources[i] = next ? (const uint8_t *)(uintptr_t)next : b->plan.sources[i];
    }
    for (size_t o = 0; o < b->parities; o++)
        b->outputs[o] = parity + (o * rows + row) * b->cell_bytes;
    for (size_t g = 0; g < b->plan.groups_count; g++)
        b->plan.groups[g].outputs = b->outputs + g * RF_GROUP_MAX;
    if (b->plan.groups_count > 0)
        b->plan.groups[0].next_sources = b->next_sources;
}

void rf_encode_by(const struct rf_kernel *kernel, const uint8_t *matrix, size_t parities,
                  size_t columns, const uint64_t *data, uint8_t *parity, size_t rows,
                  size_t cell_bytes, uint32_t *crcs)
{
    assert(columns >= 1 && columns <= RF_SOURCES_MAX && parities <= RF_OUTPUTS_MAX);
    assert(cell_bytes > 0 && cell_bytes % RF_PIECE_BYTES == 0);
    struct burst b = {.kernel = kernel,
                      .columns = columns,
                      .parities = parities,
                      .cell_bytes = cell_bytes,
                      .crc_zeros = crc_of_zeros(kernel, cell_bytes)};
    uint64_t mask_planned = UINT64_MAX; /* the columns that b.plan is for; so far none */
    for (size_t row = 0; row < rows; row++) {
        uint64_t mask = 0;
        size_t count = 0;
        for (size_t c = 0; c < columns; c++) {
            if (data[c * rows + row] != 0) {
                mask |= 1ull << c;
                b.present[count++] = (uint8_t)c;
            }
        }
        if (mask != mask_planned) /* rare: only the last rows of a burst have absent cells */
            rf_plan_make(&b.plan, matrix, parities, columns, b.present, count);
        mask_planned = mask;
        plan_row(&b, data, row, rows, parity);
        encode_row(&b);
        for (size_t i = 0; i < columns + parities; i++)
            crcs[i * rows + row] = b.crcs[i];
    }
}

void rf_encode(const uint8_t *matrix, size_t parities, size_t columns, const uint64_t *data,
               uint8_t *parity, size_t rows, size_t cell_bytes, uint32_t *crcs)
{
    rf_encode_by(rf_kernel_for_call(), matrix, parities, columns, data, parity, rows, cell_bytes,
                 crcs);
}
