/* SPDX-License-Identifier: Apache-2.0 */
/* nestboxctl: the operator's view of a running broker. See nestboxctl(8). */
#include "base/cleanup.h"
#include "base/config.h"
#include "base/fd.h"
#include "schema/broker.h"
#include "vmm/broker/ctl_exec.h"
#include "vmm/broker/doctor.h"

#include <dirent.h>
#include <getopt.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define ASK_MS 600000 /* a first create waits for a template */

struct ctl {
	struct config config;
	bool json;
	int fd;
	char **args; /* after the verb, ended by NULL */
	int n_args;
	struct fault f;
};

static const char *const states[] = { "?", "starting", "running", "paused", "stopping", "gone" };

static const char *state_name(uint32_t state)
{
	return states[state < ARRAY_SIZE(states) ? state : 0];
}

static enum rc ask(struct ctl *c, uint16_t op, message_put_fn *put, const void *q, message_get_fn *get, void *ret,
		   int *ret_fd)
{
	static struct message_call call;
	enum rc rc;

	memset(&call, 0, offsetof(struct message_call, mem));
	call.op = op;
	call.put = put;
	call.request = q;
	call.get = get;
	call.reply = ret;
	rc = message_call(c->fd, &call, now_ms() + ASK_MS, &c->f);
	if (!rc && ret_fd && call.n_fds) {
		*ret_fd = call.fds[0];
		call.fds[0] = -1;
	}
	fds_close(call.fds, call.n_fds);
	return rc;
}

