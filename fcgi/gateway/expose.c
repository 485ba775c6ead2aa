/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/expose.h"

#include "base/address.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/gateway/acceptor.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define BUCKETS 1024

struct host {
	struct gateway *gw;
	struct host *next;
	bool listed; /* by the listing that runs */
	uint64_t last_ms; /* end of the last visit */
	char org[BROKER_ORG_MAX];
	struct acceptor acceptor;
	char name[];
};

static struct {
	struct host *buckets[BUCKETS];
	size_t n;
	char after[BROKER_HOST_MAX]; /* cursor of the listing */
} hosts;

bool expose_host_is_valid(const char *host)
{
	return strlen(host) <= EXPOSE_NAME_MAX && host_name_is_valid(host);
}

static struct host **host_find(const char *name)
{
	uint32_t hash = 2166136261u;
	struct host **at;

	for (const char *c = name; *c; c++)
		hash = (hash ^ (unsigned char)*c) * 16777619u;
	at = &hosts.buckets[hash % BUCKETS];
	while (*at && strcmp((*at)->name, name))
		at = &(*at)->next;
	return at;
}

bool expose_is_there(const char *host)
{
	return *host_find(host) != NULL;
}

const char *expose_org(const char *host)
{
	const struct host *h = *host_find(host);

	return h ? h->org : "";
}

static void socket_name(char out[EXPOSE_NAME_MAX + 6], const char *host)
{
	snprintf(out, EXPOSE_NAME_MAX + 6, "%.*s.sock", EXPOSE_NAME_MAX, host);
}

static void on_visit(void *arg, int fd)
{
	struct host *h = arg;

	visit_accept(h->gw, h->name, fd);
}

static enum rc host_open(struct gateway *gw, struct host **at, const char *name, struct fault *ret_f)
{
	char path[EXPOSE_NAME_MAX + 6];
	struct host *h;
	enum rc rc;
	int fd;

	if (hosts.n >= EXPOSE_HOSTS_MAX)
		return fault_set(ret_f, RC_LIMIT, 0, "%d hosts are exposed already", EXPOSE_HOSTS_MAX);
	h = calloc(1, sizeof(*h) + strlen(name) + 1);
	if (!h)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	memcpy(h->name, name, strlen(name) + 1);
	h->gw = gw;
	h->last_ms = now_ms();
	socket_name(path, name);
	/* The directory is set-group-ID: the socket belongs to the web server's group. nginx tests for a socket by its x bit. */
	rc = unix_listen(path, SOCK_STREAM, 0770, (gid_t)-1, &fd, ret_f);
	if (!rc)
		rc = acceptor_start(&h->acceptor, gw->loop, fd, on_visit, h, ret_f);
	if (rc) {
		free(h);
		return rc;
	}
	h->next = *at;
	*at = h;
	hosts.n++;
	return RC_OK;
}

static void host_close(struct host **at)
{
	char path[EXPOSE_NAME_MAX + 6];
	struct host *h = *at;

	socket_name(path, h->name);
	unlink(path);
	acceptor_stop(&h->acceptor);
	*at = h->next;
	hosts.n--;
	free(h);
}

static void host_set(struct gateway *gw, const char *name, const char *org, bool present)
{
	struct host **at;
	struct fault f;

	if (!expose_host_is_valid(name)) {
		log_warn("the broker named a host that cannot be one");
		return;
	}
	at = host_find(name);
	if (!present) {
		if (*at)
			host_close(at);
		visit_wake(gw, name); /* who waits for it waits for nothing */
		return;
	}
	if (!*at && host_open(gw, at, name, &f)) {
		log_fault(LOG_LEVEL_ERROR, &f, "host '%s' is not exposed", name);
		return;
	}
	(*at)->listed = true;
	snprintf((*at)->org, sizeof((*at)->org), "%s", org);
	visit_wake(gw, name);
}

static void list_next(struct gateway *gw);

static void list_done(void)
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct host **at = &hosts.buckets[i]; *at;)
			if (!(*at)->listed)
				host_close(at);
			else
				at = &(*at)->next;
	log_info("exposures are in step with the broker hosts=%zu", hosts.n);
}

