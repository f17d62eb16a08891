/* Sending and receiving over TLS: Python's own ssl.SSLObject, called from C.
 *
 * Theory. Keys, certificates and names are the affair of Python's ssl, and so of the system's OpenSSL: TlsConnection has
 * done the handshake before a Line has the object, nothing of it is decided here, and nothing is linked. The object does
 * no I/O: it reads from one ssl.MemoryBIO what was received, and writes into another what is to be sent. So the socket is
 * this side's, and a request costs one send(2) and, as a rule, one recv(2), as without TLS, however many records there
 * are. All that is called is public: read, write and pending of SSLObject, read, write and pending of MemoryBIO.
 *
 * State is in these three alone, so that Python can go on at any time. `incoming` has what is not decrypted yet, and the
 * object itself never something that is, between two reads: a read that gives less than was asked for has used up its
 * record, and one that gives just that has ended the answer, where tls_is_quiet asks. `outgoing` has what is to be sent
 * before anything else: what the socket has not taken, and what TLS says for itself (it answers a request for new keys).
 * That is sent as soon as nothing else is to be read; what the socket does not take then goes with the next request.
 *
 * That a record is not whole yet is an exception of ssl, which costs as much as two system calls. It is met only when a
 * record comes in pieces: as long as `incoming` is empty nobody asks.
 *
 * Each call of the SSLObject runs Python code, which may do anything: a signal's handler, a finalizer that closes the very
 * Line, and with it the descriptor, whose number then is another's. So the three objects are held, and the descriptor is
 * touched only if the line's state is that from before the call. No memory is lent to that code: what goes in and what
 * comes out are bytes objects.
 */

#include "exchange.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

enum { READ, WRITE, PENDING, NAMES };
enum { RECORD = 16 << 10, MOST_RECEIVED = 64 << 10 }; /* bytes: plain text of a record at most; what is taken in at once */

static PyObject *names[NAMES];     /* interned */
static PyObject *want_read_error; /* of ssl */

bool tls_load(void)
{
    static const char *const spelled[NAMES] = {"read", "write", "pending"};
    for (int i = 0; i < NAMES; i++)
        if (names[i] == NULL && (names[i] = PyUnicode_InternFromString(spelled[i])) == NULL)
            return false;
    PyObject *ssl = want_read_error == NULL ? PyImport_ImportModule("ssl") : NULL;
    if (ssl != NULL) {
        want_read_error = PyObject_GetAttrString(ssl, "SSLWantReadError");
        Py_DECREF(ssl);
    }
    return want_read_error != NULL;
}

/* A number from a call or an attribute, which is taken over; -1 with an exception set. */
static Py_ssize_t number_of(PyObject *result)
{
    if (result == NULL)
        return -1;
    const Py_ssize_t number = PyLong_AsSsize_t(result);
    Py_DECREF(result);
    if (number < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "ssl counts below zero");
    return number;
}

static struct tls hold(Line *line)
{
    line->busy = true;
    Py_INCREF(line->tls.object);
    Py_INCREF(line->tls.incoming);
    Py_INCREF(line->tls.outgoing);
    return line->tls;
}

static void let_go(Line *line, struct tls *tls)
{
    line->busy = false;
    Py_CLEAR(tls->object);
    Py_CLEAR(tls->incoming);
    Py_CLEAR(tls->outgoing);
}

static bool put(PyObject *bio, PyObject *bytes)
{
    PyObject *done = PyObject_CallMethodOneArg(bio, names[WRITE], bytes);
    Py_XDECREF(done);
    return done != NULL;
}

/* Sends what is in `outgoing`, as much as the socket takes; what is left stays there. False with an exception set. */
static bool flush(const struct tls *tls, int fd, bool *all)
{
    PyObject *data = PyObject_CallMethodNoArgs(tls->outgoing, names[READ]);
    if (data == NULL)
        return false;
    if (!PyBytes_Check(data)) {
        Py_DECREF(data);
        PyErr_SetString(PyExc_TypeError, "outgoing is an ssl.MemoryBIO");
        return false;
    }
    const size_t length = (size_t)PyBytes_GET_SIZE(data);
    ssize_t sent = 0;
    while (length > 0 && (sent = send(fd, PyBytes_AS_STRING(data), length, MSG_DONTWAIT | MSG_NOSIGNAL)) < 0)
        if (errno != EINTR)
            break;
    bool fine = true;
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
        PyErr_SetFromErrno(PyExc_OSError);
        fine = false;
    }
    sent = sent < 0 ? 0 : sent;
    *all = (size_t)sent == length;
    if (fine && !*all) {
        PyObject *rest = PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + sent, (Py_ssize_t)length - sent);
        fine = rest != NULL && put(tls->outgoing, rest);
        Py_XDECREF(rest);
    }
    Py_DECREF(data);
    return fine;
}

