/* The head of the one answer that Get Blob (a range) or Put Page is plainly answered with. No I/O, no memory of its own.
 *
 * Nothing is decided here but "this is it". A head that is not exactly that may be a refusal, a gateway's page, an
 * interim answer, something damaged, or good and only unusual: what it is, azure/framing.py and llhttp say. So there is
 * one answer to every doubt, and whatever is taken here the Python path takes as well, with the same outcome.
 *
 * Taken is: `HTTP/1.1 206 ` or `HTTP/1.1 201 `, a reason of printable ASCII; lines `name:value` that end with CR LF, of
 * RFC 9110's characters for a name and printable ASCII, blank and tab for a value, none folded; an x-ms-request-id, which
 * is the service's mark (azure/refusal.py); Content-Length once, in digits, and the very one: the bytes asked for, 0 for
 * a 201; for a 206 Content-Range once, `bytes FIRST-LAST/` as asked for and the blob's size in digits. Left to Python are
 * all that change the framing or the connection: Transfer-Encoding, Trailer, Upgrade, and Connection unless it is
 * keep-alive; and a head that is longer than MOST_HEAD bytes, or did not come in one piece.
 *
 * Bounds: `size` bytes are looked at and none behind them; no number has more than MOST_DIGITS digits, so none overflows.
 */

#ifndef DYSK_ANSWER_H
#define DYSK_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { MOST_HEAD = 8 << 10, MOST_DIGITS = 18 };

/* What was asked for. length is 0 for Put Page, which has no range in its answer. */
struct wanted {
    int status; /* 206 or 201 */
    uint64_t offset, length;
};

enum { GOT_LENGTH = 1, GOT_RANGE = 2, GOT_ID = 4, GOT_CONNECTION = 8 };

/* Whether a name, of which `length` bytes are at `at`, is `lower`, whatever its case. Names have ASCII only. */
static inline bool is_name(const char *at, size_t length, const char *lower, size_t lower_length)
{
    if (length != lower_length)
        return false;
    for (size_t i = 0; i < length; i++)
        if ((at[i] >= 'A' && at[i] <= 'Z' ? at[i] | 0x20 : at[i]) != lower[i])
            return false;
    return true;
}

#define IS_NAME(at, length, lower) is_name(at, length, lower, sizeof(lower) - 1)

/* Reads a number up to `end`; returns where it ends, NULL if there is none, or one with too many digits or zeros first. */
static inline const char *digits(const char *at, const char *end, uint64_t *number)
{
    const char *start = at;
    for (*number = 0; at < end && *at >= '0' && *at <= '9'; at++) {
        if (at - start == MOST_DIGITS)
            return NULL;
        *number = *number * 10 + (uint64_t)(*at - '0');
    }
    return at == start || (*start == '0' && at - start > 1) ? NULL : at;
}

static inline bool is_number(const char *at, const char *end, uint64_t wanted)
{
    uint64_t number;
    return digits(at, end, &number) == end && number == wanted;
}

static inline bool is_range(const char *at, const char *end, const struct wanted *wanted)
{
    static const char unit[] = "bytes ";
    const size_t unit_length = sizeof unit - 1;
    uint64_t first, last, size;
    if ((size_t)(end - at) < unit_length || memcmp(at, unit, unit_length) != 0)
        return false;
    if ((at = digits(at + unit_length, end, &first)) == NULL || at == end || *at != '-')
        return false;
    if ((at = digits(at + 1, end, &last)) == NULL || at == end || *at != '/')
        return false;
    return digits(at + 1, end, &size) == end && first == wanted->offset && last - first == wanted->length - 1 &&
           last >= first && size > last;
}

/* What a name may have. Source: RFC 9110, 5.6.2, tchar. */
static inline bool is_tchar(unsigned char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c > ' ' && c < 127 && strchr("!#$%&'*+-.^_`|~", c) != NULL);
}

/* One line, without its end; adds to `got` what it is. Returns false for what is left to Python. */
static inline bool take_line(const char *at, const char *end, const struct wanted *wanted, unsigned *got)
{
    const char *name = at;
    while (at < end && is_tchar((unsigned char)*at))
        at++;
    if (at == name || at == end || *at != ':')
        return false;
    const size_t length = (size_t)(at - name);
    for (at++; at < end && (*at == ' ' || *at == '\t'); at++)
        continue;
    for (const char *c = at; c < end; c++)
        if ((*c < ' ' || *c > '~') && *c != '\t')
            return false;
    while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
        end--;

    unsigned what = 0;
    bool fits = true;
    if (IS_NAME(name, length, "content-length")) {
        what = GOT_LENGTH;
        fits = is_number(at, end, wanted->length);
    } else if (IS_NAME(name, length, "content-range")) {
        what = GOT_RANGE;
        fits = wanted->status == 206 && is_range(at, end, wanted);
    } else if (IS_NAME(name, length, "connection")) {
        what = GOT_CONNECTION;
        fits = IS_NAME(at, (size_t)(end - at), "keep-alive");
    } else if (IS_NAME(name, length, "x-ms-request-id")) {
        what = GOT_ID;
    } else if (IS_NAME(name, length, "transfer-encoding") || IS_NAME(name, length, "trailer") ||
               IS_NAME(name, length, "upgrade")) {
        return false;
    }
    if (!fits || (*got & what))
        return false;
    *got |= what;
    return true;
}

/* The bytes of the head at the start of `data`, or 0 for what is left to Python. */
static inline size_t plain_head(const char *data, size_t size, const struct wanted *wanted)
{
    static const char start[] = "HTTP/1.1 20";
    const size_t start_length = sizeof start - 1;
    const char *const end = data + (size < MOST_HEAD ? size : MOST_HEAD);
    unsigned got = 0;

    const char *at = data;
    for (bool first = true;; first = false) {
        const char *stop = memchr(at, '\r', (size_t)(end - at));
        if (stop == NULL || end - stop < 2 || stop[1] != '\n')
            return 0;
        if (first) {
            if ((size_t)(stop - at) < start_length + 2 || memcmp(at, start, start_length) != 0 ||
                at[start_length] != '0' + wanted->status % 10 || at[start_length + 1] != ' ')
                return 0;
            for (at += start_length + 2; at < stop; at++)
                if (*at < ' ' || *at > '~')
                    return 0;
        } else if (stop == at) {
            const unsigned needed = GOT_LENGTH | GOT_ID | (wanted->status == 206 ? GOT_RANGE : 0);
            return (got & needed) == needed ? (size_t)(stop + 2 - data) : 0;
        } else if (!take_line(at, stop, wanted, &got)) {
            return 0;
        }
        at = stop + 2;
    }
}

#endif
