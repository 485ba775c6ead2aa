/* SPDX-License-Identifier: Apache-2.0 */
#include "fcgi/gateway/follow.h"

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fd.h"
#include "fcgi/gateway/control.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/socket.h>

#define BUCKETS 256
#define OUT_MAX (FOLLOW_LINE_MAX + GATEWAY_HEADERS_MAX + 1024)

struct follow {
	struct gateway *gw;
	struct follow *after, *before; /* in the bucket of its watch */
	int fd, file, wd;           /* wd -1: polled */
	bool sse, skipping, ended;
	uint64_t offset;
	char *filter; /* NULL: everything */
	char *place;  /* NULL: there is no other file */
	enum { ASK_NOT, ASK_SOON, ASKED } ask;
	uint64_t asked_ms;
	int next;     /* to go on in, once this one is read; -1: not known */
	char *next_place;
	struct buf out;
	struct source *source, *timer;
	uint64_t spoke_ms; /* when the client was last sent something */
};

static struct follow *buckets[BUCKETS];
static struct source *inotify_source;

static struct follow **bucket_of(int wd)
{
	return &buckets[(unsigned int)wd % BUCKETS];
}

static bool wd_is_used(int wd)
{
	for (struct follow *f = *bucket_of(wd); f; f = f->after)
		if (f->wd == wd)
			return true;
	return false;
}

static void follow_unlink(struct follow *f)
{
	if (f->before)
		f->before->after = f->after;
	else
		*bucket_of(f->wd) = f->after;
	if (f->after)
		f->after->before = f->before;
	f->before = f->after = NULL;
	if (f->wd >= 0 && !wd_is_used(f->wd))
		inotify_rm_watch(f->gw->inotify, f->wd);
}

static void follow_close(struct follow *f)
{
	follow_unlink(f);
	source_drop(&f->source);
	source_drop(&f->timer);
	buf_free(&f->out);
	free(f->filter);
	free(f->place);
	free(f->next_place);
	close_fd(&f->next);
	close_fd(&f->file);
	close_fd(&f->fd);
	f->gw->n_streams--;
	f->gw->n_followers--;
	free(f);
}

void follow_free(struct gateway *gw)
{
	for (int i = 0; i < BUCKETS; i++)
		while (buckets[i])
			follow_close(buckets[i]);
	source_drop(&inotify_source);
	close_fd(&gw->inotify);
}

static bool contains(const char *line, size_t n, const char *text, size_t k)
{
	for (size_t i = 0; i + k <= n; i++)
		if (!strncasecmp(line + i, text, k))
			return true;
	return false;
}

/* One of the texts between tabs. */
static bool matches_one(const char *line, size_t n, const char *list, size_t list_n)
{
	for (const char *at = list, *end = list + list_n; at <= end;) {
		const char *tab = at < end ? memchr(at, '\t', (size_t)(end - at)) : NULL;
		size_t k = (size_t)((tab ? tab : end) - at);

		if (contains(line, n, at, k))
			return true;
		at += k + 1;
	}
	return false;
}

bool follow_matches(const char *line, size_t n, const char *filter)
{
	while (filter && *filter) {
		size_t k = strcspn(filter, "\n");

		if (!matches_one(line, n, filter, k))
			return false;
		filter += k + (filter[k] == '\n');
	}
	return true;
}

static enum rc put_line(struct follow *f, char *line, size_t n)
{
	enum rc rc;

	if (n == strlen(GATEWAY_LOG_END) && !memcmp(line, GATEWAY_LOG_END, n)) {
		f->ended = true;
		return RC_OK;
	}
	if (!follow_matches(line, n, f->filter))
		return RC_OK;
	/* A carriage return would end the event; in JSON it can only stand between values. */
	for (char *cr = memchr(line, '\r', n); cr; cr = memchr(cr, '\r', n - (size_t)(cr - line)))
		*cr = ' ';
	rc = f->sse ? buf_put(&f->out, "data: ", 6) : RC_OK;
	if (!rc)
		rc = buf_put(&f->out, line, n);
	if (!rc)
		rc = f->sse ? buf_put(&f->out, "\n\n", 2) : buf_put(&f->out, "\n", 1);
	return rc;
}

/*
 * Puts one chunk's whole lines into the (empty) output. A line that does not fit a chunk is skipped. *ret_more: the chunk
 * was full, there may be more.
 */
static enum rc follow_read(struct follow *f, bool *ret_more)
{
	static char chunk[FOLLOW_LINE_MAX];
	size_t budget = OUT_MAX - 64;
	ssize_t n = pread(f->file, chunk, sizeof(chunk), (off_t)f->offset);
	char *at = chunk, *end;

