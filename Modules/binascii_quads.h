// Decoding base64 four characters at a time, for binascii.c.
//
// The base's loop goes from character to character and branches on where in a group
// it is.  How long that takes depends on how the compiler lays the branches out: from one
// optimised build to the next it was up to 20 % slower than stock's, with the same
// instructions ("What do whole programs pay?" in Doc/internals/measurements.rst).
// Whole groups need no such branch.

#ifndef BINASCII_QUADS_H
#define BINASCII_QUADS_H

/* Decodes groups from the beginning of n characters, up to one with a character that is
   not of the alphabet, or with a pad.  *to is advanced; the result is how many
   characters there were in the groups.  The table has the value of a character, or 64
   and more for one that has none. */
static inline size_t
decode_quads(const unsigned char *from, size_t n, unsigned char pad,
             const unsigned char *table, unsigned char **to)
{
    const unsigned char *start = from;
    unsigned char *out = *to;
    for (; n >= 4; from += 4, n -= 4) {
        unsigned char a = table[from[0]], b = table[from[1]];
        unsigned char c = table[from[2]], d = table[from[3]];
        // The table may have a value for the pad.
        if ((a | b | c | d) >= 64 || from[0] == pad || from[1] == pad
            || from[2] == pad || from[3] == pad)
        {
            break;
        }
        *out++ = a << 2 | b >> 4;
        *out++ = (b & 0x0f) << 4 | c >> 2;
        *out++ = (c & 0x03) << 6 | d;
    }
    *to = out;
    return from - start;
}

#endif  // !BINASCII_QUADS_H
