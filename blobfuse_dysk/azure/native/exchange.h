/* A Line, and the Ready that it is in. What they do stands at the top of exchange.c. */

#ifndef DYSK_EXCHANGE_H
#define DYSK_EXCHANGE_H

#include "answer.h"
#include "module.h"

enum { MOST_LINES = 1024 };

typedef struct Line Line;

typedef struct {
    PyObject_HEAD
    int fd;
    struct {
        Line *line; /* NULL: free; not counted, the Line takes itself out */
        uint32_t generation;
    } slots[MOST_LINES];
} Ready;

enum state { IDLE, HEAD, BODY, PLAIN, ODD, FAILED, CLOSED };

/* What a Line has for TLS. */
struct tls {
    PyObject *object;              /* ssl.SSLObject, after its handshake; NULL without TLS */
    PyObject *incoming, *outgoing; /* ssl.MemoryBIO */
    size_t most;                   /* bytes of a request that are sent at once, as one record */
};

struct Line {
    PyObject_HEAD
    Ready *ready;
    int fd;
    uint32_t slot;
    enum state state;
    struct wanted wanted;
    uint64_t got;      /* bytes of the body */
    int error;         /* FAILED: errno, 0 for the end of the stream */
    bool heard;        /* something of the answer was received */
    bool busy;         /* in a call of tls.c */
    PyObject *body;    /* bytes: the body, or in ODD what was read */
    PyObject *task;    /* who waits */
    PyObject *failure; /* FAILED: what ssl has raised, if it has */
    struct tls tls;
};

static inline bool is_waiting(const Line *line) { return line->state == HEAD || line->state == BODY; }

/* Receives what is there for a line that waits. Python code may run; the caller holds the line. */
void receive(Line *line);

/* Whether there is nothing to read from a socket, not even the end of the stream. */
bool is_quiet(int fd);

/* tls.c: for a line with TLS that is not busy, and that the caller holds. Python code runs in each of these. */

/* What sending returns in place of a count. HELD: ssl has the whole request, but not the socket; a rest is in `outgoing`. */
enum { HELD = -1, RAISED = -2 };

/* To be called before the others; false with an exception set. */
bool tls_load(void);

/* Sends head and body. Returns how many bytes those are; 0 where ssl did not take them, or they are more than `most`. */
Py_ssize_t tls_send(Line *line, PyObject *head, const char *body, size_t length);

/* What has come, decrypted: of one record at most, and of `most` bytes; empty at the end of the stream. NULL with an
 * exception set, or with errno: EAGAIN if there is nothing just now, which the descriptor has said. Of no meaning if the
 * line's state is another one afterwards. */
PyObject *tls_receive(Line *line, size_t most);

/* Whether there is nothing to read, neither from the socket nor from what was received. -1 with an exception set. */
int tls_is_quiet(Line *line);

#endif