	if (n < 0)
		return errno == EINTR ? RC_OK : RC_SYS;
	end = chunk + n;
	*ret_more = n == (ssize_t)sizeof(chunk);
	/* f->out is empty here, so that the budget is the whole of it. */
	while (at < end && !f->ended) {
		char *nl = memchr(at, '\n', (size_t)(end - at));
		size_t len;

		if (!nl) {
			if (at != chunk || !*ret_more)
				break;
			/* No end of line in a whole chunk. */
			f->skipping = true;
			at = end;
			break;
		}
		len = (size_t)(nl - at);
		if (!f->skipping && buf_len(&f->out) + len + 16 > budget) {
			*ret_more = true;
			break;
		}
		if (!f->skipping && put_line(f, at, len))
			return RC_NOMEM;
		f->skipping = false;
		at = nl + 1;
	}
	f->offset += (uint64_t)(at - chunk);
	return RC_OK;
}

/* True: everything is out. False: closed, or waits for the client. */
static bool follow_write(struct follow *f)
{
	while (buf_len(&f->out)) {
		enum rc rc = buf_write(&f->out, f->fd, NULL);

		if (rc == RC_AGAIN && !loop_fd_events(f->source, EPOLLIN | EPOLLOUT, NULL))
			return false;
		if (rc) {
			follow_close(f);
			return false;
		}
		f->spoke_ms = loop_now_ms(f->gw->loop);
	}
	buf_free(&f->out);
	if (loop_fd_events(f->source, EPOLLIN, NULL)) {
		follow_close(f);
		return false;
	}
	return true;
}

/* By descriptor: the file's directory is none of the gateway's business, its mode must let it be read. */
static int watch_file(struct gateway *gw, int file)
{
	char path[64];

	if (gw->inotify < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	return inotify_add_watch(gw->inotify, path, IN_MODIFY);
}

static void follow_link(struct follow *f)
{
	struct follow **first = bucket_of(f->wd);

	f->after = *first;
	if (f->after)
		f->after->before = f;
	*first = f;
}

/* --- from file to file ----------------------------------------------------------------------------------------- */

static void follow_ask(struct follow *f)
{
	uint64_t now = loop_now_ms(f->gw->loop);

	if (!f->place || f->next >= 0 || f->ask != ASK_NOT || now < f->asked_ms + (f->ended ? FOLLOW_ASK_MS : FOLLOW_KEEPALIVE_MS))
		return;
	f->asked_ms = now;
	f->ask = ASK_SOON;
	control_guide_ask();
}

bool follow_question(char ret[GATEWAY_PLACE_MAX])
{
	*ret = '\0';
	for (int i = 0; i < BUCKETS; i++)
		for (struct follow *f = buckets[i]; f; f = f->after) {
			if (f->ask != ASK_SOON)
				continue;
			if (!*ret)
				snprintf(ret, GATEWAY_PLACE_MAX, "%s", f->place);
			/* Whoever else wants to know the same. */
			if (!strcmp(f->place, ret))
				f->ask = ASKED;
		}
	return *ret;
}

static void next_set(struct follow *f, const char *next, int fd)
{
	f->next_place = strdup(next);
	f->next = f->next_place ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
	if (f->next < 0) {
		/* Out of descriptors or memory: asked again at the next comment. */
		free(f->next_place);
		f->next_place = NULL;
		return;
	}
	if (!buf_len(&f->out))
		loop_timer_set(f->timer, now_ms());
}

void follow_next(const char *place, const char *next, int fd)
{
	for (int i = 0; i < BUCKETS; i++)
		for (struct follow *f = buckets[i]; f; f = f->after)
			if (f->place && f->next < 0 && !strcmp(f->place, place)) {
				f->ask = ASK_NOT;
				if (fd >= 0)
					next_set(f, next, fd);
				else if (f->ended)
					loop_timer_set(f->timer, now_ms() + FOLLOW_ASK_MS);
			}
}

void follow_guide_new(void)
{
	for (int i = 0; i < BUCKETS; i++)
		for (struct follow *f = buckets[i]; f; f = f->after)
			if (f->place && f->next < 0)
				f->ask = ASK_SOON;
}

static void follow_go_on(struct follow *f)
{
	follow_unlink(f);
	close_fd(&f->file);
	f->file = take_fd(&f->next);
	free(f->place);
	f->place = take_ptr(f->next_place);
	f->offset = 0;
	f->ended = f->skipping = false;
	f->asked_ms = loop_now_ms(f->gw->loop);
	f->wd = watch_file(f->gw, f->file);
	follow_link(f);
}

static void follow_rearm(struct follow *f)
{
	uint64_t now = now_ms();

	loop_timer_set(f->timer, f->wd < 0 ? now + FOLLOW_POLL_MS : now + FOLLOW_KEEPALIVE_MS);
}

/* Sends what there is; a bounded number of chunks, then the others have their turn. Output that is left means: the client blocks. */
static void follow_pump(struct follow *f)
{
	bool more = true;

	if (!follow_write(f))
		return;
	for (int i = 0; i < RELAY_ROUNDS && more; i++) {
		if (!f->ended && follow_read(f, &more)) {
			follow_close(f);
			return;
		}
		if (!follow_write(f))
			return;
		if (f->next >= 0 && (f->ended || !more)) {
			follow_go_on(f);
			more = true;
		} else if (f->ended) {
			break;
		}
	}
	if (f->ended && f->place) {
		follow_ask(f);
		follow_rearm(f);
	} else if (f->ended) {
		shutdown(f->fd, SHUT_WR);
		follow_close(f);
	} else if (more) {
		loop_timer_set(f->timer, now_ms());
	} else {
		follow_rearm(f);
	}
}

static void on_timer(void *arg)
{
	struct follow *f = arg;

	if (buf_len(&f->out)) {
		/* The client has not taken the last bytes yet: no comment can reach it either. */
		follow_rearm(f);
		return;
	}
	if (f->sse && loop_now_ms(f->gw->loop) - f->spoke_ms + 100 >= FOLLOW_KEEPALIVE_MS && buf_puts(&f->out, ":\n\n")) {
		follow_close(f);
		return;
	}
	follow_ask(f);
	follow_pump(f);
}

static void on_client(void *arg, uint32_t events)
{
	struct follow *f = arg;
	char waste[256];
	ssize_t n;

	if (events & (EPOLLHUP | EPOLLERR)) {
		follow_close(f);
		return;
	}
	if (events & EPOLLIN) {
		n = recv(f->fd, waste, sizeof(waste), 0);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
			follow_close(f);
			return;
		}
	}
	if (events & EPOLLOUT)
		follow_pump(f);
}

