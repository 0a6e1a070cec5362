/* leaf_runs.c: see leaf_runs.h. */
#undef NDEBUG
#include "leaf_runs.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum { PLAIN, RUNS, HEAD_BYTES = 3, RUN_BYTES = 9, ROW_STEP = 256 };

static void put_word(uint8_t *out, uint64_t word)
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(word >> 8 * i);
}

static uint64_t get_word(const uint8_t *data)
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++)
        word |= (uint64_t)data[i] << 8 * i;
    return word;
}

uint32_t rf_leaf_encode(const uint64_t *addresses, uint32_t count, uint8_t *out)
{
    assert(count <= RF_RUNS_PAGES);
    while (count > 0 && addresses[count - 1] == 0)
        count--;
    if (count == 0)
        return 0;
    uint8_t lengths[RF_RUNS_PAGES];
    uint64_t firsts[RF_RUNS_PAGES];
    uint32_t runs = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t next = i == 0 ? 0 : addresses[i - 1] + (addresses[i - 1] ? ROW_STEP : 0);
        if (i > 0 && addresses[i] == next) {
            lengths[runs - 1]++;
        } else {
            firsts[runs] = addresses[i];
            lengths[runs++] = 0; /* one less than the pages of the run */
        }
    }
    if (HEAD_BYTES + RUN_BYTES * runs >= 1 + 8 * count) {
        out[0] = PLAIN;
        for (uint32_t i = 0; i < count; i++)
            put_word(out + 1 + 8 * i, addresses[i]);
        return 1 + 8 * count;
    }
    out[0] = RUNS;
    out[1] = (uint8_t)runs;
    out[2] = (uint8_t)(runs >> 8);
    memcpy(out + HEAD_BYTES, lengths, runs);
    for (uint32_t i = 0; i < runs; i++)
        put_word(out + HEAD_BYTES + runs + 8 * i, firsts[i]);
    return HEAD_BYTES + RUN_BYTES * runs;
}

static int decode_plain(const uint8_t *data, uint64_t nbytes, uint64_t *addresses)
{
    if (nbytes % 8 != 1 || nbytes > RF_RUNS_BYTES_MAX)
        return -EINVAL;
    for (uint64_t i = 0; i < nbytes / 8; i++)
        addresses[i] = get_word(data + 1 + 8 * i);
    return 0;
}

int rf_leaf_decode(const uint8_t *data, uint64_t nbytes, uint64_t *addresses)
{
    memset(addresses, 0, RF_RUNS_PAGES * sizeof addresses[0]);
    if (nbytes > 0 && data[0] == PLAIN)
        return decode_plain(data, nbytes, addresses);
    if (nbytes < HEAD_BYTES || data[0] != RUNS)
        return -EINVAL;
    uint32_t runs = data[1] | (uint32_t)data[2] << 8;
    if (runs == 0 || runs > RF_RUNS_PAGES || nbytes != HEAD_BYTES + RUN_BYTES * (uint64_t)runs)
        return -EINVAL;
    uint32_t at = 0;
    for (uint32_t i = 0; i < runs; i++) {
        uint32_t pages = data[HEAD_BYTES + i] + 1u;
        uint64_t address = get_word(data + HEAD_BYTES + runs + 8 * i);
        uint64_t step = address ? ROW_STEP : 0;
        if (at + pages > RF_RUNS_PAGES)
            return -EINVAL;
        for (uint32_t end = at + pages; at < end; at++, address += step)
            addresses[at] = address;
    }
    return 0;
}
