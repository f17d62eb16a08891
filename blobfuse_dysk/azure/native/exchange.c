/* The exchange of Get Blob (a range) and Put Page on a plain socket: the quick way of azure/plain.py.
 *
 * Theory. A Line is one connected, non-blocking socket. `start` sends a request with one sendmsg and, if the socket took
 * all of it, waits for the answer: the Line keeps the trio task that asked. All Lines of a pool are registered, edge
 * triggered and for good, with one epoll, the Ready; one task of the pool waits for that to become readable and calls
 * `collect`, which receives on each Line that has something and returns the tasks whose exchange has ended. So a request
 * costs no epoll_ctl and no task of its own in trio's I/O manager, and answers that came together are received together.
 * Then `take` says what came of it:
 *
 *   plain     the answer is the one that is expected (answer.h), and whole: its body. The connection can go on.
 *   odd       anything else. `begun` has the bytes that were read; what they mean, and whether the connection goes on, is
 *             for Connection._read_reply to say, as if it had read them. Nothing was dropped, nothing is decided here.
 *   failed    OSError, as recv(2) gave it; EOFError where the stream ended. Mapped to TransportError by Connection.
 *   stopped   by `stop`: cancelled, or expired. The answer is still on its way; the connection is closed.
 *
 * What the socket does not take at once is left to Connection._send_all, and the whole answer to the Python path with it.
 *
 *   IDLE --start, all sent--> HEAD --plain head--> BODY --all of it--> PLAIN
 *                              |  \--whole at once------------------->  |
 *                              |--odd--> ODD      |--end, error--> FAILED
 *   HEAD, BODY --stop--> IDLE                PLAIN, ODD, FAILED --take--> IDLE      any --close--> CLOSED
 *
 * Invariants: a task is kept in HEAD and BODY only, and is given out once. In BODY `got` < `length`, which is what the
 * caller asked for: it is checked at `start`, and the head that was taken said the same. What comes in IDLE is left in
 * the socket, where `quiet` finds it before the next request. A Line is found by slot and generation, so an event of a
 * socket that is gone (another process may keep the description open for a moment after a fork) finds nothing.
 *
 * Bounds: the head lies in one static buffer of 64 KiB, filled and read without a pause (the GIL is held, there are no
 * threads); a body is as long as the caller asked for, MOST_BODY at most, and is taken when a head that promises just
 * that has come; MOST_LINES sockets; MOST_EVENTS of them at a time. No secret is kept: heads come from heads.c as bytes.
 */

#include "module.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "answer.h"

enum { MOST_BODY = 1 << 20, MOST_LINES = 1024, MOST_EVENTS = 256, SCRATCH = 64 << 10 };

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

struct Line {
    PyObject_HEAD
    Ready *ready;
    int fd;
    uint32_t slot;
    enum state state;
    struct wanted wanted;
    uint64_t got;    /* bytes of the body */
    int error;       /* FAILED: errno, 0 for the end of the stream */
    bool heard;      /* something of the answer was received */
    PyObject *body;  /* bytes: the body, or in ODD what was read */
    PyObject *task;  /* who waits */
};

static char scratch[SCRATCH];

/* Receiving. Nothing here can run Python code: no object is made that the garbage collector counts. */

static void head_came(Line *line, size_t size)
{
    const size_t start = plain_head(scratch, size, &line->wanted);
    const size_t rest = size - start;
    if (start == 0 || rest > line->wanted.length ||
        (line->body = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)line->wanted.length)) == NULL) {
        PyErr_Clear();
        line->body = PyBytes_FromStringAndSize(scratch, (Py_ssize_t)size);
        line->state = ODD;
        if (line->body == NULL) { /* no memory for it, so there is no answer */
            PyErr_Clear();
            line->error = ENOMEM;
            line->state = FAILED;
        }
        return;
    }
    memcpy(PyBytes_AS_STRING(line->body), scratch + start, rest);
    line->got = rest;
    line->state = rest == line->wanted.length ? PLAIN : BODY;
}

static void receive(Line *line)
{
    while (line->state == HEAD || line->state == BODY) {
        ssize_t count;
        if (line->state == HEAD)
            count = recv(line->fd, scratch, sizeof scratch, MSG_DONTWAIT);
        else
            count = recv(line->fd, PyBytes_AS_STRING(line->body) + line->got,
                         (size_t)(line->wanted.length - line->got), MSG_DONTWAIT);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        line->heard |= count > 0;
        if (count <= 0) {
            line->error = count < 0 ? errno : 0;
            line->state = FAILED;
        } else if (line->state == HEAD) {
            head_came(line, (size_t)count);
        } else if ((line->got += (uint64_t)count) == line->wanted.length) {
            line->state = PLAIN;
        }
    }
}