static void on_inotify(void *arg, uint32_t events)
{
	struct gateway *gw = arg;
	char mem[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
	ssize_t n = read(gw->inotify, mem, sizeof(mem));

	(void)events;
	for (char *at = mem; n > 0 && at < mem + n;) {
		struct inotify_event event;
		struct follow *next;

		memcpy(&event, at, sizeof(event));
		at += sizeof(event) + event.len;
		for (int i = 0; i < BUCKETS; i++) {
			/* An overflow (wd -1) says nothing about whose events were lost. */
			if (event.wd >= 0 && bucket_of(event.wd) != &buckets[i])
				continue;
			for (struct follow *f = buckets[i]; f; f = next) {
				next = f->after;
				if ((event.wd < 0 || f->wd == event.wd) && !buf_len(&f->out))
					loop_timer_set(f->timer, now_ms());
			}
		}
	}
}

enum rc follow_init(struct gateway *gw, struct fault *ret_f)
{
	gw->inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (gw->inotify < 0) {
		log_warn("no inotify, logs are polled errno=%d", errno);
		return RC_OK;
	}
	return loop_fd(gw->loop, gw->inotify, EPOLLIN, on_inotify, gw, &inotify_source, ret_f);
}

void follow_start(struct gateway *gw, int fd, struct ticket *ticket)
{
	struct follow *f = calloc(1, sizeof(*f));
	enum rc rc;

	if (!f) {
		close(fd);
		gw->n_streams--;
		return;
	}
	gw->n_followers++;
	*f = (struct follow){ .gw = gw, .fd = fd, .file = take_fd(&ticket->fd), .sse = ticket->format == 0,
			      .filter = take_ptr(ticket->filter), .place = take_ptr(ticket->place), .next = -1,
			      .offset = ticket->offset, .out.max = OUT_MAX, .spoke_ms = loop_now_ms(gw->loop) };
	f->wd = watch_file(gw, f->file);
	follow_link(f);
	rc = buf_printf(&f->out,
			"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
			"Connection: close\r\n%s\r\n",
			f->sse ? "text/event-stream" : "application/x-ndjson", ticket->headers);
	if (!rc)
		rc = loop_timer(gw->loop, UINT64_MAX, on_timer, f, &f->timer, NULL);
	if (!rc)
		rc = loop_fd(gw->loop, fd, EPOLLIN, on_client, f, &f->source, NULL);
	if (rc) {
		follow_close(f);
		return;
	}
	/* The offset may lie behind an end line. */
	follow_ask(f);
	follow_pump(f);
}