static Py_ssize_t write_and_send(Line *line, const struct tls *tls, PyObject *data)
{
    const Py_ssize_t total = PyBytes_GET_SIZE(data);
    const Py_ssize_t taken = number_of(PyObject_CallMethodOneArg(tls->object, names[WRITE], data));
    if (line->state != IDLE) {
        PyErr_SetString(PyExc_RuntimeError, "the line is closed");
        return RAISED;
    }
    if (taken < 0 && PyErr_ExceptionMatches(PyExc_OSError)) {
        PyErr_Clear(); /* TlsConnection meets the same */
        return 0;
    }
    if (taken >= 0 && taken != total)
        PyErr_SetString(PyExc_ValueError, "a part of a record was written");
    bool all;
    if (PyErr_Occurred() || !flush(tls, line->fd, &all))
        return RAISED;
    return all ? total : HELD;
}

Py_ssize_t tls_send(Line *line, PyObject *head, const char *body, size_t length)
{
    const size_t start = (size_t)PyBytes_GET_SIZE(head);
    if (start + length > line->tls.most)
        return 0;
    PyObject *data = length ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(start + length)) : Py_NewRef(head);
    if (data == NULL)
        return RAISED;
    if (length) {
        memcpy(PyBytes_AS_STRING(data), PyBytes_AS_STRING(head), start);
        memcpy(PyBytes_AS_STRING(data) + start, body, length);
    }
    struct tls tls = hold(line);
    const Py_ssize_t sent = write_and_send(line, &tls, data);
    let_go(line, &tls);
    Py_DECREF(data);
    return sent;
}

static PyObject *decrypt(const struct tls *tls, size_t most)
{
    PyObject *size = PyLong_FromSize_t(most);
    PyObject *data = size ? PyObject_CallMethodOneArg(tls->object, names[READ], size) : NULL;
    Py_XDECREF(size);
    if (data != NULL && (!PyBytes_Check(data) || (size_t)PyBytes_GET_SIZE(data) > most)) {
        Py_CLEAR(data);
        PyErr_SetString(PyExc_ValueError, "ssl reads what was not asked for");
    }
    return data;
}

/* Receives into `incoming`, for `wanted` bytes of plain text; as recv(2), or -1 with an exception set. */
static Py_ssize_t take_in(const Line *line, const struct tls *tls, uint64_t wanted)
{
    const size_t size = wanted + 1024 < MOST_RECEIVED ? (size_t)wanted + 1024 : MOST_RECEIVED;
    PyObject *received = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (received == NULL)
        return -1;
    ssize_t count;
    do
        count = recv(line->fd, PyBytes_AS_STRING(received), size, MSG_DONTWAIT);
    while (count < 0 && errno == EINTR);
    const int error = errno;
    if (count > 0 && (_PyBytes_Resize(&received, count) < 0 || !put(tls->incoming, received)))
        count = -1;
    Py_XDECREF(received);
    errno = error;
    return count;
}

static PyObject *receive_and_decrypt(const Line *line, const struct tls *tls, size_t most)
{
    const enum state before = line->state;
    Py_ssize_t waiting = number_of(PyObject_GetAttr(tls->incoming, names[PENDING]));
    while (waiting >= 0) {
        if (waiting > 0) {
            PyObject *data = decrypt(tls, most);
            if (data != NULL || line->state != before || !PyErr_ExceptionMatches(want_read_error))
                return data;
            PyErr_Clear();
            bool all;
            if (!flush(tls, line->fd, &all))
                return NULL;
        }
        const Py_ssize_t count = take_in(line, tls, before == HEAD ? RECORD : line->wanted.length - line->got);
        if (count == 0)
            return PyBytes_FromStringAndSize(NULL, 0);
        waiting = count;
    }
    return NULL;
}

PyObject *tls_receive(Line *line, size_t most)
{
    struct tls tls = hold(line);
    PyObject *data = receive_and_decrypt(line, &tls, most < RECORD ? most : RECORD);
    const int error = errno;
    let_go(line, &tls);
    errno = error;
    return data;
}

int tls_is_quiet(Line *line)
{
    if (!is_quiet(line->fd))
        return 0;
    struct tls tls = hold(line);
    Py_ssize_t left = number_of(PyObject_GetAttr(tls.incoming, names[PENDING]));
    if (left == 0)
        left = number_of(PyObject_CallMethodNoArgs(tls.object, names[PENDING]));
    let_go(line, &tls);
    return left < 0 ? -1 : left == 0;
}
