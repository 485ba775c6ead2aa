/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors. A function that can fail returns an enum rc and takes a struct fault as its last parameter
 * (NULL if the caller doesn't care). 0 is done, negative is failed. Filling a fault in cannot fail.
 * Libraries neither log nor exit: the outermost function logs the fault once.
 */
#ifndef NB_BASE_FAULT_H
#define NB_BASE_FAULT_H

/*        name      value HTTP  text */
#define RC_TABLE(X)                                              \
	X(OK,        0, 200, "success")                          \
	X(PROTO,    -1, 502, "peer broke the protocol")          \
	X(INVALID,  -2, 400, "caller sent a bad value")          \
	X(DENIED,   -3, 403, "caller may not do this")           \
	X(STATE,    -4, 409, "not possible in this state")       \
	X(ABSENT,   -5, 404, "no such object")                   \
	X(LIMIT,    -6, 429, "over a quota or a fixed bound")    \
	X(NOMEM,    -7, 503, "out of memory")                    \
	X(SYS,      -8, 500, "system call failed")               \
	X(GUEST,    -9, 502, "guest broke the contract")         \
	X(TIMEOUT, -10, 504, "deadline passed")                  \
	X(AGAIN,   -11, 503, "not now, try again")               \
	X(CLOSED,  -12, 502, "peer closed the connection")       \
	X(NOSPACE, -13, 507, "no disk space left")               \
	X(EXISTS,  -14, 409, "object exists already")            \
	X(DAMAGED, -15, 500, "what was stored is damaged")

enum rc {
#define X(name, value, http, text) RC_##name = (value),
	RC_TABLE(X)
#undef X
};

struct fault {
	enum rc rc;
	int sys;        /* errno where it failed, 0 if none */
	char text[160]; /* no secrets, no guest bytes */
};

/* Fills *f (if not NULL) and returns rc, so that `return fault_set(...)` reads as one statement. */
enum rc fault_set(struct fault *f, enum rc rc, int sys, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/* Puts "context: " before the text that a callee left in *f. Returns f->rc. */
enum rc fault_wrap(struct fault *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

const char *rc_name(enum rc rc);  /* "ABSENT"; "UNKNOWN" for a value outside the table */
const char *rc_text(enum rc rc);  /* "no such object" */
int rc_http(enum rc rc);          /* 404; 500 for a value outside the table */
enum rc rc_from_errno(int sys);   /* ENOENT -> RC_ABSENT, ENOSPC -> RC_NOSPACE, ...; RC_SYS otherwise */
enum rc rc_from_wire(int value);  /* a peer's number; RC_PROTO if it is none of ours */

#endif
