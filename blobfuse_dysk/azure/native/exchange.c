/* The exchange of Get Blob (a range) and Put Page on a connected socket: the quick way of azure/plain.py.
 *
 * Theory. A Line is one connected, non-blocking socket, as it is or with TLS (tls.c). `start` sends a request by one call
 * and, if the socket took all of it, waits for the answer: the Line keeps the trio task that asked. All Lines of a pool
 * are registered, edge triggered and for good, with one epoll, the Ready; one task of the pool waits for that to become
 * readable and calls `collect`, which receives on each Line that has something and returns the tasks whose exchange has
 * ended. So a request costs no epoll_ctl and no task of its own in trio's I/O manager, and answers that came together are
 * received together. Then `take` says what came of it:
 *
 *   plain     the answer is the one that is expected (answer.h), and whole: its body. The connection can go on.
 *   odd       anything else. `begun` has the bytes that were read; what they mean, and whether the connection goes on, is
 *             for Connection._read_reply to say, as if it had read them. Nothing was dropped, nothing is decided here.
 *   failed    OSError, as recv(2) or ssl gave it; EOFError where the stream ended. Mapped to TransportError by Connection.
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
 * An edge comes once. So `receive` goes on until the answer has ended or the descriptor has said that nothing is there
 * now; over TLS that is asked only after all that had come before was decrypted.
 *
 * Python code runs in the calls of tls.c, and nowhere else: without TLS no object is made here that the garbage collector
 * counts. That code may be a finalizer's or a signal handler's, and may call any method of any Line. So around such a call
 * the Line is held, and `busy`: it neither starts nor receives a second time. It may be stopped or closed at any time; then
 * its state is another one afterwards, and what came is dropped, as the connection is of no use any more. `collect` looks
 * into the slots anew for each event, and at the task after the call. ssl lets go of the GIL, so nothing static is in use
 * meanwhile, and nothing is lent.
 *
 * Bounds: the head lies in one static buffer of 64 KiB, filled and read without a pause (the GIL is held, there are no
 * threads), or in what ssl returned, of a record at most; a body is as long as the caller asked for, MOST_BODY at most,
 * and is taken when a head that promises just that has come; MOST_LINES sockets; MOST_EVENTS of them at a time. No secret
 * is kept: heads come from heads.c as bytes.
 */

#include "exchange.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { SCRATCH = 64 << 10 };

static char scratch[SCRATCH];

bool is_quiet(int fd)
{
    char byte;
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

/* Receiving */

static void head_came(Line *line, const char *data, size_t size)
{
    const size_t start = plain_head(data, size, &line->wanted);
    const size_t rest = size - start;
    if (start == 0 || rest > line->wanted.length ||
        (line->body = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)line->wanted.length)) == NULL) {
        PyErr_Clear();
        line->body = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
        line->state = ODD;
        if (line->body == NULL) { /* no memory for it, so there is no answer */
            PyErr_Clear();
            line->error = ENOMEM;
            line->state = FAILED;
        }
        return;
    }
    memcpy(PyBytes_AS_STRING(line->body), data + start, rest);
    line->got = rest;
    line->state = rest == line->wanted.length ? PLAIN : BODY;
}

static void failed(Line *line)
{
    PyObject *type, *trace;
    PyErr_Fetch(&type, &line->failure, &trace);
    PyErr_NormalizeException(&type, &line->failure, &trace);
    if (trace != NULL)
        PyException_SetTraceback(line->failure, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    line->state = FAILED;
}

/* Takes what recv(2) or ssl brought to a line that waits; in BODY it is in its place. False if no more is there now. */
static bool came(Line *line, const char *data, ssize_t count, int error)
{
    if (count < 0 && error == EINTR)
        return true;
    if (count < 0 && (error == EAGAIN || error == EWOULDBLOCK))
        return false;
    line->heard |= count > 0;
    if (count <= 0) {
        line->error = count < 0 ? error : 0;
        line->state = FAILED;
    } else if (line->state == HEAD) {
        head_came(line, data, (size_t)count);
    } else if ((line->got += (uint64_t)count) == line->wanted.length) {
        line->state = PLAIN;
    }
    return true;
}

static bool receive_tls(Line *line, char *into, size_t size)
{
    const enum state before = line->state;
    PyObject *const data = tls_receive(line, size);
    const int error = errno;
    bool more = false;
    if (line->state != before) { /* stopped or closed meanwhile: what came is nobody's, and `into` may be gone */
        PyErr_Clear();
    } else if (data != NULL) {
        if (before == BODY)
            memcpy(into, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data));
        more = came(line, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), 0);
    } else if (PyErr_Occurred()) {
        failed(line);
    } else {
        more = came(line, NULL, -1, error);
    }
    Py_XDECREF(data);
    return more;
}

