/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages between our own processes: one SOCK_SEQPACKET packet is one message.
 *
 *   offset size
 *   0      4    magic "NBX1"
 *   4      2    version (1)
 *   6      2    op; replies have MESSAGE_REPLY set, unasked-for events MESSAGE_EVENT
 *   8      4    sequence: chosen by the asker, repeated in the reply; 0 in events
 *   12     4    length of what follows
 *   16     2    descriptors in the packet's SCM_RIGHTS
 *   18     2    zero
 *   20     ...  fields in the order of the message's list, encoded by base/wire
 *
 * A reply's fields are preceded by i32 rc and a text (empty when rc is 0); when rc is not 0 no fields follow.
 * Wrong magic, version, length, descriptor count, trailing or missing bytes: RC_PROTO and the connection ends.
 *
 * A message is a list macro of F(kind, name, size) rows: U32, U64, STR (size: array with terminator), BLOB (size: bound;
 * decoded as a pointer into the packet, so it lives as long as that). MESSAGE_DECLARE makes the struct and the
 * prototypes, MESSAGE_DEFINE the two functions.
 */
#ifndef NB_SCHEMA_MESSAGE_H
#define NB_SCHEMA_MESSAGE_H

#include "base/fault.h"
#include "base/fd.h"
#include "base/wire.h"

#define MESSAGE_MAGIC 0x3158424eu
#define MESSAGE_VERSION 1
#define MESSAGE_REPLY 0x8000u
#define MESSAGE_EVENT 0x4000u
#define MESSAGE_HEAD 20
#define MESSAGE_MAX 131072 /* bytes; fits the default socket buffer, so one packet never needs a larger one */

struct message_head {
	uint16_t op;
	uint32_t sequence;
	uint32_t length;
	uint16_t n_fds;
};

#define MESSAGE_FIELD_U32(name, size) uint32_t name;
#define MESSAGE_FIELD_U64(name, size) uint64_t name;
#define MESSAGE_FIELD_STR(name, size) char name[size];
#define MESSAGE_FIELD_BLOB(name, size) const uint8_t *name; size_t name##_n;
#define MESSAGE_FIELD(kind, name, size) MESSAGE_FIELD_##kind(name, size)

#define MESSAGE_PUT_U32(name, size) wire_put_u32(w, m->name);
#define MESSAGE_PUT_U64(name, size) wire_put_u64(w, m->name);
#define MESSAGE_PUT_STR(name, size) wire_put_str(w, m->name);
#define MESSAGE_PUT_BLOB(name, size) wire_put_bytes(w, m->name, m->name##_n);
#define MESSAGE_PUT(kind, name, size) MESSAGE_PUT_##kind(name, size)

#define MESSAGE_GET_U32(name, size) m->name = wire_get_u32(w);
#define MESSAGE_GET_U64(name, size) m->name = wire_get_u64(w);
#define MESSAGE_GET_STR(name, size) wire_get_str(w, m->name, size);
#define MESSAGE_GET_BLOB(name, size)                    \
	m->name = wire_get_bytes(w, &m->name##_n);      \
	if (m->name##_n > (size))                       \
		w->failed = true;
#define MESSAGE_GET(kind, name, size) MESSAGE_GET_##kind(name, size)

#define MESSAGE_DECLARE(tag, LIST)                            \
	struct tag {                                          \
		LIST(MESSAGE_FIELD)                           \
	};                                                    \
	void tag##_put(struct wire *w, const struct tag *m);  \
	void tag##_get(struct wire *w, struct tag *m);

#define MESSAGE_DEFINE(tag, LIST)                                           \
	void tag##_put(struct wire *w, const struct tag *m)                 \
	{                                                                   \
		(void)m;                                                    \
		(void)w;                                                    \
		LIST(MESSAGE_PUT)                                           \
	}                                                                   \
	void tag##_get(struct wire *w, struct tag *m)                       \
	{                                                                   \
		(void)m;                                                    \
		(void)w;                                                    \
		LIST(MESSAGE_GET)                                           \
	}

#define MESSAGE_EMPTY(F)

typedef void message_put_fn(struct wire *w, const void *m);
typedef void message_get_fn(struct wire *w, void *m);

/* Starts a message in mem: leaves room for the head. */
void message_begin(struct wire *w, void *mem, size_t size);
/* Writes the head over the room and gives the packet's length; RC_LIMIT if the fields did not fit. */
enum rc message_end(struct wire *w, uint16_t op, uint32_t sequence, size_t n_fds, size_t *ret_n,
		    struct fault *ret_f);
/* Checks the head against what arrived and leaves *ret_w at the first field. */
enum rc message_open(void *mem, size_t n, size_t n_fds, struct message_head *ret_head, struct wire *ret_w,
		     struct fault *ret_f);

/* Reply's rc and text. message_get_result() turns a peer's failure into rc and *ret_f. */
void message_put_result(struct wire *w, enum rc rc, const char *text);
enum rc message_get_result(struct wire *w, struct fault *ret_f);

/*
 * One question and its answer on a blocking connection; for the FastCGI workers and tools. put/get may be NULL for
 * messages without fields. Descriptors of the answer are the caller's. After RC_PROTO, RC_TIMEOUT or RC_CLOSED the
 * connection must be closed: an answer may still be on its way.
 */
struct message_call {
	uint16_t op;
	message_put_fn *put;
	const void *request;
	const int *send_fds;
	size_t n_send_fds;
	message_get_fn *get;
	void *reply;
	int fds[FD_PASS_MAX];
	size_t n_fds;
	uint8_t mem[MESSAGE_MAX]; /* BLOBs of the reply point in here */
};
enum rc message_call(int fd, struct message_call *call, uint64_t deadline_ms, struct fault *ret_f);

#endif
