/* The memory of the requests that were taken: its slots, and which of them are in use. Without Python. taken.c. */

#ifndef DYSK_TAKEN_H
#define DYSK_TAKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SLABS = 4, COMPACT = SLABS - 1, MOST_SLOTS = 4096 };

typedef struct {
    size_t start, size;   /* bytes: where the first slot is, and what each has */
    unsigned slots;       /* how many */
    unsigned *free;       /* of a compact slab: the numbers of those not in use, the first `kept`; the next one is last */
    unsigned kept;
    size_t high;          /* no slot from here on was used since the last trim */
} Slab;

typedef struct {
    uint64_t unique;
    size_t at;
} InUse;

typedef struct {
    char *memory;         /* NULL: no request is kept */
    int fd;               /* of the memory */
    Slab slabs[SLABS];    /* the last one has the landing slots */
    InUse *used;          /* requests that are not answered: the first `count` */
    unsigned count;
} Taken;

/* A landing slot whose request is where it is to stay, or was answered, is empty. */
void taken_empty(const Taken *taken, size_t at);

/* Copy a request from a landing slot into a compact one, and empty that. 0: there is none; else where it is. */
size_t taken_copy(Taken *taken, size_t landing, size_t length);

/* The request there is not answered. Of a compact slot: it is not free. */
void taken_hold(Taken *taken, uint64_t unique, size_t at);

/* The request is answered. Where it was; 0 if it was nowhere. */
size_t taken_answered(Taken *taken, uint64_t unique);

/* Where a slot begins: its slab, else NULL. */
Slab *taken_slab(Taken *taken, size_t at);

/* Give the memory of a range back. */
void taken_punch(const Taken *taken, size_t start, size_t end);

/* Give back the memory of the compact slots beyond those in use. */
void taken_trim(Taken *taken);

/* `table` has start, size and number of slots of each slab, one behind the other. False: it does not fit, or there is no
 * memory for it. */
bool taken_open(Taken *taken, char *memory, size_t length, int fd, const size_t table[SLABS][3]);

void taken_close(Taken *taken);

#endif
