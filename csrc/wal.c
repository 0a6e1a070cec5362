/* wal.c: which frames of SQLite's write-ahead log are valid, by the rules of its file format.
 *
 * Header (32 bytes, big-endian words): magic 0x377f0682 or ..83, version 3007000, page size,
 * checkpoint sequence, salt 1 and 2, checksum 1 and 2 of the 24 bytes before. Frame: page number,
 * pages of the database after a commit (0 if the frame doesn't commit), salt 1 and 2, checksum 1
 * and 2, then the page. A frame is valid if its salts are the header's and its checksum is that of
 * the header's 24 bytes, then of the first 8 bytes and the page of each frame up to it. So the
 * valid frames are a prefix, and a frame left over from an earlier generation of the log, whose
 * salts differ, ends it. The checksum takes 32-bit words two by two: s1 += word + s2, s2 += word +
 * s1; the last bit of the magic says whether the words are big-endian.
 */
#undef NDEBUG
#include "wal.h"

#include <assert.h>
#include <string.h>

enum { HEADER_BYTES = 32, FRAME_HEADER_BYTES = 24, FORMAT = 3007000 };
static const uint32_t MAGIC = 0x377f0682;

static uint32_t word_at(const uint8_t *data)
{
    return (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
}

static uint32_t word_little(const uint8_t *data)
{
    return (uint32_t)data[3] << 24 | (uint32_t)data[2] << 16 | (uint32_t)data[1] << 8 | data[0];
}

static void add(uint32_t sum[2], int big_endian, const uint8_t *data, size_t nbytes)
{
    uint32_t s1 = sum[0];
    uint32_t s2 = sum[1];

    assert(nbytes % 8 == 0);
    if (big_endian)
        for (size_t b = 0; b < nbytes; b += 8) {
            s1 += word_at(data + b) + s2;
            s2 += word_at(data + b + 4) + s1;
        }
    else
        for (size_t b = 0; b < nbytes; b += 8) {
            s1 += word_little(data + b) + s2;
            s2 += word_little(data + b + 4) + s1;
        }
    sum[0] = s1;
    sum[1] = s2;
}

int rf_wal_begin(struct rf_wal *wal, const uint8_t *header)
{
    uint32_t magic = word_at(header);

    memset(wal, 0, sizeof *wal);
    if ((magic & ~1u) != MAGIC || word_at(header + 4) != FORMAT)
        return 0;
    wal->big_endian = magic & 1;
    wal->page_bytes = word_at(header + 8);
    wal->sequence = word_at(header + 12);
    wal->salt[0] = word_at(header + 16);
    wal->salt[1] = word_at(header + 20);
    if (wal->page_bytes < 512 || wal->page_bytes > 65536 ||
        (wal->page_bytes & (wal->page_bytes - 1)))
        return 0;
    add(wal->sum, (int)wal->big_endian, header, 24);
    return wal->sum[0] == word_at(header + 24) && wal->sum[1] == word_at(header + 28);
}

/* Takes one whole frame; 0 if it isn't valid. */
static int take(struct rf_wal *wal, const uint8_t *frame)
{
    uint32_t sum[2] = {wal->sum[0], wal->sum[1]};
    uint32_t page = word_at(frame);
    uint32_t pages = word_at(frame + 4);

    if (page == 0 || word_at(frame + 8) != wal->salt[0] || word_at(frame + 12) != wal->salt[1])
        return 0;
    add(sum, (int)wal->big_endian, frame, 8);
    add(sum, (int)wal->big_endian, frame + FRAME_HEADER_BYTES, wal->page_bytes);
    if (sum[0] != word_at(frame + 16) || sum[1] != word_at(frame + 20))
        return 0;
    wal->sum[0] = sum[0];
    wal->sum[1] = sum[1];
    wal->frames++;
    if (page == 1)
        wal->first = wal->frames;
    if (pages != 0) {
        wal->committed = wal->frames;
        wal->committed_pages = pages;
        wal->committed_first = wal->first;
        wal->committed_sum[0] = sum[0];
        wal->committed_sum[1] = sum[1];
    }
    return 1;
}

size_t rf_wal_scan(struct rf_wal *wal, const uint8_t *data, size_t nbytes)
{
    size_t frame_bytes = FRAME_HEADER_BYTES + (size_t)wal->page_bytes;
    size_t done = 0;

    assert(wal->page_bytes >= 512);
    while (!wal->ended && nbytes - done >= frame_bytes) {
        wal->ended = !take(wal, data + done);
        done += frame_bytes;
    }
    return done;
}