#define ASK(c, op, request, q, reply, ret, ret_fd) \
	ask(c, BROKER_##op, (message_put_fn *)request##_put, q, (message_get_fn *)reply##_get, ret, ret_fd)

static void put_string(struct json_object *o, const char *key, const char *value)
{
	json_object_object_add(o, key, json_object_new_string(value));
}

static void put_number(struct json_object *o, const char *key, uint64_t value)
{
	json_object_object_add(o, key, json_object_new_int64((int64_t)value));
}

static void print_json(struct json_object *o)
{
	printf("%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
}

static void time_text(uint64_t ms, char out[32])
{
	time_t t = (time_t)(ms / 1000);
	struct tm tm;

	if (!ms || !gmtime_r(&t, &tm) || !strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm))
		memcpy(out, "-", 2);
}

/* --- verbs ------------------------------------------------------------------------------------------------------ */

static enum rc verb_status(struct ctl *c)
{
	struct broker_hello h;
	struct broker_none none;
	char since[32];
	enum rc rc = ASK(c, HELLO, broker_none, &none, broker_hello, &h, NULL);
	struct json_object *o;

	if (rc)
		return rc;
	time_text(h.started_ms, since);
	if (!c->json) {
		printf("version  %s\nengine   %s\ntier     %s\nbecause  %s\nsince    %s\n", h.version, h.engine, h.tier,
		       h.reason, since);
		return RC_OK;
	}
	o = json_object_new_object();
	put_string(o, "version", h.version);
	put_string(o, "engine", h.engine);
	put_string(o, "tier", h.tier);
	put_string(o, "reason", h.reason);
	put_string(o, "since", since);
	print_json(o);
	return RC_OK;
}

static enum rc verb_node(struct ctl *c)
{
	struct broker_node n;
	struct broker_none none;
	enum rc rc = ASK(c, NODE_STAT, broker_none, &none, broker_node, &n, NULL);
	struct json_object *o;

	if (rc)
		return rc;
	if (!c->json) {
		printf("machines   %u of %u\nmemory     %" PRIu64 " of %" PRIu64 " MiB\ndisk free  %" PRIu64 " MiB\ntemplates  %s\n",
		       n.vms, n.vms_max, n.memory_mib_used, n.memory_mib_max, n.disk_free >> 20, n.templates);
		return RC_OK;
	}
	o = json_object_new_object();
	put_number(o, "machines", n.vms);
	put_number(o, "machines_max", n.vms_max);
	put_number(o, "memory_mib_used", n.memory_mib_used);
	put_number(o, "memory_mib_max", n.memory_mib_max);
	put_number(o, "disk_free", n.disk_free);
	put_string(o, "templates", n.templates);
	print_json(o);
	return RC_OK;
}

static struct json_object *stat_json(const struct broker_vm_stat *s)
{
	struct json_object *o = json_object_new_object();

	put_string(o, "id", s->id);
	put_string(o, "state", state_name(s->state));
	put_number(o, "leased", s->flags & BROKER_VM_LEASE);
	put_number(o, "memory_mib", s->memory_mib);
	put_number(o, "pid", s->pid);
	put_number(o, "created_ms", s->created_ms);
	put_number(o, "stop_at_ms", s->stop_at_ms);
	put_number(o, "memory_private", s->memory_private);
	put_number(o, "cpu_us", s->cpu_us);
	put_string(o, "reason", s->reason);
	return o;
}

static void stat_row(const struct broker_vm_stat *s)
{
	char created[32], stop[32];

	time_text(s->created_ms, created);
	time_text(s->stop_at_ms, stop);
	printf("%-40s %-8s %6u %s %s %s\n", s->id, state_name(s->state), s->memory_mib, created,
	       s->flags & BROKER_VM_LEASE ? "lease" : "-    ", stop);
}

/* Reads one row, gives its key as the cursor, and prints it or its JSON. */
typedef struct json_object *row_fn(struct wire *w, bool json, char after[BROKER_HOST_MAX]);

/* A list of the broker, page by page. All its lists are encoded alike: a count and the rows. */
static enum rc print_list(struct ctl *c, uint16_t op, const char *heading, row_fn *row)
{
	struct json_object *all = json_object_new_array();
	struct broker_cursor q = { "" };
	struct broker_vm_list list;

	if (!c->json)
		printf("%s\n", heading);
	do {
		enum rc rc = ask(c, op, (message_put_fn *)broker_cursor_put, &q, (message_get_fn *)broker_vm_list_get, &list, NULL);
		struct wire w;

		if (rc) {
			json_object_put(all);
			return rc;
		}
		wire_init(&w, (void *)(uintptr_t)list.rows, list.rows_n);
		for (uint32_t i = 0; i < list.n && wire_ok(&w); i++) {
			struct json_object *o = row(&w, c->json, q.after);

			if (o)
				json_object_array_add(all, o);
		}
	} while (list.n == BROKER_LIST_MAX);
	if (c->json)
		print_json(all);
	else
		json_object_put(all);
	return RC_OK;
}

static struct json_object *list_row(struct wire *w, bool json, char after[BROKER_HOST_MAX])
{
	struct broker_vm_stat s;

	broker_vm_stat_get(w, &s);
	memcpy(after, s.id, sizeof(s.id));
	if (json)
		return stat_json(&s);
	stat_row(&s);
	return NULL;
}

static enum rc verb_list(struct ctl *c)
{
	char heading[120];

	snprintf(heading, sizeof(heading), "%-40s %-8s %6s %-20s %-5s %s", "ID", "STATE", "MIB", "CREATED", "LEASE", "ENDS");
	return print_list(c, BROKER_VM_LIST, heading, list_row);
}

static enum rc verb_stat(struct ctl *c)
{
	struct broker_vm_id q = { "" };
	struct broker_vm_stat s;
	enum rc rc;

	snprintf(q.id, sizeof(q.id), "%s", c->args[0]);
	rc = ASK(c, VM_STAT, broker_vm_id, &q, broker_vm_stat, &s, NULL);
	if (rc)
		return rc;
	if (c->json) {
		print_json(stat_json(&s));
		return RC_OK;
	}
	stat_row(&s);
	printf("pid %u  private memory %" PRIu64 " KiB  cpu %" PRIu64 " ms%s%s\n", s.pid, s.memory_private >> 10,
	       s.cpu_us / 1000, *s.reason ? "  reason: " : "", s.reason);
	return RC_OK;
}

static enum rc verb_create(struct ctl *c)
{
	static const uint8_t policy[] = "nestbox-policy 1\ndefault none\n";
	struct broker_vm_create q = { .memory_mib = 1024, .policy = policy, .policy_n = sizeof(policy) - 1 };
	struct broker_vm_created r;
	enum rc rc;

	snprintf(q.id, sizeof(q.id), "%s", c->args[0]);
	if (c->n_args > 1)
		q.memory_mib = (uint32_t)strtoul(c->args[1], NULL, 10);
	if (c->n_args > 2)
		snprintf(q.capture, sizeof(q.capture), "%s", c->args[2]);
	rc = ASK(c, VM_CREATE, broker_vm_create, &q, broker_vm_created, &r, NULL);
	if (!rc)
		printf("restore %u us, agent %u us, total %u us\n", r.restore_us, r.agent_us, r.total_us);
	return rc;
}

static enum rc verb_fork(struct ctl *c)
{
	static const uint8_t policy[] = "nestbox-policy 1\ndefault none\n";
	static uint8_t mem[BROKER_CHILDREN_MAX];
	struct broker_vm_fork q = { .n = (uint32_t)(c->n_args - 1), .children = mem };
	struct broker_vm_forked r;
	struct wire w;
	enum rc rc;

	snprintf(q.id, sizeof(q.id), "%s", c->args[0]);
	wire_init(&w, mem, sizeof(mem));
	for (int i = 1; i < c->n_args; i++) {
		struct broker_fork_child child = { .policy = policy, .policy_n = sizeof(policy) - 1 };

		snprintf(child.id, sizeof(child.id), "%s", c->args[i]);
		broker_fork_child_put(&w, &child);
	}
	q.children_n = wire_len(&w);
	rc = ASK(c, VM_FORK, broker_vm_fork, &q, broker_vm_forked, &r, NULL);
	if (rc)
		return rc;
	printf("pause %u us, %" PRIu64 " KiB copied\n", r.pause_us, r.private_bytes >> 10);
	wire_init(&w, (void *)(uintptr_t)r.children, r.children_n);
	for (uint32_t i = 0; i < r.n && wire_ok(&w); i++) {
		struct broker_fork_row row;

		broker_fork_row_get(&w, &row);
		printf("%-40s %-8s ready after %u us\n", row.id, state_name(row.state), row.ready_us);
	}
	return RC_OK;
}

static enum rc verb_capture(struct ctl *c)
{
	struct broker_vm_capture q = { "", "" };
	struct broker_vm_captured r;
	enum rc rc;

	snprintf(q.id, sizeof(q.id), "%s", c->args[0]);
	snprintf(q.name, sizeof(q.name), "%s", c->args[1]);
	rc = ASK(c, VM_CAPTURE, broker_vm_capture, &q, broker_vm_captured, &r, NULL);
	if (!rc)
		printf("pause %u us, %" PRIu64 " KiB on disk\n", r.pause_us, r.bytes >> 10);
	return rc;
}

static struct json_object *capture_json(const struct broker_capture_row *row)
{
	struct json_object *o = json_object_new_object();

	put_string(o, "name", row->name);
	json_object_object_add(o, "bytes", json_object_new_int64((int64_t)row->bytes));
	json_object_object_add(o, "memory_mib", json_object_new_int64(row->memory_mib));
	json_object_object_add(o, "created_ms", json_object_new_int64((int64_t)row->created_ms));
	json_object_object_add(o, "last_used_ms", json_object_new_int64((int64_t)row->last_used_ms));
	return o;
}

static struct json_object *captures_row(struct wire *w, bool json, char after[BROKER_HOST_MAX])
{
	struct broker_capture_row row;
	char created[32], used[32];

	broker_capture_row_get(w, &row);
	memcpy(after, row.name, sizeof(row.name));
	if (json)
		return capture_json(&row);
	time_text(row.created_ms, created);
	time_text(row.last_used_ms, used);
	printf("%-40s %6u %10" PRIu64 " %s %s\n", row.name, row.memory_mib, row.bytes >> 10, created, used);
	return NULL;
}

static enum rc verb_captures(struct ctl *c)
{
	char heading[120];

	snprintf(heading, sizeof(heading), "%-40s %6s %10s %-20s %s", "NAME", "MIB", "KIB", "CREATED", "LAST USED");
	return print_list(c, BROKER_CAPTURE_LIST, heading, captures_row);
}

static enum rc verb_uncapture(struct ctl *c)
{
	struct broker_capture_name q = { "" };
	struct broker_none none;

	snprintf(q.name, sizeof(q.name), "%s", c->args[0]);
	return ASK(c, CAPTURE_DELETE, broker_capture_name, &q, broker_none, &none, NULL);
}

static enum rc verb_kill(struct ctl *c)
{
	struct broker_vm_kill q = { .reason = "by the operator" };
	struct broker_none none;

	snprintf(q.id, sizeof(q.id), "%s", c->args[0]);
	return ASK(c, VM_KILL, broker_vm_kill, &q, broker_none, &none, NULL);
}

static enum rc id_op(struct ctl *c, uint16_t op)
{
	struct broker_vm_id q = { "" };
	struct broker_none none;

	snprintf(q.id, sizeof(q.id), "%s", c->args[0]);
	return ask(c, op, (message_put_fn *)broker_vm_id_put, &q, (message_get_fn *)broker_none_get, &none, NULL);
}

static enum rc verb_pause(struct ctl *c)
{
	return id_op(c, BROKER_VM_PAUSE);
}

static enum rc verb_resume(struct ctl *c)
{
	return id_op(c, BROKER_VM_RESUME);
}

static enum rc verb_dial(struct ctl *c)
{
	struct broker_vm_dial q = { "", 0 };
	struct broker_vm_dialed d;
	_cleanup_fd_ int fd = -1;
	enum rc rc;
	int code;

	snprintf(q.id, sizeof(q.id), "%s", c->args[0]);
	rc = ASK(c, VM_DIAL, broker_vm_dial, &q, broker_vm_dialed, &d, &fd);
	if (!rc)
		rc = ctl_exec(fd, c->args + 1, &code, &c->f);
	if (!rc)
		exit(code);
	return rc;
}

static bool verify_one(struct ctl *c, const char *name)
{
	struct broker_volume_name q;
	struct broker_none none;
	enum rc rc;

	snprintf(q.name, sizeof(q.name), "%s", name);
	rc = ASK(c, VOLUME_VERIFY, broker_volume_name, &q, broker_none, &none, NULL);
	printf("%-12s %s%s%s\n", rc ? "BAD" : "ok", name, rc ? ": " : "", rc ? c->f.text : "");
	return !rc;
}

/* One after the other: the disk is what limits it. */
static enum rc verb_verify(struct ctl *c)
{
	char path[CONFIG_STR_MAX];
	struct dirent *e;
	unsigned int n = 0, bad = 0;
	DIR *dir;

	for (int i = 0; i < c->n_args; i++, n++)
		bad += !verify_one(c, c->args[i]);
	if (!c->n_args) {
		if (path_join(path, sizeof(path), c->config.state_dir, "snapshots", &c->f))
			return c->f.rc;
		dir = opendir(path);
		if (!dir)
			return fault_set(&c->f, rc_from_errno(errno), errno, "read %.100s", path);
		while ((e = readdir(dir)))
			if (e->d_name[0] != '.') {
				n++;
				bad += !verify_one(c, e->d_name);
			}
		closedir(dir);
	}
	printf("%u snapshots, %u bad\n", n, bad);
	return bad ? fault_set(&c->f, RC_DAMAGED, 0, "%u of %u snapshots cannot be used", bad, n) : RC_OK;
}

static const struct {
	const char *name, *args, *text;
	int min;
	enum rc (*fn)(struct ctl *c);
} verbs[] = {
	{ "status", "", "which engine this host uses, and why", 0, verb_status },
	{ "node", "", "machines, memory, disk and templates of this host", 0, verb_node },
	{ "list", "", "all machines", 0, verb_list },
	{ "stat", "ID", "one machine, also one that is gone: why", 1, verb_stat },
	{ "create", "ID [MIB [CAPTURE]]", "a machine that nobody owns, for trying out", 1, verb_create },
	{ "fork", "ID CHILD...", "children of it, which go on from where it is", 2, verb_fork },
	{ "capture", "ID NAME", "keep it on disk, to start others from", 2, verb_capture },
	{ "captures", "", "what is kept", 0, verb_captures },
	{ "uncapture", "NAME", "remove what is kept", 1, verb_uncapture },
	{ "kill", "ID", "end a machine", 1, verb_kill },
	{ "pause", "ID", "stop its processors", 1, verb_pause },
	{ "resume", "ID", "let them go on", 1, verb_resume },
	{ "dial", "ID COMMAND...", "run a command in it as root", 2, verb_dial },
	{ "verify", "[SNAPSHOT...]", "read snapshots again, against their checksums", 0, verb_verify },
	{ "doctor", "", "check this host, and say what each finding means", 0, NULL },
};

static void usage(FILE *to)
{
	fputs("usage: nestboxctl [-c nestbox.conf] [--json] VERB ...\n", to);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(to, "  %-9s %-18s %s\n", verbs[i].name, verbs[i].args, verbs[i].text);
}

static enum rc run(struct ctl *c, const char *verb)
{
	char path[CONFIG_STR_MAX];
	enum rc rc;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(verbs) && strcmp(verbs[i].name, verb); i++)
		;
	if (i == ARRAY_SIZE(verbs) || c->n_args < verbs[i].min) {
		usage(stderr);
		exit(2);
	}
	if (!verbs[i].fn)
		exit(doctor_run(&c->config, c->json, stdout) ? 1 : 0);
	rc = path_join(path, sizeof(path), c->config.run_dir, "broker.sock", &c->f);
	if (!rc)
		rc = unix_connect(path, SOCK_SEQPACKET, &c->fd, &c->f);
	return rc ? rc : verbs[i].fn(c);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' }, { "json", no_argument, NULL, 'j' }, { 0 }
	};
	const char *path = NULL;
	struct ctl c = { .fd = -1 };
	int o;

	/* '+': what follows the verb may be another program's options. */
	while ((o = getopt_long(argc, argv, "+c:hj", options, NULL)) != -1) {
		switch (o) {
		case 'c': path = optarg; break;
		case 'j': c.json = true; break;
		case 'h': usage(stdout); return 0;
		default: usage(stderr); return 2;
		}
	}
	if (optind == argc) {
		usage(stderr);
		return 2;
	}
	c.args = argv + optind + 1;
	c.n_args = argc - optind - 1;
	if (config_load(&c.config, path, &c.f) || run(&c, argv[optind])) {
		fprintf(stderr, "nestboxctl: %s\n", c.f.text);
		return 1;
	}
	return 0;
}
