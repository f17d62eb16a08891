/* The heads of Get Blob (a range) and Put Page, built and signed: what azure/wire.py and azure/signing.py make, sooner.
 *
 * Theory. Heads holds what is constant for a blob and a signer, as text made by azure/plainrequests.py. A header line that
 * is signed is written once into each of two buffers: as the signature has it, which ends with a line feed, and as it is
 * sent. The order of lines, and that none of them sorts before x-ms-date, is that of wire.py and canonical.py;
 * tests/unit/test_plain_heads.py compares every head with theirs.
 *
 * HMAC-SHA256 is Python's: `inner` and `outer` are hashlib objects that have seen the pads of the key (SharedKeySigner),
 * copied for each request. So no key is here, and nothing of OpenSSL. A SAS or a token is in the constant text.
 *
 * Bounds: both buffers are MOST_TEXT bytes, on the stack; the one with the proof of identity is wiped before it is left.
 * What does not fit, and a lease id or a date that no header can hold, gives None, and the request is made by Python.
 */

#include "module.h"

#include <stdbool.h>
#include <string.h>

enum { MOST_TEXT = 8 << 10, MOST_VALUE = 256, DIGEST = 32, SIGNATURE = 44 };

/* Text that is being written; `full` once something did not fit. */
struct out {
    char *at, *end;
    bool full;
};

typedef struct {
    const char *text;
    Py_ssize_t length;
} Text;

typedef struct {
    PyObject_HEAD
    PyObject *constants; /* a tuple of strings that keeps the texts below */
    Text get_start, put_start; /* request line and the headers that are in each request, as sent */
    Text get_end, put_end;     /* the signed text behind the headers: the canonicalised resource */
    Text version;              /* x-ms-version, the line without its end */
    Text authorization;        /* the header's line without its end, up to where a signature goes; empty for none */
    PyObject *inner, *outer;   /* hashes; None where nothing is signed */
} Heads;

static void put(struct out *out, const char *text, size_t length)
{
    if (length > (size_t)(out->end - out->at)) {
        out->full = true;
        return;
    }
    memcpy(out->at, text, length);
    out->at += length;
}

#define PUT(out, literal) put(out, literal, sizeof(literal) - 1)

static void put_text(struct out *out, Text text) { put(out, text.text, (size_t)text.length); }

static void put_number(struct out *out, unsigned long long number)
{
    char digits[20], *at = digits + sizeof digits;
    do
        *--at = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    put(out, at, (size_t)(digits + sizeof digits - at));
}

/* Ends a line that was written to `head` from `start` on: it is signed as well. */
static void end_line(struct out *head, struct out *text, const char *start)
{
    put(text, start, (size_t)(head->at - start));
    PUT(text, "\n");
    PUT(head, "\r\n");
}

/* base64 of a digest. Source: RFC 4648, 4. */
static void put_base64(struct out *out, const unsigned char digest[DIGEST])
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char text[SIGNATURE], *at = text;
    for (int i = 0; i < DIGEST; i += 3) {
        const unsigned two = i + 1 < DIGEST ? digest[i + 1] : 0, three = i + 2 < DIGEST ? digest[i + 2] : 0;
        const unsigned bits = (unsigned)digest[i] << 16 | two << 8 | three;
        *at++ = letters[bits >> 18];
        *at++ = letters[bits >> 12 & 63];
        *at++ = letters[bits >> 6 & 63];
        *at++ = i + 2 < DIGEST ? letters[bits & 63] : '=';
    }
    put(out, text, sizeof text);
}

/* A copy of `hash` that has seen `length` bytes more: its digest, as a new bytes object. */
static PyObject *digest_of(PyObject *hash, const char *data, Py_ssize_t length)
{
    static PyObject *names[3]; /* interned once */
    static const char *const spelled[3] = {"copy", "update", "digest"};
    for (int i = 0; i < 3; i++)
        if (names[i] == NULL && (names[i] = PyUnicode_InternFromString(spelled[i])) == NULL)
            return NULL;
    PyObject *digest = NULL, *view = NULL, *done = NULL, *copy = PyObject_CallMethodNoArgs(hash, names[0]);
    if (copy != NULL && (view = PyMemoryView_FromMemory((char *)data, length, PyBUF_READ)) != NULL &&
        (done = PyObject_CallMethodOneArg(copy, names[1], view)) != NULL)
        digest = PyObject_CallMethodNoArgs(copy, names[2]);
    Py_XDECREF(done);
    Py_XDECREF(view);
    Py_XDECREF(copy);
    if (digest != NULL && (!PyBytes_Check(digest) || PyBytes_GET_SIZE(digest) != DIGEST)) {
        Py_CLEAR(digest);
        PyErr_SetString(PyExc_TypeError, "inner and outer are SHA-256");
    }
    return digest;
}

static bool put_signature(Heads *heads, struct out *head, const struct out *text, const char *start)
{
    PyObject *inner = digest_of(heads->inner, start, text->at - start);
    if (inner == NULL)
        return false;
    PyObject *outer = digest_of(heads->outer, PyBytes_AS_STRING(inner), DIGEST);
    Py_DECREF(inner);
    if (outer == NULL)
        return false;
    put_base64(head, (const unsigned char *)PyBytes_AS_STRING(outer));
    Py_DECREF(outer);
    return true;
}

/* A header's value from Python: true if it can be sent. None is an empty one. */
static bool value_of(PyObject *object, Text *value)
{
    *value = (Text){"", 0};
    if (object == Py_None)
        return true;
    if ((value->text = PyUnicode_AsUTF8AndSize(object, &value->length)) == NULL) {
        PyErr_Clear();
        return false;
    }
    if (value->length == 0 || value->length > MOST_VALUE)
        return false;
    for (Py_ssize_t i = 0; i < value->length; i++)
        if (value->text[i] < ' ' || value->text[i] > '~')
            return false;
    return true;
}

