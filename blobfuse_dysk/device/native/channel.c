/* The FUSE device: reads the kernel's requests, writes the answers. The same as Channel in device/worker/channel.py, which
 * has the theory and is what this is compared with (tests/unit/test_channel.py).
 *
 * Bounds: a request is as long as read(2) says, and is looked at only if that is as long as its own header says and as
 * its kind needs; the data of a WRITE must be all of what follows. What does not fit is handed on as it is, for pyfuse3
 * to refuse. The buffers are bytearrays, which stay at their place while a memoryview of them exists.
 *
 * With a memory for requests that outlive the worker (taken.h), its landing slots take the place of the buffers. Each is
 * an object that counts who looks at it, and is free when that is nobody, and what it had was answered.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <sys/uio.h>
#include <unistd.h>

#include "taken.h"

#define MODULE "blobfuse_dysk.device.native._channel"

enum { LARGE = 64 << 10, ROOM = 8 << 10, MOST_BUFFER = 512 << 20, KEPT = 64 };

typedef struct {
    PyObject_HEAD
    Py_buffer memory;   /* all of it, which stays mapped while this exists */
    size_t at;          /* where in it */
    Py_ssize_t size;
    Py_ssize_t views;   /* of it, that somebody has */
    bool held;          /* what it has is not answered */
    bool touched;       /* all of it is in memory */
} Landing;

typedef struct {
    PyObject_HEAD
    int fd;
    bool gone;
    PyObject *buffer;     /* a bytearray, where the next request comes; NULL if requests are kept */
    PyObject *free[KEPT]; /* bytearrays of the same size: the first `kept` */
    int kept;
    Taken taken;
    Py_buffer memory;
    Landing **landings; /* as many as there are slots */
    Landing *landing;   /* where the next request comes; NULL if that is not known yet */
} Channel;

static PyTypeObject LandingType;

/* A new buffer, written to as a whole, so that all of it is in memory. */
static PyObject *new_buffer(Py_ssize_t size)
{
    PyObject *buffer = PyByteArray_FromStringAndSize(NULL, size);
    if (buffer != NULL)
        memset(PyByteArray_AS_STRING(buffer), 0, (size_t)size);
    return buffer;
}

static void drop_free(Channel *channel)
{
    while (channel->kept > 0)
        Py_DECREF(channel->free[--channel->kept]);
}

static PyObject *view(PyObject *buffer, size_t start, size_t size)
{
    PyObject *whole = PyMemoryView_FromObject(buffer);
    PyObject *data = whole != NULL ? PySequence_GetSlice(whole, (Py_ssize_t)start, (Py_ssize_t)(start + size)) : NULL;
    Py_XDECREF(whole);
    return data;
}

/* The data of a large WRITE: a view of the buffer, in whose place comes another one; of a landing slot, which it keeps. */
static PyObject *hand_over(Channel *channel, const char *at, size_t start, size_t size)
{
    if (channel->taken.memory != NULL) {
        const Slab *slots = &channel->taken.slabs[COMPACT];
        const size_t where = (size_t)(at - channel->taken.memory);
        return where < slots->start ? PyBytes_FromStringAndSize(at + start, (Py_ssize_t)size)
                                    : view((PyObject *)channel->landings[(where - slots->start) / slots->size], start, size);
    }
    PyObject *next = channel->kept > 0 ? channel->free[--channel->kept]
                                       : new_buffer(PyByteArray_GET_SIZE(channel->buffer));
    if (next == NULL)
        return NULL;
    PyObject *data = view(channel->buffer, start, size);
    if (data == NULL) {
        Py_DECREF(next);
        return NULL;
    }
    Py_SETREF(channel->buffer, next);
    return data;
}

