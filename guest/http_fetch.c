/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: a fetch is a curl child per hop. What to ask goes to it as a configuration on descriptor 4 (nothing of the
 * client's on its command line), the response's head comes on descriptor 3, the body on standard output, which streams
 * to the client under the same back-pressure as any child's. The request's body streams into its standard input.
 *
 * Redirects are followed here, by the rules of the Fetch standard (4.4 HTTP-redirect fetch): method and body change with
 * 301, 302 and 303, credentials do not leave their origin, a streamed body is not sent twice.
 *
 * States: asking (no head yet), then replied; over when the child has exited and its output has ended. A failure before the
 * reply answers the call, one after it fails the body's stream.
 */
#include "guest/http.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#define CONFIG_MAX (512u << 10)

struct fetch {
	struct session *session;
	struct rpc_call *call; /* until replied */
	struct rpc_abort abort;
	struct proc *proc;     /* of the current hop */
	struct json_object *headers;
	char *url, *method;
	pid_t pid;             /* > 0: into this process */
	int64_t body;          /* stream of the request's body, -1: none */
	bool follow, exited, ended, failed, aborted;
	unsigned int hops;
	int head_fd;
	struct source *head_source;
	struct buf head;
	char curl_says[512];
	size_t n_curl_says;
};

static void fetch_free(struct fetch *f)
{
	rpc_abort_remove(&f->abort);
	source_drop(&f->head_source);
	close_fd(&f->head_fd);
	buf_free(&f->head);
	json_object_put(f->headers);
	free(f->url);
	free(f->method);
	free(f);
}

/* The hop's child goes on, or dies, alone. */
static void hop_leave(struct fetch *f, bool kill_it)
{
	struct proc *p = take_ptr(f->proc);

	if (!p)
		return;
	p->owner = NULL;
	p->on_exit = NULL;
	p->pipe[0].at_end = NULL;
	p->pipe[1].tap = NULL;
	if (kill_it)
		proc_kill_group(p, SIGKILL);
	proc_drain(p);
}

static void fetch_error(struct fetch *f, const char *why)
{
	rpc_call_error(take_ptr(f->call), "TypeError", NULL, "error sending request for url (%.400s): %.400s", f->url, why);
	hop_leave(f, true);
	fetch_free(f);
}

/* --- the request ----------------------------------------------------------------------------------------------- */

/* The client's string holds Latin-1 characters; on the wire they are bytes. Others cannot be in a header. */
static void put_latin1(struct buf *b, const char *utf8)
{
	for (const uint8_t *s = (const uint8_t *)utf8; *s; s++) {
		uint8_t c = *s;

		if ((c & 0xfe) == 0xc2 && s[1]) {
			c = (uint8_t)(c << 6 | (s[1] & 0x3f));
			s++;
		} else if (c >= 0x80) {
			c = (c & 0xc0) == 0xc0 ? '?' : 0;
		}
		if (c)
			buf_put(b, &c, 1);
	}
}

static void put_quoted(struct buf *b, const char *option, const char *value)
{
	buf_printf(b, "%s = \"", option);
	for (; *value; value++) {
		if (*value == '"' || *value == '\\')
			buf_put(b, "\\", 1);
		if (*value != '\n' && *value != '\r')
			buf_put(b, value, 1);
	}
	buf_puts(b, "\"\n");
}

static bool is_one_of(const char *name, const char *const *list)
{
	for (; *list; list++)
		if (!strcasecmp(name, *list))
			return true;
	return false;
}

static void put_headers(struct fetch *f, struct buf *b)
{
	static const char *const ours[] = { "content-length", "connection", "transfer-encoding", "expect", NULL };
	bool agent = false;

	for (size_t i = 0; i < json_object_array_length(f->headers); i++) {
		struct json_object *pair = json_object_array_get_idx(f->headers, i);
		const char *name = json_object_get_string(json_object_array_get_idx(pair, 0));
		const char *value = json_object_get_string(json_object_array_get_idx(pair, 1));
		_cleanup_buf_ struct buf line = BUF_INIT(CONFIG_MAX);

		if (is_one_of(name, ours))
			continue;
		agent |= !strcasecmp(name, "user-agent");
		if (*value)
			buf_printf(&line, "%s: ", name);
		else
			buf_printf(&line, "%s;", name);
		put_latin1(&line, value);
		buf_put(&line, "", 1);
		if (buf_len(&line))
			put_quoted(b, "header", (const char *)buf_data(&line));
	}
	put_quoted(b, "header", "Expect:");
	if (!agent)
		put_quoted(b, "user-agent", "nestbox/" NB_VERSION);
}

/* Into a process: its port now, under the name that the URL has. */
static bool put_target(struct fetch *f, struct buf *b)
{
	char origin[1024], to[64];
	const char *rest;
	uint16_t port;
	bool v6;

	if (!f->pid) {
		put_quoted(b, "url", f->url);
		return true;
	}
	if (proc_listens(f->pid, NULL, &port, &v6) || !http_origin(f->url, origin, sizeof(origin)))
		return false;
	rest = strstr(f->url, "://") + 3;
	buf_puts(b, "url = \"http://");
	for (; *rest; rest++)
		if (*rest != '"' && *rest != '\\' && *rest != '\n' && *rest != '\r')
			buf_put(b, rest, 1);
	buf_puts(b, "\"\nnoproxy = \"*\"\n");
	snprintf(to, sizeof(to), "::%s:%u", v6 ? "[::1]" : "127.0.0.1", port);
	put_quoted(b, "connect-to", to);
	return true;
}

static bool put_config(struct fetch *f, struct buf *b)
{
	static const char fixed[] = "silent\nshow-error\nno-buffer\ngloboff\npath-as-is\nproto = \"=http,https\"\n"
				    "dump-header = \"/proc/self/fd/3\"\nsuppress-connect-headers\nconnect-timeout = 30\n";

	if (buf_puts(b, fixed) || !put_target(f, b))
		return false;
	put_headers(f, b);
	if (!strcasecmp(f->method, "HEAD"))
		buf_puts(b, "head\n");
	else if (f->body >= 0 || strcasecmp(f->method, "GET"))
		put_quoted(b, "request", f->method);
	if (f->body >= 0)
		put_quoted(b, "upload-file", "-");
	return buf_room(b) > 0;
}

static void fetch_on_exit(struct proc *p);
static void fetch_at_end(struct proc *p);
static void on_head(void *arg, uint32_t events);

static void curl_tap(struct proc *p, const uint8_t *data, size_t n)
{
	struct fetch *f = p->owner;
	size_t room = sizeof(f->curl_says) - 1 - f->n_curl_says;

	n = MIN_OF(n, room);
	memcpy(f->curl_says + f->n_curl_says, data, n);
	f->n_curl_says += n;
}

struct hop_pipes {
	int head[2], config[2];
};

static void hop_pipes_close(struct hop_pipes *p)
{
	close_fd(&p->head[0]);
	close_fd(&p->head[1]);
	close_fd(&p->config[0]);
	close_fd(&p->config[1]);
}

/* The whole configuration is in the pipe before curl starts. */
static bool hop_pipes_open(struct hop_pipes *p, const struct buf *config)
{
	return pipe2(p->head, O_CLOEXEC) == 0 && pipe2(p->config, O_CLOEXEC) == 0 && !fd_nonblock(p->head[0], NULL) &&
	       !fd_nonblock(p->config[1], NULL) && (buf_len(config) < 65536 || fcntl(p->config[1], F_SETPIPE_SZ, 1 << 20) > 0) &&
	       write(p->config[1], buf_data(config), buf_len(config)) == (ssize_t)buf_len(config);
}

static const char *hop_start(struct fetch *f, struct rpc_conn *c)
{
	static const char *const head[] = { "-q", "-K", "/proc/self/fd/4", NULL };
	_cleanup_(hop_pipes_close) struct hop_pipes pipes = { { -1, -1 }, { -1, -1 } };
	_cleanup_buf_ struct buf config = BUF_INIT(CONFIG_MAX);
	struct proc_spec spec = { .command = "curl", .argv_head = head, .pipe_in = f->body >= 0, .pipe_out = true,
				  .pipe_err = true };
	struct json_object *error;
	struct proc *p;

	if (!put_config(f, &config))
		return f->pid ? "the process does not listen" : "the request is too large";
	if (!hop_pipes_open(&pipes, &config))
		return "out of pipes";
	fcntl(pipes.config[0], F_SETFL, 0);
	spec.pass_fds[0] = pipes.head[1];
	spec.pass_fds[1] = pipes.config[0];
	if (proc_start(f->session, &spec, &p, &error)) {
		json_object_put(error);
		return "curl cannot be started";
	}
	f->proc = p;
	f->head_fd = take_fd(&pipes.head[0]);
	p->owner = f;
	p->on_exit = fetch_on_exit;
	p->owned_input = true;
	p->pipe[0].at_end = fetch_at_end;
	p->pipe[0].kill_when_gone = true;
	p->pipe[1].muted = true;
	p->pipe[1].tap = curl_tap;
	proc_connect_pipe(p, 1, c);
	if (f->body >= 0)
		proc_connect_stdin(p, c, f->body);
	if (loop_fd(f->session->loop, f->head_fd, EPOLLIN, on_head, f, &f->head_source, NULL))
		return "out of memory";
	return NULL;
}

/* --- the response ---------------------------------------------------------------------------------------------- */

static bool null_body(const struct fetch *f, int status)
{
	return status == 101 || status == 204 || status == 205 || status == 304 || !strcasecmp(f->method, "HEAD");
}

static void on_body_abort(void *arg)
{
	struct fetch *f = arg;

	f->aborted = true;
	if (f->proc) {
		rpc_out_error(take_ptr(f->proc->pipe[0].out), rpc_error_abort());
		proc_kill_group(f->proc, SIGKILL);
	}
}

static void reply(struct fetch *f, const struct http_head *r)
{
	struct rpc_call *call = take_ptr(f->call);
	struct rpc_conn *c = call->conn;
	struct json_object *ok = json_object_new_object(), *stream = NULL, *reason;
	int64_t abort_id = call->abort.id;

	/* Without a stream of its own the output is thrown away. */
	f->proc->pipe[0].muted = null_body(f, r->status);
	stream = proc_connect_pipe(f->proc, 0, c);
	reason = http_latin1(r->reason, strlen(r->reason));
	json_put(ok, "status", json_object_new_int(r->status));
	json_put(ok, "statusText", reason);
	json_put(ok, "headers", json_object_get(r->headers));
	json_put(ok, "bodyStreamId", stream);
	call->gone = NULL;
	rpc_abort_remove(&call->abort);
	if (stream) {
		f->abort = (struct rpc_abort){ .id = abort_id, .fn = on_body_abort, .arg = f };
		rpc_abort_add(c, &f->abort);
	}
	rpc_call_ok(call, ok);
}

static const char *const body_headers[] = { "content-encoding", "content-language", "content-location", "content-type",
					    "content-length", NULL };
static const char *const secret_headers[] = { "authorization", "proxy-authorization", "cookie", "host", NULL };

static void remove_headers(struct fetch *f, const char *const *list)
{
	struct json_object *kept = json_object_new_array();

	for (size_t i = 0; i < json_object_array_length(f->headers); i++) {
		struct json_object *pair = json_object_array_get_idx(f->headers, i);

		if (!is_one_of(json_object_get_string(json_object_array_get_idx(pair, 0)), list))
			json_object_array_add(kept, json_object_get(pair));
	}
	json_object_put(f->headers);
	f->headers = kept;
}

static bool is_redirect(const struct fetch *f, const struct http_head *r)
{
	return f->follow && r->location && (r->status == 301 || r->status == 302 || r->status == 303 || r->status == 307 ||
					    r->status == 308);
}

/* The request of the next hop; NULL or why there is none. */
static const char *redirect(struct fetch *f, const struct http_head *r)
{
	char to[HTTP_URL_MAX], from_origin[1024], to_origin[1024];
	bool to_get = (r->status == 303 && strcasecmp(f->method, "GET") && strcasecmp(f->method, "HEAD")) ||
		      ((r->status == 301 || r->status == 302) && !strcasecmp(f->method, "POST"));
	char *url;

	if (++f->hops > HTTP_REDIRECTS_MAX)
		return "too many redirects";
	if (!http_resolve(f->url, r->location, to, sizeof(to)) || !http_origin(f->url, from_origin, sizeof(from_origin)) ||
	    !http_origin(to, to_origin, sizeof(to_origin)))
		return "redirect to a bad URL";
	if (to_get) {
		free(f->method);
		f->method = strdup("GET");
		f->body = -1;
		remove_headers(f, body_headers);
	} else if (f->body >= 0) {
		return "redirect of a request whose body is a stream";
	}
	if (strcmp(from_origin, to_origin))
		remove_headers(f, secret_headers);
	url = strdup(to);
	if (!url || !f->method) {
		free(url);
		return "out of memory";
	}
	free(f->url);
	f->url = url;
	return NULL;
}

/* The head is complete: the next hop or the reply. */
static void on_response(struct fetch *f, const struct http_head *r)
{
	struct rpc_conn *c = f->call->conn;
	const char *why;

	source_drop(&f->head_source);
	close_fd(&f->head_fd);
	buf_free(&f->head);
	if (!is_redirect(f, r)) {
		reply(f, r);
		return;
	}
	why = redirect(f, r);
	if (!why) {
		hop_leave(f, true);
		f->exited = f->ended = false;
		f->n_curl_says = 0;
		why = hop_start(f, c);
	}
	if (why)
		fetch_error(f, why);
}

/* Reads what is there of the head. True: the fetch moved on, f may be gone. */
static bool read_head(struct fetch *f)
{
	enum rc rc = RC_OK;
	size_t n = 1, len;

	while (!rc && n) {
		rc = buf_read(&f->head, f->head_fd, 16384, &n, NULL);
		while ((len = http_head_length(buf_data(&f->head), buf_len(&f->head)))) {
			_cleanup_(http_head_done) struct http_head r = { 0 };
			bool good = http_head_parse(&r, (const char *)buf_data(&f->head), len);

			buf_consume(&f->head, len);
			if (good && r.status >= 200) {
				on_response(f, &r);
				return true;
			}
		}
	}
	if (rc == RC_LIMIT) {
		fetch_error(f, "response head too large");
		return true;
	}
	if (rc != RC_AGAIN)
		source_drop(&f->head_source);
	return false;
}

static void on_head(void *arg, uint32_t events)
{
	(void)events;
	read_head(arg);
}

static void maybe_over(struct fetch *f)
{
	struct rpc_out *out;

	if (!f->exited || !f->ended)
		return;
	out = take_ptr(f->proc->pipe[0].out);
	if (f->failed)
		rpc_out_error(out, rpc_error_new("TypeError", NULL, "error reading a body from connection"));
	else
		rpc_out_end(out);
	hop_leave(f, false);
	fetch_free(f);
}

static void fetch_at_end(struct proc *p)
{
	struct fetch *f = p->owner;

	f->ended = true;
	maybe_over(f);
}

static void fetch_on_exit(struct proc *p)
{
	struct fetch *f = p->owner;
	const char *why = f->curl_says;

	if (f->call && f->head_fd >= 0 && read_head(f)) {
		if (p->owner != f) /* failed, or gone on to another hop */
			return;
	}
	f->exited = true;
	f->failed = !WIFEXITED(p->status) || WEXITSTATUS(p->status);
	if (!f->call) {
		maybe_over(f);
		return;
	}
	f->curl_says[f->n_curl_says] = 0;
	f->curl_says[strcspn(f->curl_says, "\n")] = 0;
	if (!strncmp(why, "curl: (", 7) && strstr(why, ") "))
		why = strstr(why, ") ") + 2;
	fetch_error(f, *why ? why : "the connection failed");
}

/* --- the method ------------------------------------------------------------------------------------------------ */

static void fetch_gone(struct rpc_call *call, void *arg)
{
	struct fetch *f = arg;

	f->call = NULL;
	rpc_call_drop(call);
	hop_leave(f, true);
	fetch_free(f);
}

static void check_headers(struct params *p, struct json_object *headers)
{
	if (!json_object_is_type(headers, json_type_array)) {
		params_fail(p, "headers", "expected an array");
		return;
	}
	for (size_t i = 0; i < json_object_array_length(headers); i++) {
		struct json_object *pair = json_object_array_get_idx(headers, i);

		if (!json_object_is_type(pair, json_type_array) || json_object_array_length(pair) != 2 ||
		    !json_object_is_type(json_object_array_get_idx(pair, 0), json_type_string) ||
		    !json_object_is_type(json_object_array_get_idx(pair, 1), json_type_string) ||
		    !*json_object_get_string(json_object_array_get_idx(pair, 0))) {
			params_fail(p, "headers", "expected pairs of strings");
			return;
		}
	}
}

static struct fetch *fetch_new(struct rpc_conn *c, struct params *p, struct json_object *headers)
{
	struct fetch *f = calloc(1, sizeof(*f));
	const char *redirect_mode;

	if (!f)
		return NULL;
	f->head_fd = -1;
	f->session = rpc_conn_session(c);
	f->head = (struct buf)BUF_INIT(HTTP_HEAD_MAX);
	f->headers = json_object_get(headers);
	f->url = strdup(params_str(p, "url"));
	f->method = strdup(params_str(p, "method"));
	redirect_mode = params_str(p, "redirect");
	f->follow = !strcmp(redirect_mode, "follow");
	if (!f->follow && strcmp(redirect_mode, "manual"))
		params_fail(p, "redirect", "expected 'follow' or 'manual'");
	f->body = params_int_opt(p, "bodyStreamId", 0, INT64_MAX, -1);
	f->pid = (pid_t)params_int_opt(p, "pid", 1, INT32_MAX, 0);
	f->abort.id = -1;
	if (f->url && f->method)
		return f;
	fetch_free(f);
	return NULL;
}

void rpc_fetch(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct json_object *headers = NULL;
	char origin[HTTP_URL_MAX];
	const char *why;
	struct params p;
	struct fetch *f;

	params_init(&p, params);
	json_object_object_get_ex(params, "headers", &headers);
	check_headers(&p, headers);
	f = fetch_new(c, &p, headers);
	rpc_call_abortable(call, &p);
	if (!f || !params_ok(&p)) {
		rpc_call_params(call, &p);
		if (f)
			fetch_free(f);
		return;
	}
	f->call = call;
	call->gone = fetch_gone;
	call->arg = f;
	if (f->pid && !proc_find_running(f->session, f->pid)) {
		rpc_call_error(take_ptr(f->call), "NotFound", "ENOENT", "No such process: %d", (int)f->pid);
		fetch_free(f);
		return;
	}
	why = strlen(f->url) < HTTP_URL_MAX && http_origin(f->url, origin, sizeof(origin)) ? hop_start(f, c)
											    : "only http and https are supported";
	if (why)
		fetch_error(f, why);
}
