/* SPDX-License-Identifier: Apache-2.0 */
/* What the proxy knows of one machine, and the daemon's shared parts. Private to this directory. */
#ifndef NB_EGRESS_SANDBOX_H
#define NB_EGRESS_SANDBOX_H

#include "base/config.h"
#include "base/loop.h"
#include "schema/broker.h"
#include "vmm/egress/ledger.h"
#include "vmm/egress/meter.h"
#include "vmm/egress/names.h"
#include "schema/verdict.h"
#include "vmm/egress/resolve.h"
#include "vmm/egress/secrets.h"
#include "vmm/egress/tenant.h"

struct ca;
struct conn;
struct dns_conn;
struct tls;
struct sandbox;

struct egress {
	struct loop *loop;
	struct config config;
	struct reach reach;
	struct ledger *ledger;
	struct resolver *resolver;
	struct tls *tls;
	bool has_key;
	uint8_t key[EGRESS_KEY_BYTES];
	struct sandbox *sandboxes;
	size_t n_sandboxes;
	struct tenant *tenants;
	struct usage usage, most; /* of all; what they may have together */
	bool tight;               /* a sandbox reads nothing because of what all of them hold */
	uint8_t relay[65536]; /* where bytes are between a read and the write that follows at once */
};

struct bucket {
	uint64_t milli, last_ms;
	bool started;
};

/* One token, if there is one. */
bool bucket_take(struct bucket *b, uint64_t now, uint32_t per_s, uint32_t burst);

/* A listener or the UDP socket; owns its descriptor. */
struct port {
	struct sandbox *sb;
	int fd;
	struct source *source, *pause;
};

/* After accept4() failed: if that is for want of descriptors or memory, the listener rests for a moment. */
void port_accept_failed(struct port *p, int sys);

struct sandbox {
	struct egress *eg;
	struct sandbox *next;
	struct tenant *tenant;
	char id[BROKER_ID_MAX];
	struct policy *policy; /* NULL: nothing is allowed */
	struct secrets *secrets; /* NULL: none, or no key */
	struct ca *ca;           /* NULL: not needed so far */
	struct names *names;
	struct lookup_share *lookups;
	struct port tcp, dns_udp, dns_tcp;
	struct conn *conns;
	struct usage usage;   /* held: memory of what its connections have read and not passed on */
	bool tight;           /* one of them reads nothing because of that */
	struct source *room;  /* wakes them */
	struct meter meter;
	struct dns_conn *dns_conns;
	size_t n_dns_conns;
	struct bucket conn_rate, dns_rate, dns_rows, rows;
	uint64_t rows_suppressed;
	bool stale; /* the broker came back and has not named this machine yet */
};

/* It has one more connection, or one less; so many bytes more, or less (a negative number's two's complement). */
void sandbox_count(struct sandbox *sb, size_t conns, size_t tls, size_t held);

struct sandbox *sandbox_find(struct egress *eg, const char *id);
/* Takes the three descriptors. An existing sandbox gets new ones and the new policy and keeps its connections. */
enum rc sandbox_set(struct egress *eg, const char *id, const void *policy, size_t policy_n, int fds[3],
		    struct fault *ret_f);
/* Takes effect on the next name and connection, and ends open ones that it does not allow. */
void sandbox_set_policy(struct sandbox *sb, const void *policy, size_t policy_n);
void sandbox_free(struct sandbox *sb);
/* A row of this sandbox, within its rate. sandbox and org are filled in. */
void sandbox_row(struct sandbox *sb, struct ledger_row *row);

/* dnsd.c: the sockets' callbacks. */
void dnsd_udp(void *port, uint32_t events);
void dnsd_accept(void *port, uint32_t events);
void dnsd_close_all(struct sandbox *sb);

/* conn.c */
void conn_meter_tick(void *sandbox);
void conn_room(void *sandbox);
/* What all hold has become little: who read nothing because of that reads on. */
void conn_room_all(struct egress *eg);
void conn_accept(void *port, uint32_t events);
/* Of a connection, or of a listener for all that it accepts (tcp(7)). */
void conn_options(int fd);
void conn_recheck_all(struct sandbox *sb);
void conn_close_all(struct sandbox *sb, const char *reason);

#endif