/* Line */

static PyObject *line_start(Line *line, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 || !PyBytes_Check(args[0]))
        return PyErr_Format(PyExc_TypeError, "start(head, body, offset, length, task)");
    if (line->state != IDLE)
        return PyErr_Format(PyExc_RuntimeError, "an exchange is going on, or the line is closed");
    const unsigned long long offset = PyLong_AsUnsignedLongLong(args[2]);
    const unsigned long long length = PyErr_Occurred() ? 0 : PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    const bool writes = args[1] != Py_None;
    if (!writes && (length == 0 || length > MOST_BODY || offset > INT64_MAX))
        return PyErr_Format(PyExc_ValueError, "no range for this way");
    Py_buffer body = {.buf = NULL, .len = 0};
    if (writes && PyObject_GetBuffer(args[1], &body, PyBUF_SIMPLE) < 0)
        return NULL;

    line->heard = false;
    struct iovec parts[2] = {{PyBytes_AS_STRING(args[0]), (size_t)PyBytes_GET_SIZE(args[0])},
                             {body.buf, (size_t)body.len}};
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = writes ? 2 : 1};
    ssize_t sent;
    do
        sent = sendmsg(line->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (writes)
        PyBuffer_Release(&body); /* errno stays: nobody's code runs */
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (sent >= 0 && (size_t)sent == parts[0].iov_len + (writes ? parts[1].iov_len : 0)) {
        Py_CLEAR(line->body);
        line->wanted = (struct wanted){writes ? 201 : 206, offset, writes ? 0 : length};
        line->task = Py_NewRef(args[4]);
        line->state = HEAD;
    }
    return PyLong_FromSsize_t(sent < 0 ? 0 : sent);
}

static PyObject *line_take(Line *line, PyObject *Py_UNUSED(none))
{
    PyObject *body = line->body;
    switch (line->state) {
    case PLAIN:
        line->body = NULL;
        line->state = IDLE;
        return body;
    case ODD: /* `begun` has it, until the next exchange */
        line->state = IDLE;
        Py_RETURN_NONE;
    case FAILED:
        line->state = IDLE;
        Py_CLEAR(line->body);
        if (line->error == 0)
            return PyErr_Format(PyExc_EOFError, "the stream ended");
        errno = line->error;
        return PyErr_SetFromErrno(PyExc_OSError);
    default:
        return PyErr_Format(PyExc_RuntimeError, "no exchange has ended");
    }
}

static PyObject *line_begun(Line *line, PyObject *Py_UNUSED(none))
{
    PyObject *begun = line->body;
    if (begun == NULL || line->state != IDLE)
        return PyErr_Format(PyExc_RuntimeError, "nothing was left over");
    line->body = NULL;
    return begun;
}

static PyObject *line_heard(Line *line, PyObject *Py_UNUSED(none)) { return PyBool_FromLong(line->heard); }

static PyObject *line_stop(Line *line, PyObject *Py_UNUSED(none))
{
    PyObject *task = line->task;
    line->task = NULL;
    if (line->state == HEAD || line->state == BODY) {
        line->state = IDLE;
        Py_CLEAR(line->body);
    }
    return task != NULL ? task : Py_NewRef(Py_None);
}

