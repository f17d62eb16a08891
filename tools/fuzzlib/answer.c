/* Fuzzes native/answer.h: any bytes as the head of an answer, without one byte behind them, under ASan and UBSan.
 *
 * The first byte of an input chooses what was asked for; the rest is what came. What is taken must hold what the parser
 * promises, looked for here in another way: by searching the head for what must stand in it once.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "../../blobfuse_dysk/azure/native/answer.h"

static const struct wanted CHOICES[] = {
    {206, 512, 512}, {206, 0, 4096}, {206, (uint64_t)1 << 62, 1 << 20}, {206, 999, 1}, {201, 0, 0},
};

static void must(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* How often a line begins with `name:`; the value of the last one goes to `value`, without blanks around it. */
static int lines_of(const char *head, const char *name, char *value, size_t room)
{
    int found = 0;
    const size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, length) != 0 || line[2 + length] != ':')
            continue;
        found++;
        const char *at = line + 3 + length, *end = strstr(at, "\r\n");
        at += strspn(at, " \t");
        while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
            end--;
        snprintf(value, room, "%.*s", (int)(end - at), at);
    }
    return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const struct wanted *wanted = &CHOICES[data[0] % (sizeof CHOICES / sizeof *CHOICES)];
    const size_t came = size - 1;
    char *exact = malloc(came ? came : 1); /* ASan sees a look at what is behind it */
    memcpy(exact, data + 1, came);
    const size_t start = plain_head(exact, came, wanted);
    if (start != 0) {
        char value[MOST_HEAD], expected[100], *head = strndup(exact, start);
        must(start <= came && start <= MOST_HEAD, "it is longer than what came");
        must(strlen(head) == start, "there is a zero byte in it");
        must(strstr(head, "\r\n\r\n") == head + start - 4, "it does not end where the head ends");
        snprintf(expected, sizeof expected, "HTTP/1.1 %d ", wanted->status);
        must(strncmp(head, expected, strlen(expected)) == 0, "it has another status");
        snprintf(expected, sizeof expected, "%llu", (unsigned long long)wanted->length);
        must(lines_of(head, "content-length", value, sizeof value) == 1 && strcmp(value, expected) == 0, "length");
        must(lines_of(head, "x-ms-request-id", value, sizeof value) == 1, "it is not the service's");
        must(lines_of(head, "transfer-encoding", value, sizeof value) == 0, "it has a coding");
        const int connections = lines_of(head, "connection", value, sizeof value);
        must(connections == 0 || (connections == 1 && strcasecmp(value, "keep-alive") == 0), "it does not go on");
        const int ranges = lines_of(head, "content-range", value, sizeof value);
        snprintf(expected, sizeof expected, "bytes %llu-%llu/", (unsigned long long)wanted->offset,
                 (unsigned long long)(wanted->offset + wanted->length - 1));
        must(ranges == (wanted->status == 206), "ranges");
        must(ranges == 0 || strncmp(value, expected, strlen(expected)) == 0, "it is another range");
        free(head);
    }
    free(exact);
    return 0;
}
