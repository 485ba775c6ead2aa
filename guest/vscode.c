/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory: code-server is a child as any other, on a port of the loopback that was free a moment ago; who may visit it is decided by whoever
 * has the preview's name. The call is answered when it listens, so that the address works at once, or when it has ended. Until then its
 * output stays in the pipes; its last line is in the error.
 */
#include "guest/vscode.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "guest/deno.h"
#include "guest/proc.h"
#include "guest/rpc_limits.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SETTINGS "NESTBOX_VSCODE_SETTINGS"
#define PROGRAM "code-server"

/* Directory and port, then extensions. They and the settings are there before it starts, or it does not. */
static const char script[] =
	"path=$1 port=$2; shift 2\n"
	"user=${XDG_DATA_HOME:-$HOME/.local/share}/code-server/User\n"
	"if [ -n \"$" SETTINGS "\" ]; then\n"
	"	mkdir -p \"$user\" && printf '%s\\n' \"$" SETTINGS "\" >\"$user/settings.json\" || exit\n"
	"	unset " SETTINGS "\n"
	"fi\n"
	"for extension; do " PROGRAM " --install-extension \"$extension\" || exit; done\n"
	"exec " PROGRAM " --bind-addr \"127.0.0.1:$port\" --auth none --disable-telemetry --disable-update-check \"$path\"\n";

struct waiting {
	struct session *session;
	struct rpc_conn *conn;
	struct rpc_call *call;
	struct source *timer;
	struct proc *proc;
	uint16_t port;
	uint64_t pause_ms;
	struct proc_look look;
};

static void waiting_free(struct waiting *w)
{
	source_drop(&w->timer);
	free(w);
}

/* Its last line; what is in the pipe, since nobody has read it. */
static void last_words(int fd, char *to, size_t room)
{
	char said[4096];
	ssize_t n;

	while (fd >= 0 && (n = read(fd, said, sizeof(said) - 1)) > 0) {
		char *at;

		while (n > 0 && (said[n - 1] == '\n' || said[n - 1] == '\r'))
			n--;
		said[n] = 0;
		at = strrchr(said, '\n');
		if (n)
			snprintf(to, room, ": %.200s", at ? at + 1 : said);
	}
	for (char *at = to; *at; at++)
		if (*at < ' ' || *at > '~')
			*at = '?';
}

static void on_look(void *arg)
{
	char words[256] = "";
	struct waiting *w = arg;
	struct json_object *ok;
	uint16_t port;
	bool v6;

	if (w->proc->exited) {
		for (int i = 0; i < 2 && !*words; i++)
			last_words(w->proc->pipe[!i].fd, words, sizeof(words));
		proc_drain(w->proc);
		rpc_call_error(w->call, "Error", NULL, PROGRAM " ended before it listened (wait status %d)%s", w->proc->status, words);
	} else if (proc_listens(w->proc->pid, &w->look, &port, &v6) || port != w->port) {
		w->pause_ms = MIN_OF(w->pause_ms * 3 / 2, (uint64_t)HTTP_WAIT_LAST_MS);
		loop_timer_set(w->timer, now_ms() + w->pause_ms);
		return;
	} else {
		ok = proc_connect(w->proc, w->conn, -1);
		json_put(ok, "port", json_object_new_int(w->port));
		rpc_call_ok(w->call, ok);
	}
	waiting_free(w);
}

static void on_gone(struct rpc_call *call, void *arg)
{
	struct waiting *w = arg;

	rpc_call_drop(call);
	proc_drain(w->proc);
	proc_kill_group(w->proc, SIGTERM);
	waiting_free(w);
}

/* 0: none. */
static uint16_t free_port(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t n = sizeof(a);

	if (fd < 0 || bind(fd, (struct sockaddr *)&a, n) < 0 || getsockname(fd, (struct sockaddr *)&a, &n) < 0)
		return 0;
	return ntohs(a.sin_port);
}

static bool is_there(const struct session *s)
{
	struct json_object *v;
	const char *path = json_object_object_get_ex(s->env, "PATH", &v) ? json_object_get_string(v) : "/usr/local/bin:/usr/bin";

	for (const char *at = path; *at;) {
		size_t n = strcspn(at, ":");
		char file[PATH_MAX];

		if (snprintf(file, sizeof(file), "%.*s/%s", (int)n, at, PROGRAM) < (int)sizeof(file) && !access(file, X_OK))
			return true;
		at += n + (at[n] == ':');
	}
	return false;
}

static struct json_object *arguments(const char *path, uint16_t port, struct json_object *extensions)
{
	struct json_object *args = json_object_new_array();
	char number[8];

	snprintf(number, sizeof(number), "%u", port);
	json_object_array_add(args, json_str("-c"));
	json_object_array_add(args, json_str(script));
	json_object_array_add(args, json_str("nestbox-vscode"));
	json_object_array_add(args, json_str(path));
	json_object_array_add(args, json_str(number));
	for (size_t i = 0; extensions && i < json_object_array_length(extensions); i++)
		json_object_array_add(args, json_object_get(json_object_array_get_idx(extensions, i)));
	return args;
}

static void begin(struct rpc_conn *c, struct rpc_call *call, const struct proc_spec *spec, uint16_t port)
{
	struct session *s = rpc_conn_session(c);
	struct waiting *w = calloc(1, sizeof(*w));
	struct json_object *error;

	if (!w || loop_timer(s->loop, now_ms() + HTTP_WAIT_FIRST_MS, on_look, w, &w->timer, NULL)) {
		free(w);
		rpc_call_fault(call, -32603, "out of memory");
		return;
	}
	*w = (struct waiting){ .session = s, .conn = c, .call = call, .timer = w->timer, .port = port, .pause_ms = HTTP_WAIT_FIRST_MS };
	if (proc_start(s, spec, &w->proc, &error)) {
		rpc_call_error_json(call, error);
		waiting_free(w);
		return;
	}
	call->gone = on_gone;
	call->arg = w;
}

void rpc_vscode(struct rpc_conn *c, struct rpc_call *call, struct json_object *params)
{
	struct json_object *env, *extensions, *settings = NULL, *args;
	struct proc_spec spec = { .command = "/bin/sh", .pipe_out = true, .pipe_err = true, .pass_fds = { -1, -1 } };
	uint16_t port = free_port();
	const char *path;
	struct params p;

	if (!is_there(rpc_conn_session(c))) {
		rpc_call_error(call, "NotSupported", "ENOTSUP",
			       "VS Code is not in this machine: whoever runs the host makes the image with it (./bootstrap image --with code-server); "
			       "or install the npm package 'code-server' on a volume that sandboxes have as their root.");
		return;
	}
	params_init(&p, params);
	path = params_str(&p, "path");
	extensions = params_strings_opt(&p, "extensions");
	env = params_record_opt(&p, "env");
	if (json_object_object_get_ex(params, "editorSettings", &settings) && settings && !json_object_is_type(settings, json_type_object))
		params_fail(&p, "editorSettings", "expected an object");
	if (!params_ok(&p) || !port) {
		rpc_call_params(call, &p);
		return;
	}
	env = env ? json_object_get(env) : json_object_new_object();
	if (settings)
		json_put(env, SETTINGS, json_str(json_object_to_json_string_ext(settings, JSON_C_TO_STRING_PRETTY)));
	args = arguments(path, port, extensions);
	spec.args = args;
	spec.env = env;
	spec.cwd = path;
	begin(c, call, &spec, port);
	json_object_put(args);
	json_object_put(env);
}