void receive(Line *line)
{
    bool more = !line->busy;
    while (more && is_waiting(line)) {
        const bool begins = line->state == HEAD;
        char *const into = begins ? scratch : PyBytes_AS_STRING(line->body) + line->got;
        const size_t size = begins ? sizeof scratch : (size_t)(line->wanted.length - line->got);
        if (line->tls.object != NULL) {
            more = receive_tls(line, into, size);
        } else {
            const ssize_t count = recv(line->fd, into, size, MSG_DONTWAIT);
            more = came(line, into, count, errno);
        }
    }
}

/* Line */

/* Sends at once; returns how many bytes were sent, RAISED with an exception set. */
static Py_ssize_t send_parts(int fd, PyObject *head, const Py_buffer *body)
{
    struct iovec parts[2] = {{PyBytes_AS_STRING(head), (size_t)PyBytes_GET_SIZE(head)}, {body->buf, (size_t)body->len}};
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = body->buf ? 2 : 1};
    ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (sent < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    return sent < 0 ? RAISED : sent;
}

static PyObject *line_start(Line *line, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5 || !PyBytes_Check(args[0]))
        return PyErr_Format(PyExc_TypeError, "start(head, body, offset, length, task)");
    if (line->state != IDLE || line->busy)
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
    const Py_ssize_t sent = line->tls.object ? tls_send(line, args[0], body.buf, (size_t)body.len)
                                             : send_parts(line->fd, args[0], &body);
    const bool whole = sent == PyBytes_GET_SIZE(args[0]) + body.len;
    if (writes)
        PyBuffer_Release(&body);
    if (sent == RAISED)
        return NULL;
    if (whole) {
        Py_CLEAR(line->body);
        line->wanted = (struct wanted){writes ? 201 : 206, offset, writes ? 0 : length};
        line->task = Py_NewRef(args[4]);
        line->state = HEAD;
    }
    return PyLong_FromSsize_t(sent);
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
        if (line->failure != NULL) {
            PyObject *failure = line->failure;
            line->failure = NULL;
            PyErr_SetObject((PyObject *)Py_TYPE(failure), failure);
            Py_DECREF(failure);
            return NULL;
        }
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
    if (is_waiting(line)) {
        line->state = IDLE;
        Py_CLEAR(line->body);
    }
    return task != NULL ? task : Py_NewRef(Py_None);
}

static PyObject *line_quiet(Line *line, PyObject *Py_UNUSED(none))
{
    if (line->tls.object == NULL)
        return PyBool_FromLong(is_quiet(line->fd));
    if (line->busy)
        Py_RETURN_FALSE;
    const int quiet = tls_is_quiet(line);
    return quiet < 0 ? NULL : PyBool_FromLong(quiet);
}

static PyObject *line_close(Line *line, PyObject *Py_UNUSED(none))
{
    if (line->state != CLOSED) {
        line->state = CLOSED;
        line->ready->slots[line->slot].line = NULL;
        epoll_ctl(line->ready->fd, EPOLL_CTL_DEL, line->fd, NULL); /* fails where the socket is gone already */
        Py_CLEAR(line->body);
        Py_CLEAR(line->task);
        Py_CLEAR(line->failure);
        Py_CLEAR(line->tls.object);
        Py_CLEAR(line->tls.incoming);
        Py_CLEAR(line->tls.outgoing);
    }
    Py_RETURN_NONE;
}

static PyObject *line_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    Ready *ready;
    int fd;
    struct tls tls = {.object = NULL};
    Py_ssize_t most = 0;
    if (!PyArg_ParseTuple(args, "O!i|OOOn:Line", &ReadyType, &ready, &fd, &tls.object, &tls.incoming, &tls.outgoing,
                          &most))
        return NULL;
    if (tls.object != NULL && (most <= 0 || !tls_load()))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "Line(ready, fd, tls, incoming, outgoing, most)");
    tls.most = (size_t)most;
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
    line->tls = tls;
    Py_XINCREF(tls.object);
    Py_XINCREF(tls.incoming);
    Py_XINCREF(tls.outgoing);
    return (PyObject *)line;
}

static int line_traverse(Line *line, visitproc visit, void *arg)
{
    Py_VISIT(line->task);
    Py_VISIT(line->failure);
    Py_VISIT(line->tls.object);
    Py_VISIT(line->tls.incoming);
    Py_VISIT(line->tls.outgoing);
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
