/* gf256_kernel.h: the loops of a kernel, written once; included by gf256_x86.c and gf256_arm.c for
 * each instruction set, which defines these words first and the kernel struct after: NAME(f) the
 * function's name with the set's prefix TARGET            the attribute that allows the
 * instructions VECTOR, VECTOR_BYTES; STRIP_VECTORS: vectors of each source in flight, as many as
 * registers allow LOAD(p), STORE(p, v), ZERO(), XOR(a, b) TABLE, TABLE_OF(c): what multiplies by c,
 * in registers SPLIT, SPLIT_OF(v): a vector made ready to be multiplied (its two halves of bits,
 * say) MULTIPLY_ADD(sum, table, split) FOLD_ON(fold, v)  optional: a running checksum moved on by a
 * vector of RF_FOLD_BYTES and added to v No vector has to be aligned. What is left at the end is
 * done by one more vector that ends with the buffer, over bytes that are done already; a buffer
 * shorter than a vector goes to the reference.
 */

#define INLINE static inline __attribute__((always_inline))

/* Adds one source's strip into the sums of all outputs. */
TARGET INLINE void NAME(add_source)(VECTOR (*sums)[STRIP_VECTORS], const VECTOR *source,
                                    const uint8_t *coefficient, const size_t outputs,
                                    const size_t vectors, const bool xor_only)
{
    SPLIT splits[STRIP_VECTORS];
    if (!xor_only) {
        for (size_t v = 0; v < vectors; v++)
            splits[v] = SPLIT_OF(source[v]);
    }
    for (size_t o = 0; o < outputs; o++) {
        const uint8_t c = coefficient[o * RF_SOURCES_MAX];
        if (c == 1) {
            for (size_t v = 0; v < vectors; v++)
                sums[o][v] = XOR(sums[o][v], source[v]);
        } else if (!xor_only) {
            const TABLE table = TABLE_OF(c);
            for (size_t v = 0; v < vectors; v++)
                sums[o][v] = MULTIPLY_ADD(sums[o][v], table, splits[v]);
        }
    }
}

/* One strip of `vectors` vectors: all sources in, all outputs out. All but `p` and `at` are
 * constants where this is inlined. */
TARGET INLINE void NAME(strip)(const struct rf_product *p, size_t at, const size_t outputs,
                               const size_t vectors, const bool xor_only, const bool with_crc)
{
    (void)with_crc; /* where there is no FOLD_ON */
    VECTOR sums[RF_GROUP_MAX][STRIP_VECTORS];
    for (size_t o = 0; o < outputs; o++) {
        for (size_t v = 0; v < vectors; v++)
            sums[o][v] = ZERO();
    }
    for (size_t i = 0; i < p->sources_count; i++) {
        VECTOR source[STRIP_VECTORS];
        for (size_t v = 0; v < vectors; v++)
            source[v] = LOAD(p->sources[i] + at + v * VECTOR_BYTES);
        if (p->next_sources) {
            for (size_t b = 0; b < vectors * VECTOR_BYTES; b += 64) /* a line of the cache */
                __builtin_prefetch(p->next_sources[i] + at + b);
        }
#ifdef FOLD_ON
        if (with_crc && p->source_folds) {
            VECTOR fold = LOAD(p->source_folds[i]);
            for (size_t v = 0; v < vectors; v++)
                fold = FOLD_ON(fold, source[v]);
            STORE(p->source_folds[i], fold);
        }
#endif
        NAME(add_source)(sums, source, p->coefficients + i, outputs, vectors, xor_only);
    }
    for (size_t o = 0; o < outputs; o++) {
        for (size_t v = 0; v < vectors; v++)
            STORE(p->outputs[o] + at + v * VECTOR_BYTES, sums[o][v]);
#ifdef FOLD_ON
        if (with_crc && p->output_folds[o]) {
            VECTOR fold = LOAD(p->output_folds[o]);
            for (size_t v = 0; v < vectors; v++)
                fold = FOLD_ON(fold, sums[o][v]);
            STORE(p->output_folds[o], fold);
        }
#endif
    }
}

TARGET INLINE void NAME(strips)(const struct rf_product *p, size_t at, size_t nbytes,
                                const size_t outputs, const bool xor_only, const bool with_crc)
{
    const struct rf_product copy = *p; /* so that no store can be to it */
    const size_t strip_bytes = STRIP_VECTORS * VECTOR_BYTES, end = at + nbytes;
    p = &copy;
    for (; at + strip_bytes <= end; at += strip_bytes)
        NAME(strip)(p, at, outputs, STRIP_VECTORS, xor_only, with_crc);
    if (with_crc)
        return; /* its lengths are whole strips */
    for (; at + VECTOR_BYTES <= end; at += VECTOR_BYTES)
        NAME(strip)(p, at, outputs, 1, xor_only, false);
    if (at < end)
        NAME(strip)(p, end - VECTOR_BYTES, outputs, 1, xor_only, false);
}

TARGET INLINE void NAME(choose)(const struct rf_product *p, size_t at, size_t nbytes,
                                const bool with_crc)
{
    switch ((int)p->outputs_count * 2 + p->xor_only) {
#define CASE(outputs, xor_only)                                                                    \
    case outputs * 2 + xor_only:                                                                   \
        NAME(strips)(p, at, nbytes, outputs, xor_only, with_crc);                                  \
        break;
        CASE(1, false)
        CASE(2, false)
        CASE(3, false)
        CASE(4, false)
        CASE(1, true)
        CASE(2, true)
        CASE(3, true)
        CASE(4, true)
#undef CASE
    }
}

TARGET static void NAME(multiply)(const struct rf_product *p, size_t at, size_t nbytes)
{
    if (nbytes < VECTOR_BYTES)
        rf_multiply_reference(p, at, nbytes);
    else
        NAME(choose)(p, at, nbytes, false);
}

#ifdef FOLD_ON
TARGET static void NAME(multiply_crc)(const struct rf_product *p, size_t at, size_t nbytes)
{
    NAME(choose)(p, at, nbytes, true);
}
#endif

TARGET static uint8_t NAME(read_all)(const uint8_t *data, size_t nbytes)
{
    VECTOR sums[4] = {ZERO(), ZERO(), ZERO(), ZERO()};
    size_t at = 0;
    for (; at + 4 * VECTOR_BYTES <= nbytes; at += 4 * VECTOR_BYTES) {
        for (size_t v = 0; v < 4; v++)
            sums[v] = XOR(sums[v], LOAD(data + at + v * VECTOR_BYTES));
    }
    uint8_t bytes[VECTOR_BYTES], sum = 0;
    STORE(bytes, XOR(XOR(sums[0], sums[1]), XOR(sums[2], sums[3])));
    for (size_t b = 0; b < VECTOR_BYTES; b++)
        sum ^= bytes[b];
    for (; at < nbytes; at++)
        sum ^= data[at];
    return sum;
}

#undef INLINE
#undef NAME
#undef TARGET
#undef VECTOR
#undef VECTOR_BYTES
#undef STRIP_VECTORS
#undef LOAD
#undef STORE
#undef ZERO
#undef XOR
#undef TABLE
#undef TABLE_OF
#undef SPLIT
#undef SPLIT_OF
#undef MULTIPLY_ADD
#undef FOLD_ON
