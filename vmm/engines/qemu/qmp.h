/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of QEMU's control socket. Theory: QEMU is expected to be taken over by its guest, so every message is hostile:
 * bounded in length and depth, answers must come in the order of the commands and carry their number, and whatever
 * breaks that ends the connection (and with it the machine). Only a handful of fields are ever looked at.
 *
 * Commands are pipelined: sent at once, answered in order. A command that carries a descriptor must be answered before
 * the next one is sent, because QEMU keeps only the descriptors that came last.
 */
#ifndef NB_QMP_H
#define NB_QMP_H

#include "base/fault.h"
#include "base/loop.h"
#include "vmm/engines/qemu/limits.h"

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum qmp_kind { QMP_GREETING, QMP_RETURN, QMP_ERROR, QMP_EVENT };

struct qmp_message {
	enum qmp_kind kind;
	uint64_t id;                /* QMP_RETURN, QMP_ERROR */
	struct json_object *body;   /* return value, event data or greeting; borrowed from root, may be NULL */
	char text[QMP_ERROR_MAX];   /* error text or event name; printable ASCII */
	struct json_object *root;   /* owned */
};

/* One line without '\n'. *ret is empty after a failure. */
enum rc qmp_parse(const char *line, size_t n, struct qmp_message *ret, struct fault *ret_f);
void qmp_message_free(struct qmp_message *m);

struct qmp;

/* f is NULL when the command succeeded. `value` is valid during the call. */
typedef void qmp_reply_fn(void *arg, struct json_object *value, const struct fault *f);
typedef void qmp_event_fn(void *arg, const char *name, struct json_object *data);
/* The connection is over: closed by QEMU or broken. Pending commands get no callback. The owner frees the client. */
typedef void qmp_closed_fn(void *arg, const struct fault *f);

/* Takes fd, which is connected. Sends qmp_capabilities by itself; `ready` gets the greeting. */
enum rc qmp_new(struct loop *loop, int fd, qmp_reply_fn *ready, qmp_event_fn *event, qmp_closed_fn *closed, void *arg,
		struct qmp **ret, struct fault *ret_f);
void qmp_free(struct qmp *q);
/* args: JSON object text, or NULL. pass_fd: -1 or a descriptor that travels with the command (borrowed). */
enum rc qmp_send(struct qmp *q, const char *command, const char *args, int pass_fd, qmp_reply_fn *fn,
		 struct fault *ret_f);
/* What is still to be answered gets no callback any more: whoever asked has given up. */
void qmp_forget(struct qmp *q);

#endif