struct page_write {
    Text lease;
    bool has_lease, has_epoch;
    unsigned long long epoch;
};

/* Writes it all. page: NULL for Get Blob. Returns false with an exception set. */
static bool write_head(Heads *heads, struct out *head, struct out *text, Text date, unsigned long long offset,
                       unsigned long long length, const struct page_write *page)
{
    const char *const signed_from = text->at, *line;
    put_text(head, page ? heads->put_start : heads->get_start);
    /* Verb, Content-Encoding, -Language, -Length, -MD5, -Type, Date and five more that are empty: see signing.py. */
    if (page) {
        PUT(text, "PUT\n\n\n");
        put_number(text, length);
        PUT(text, "\n\n\n\n\n\n\n\n\n");
    } else {
        PUT(text, "GET\n\n\n\n\n\n\n\n\n\n\n\n");
    }
    if (date.length) {
        line = head->at;
        PUT(head, "x-ms-date:");
        put_text(head, date);
        end_line(head, text, line);
    }
    if (page && page->has_epoch) {
        line = head->at;
        PUT(head, "x-ms-if-sequence-number-eq:");
        put_number(head, page->epoch);
        end_line(head, text, line);
    }
    if (page && page->has_lease) {
        line = head->at;
        PUT(head, "x-ms-lease-id:");
        put_text(head, page->lease);
        end_line(head, text, line);
    }
    if (page) {
        line = head->at;
        PUT(head, "x-ms-page-write:update");
        end_line(head, text, line);
    }
    line = head->at;
    PUT(head, "x-ms-range:bytes=");
    put_number(head, offset);
    PUT(head, "-");
    put_number(head, offset + length - 1);
    end_line(head, text, line);
    line = head->at;
    put_text(head, heads->version);
    end_line(head, text, line);
    put_text(text, page ? heads->put_end : heads->get_end);
    if (page) {
        PUT(head, "Content-Length:");
        put_number(head, length);
        PUT(head, "\r\n");
    }
    if (heads->authorization.length) {
        put_text(head, heads->authorization);
        if (heads->inner != Py_None && !head->full && !text->full && !put_signature(heads, head, text, signed_from))
            return false;
        PUT(head, "\r\n");
    }
    PUT(head, "\r\n");
    return true;
}

static PyObject *make(Heads *heads, PyObject *const *args, const struct page_write *page)
{
    const unsigned long long offset = PyLong_AsUnsignedLongLong(args[1]);
    const unsigned long long length = PyErr_Occurred() ? 0 : PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    Text date;
    if (!value_of(args[0], &date) || length == 0 || offset > INT64_MAX || length > INT64_MAX)
        Py_RETURN_NONE;

    char sent[MOST_TEXT], to_sign[MOST_TEXT];
    struct out head = {sent, sent + sizeof sent, false}, text = {to_sign, to_sign + sizeof to_sign, false};
    PyObject *made = NULL;
    if (write_head(heads, &head, &text, date, offset, length, page))
        made = head.full || text.full ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(sent, head.at - sent);
    explicit_bzero(sent, (size_t)(head.at - sent));
    return made;
}

static PyObject *heads_get(Heads *heads, PyObject *const *args, Py_ssize_t count)
{
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "get(date, offset, length)");
    return make(heads, args, NULL);
}

static PyObject *heads_put(Heads *heads, PyObject *const *args, Py_ssize_t count)
{
    if (count != 5)
        return PyErr_Format(PyExc_TypeError, "put(date, offset, length, lease_id, epoch)");
    struct page_write page = {.has_lease = args[3] != Py_None, .has_epoch = args[4] != Py_None};
    if (page.has_epoch) {
        page.epoch = PyLong_AsUnsignedLongLong(args[4]);
        if (PyErr_Occurred())
            return NULL;
    }
    if (!value_of(args[3], &page.lease))
        Py_RETURN_NONE;
    return make(heads, args, &page);
}

static PyObject *heads_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    Text t[6];
    PyObject *inner, *outer;
    if (!PyArg_ParseTuple(args, "s#s#s#s#s#s#OO:Heads", &t[0].text, &t[0].length, &t[1].text, &t[1].length, &t[2].text,
                          &t[2].length, &t[3].text, &t[3].length, &t[4].text, &t[4].length, &t[5].text, &t[5].length,
                          &inner, &outer))
        return NULL;
    Heads *heads = (Heads *)type->tp_alloc(type, 0);
    if (heads == NULL)
        return NULL;
    heads->constants = Py_NewRef(args);
    heads->get_start = t[0], heads->put_start = t[1], heads->get_end = t[2], heads->put_end = t[3];
    heads->version = t[4], heads->authorization = t[5];
    heads->inner = Py_NewRef(inner), heads->outer = Py_NewRef(outer);
    return (PyObject *)heads;
}

static void heads_dealloc(Heads *heads)
{
    Py_XDECREF(heads->constants);
    Py_XDECREF(heads->inner);
    Py_XDECREF(heads->outer);
    Py_TYPE(heads)->tp_free(heads);
}

static PyMethodDef heads_methods[] = {
    {"get", (PyCFunction)(void (*)(void))heads_get, METH_FASTCALL, NULL},
    {"put", (PyCFunction)(void (*)(void))heads_put, METH_FASTCALL, NULL},
    {0},
};

PyTypeObject HeadsType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = MODULE ".Heads",
    .tp_basicsize = sizeof(Heads),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = heads_new,
    .tp_dealloc = (destructor)heads_dealloc,
    .tp_methods = heads_methods,
};
