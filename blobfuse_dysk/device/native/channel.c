/* The FUSE device: reads the kernel's requests, writes the answers. The same as Channel in device/worker/channel.py, which
 * has the theory and is what this is compared with (tests/unit/test_channel.py).
 *
 * Bounds: a request is as long as read(2) says, and is looked at only if that is as long as its own header says and as
 * its kind needs; the data of a WRITE must be all of what follows. What does not fit is handed on as it is, for pyfuse3
 * to refuse. The buffers are bytearrays, which stay at their place while a memoryview of them exists.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <sys/uio.h>
#include <unistd.h>

#define MODULE "blobfuse_dysk.device.native._channel"

enum { LARGE = 64 << 10, ROOM = 8 << 10, MOST_BUFFER = 512 << 20, KEPT = 64 };

typedef struct {
    PyObject_HEAD
    int fd;
    bool gone;
    PyObject *buffer;     /* a bytearray, where the next request comes */
    PyObject *free[KEPT]; /* bytearrays of the same size: the first `kept` */
    int kept;
} Channel;

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

/* The data of a large WRITE: a view of the buffer, in whose place comes another one. */
static PyObject *hand_over(Channel *channel, size_t start, size_t size)
{
    PyObject *next = channel->kept > 0 ? channel->free[--channel->kept]
                                       : new_buffer(PyByteArray_GET_SIZE(channel->buffer));
    if (next == NULL)
        return NULL;
    PyObject *whole = PyMemoryView_FromObject(channel->buffer);
    PyObject *data = whole != NULL ? PySequence_GetSlice(whole, (Py_ssize_t)start, (Py_ssize_t)(start + size)) : NULL;
    Py_XDECREF(whole);
    if (data == NULL) {
        Py_DECREF(next);
        return NULL;
    }
    Py_SETREF(channel->buffer, next);
    return data;
}

static PyObject *request(Channel *channel, size_t length)
{
    const char *const at = PyByteArray_AS_STRING(channel->buffer);
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
                                      : hand_over(channel, start, size);
        return data != NULL ? Py_BuildValue("iKKIN", FUSE_WRITE, unique, offset, size, data) : NULL;
    }
    if (header->opcode == FUSE_FSYNC)
        return Py_BuildValue("iKiiO", FUSE_FSYNC, unique, 0, 0, Py_None);
    return PyBytes_FromStringAndSize(at, (Py_ssize_t)length);
}

static PyObject *channel_take(Channel *channel, PyObject *Py_UNUSED(none))
{
    for (;;) {
        const Py_ssize_t room = PyByteArray_GET_SIZE(channel->buffer);
        const ssize_t count = read(channel->fd, PyByteArray_AS_STRING(channel->buffer), (size_t)room);
        if (count > 0)
            return request(channel, (size_t)count);
        if (count == 0 || errno == ENODEV) {
            channel->gone = true;
            Py_RETURN_NONE;
        }
        if (errno == EAGAIN)
            Py_RETURN_NONE;
        if (errno == EINVAL && room < MOST_BUFFER) {
            PyObject *larger = new_buffer(2 * room);
            if (larger == NULL)
                return NULL;
            Py_SETREF(channel->buffer, larger);
            drop_free(channel);
        } else if (errno != ENOENT && errno != EINTR) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
}

static PyObject *channel_give_back(Channel *channel, PyObject *data)
{
    if (!PyMemoryView_Check(data))
        Py_RETURN_NONE;
    PyObject *buffer = PyObject_GetAttrString(data, "obj"); /* raises ValueError if it was given back before */
    if (buffer == NULL)
        return NULL;
    if (!PyByteArray_CheckExact(buffer)) {
        Py_DECREF(buffer);
        return PyErr_Format(PyExc_ValueError, "this is not the data of a request");
    }
    PyObject *released = PyObject_CallMethod(data, "release", NULL);
    if (released == NULL) {
        Py_DECREF(buffer);
        return NULL;
    }
    Py_DECREF(released);
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
    Py_RETURN_NONE;
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

static PyObject *channel_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    int fd;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "in:Channel", &fd, &most))
        return NULL;
    if (most < 0 || most > MOST_BUFFER)
        return PyErr_Format(PyExc_ValueError, "no size of a write");
    Channel *channel = (Channel *)type->tp_alloc(type, 0);
    if (channel == NULL)
        return NULL;
    channel->fd = fd;
    if ((channel->buffer = new_buffer(most + ROOM)) == NULL)
        Py_CLEAR(channel);
    return (PyObject *)channel;
}

static void channel_dealloc(Channel *channel)
{
    Py_CLEAR(channel->buffer);
    drop_free(channel);
    Py_TYPE(channel)->tp_free(channel);
}

static PyMethodDef methods[] = {
    {"take", (PyCFunction)channel_take, METH_NOARGS, NULL},
    {"give_back", (PyCFunction)channel_give_back, METH_O, NULL},
    {"trim", (PyCFunction)channel_trim, METH_NOARGS, NULL},
    {"answer", (PyCFunction)(void (*)(void))channel_answer, METH_FASTCALL, NULL},
    {"acknowledge", (PyCFunction)(void (*)(void))channel_acknowledge, METH_FASTCALL, NULL},
    {"end", (PyCFunction)channel_end, METH_VARARGS, NULL},
    {"write", (PyCFunction)channel_write, METH_O, NULL},
    {0},
};

static PyGetSetDef getters[] = {{"gone", (getter)channel_gone, NULL, NULL, NULL}, {0}};

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
    if (module != NULL && PyModule_AddType(module, &ChannelType) < 0)
        Py_CLEAR(module);
    return module;
}