static PyObject *request(Channel *channel, const char *at, size_t length)
{
    const struct fuse_in_header *header = (const struct fuse_in_header *)at;
    if (length < sizeof *header || header->len != length)
        return PyBytes_FromStringAndSize(at, (Py_ssize_t)length);
    const unsigned long long unique = header->unique;
    const void *in = at + sizeof *header;
    const size_t rest = length - sizeof *header;
    if (header->opcode == FUSE_READ && rest >= sizeof(struct fuse_read_in)) {
        const struct fuse_read_in *read = in;
        return Py_BuildValue("iKKIO", FUSE_READ, unique, (unsigned long long)read->offset, read->size, Py_None);
    }
    if (header->opcode == FUSE_WRITE && rest >= sizeof(struct fuse_write_in) &&
        ((const struct fuse_write_in *)in)->size == rest - sizeof(struct fuse_write_in)) {
        const struct fuse_write_in *write = in;
        const unsigned long long offset = write->offset;
        const unsigned size = write->size;
        const size_t start = sizeof *header + sizeof *write;
        PyObject *data = size < LARGE ? PyBytes_FromStringAndSize(at + start, (Py_ssize_t)size)
                                      : hand_over(channel, at, start, size);
        return data != NULL ? Py_BuildValue("iKKIN", FUSE_WRITE, unique, offset, size, data) : NULL;
    }
    if (header->opcode == FUSE_FSYNC)
        return Py_BuildValue("iKiiO", FUSE_FSYNC, unique, 0, 0, Py_None);
    return PyBytes_FromStringAndSize(at, (Py_ssize_t)length);
}

/* Find a landing slot for the next request, and have all of it in memory. False: there is none. */
static bool has_landing(Channel *channel)
{
    for (unsigned each = 0; channel->landing == NULL && each < channel->taken.slabs[COMPACT].slots; each++)
        if (!channel->landings[each]->held && channel->landings[each]->views == 0)
            channel->landing = channel->landings[each];
    if (channel->landing != NULL && !channel->landing->touched) {
        memset(channel->taken.memory + channel->landing->at, 0, (size_t)channel->landing->size);
        channel->landing->touched = true;
    }
    return channel->landing != NULL;
}

/* What came into the landing slot: there, or in a compact slot, it stays until it is answered. */
static PyObject *kept_request(Channel *channel, size_t length)
{
    Taken *taken = &channel->taken;
    Landing *landing = channel->landing;
    const char *const came = taken->memory + landing->at;
    const struct fuse_in_header *header = (const struct fuse_in_header *)came;
    if (length < sizeof *header || header->len != length || header->opcode == FUSE_FORGET ||
        header->opcode == FUSE_BATCH_FORGET || header->opcode == FUSE_INTERRUPT) {
        PyObject *other = PyBytes_FromStringAndSize(came, (Py_ssize_t)length);
        taken_empty(taken, landing->at);
        return other;
    }
    const size_t data_at = sizeof *header + sizeof(struct fuse_write_in);
    const bool large = header->opcode == FUSE_WRITE && length >= data_at + LARGE;
    const size_t at = large ? 0 : taken_copy(taken, landing->at, length);
    if (at != 0)
        return request(channel, taken->memory + at, length);
    taken_hold(taken, header->unique, landing->at);
    landing->held = true;
    channel->landing = NULL;
    return request(channel, came, length);
}