static PyObject *line_quiet(Line *line, PyObject *Py_UNUSED(none))
{
    char byte;
    return PyBool_FromLong(recv(line->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
                           (errno == EAGAIN || errno == EWOULDBLOCK));
}

static PyObject *line_close(Line *line, PyObject *Py_UNUSED(none))
{
    if (line->state != CLOSED) {
        line->state = CLOSED;
        line->ready->slots[line->slot].line = NULL;
        epoll_ctl(line->ready->fd, EPOLL_CTL_DEL, line->fd, NULL); /* fails where the socket is gone already */
        Py_CLEAR(line->body);
        Py_CLEAR(line->task);
    }
    Py_RETURN_NONE;
}

static PyObject *line_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    Ready *ready;
    int fd;
    if (!PyArg_ParseTuple(args, "O!i:Line", &ReadyType, &ready, &fd))
        return NULL;
    uint32_t slot = 0;
    while (slot < MOST_LINES && ready->slots[slot].line != NULL)
        slot++;
    if (slot == MOST_LINES)
        return PyErr_Format(PyExc_ValueError, "%d lines are open", MOST_LINES);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    event.data.u64 = (uint64_t)++ready->slots[slot].generation << 32 | slot;
    if (epoll_ctl(ready->fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Line *line = (Line *)type->tp_alloc(type, 0);
    if (line == NULL) {
        epoll_ctl(ready->fd, EPOLL_CTL_DEL, fd, NULL);
        return NULL;
    }
    line->ready = (Ready *)Py_NewRef((PyObject *)ready);
    line->fd = fd;
    line->slot = slot;
    ready->slots[slot].line = line;
    return (PyObject *)line;
}

static int line_traverse(Line *line, visitproc visit, void *arg)
{
    Py_VISIT(line->task);
    return 0;
}

static int line_clear(Line *line)
{
    Py_DECREF(line_close(line, NULL));
    return 0;
}

static void line_dealloc(Line *line)
{
    PyObject_GC_UnTrack(line);
    line_clear(line);
    Py_DECREF(line->ready);
    Py_TYPE(line)->tp_free(line);
}

static PyMethodDef line_methods[] = {
    {"start", (PyCFunction)(void (*)(void))line_start, METH_FASTCALL, NULL},
    {"take", (PyCFunction)line_take, METH_NOARGS, NULL},
    {"begun", (PyCFunction)line_begun, METH_NOARGS, NULL},
    {"heard", (PyCFunction)line_heard, METH_NOARGS, NULL},
    {"stop", (PyCFunction)line_stop, METH_NOARGS, NULL},
    {"quiet", (PyCFunction)line_quiet, METH_NOARGS, NULL},
    {"close", (PyCFunction)line_close, METH_NOARGS, NULL},
    {0},
};

PyTypeObject LineType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = MODULE ".Line",
    .tp_basicsize = sizeof(Line),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = line_new,
    .tp_dealloc = (destructor)line_dealloc,
    .tp_traverse = (traverseproc)line_traverse,
    .tp_clear = (inquiry)line_clear,
    .tp_methods = line_methods,
};

/* Ready */

static PyObject *ready_collect(Ready *ready, PyObject *Py_UNUSED(none))
{
    PyObject *tasks = PyList_New(0);
    if (tasks == NULL)
        return NULL;
    struct epoll_event events[MOST_EVENTS];
    const int count = epoll_wait(ready->fd, events, MOST_EVENTS, 0);
    if (count < 0 && errno != EINTR) {
        Py_DECREF(tasks);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    for (int i = 0; i < count; i++) {
        const uint32_t slot = (uint32_t)events[i].data.u64;
        Line *line = ready->slots[slot].line;
        if (line == NULL || ready->slots[slot].generation != events[i].data.u64 >> 32)
            continue;
        receive(line);
        if (line->task != NULL && line->state != HEAD && line->state != BODY) {
            if (PyList_Append(tasks, line->task) == 0)
                Py_CLEAR(line->task);
            else /* no memory for it: the time limit ends the wait */
                PyErr_Clear();
        }
    }
    return tasks;
}

static PyObject *ready_fileno(Ready *ready, PyObject *Py_UNUSED(none)) { return PyLong_FromLong(ready->fd); }

static PyObject *ready_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(keywords))
{
    Ready *ready = (Ready *)type->tp_alloc(type, 0);
    if (ready != NULL && (ready->fd = epoll_create1(EPOLL_CLOEXEC)) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_CLEAR(ready);
    }
    return (PyObject *)ready;
}

static void ready_dealloc(Ready *ready)
{
    if (ready->fd >= 0)
        close(ready->fd);
    Py_TYPE(ready)->tp_free(ready);
}

static PyMethodDef ready_methods[] = {
    {"collect", (PyCFunction)ready_collect, METH_NOARGS, NULL},
    {"fileno", (PyCFunction)ready_fileno, METH_NOARGS, NULL},
    {0},
};

PyTypeObject ReadyType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = MODULE ".Ready",
    .tp_basicsize = sizeof(Ready),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = ready_new,
    .tp_dealloc = (destructor)ready_dealloc,
    .tp_methods = ready_methods,
};

/* The module */

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = MODULE, .m_size = -1};

PyMODINIT_FUNC PyInit__exchange(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddType(module, &LineType) < 0 || PyModule_AddType(module, &ReadyType) < 0 ||
        PyModule_AddType(module, &HeadsType) < 0 || PyModule_AddIntConstant(module, "MOST_BODY", MOST_BODY) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