static void on_list(void *arg, enum rc rc, const struct fault *f, struct wire *w, int *fds, size_t n_fds)
{
	struct gateway *gw = arg;
	struct broker_expose_list list;
	struct wire rows;

	(void)fds;
	(void)n_fds;
	if (rc) {
		log_fault(LOG_LEVEL_WARN, f, "the broker's exposures cannot be listed");
		return;
	}
	broker_expose_list_get(w, &list);
	if (!wire_done(w) || list.n > BROKER_LIST_MAX) {
		log_warn("the broker's list of exposures is malformed");
		return;
	}
	wire_init(&rows, (void *)(uintptr_t)list.rows, list.rows_n);
	for (uint32_t i = 0; i < list.n; i++) {
		struct broker_exposed row;

		broker_exposed_get(&rows, &row);
		if (!wire_ok(&rows)) {
			log_warn("the broker's list of exposures is malformed");
			return;
		}
		host_set(gw, row.host, row.org, true);
		snprintf(hosts.after, sizeof(hosts.after), "%s", row.host);
	}
	if (list.n < BROKER_LIST_MAX)
		list_done();
	else
		list_next(gw);
}

static void list_next(struct gateway *gw)
{
	struct broker_cursor cursor = { .after = "" };
	struct fault f;

	snprintf(cursor.after, sizeof(cursor.after), "%s", hosts.after);
	if (link_ask(gw->link, NULL, NULL, BROKER_EXPOSE_LIST, (message_put_fn *)broker_cursor_put, &cursor, on_list, gw, NULL, &f))
		log_fault(LOG_LEVEL_WARN, &f, "the broker's exposures cannot be listed");
}

static void on_subscribed(void *arg, enum rc rc, const struct fault *f, struct wire *w, int *fds, size_t n_fds)
{
	(void)arg;
	(void)w;
	(void)fds;
	(void)n_fds;
	if (rc)
		log_fault(LOG_LEVEL_ERROR, f, "the broker sends no events");
}

void expose_link_state(struct gateway *gw, bool up)
{
	struct broker_none none;
	struct fault f;

	if (!up)
		return;
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct host *h = hosts.buckets[i]; h; h = h->next)
			h->listed = false;
	hosts.after[0] = '\0';
	/* Subscribed first: what appears while the list is read arrives as an event. */
	if (link_ask(gw->link, NULL, NULL, BROKER_SUBSCRIBE, (message_put_fn *)broker_none_put, &none, on_subscribed, gw, NULL, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "the broker sends no events");
	list_next(gw);
}

void expose_link_event(struct gateway *gw, uint16_t event, struct wire *w)
{
	struct broker_expose_event m;

	if (event != BROKER_EVENT_EXPOSE)
		return;
	broker_expose_event_get(w, &m);
	if (wire_done(w))
		host_set(gw, m.host, m.org, m.present != 0);
	else
		log_warn("an event of the broker is malformed");
}

void expose_touch(const char *name)
{
	struct host *h = *host_find(name);

	if (h)
		h->last_ms = now_ms();
}

void expose_host_stat(struct gateway *gw, const char *name, struct gateway_host_stat *ret)
{
	const struct host *h = *host_find(name);

	*ret = (struct gateway_host_stat){ .known = h != NULL, .idle_ms = h ? now_ms() - h->last_ms : 0 };
	visits_stat(gw, name, ret);
}

size_t expose_count(void)
{
	return hosts.n;
}

enum rc expose_init(struct gateway *gw, struct fault *ret_f)
{
	DIR *dir = opendir(".");
	struct dirent *e;

	(void)gw;
	if (!dir)
		return fault_set(ret_f, rc_from_errno(errno), errno, "read the directory of exposures");
	while ((e = readdir(dir))) {
		size_t n = strlen(e->d_name);

		if (n > 5 && !strcmp(e->d_name + n - 5, ".sock"))
			unlink(e->d_name);
	}
	closedir(dir);
	return RC_OK;
}

void expose_free(struct gateway *gw)
{
	visits_free(gw);
	for (size_t i = 0; i < BUCKETS; i++)
		while (hosts.buckets[i])
			host_close(&hosts.buckets[i]);
}