static PyObject *channel_take(Channel *channel, PyObject *Py_UNUSED(none))
{
    const bool keeps = channel->taken.memory != NULL;
    if (keeps && !has_landing(channel))
        Py_RETURN_NONE;
    for (;;) {
        char *const at = keeps ? channel->taken.memory + channel->landing->at : PyByteArray_AS_STRING(channel->buffer);
        const Py_ssize_t room = keeps ? channel->landing->size : PyByteArray_GET_SIZE(channel->buffer);
        const ssize_t count = read(channel->fd, at, (size_t)room);
        if (count > 0)
            return keeps ? kept_request(channel, (size_t)count) : request(channel, at, (size_t)count);
        const int why = errno;
        if (keeps)
            taken_empty(&channel->taken, channel->landing->at);
        if (count == 0 || why == ENODEV) {
            channel->gone = true;
            Py_RETURN_NONE;
        }
        if (why == EAGAIN)
            Py_RETURN_NONE;
        if (why == EINVAL && !keeps && room < MOST_BUFFER) {
            PyObject *larger = new_buffer(2 * room);
            if (larger == NULL)
                return NULL;
            Py_SETREF(channel->buffer, larger);
            drop_free(channel);
        } else if (why != ENOENT && why != EINTR) {
            errno = why;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
}

static PyObject *channel_take_up(Channel *channel, PyObject *position)
{
    const size_t at = PyLong_AsSize_t(position);
    if (PyErr_Occurred())
        return NULL;
    Taken *taken = &channel->taken;
    const Slab *slab = taken->memory != NULL ? taken_slab(taken, at) : NULL;
    const struct fuse_in_header *header = slab != NULL ? (const void *)(taken->memory + at) : NULL;
    if (slab == NULL || header->len < sizeof *header || header->len > slab->size)
        return PyErr_Format(PyExc_ValueError, "there is no request");
    for (unsigned each = 0; each < taken->count; each++)
        if (taken->used[each].at == at)
            return PyErr_Format(PyExc_ValueError, "it was taken up before");
    taken_hold(taken, header->unique, at);
    if (slab == &taken->slabs[COMPACT])
        channel->landings[(at - slab->start) / slab->size]->held = true;
    return request(channel, taken->memory + at, header->len);
}

static PyObject *channel_give_back(Channel *channel, PyObject *data)
{
    if (!PyMemoryView_Check(data))
        Py_RETURN_NONE;
    PyObject *buffer = PyObject_GetAttrString(data, "obj"); /* raises ValueError if it was given back before */
    if (buffer == NULL)
        return NULL;
    const bool is_landing = Py_IS_TYPE(buffer, &LandingType);
    if (!is_landing && (!PyByteArray_CheckExact(buffer) || channel->buffer == NULL)) {
        Py_DECREF(buffer);
        return PyErr_Format(PyExc_ValueError, "this is not the data of a request");
    }
    PyObject *released = PyObject_CallMethod(data, "release", NULL);
    if (released == NULL) {
        Py_DECREF(buffer);
        return NULL;
    }
    Py_DECREF(released);
    if (is_landing) {
        Py_DECREF(buffer);
        Py_RETURN_NONE;
    }
    const bool looked_at = ((PyByteArrayObject *)buffer)->ob_exports > 0; /* by a slice that somebody kept */
    if (channel->kept < KEPT && !looked_at && PyByteArray_GET_SIZE(buffer) == PyByteArray_GET_SIZE(channel->buffer))
        channel->free[channel->kept++] = buffer;
    else
        Py_DECREF(buffer);
    Py_RETURN_NONE;
}

static PyObject *channel_trim(Channel *channel, PyObject *Py_UNUSED(none))
{
    drop_free(channel);
    if (channel->taken.memory != NULL) {
        for (unsigned each = 0; each < channel->taken.slabs[COMPACT].slots; each++) {
            Landing *landing = channel->landings[each];
            if (landing->touched && landing != channel->landing && !landing->held && landing->views == 0) {
                taken_punch(&channel->taken, landing->at, landing->at + (size_t)landing->size);
                landing->touched = false;
            }
        }
        taken_trim(&channel->taken);
    }
    Py_RETURN_NONE;
}

/* Its request, if it is kept, needs no memory any more. */
static void answered(Channel *channel, const struct iovec *header)
{
    struct fuse_out_header out;
    if (channel->taken.memory == NULL || header->iov_len < sizeof out)
        return;
    memcpy(&out, header->iov_base, sizeof out);
    const Slab *slots = &channel->taken.slabs[COMPACT];
    const size_t at = taken_answered(&channel->taken, out.unique);
    if (at >= slots->start)
        channel->landings[(at - slots->start) / slots->size]->held = false;
}

static PyObject *send_parts(Channel *channel, const struct iovec *parts, int count)
{
    ssize_t sent;
    do
        sent = writev(channel->fd, parts, count);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno == ENODEV)
        channel->gone = true;
    else if (sent < 0 && errno != ENOENT)
        return PyErr_SetFromErrno(PyExc_OSError);
    answered(channel, parts);
    Py_RETURN_NONE;
}

static PyObject *channel_answer(Channel *channel, PyObject *const *args, Py_ssize_t count)
{
    Py_buffer data;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "answer(unique, data)");
    struct fuse_out_header header = {.unique = PyLong_AsUnsignedLongLong(args[0])};
    if (PyErr_Occurred() || PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    header.len = (uint32_t)(sizeof header + (size_t)data.len);
    const struct iovec parts[2] = {{&header, sizeof header}, {data.buf, (size_t)data.len}};
    PyObject *result = send_parts(channel, parts, 2);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *channel_acknowledge(Channel *channel, PyObject *const *args, Py_ssize_t count)
{
    struct {
        struct fuse_out_header header;
        struct fuse_write_out out;
    } answer = {.header.len = sizeof answer};
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "acknowledge(unique, size)");
    answer.header.unique = PyLong_AsUnsignedLongLong(args[0]);
    answer.out.size = PyErr_Occurred() ? 0 : (uint32_t)PyLong_AsUnsignedLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    return send_parts(channel, &(struct iovec){&answer, sizeof answer}, 1);
}

static PyObject *channel_end(Channel *channel, PyObject *args)
{
    struct fuse_out_header header = {.len = sizeof header};
    unsigned long long unique;
    int code = 0;
    if (!PyArg_ParseTuple(args, "K|i:end", &unique, &code))
        return NULL;
    header.unique = unique;
    header.error = -code;
    return send_parts(channel, &(struct iovec){&header, sizeof header}, 1);
}

static PyObject *channel_write(Channel *channel, PyObject *message)
{
    Py_buffer data;
    if (PyObject_GetBuffer(message, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *result = send_parts(channel, &(struct iovec){data.buf, (size_t)data.len}, 1);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *channel_gone(Channel *channel, void *Py_UNUSED(none)) { return PyBool_FromLong(channel->gone); }

static PyObject *channel_full(Channel *channel, void *Py_UNUSED(none))
{
    return PyBool_FromLong(channel->taken.memory != NULL && !has_landing(channel));
}

/* slabs: (start, size, slots) of each, as in device/worker/taken.py. */
static bool keep(Channel *channel, PyObject *memory, int fd, PyObject *slabs)
{
    size_t table[SLABS][3];
    if (!PyArg_ParseTuple(slabs, "(nnn)(nnn)(nnn)(nnn);four slabs", &table[0][0], &table[0][1], &table[0][2],
                          &table[1][0], &table[1][1], &table[1][2], &table[2][0], &table[2][1], &table[2][2],
                          &table[3][0], &table[3][1], &table[3][2]) ||
        PyObject_GetBuffer(memory, &channel->memory, PyBUF_WRITABLE) < 0)
        return false;
    if (!taken_open(&channel->taken, channel->memory.buf, (size_t)channel->memory.len, fd, table)) {
        PyErr_SetString(PyExc_ValueError, "these are no slabs");
        return false;
    }
    const Slab *slots = &channel->taken.slabs[COMPACT];
    channel->landings = PyMem_Calloc(slots->slots, sizeof *channel->landings);
    for (unsigned each = 0; channel->landings != NULL && each < slots->slots; each++) {
        Landing *landing = channel->landings[each] = PyObject_New(Landing, &LandingType);
        if (landing == NULL)
            return false;
        landing->at = slots->start + each * slots->size;
        landing->size = (Py_ssize_t)slots->size;
        landing->views = 0;
        landing->held = landing->touched = false;
        landing->memory.obj = NULL;
        if (PyObject_GetBuffer(memory, &landing->memory, PyBUF_WRITABLE) < 0)
            return false;
    }
    return channel->landings != NULL || PyErr_NoMemory();
}

static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    int fd, memory_fd = -1;
    Py_ssize_t most;
    PyObject *memory = NULL, *slabs = NULL;
    if (!PyArg_ParseTuple(args, "in|OiO!:Channel", &fd, &most, &memory, &memory_fd, &PyTuple_Type, &slabs))
        return NULL;
    if (most < 0 || most > MOST_BUFFER)
        return PyErr_Format(PyExc_ValueError, "no size of a write");
    Channel *channel = (Channel *)type->tp_alloc(type, 0);
    if (channel == NULL)
        return NULL;
    channel->fd = fd;
    if (slabs != NULL ? !keep(channel, memory, memory_fd, slabs) : (channel->buffer = new_buffer(most + ROOM)) == NULL)
        Py_CLEAR(channel);
    return (PyObject *)channel;
}

static void channel_dealloc(Channel *channel)
{
    Py_CLEAR(channel->buffer);
    drop_free(channel);
    for (unsigned each = 0; channel->landings != NULL && each < channel->taken.slabs[COMPACT].slots; each++)
        Py_XDECREF(channel->landings[each]);
    PyMem_Free(channel->landings);
    taken_close(&channel->taken);
    if (channel->memory.obj != NULL)
        PyBuffer_Release(&channel->memory);
    Py_TYPE(channel)->tp_free(channel);
}

static int landing_getbuffer(Landing *landing, Py_buffer *view, int flags)
{
    char *const at = (char *)landing->memory.buf + landing->at;
    if (PyBuffer_FillInfo(view, (PyObject *)landing, at, landing->size, 0, flags) < 0)
        return -1;
    landing->views++;
    return 0;
}

static void landing_releasebuffer(Landing *landing, Py_buffer *Py_UNUSED(view)) { landing->views--; }

static void landing_dealloc(Landing *landing)
{
    if (landing->memory.obj != NULL)
        PyBuffer_Release(&landing->memory);
    PyObject_Free(landing);
}

static PyMethodDef methods[] = {
    {"take", (PyCFunction)channel_take, METH_NOARGS, NULL},
    {"take_up", (PyCFunction)channel_take_up, METH_O, NULL},
    {"give_back", (PyCFunction)channel_give_back, METH_O, NULL},
    {"trim", (PyCFunction)channel_trim, METH_NOARGS, NULL},
    {"answer", (PyCFunction)(void (*)(void))channel_answer, METH_FASTCALL, NULL},
    {"acknowledge", (PyCFunction)(void (*)(void))channel_acknowledge, METH_FASTCALL, NULL},
    {"end", (PyCFunction)channel_end, METH_VARARGS, NULL},
    {"write", (PyCFunction)channel_write, METH_O, NULL},
    {0},
};

static PyGetSetDef getters[] = {
    {"gone", (getter)channel_gone, NULL, NULL, NULL},
    {"full", (getter)channel_full, NULL, NULL, NULL},
    {0},
};

static PyBufferProcs landing_buffer = {
    .bf_getbuffer = (getbufferproc)landing_getbuffer,
    .bf_releasebuffer = (releasebufferproc)landing_releasebuffer,
};

static PyTypeObject LandingType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = MODULE ".Landing",
    .tp_basicsize = sizeof(Landing),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)landing_dealloc,
    .tp_as_buffer = &landing_buffer,
};

static PyTypeObject ChannelType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = MODULE ".Channel",
    .tp_basicsize = sizeof(Channel),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = channel_new,
    .tp_dealloc = (destructor)channel_dealloc,
    .tp_methods = methods,
    .tp_getset = getters,
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = MODULE, .m_size = -1};

PyMODINIT_FUNC PyInit__channel(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (PyType_Ready(&LandingType) < 0 || PyModule_AddType(module, &ChannelType) < 0))
        Py_CLEAR(module);
    return module;
}
