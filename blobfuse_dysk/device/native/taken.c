/* See taken.h; device/worker/taken.py has the layout, the theory and the invariants.
 *
 * The length of a request, in the first four bytes of its slot, is written by one store, which the compiler leaves where
 * it stands in the program. That is enough: who looks at the memory is started when this process has ended.
 */

#include "taken.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void set_length(const Taken *taken, size_t at, uint32_t length)
{
    __atomic_store_n((uint32_t *)(void *)(taken->memory + at), length, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* nor does what comes next move before it */
}

void taken_empty(const Taken *taken, size_t at) { set_length(taken, at, 0); }

static void use(Slab *slab, size_t at)
{
    if (at + slab->size > slab->high)
        slab->high = at + slab->size;
}

static void record(Taken *taken, uint64_t unique, size_t at) { taken->used[taken->count++] = (InUse){unique, at}; }

size_t taken_copy(Taken *taken, size_t landing, size_t length)
{
    for (unsigned number = 0; number < COMPACT; number++) {
        Slab *slab = &taken->slabs[number];
        if (length > slab->size || slab->kept == 0)
            continue;
        const size_t at = slab->start + slab->size * slab->free[--slab->kept];
        const char *from = taken->memory + landing;
        uint64_t unique;
        memcpy(&unique, from + 8, sizeof unique); /* struct fuse_in_header: len, opcode, unique */
        use(slab, at);
        memcpy(taken->memory + at + sizeof(uint32_t), from + sizeof(uint32_t), length - sizeof(uint32_t));
        set_length(taken, at, (uint32_t)length);
        taken_empty(taken, landing);
        record(taken, unique, at);
        return at;
    }
    return 0;
}

void taken_hold(Taken *taken, uint64_t unique, size_t at)
{
    Slab *slab = taken_slab(taken, at);
    const unsigned slot = (unsigned)((at - slab->start) / slab->size);
    for (unsigned each = 0; slab->free != NULL && each < slab->kept; each++)
        if (slab->free[each] == slot) {
            memmove(slab->free + each, slab->free + each + 1, (slab->kept - each - 1) * sizeof *slab->free);
            slab->kept--;
            break;
        }
    use(slab, at);
    record(taken, unique, at);
}

size_t taken_answered(Taken *taken, uint64_t unique)
{
    for (unsigned each = 0; each < taken->count; each++)
        if (taken->used[each].unique == unique) {
            const size_t at = taken->used[each].at;
            Slab *slab = taken_slab(taken, at);
            taken_empty(taken, at);
            taken->used[each] = taken->used[--taken->count];
            if (slab->free != NULL)
                slab->free[slab->kept++] = (unsigned)((at - slab->start) / slab->size);
            return at;
        }
    return 0;
}

Slab *taken_slab(Taken *taken, size_t at)
{
    for (Slab *slab = taken->slabs; slab < taken->slabs + SLABS; slab++)
        if (at >= slab->start && at < slab->start + slab->size * slab->slots)
            return (at - slab->start) % slab->size == 0 ? slab : NULL;
    return NULL;
}

void taken_punch(const Taken *taken, size_t start, size_t end)
{
    /* Where the kernel does not do it, the memory stays. */
    (void)!fallocate(taken->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start, (off_t)(end - start));
}

void taken_trim(Taken *taken)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (Slab *slab = taken->slabs; slab < taken->slabs + COMPACT; slab++) {
        const size_t end = slab->start + slab->size * slab->slots;
        size_t top = slab->start;
        for (unsigned each = 0; each < taken->count; each++)
            if (taken->used[each].at >= top && taken->used[each].at < end)
                top = taken->used[each].at + slab->size;
        top = (top + page - 1) / page * page;
        if (top < slab->high) {
            taken_punch(taken, top, end);
            slab->high = top;
        }
    }
}

bool taken_open(Taken *taken, char *memory, size_t length, int fd, const size_t table[SLABS][3])
{
    size_t slots = 0, end = 8; /* at 0 nothing can be */
    taken->fd = fd;
    for (unsigned number = 0; number < SLABS; number++) {
        Slab *slab = &taken->slabs[number];
        *slab = (Slab){.start = table[number][0], .size = table[number][1], .slots = (unsigned)table[number][2]};
        if (table[number][2] - 1 >= MOST_SLOTS || slab->size < 80 || slab->size % 8 != 0 || slab->start % 8 != 0 ||
            slab->start < end || slab->start > length || slab->size > (length - slab->start) / slab->slots)
            return false;
        end = slab->start + slab->size * slab->slots;
        slab->high = slab->start;
        slots += slab->slots;
        if (number == COMPACT)
            break;
        if ((slab->free = malloc(slab->slots * sizeof *slab->free)) == NULL)
            return false;
        for (unsigned each = slab->slots; each > 0; each--)
            slab->free[slab->kept++] = each - 1;
    }
    if ((taken->used = malloc(slots * sizeof *taken->used)) == NULL)
        return false;
    taken->memory = memory;
    return true;
}

void taken_close(Taken *taken)
{
    for (unsigned number = 0; number < SLABS; number++)
        free(taken->slabs[number].free);
    free(taken->used);
}
