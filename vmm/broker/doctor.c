/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/broker/doctor.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "vmm/broker/cgroup.h"
#include "vmm/broker/limits.h"
#include "vmm/engines/engine.h"
#include "vmm/engines/limits.h"
#include "vmm/net/net.h"
#include "vmm/store/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pwd.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/timex.h>

#define PROBE_MS 1000

enum level { GOOD, WARN, BAD };

struct doctor {
	const struct config *config;
	struct json_object *rows; /* NULL: text */
	FILE *out;
	int bad;
};

static const char *const level_names[] = { "ok", "warn", "FAIL" };

/* meaning: what it means for the user; NULL if nothing. */
__attribute__((format(printf, 5, 6))) static void found(struct doctor *d, enum level level, const char *check,
							  const char *meaning, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	d->bad += level == BAD;
	if (d->rows) {
		struct json_object *row = json_object_new_object();

		json_object_object_add(row, "check", json_object_new_string(check));
		json_object_object_add(row, "level", json_object_new_string(level_names[level]));
		json_object_object_add(row, "finding", json_object_new_string(text));
		json_object_object_add(row, "meaning", meaning ? json_object_new_string(meaning) : NULL);
		json_object_array_add(d->rows, row);
		return;
	}
	fprintf(d->out, "%-4s  %-12s %s\n", level_names[level], check, text);
	if (meaning)
		fprintf(d->out, "      %-12s -> %s\n", "", meaning);
}

static void check_kvm(struct doctor *d)
{
	struct engine_verdict v = { .name = "" };
	struct fault f;

	if (engine_choose(d->config->engine, d->config->qemu_path, NB_LIBEXECDIR "/nestbox-vmm", PROBE_MS, &v, &f)) {
		found(d, BAD, "engine", "no sandbox can be started", "%s", f.text);
		return;
	}
	if (!strcmp(v.tier, "hardware"))
		found(d, GOOD, "engine", NULL, "%s: %s", v.name, v.reason);
	else
		found(d, WARN, "engine",
		      "processors are emulated: everything works, several times slower, and the jail around each VM "
		      "process is the isolation boundary",
		      "%s: %s", v.name, v.reason);
}

static void check_cgroups(struct doctor *d)
{
	struct cgroup_host h;
	char names[64] = "";
	int n = 0;

	cgroup_host_init(&h, "doctor");
	for (int i = 0; i < CGROUP_CONTROLLERS; i++)
		if (h.dirfd[i] >= 0) {
			static const char *const text[] = { " memory", " pids", " cpu" };

			strcat(names, text[i]);
			n++;
		}
	if (n == CGROUP_CONTROLLERS)
		found(d, GOOD, "cgroups", NULL, "version %d with%s", h.version, names);
	else
		found(d, WARN, "cgroups", "a busy sandbox can take more of the host than its share",
		      n ? "version %d with%s only" : "none (%d%s)", h.version, names);
	cgroup_host_free(&h);
}

static void check_network(struct doctor *d)
{
	struct net net;
	struct fault f;
	enum rc rc;

	if (access("/dev/net/tun", R_OK | W_OK) < 0) {
		found(d, BAD, "taps", "sandboxes have no network and no agent connection: load the module tun",
		      "/dev/net/tun: %s", strerror(errno));
		return;
	}
	if (mkdir(d->config->run_dir, 0755) < 0 && errno != EEXIST) {
		found(d, BAD, "network", NULL, "make %s: %s", d->config->run_dir, strerror(errno));
		return;
	}
	rc = net_init(d->config->run_dir, &f);
	if (!rc)
		rc = net_create("_doctor", &net, &f);
	if (rc) {
		found(d, BAD, "network", "no sandbox can be started: network namespaces, taps and nftables are needed", "%s",
		      f.text);
		return;
	}
	net_destroy(&net);
	found(d, GOOD, "network", NULL, "a namespace with taps and nftables rules could be made");
}

static void check_reflink(struct doctor *d)
{
	_cleanup_fd_ int a = open(d->config->state_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	_cleanup_fd_ int b = open(d->config->state_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	bool shared = false;

	if (a < 0 || b < 0 || write(a, "x", 1) != 1 || copy_disk(a, b, &shared, NULL)) {
		found(d, BAD, "disk copies", "no sandbox can be started", "files in %s: %s", d->config->state_dir,
		      strerror(errno));
		return;
	}
	if (shared)
		found(d, GOOD, "disk copies", NULL, "share their blocks");
	else
		found(d, GOOD, "disk copies",
		      "copying a large volume takes time and space; XFS or Btrfs below the state directory would share blocks",
		      "copy data (no reflinks on this file system)");
}

static void check_memory(struct doctor *d)
{
	struct sysinfo si;
	uint64_t mib;

	if (sysinfo(&si) < 0)
		return;
	mib = (uint64_t)si.totalram * si.mem_unit >> 20;
	if (mib < d->config->vm_memory_mib_min + ENGINE_QEMU_OVERHEAD_MIB)
		found(d, BAD, "memory", "not even one sandbox fits", "%" PRIu64 " MiB", mib);
	else
		found(d, GOOD, "memory", NULL, "%" PRIu64 " MiB, room for %" PRIu64 " sandboxes of %" PRIu64 " MiB", mib,
		      mib * 9 / 10 / d->config->vm_memory_mib_min, d->config->vm_memory_mib_min);
}

static void check_disk(struct doctor *d)
{
	struct statvfs st;
	uint64_t mib;

	if (statvfs(d->config->state_dir, &st) < 0) {
		found(d, BAD, "disk", NULL, "%s: %s", d->config->state_dir, strerror(errno));
		return;
	}
	mib = (uint64_t)st.f_bavail * st.f_frsize >> 20;
	if (mib < 2 * DISK_RESERVE_MIB)
		found(d, BAD, "disk", "sandboxes are refused when less than 1 GiB is free", "%" PRIu64 " MiB free", mib);
	else
		found(d, mib < 20480 ? WARN : GOOD, "disk", mib < 20480 ? "little for many sandboxes with large disks" : NULL,
		      "%" PRIu64 " MiB free below %s", mib, d->config->state_dir);
}

static void check_port(struct doctor *d)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)d->config->https_port) };
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&at, sizeof(at)))
		found(d, GOOD, "port", NULL, "%" PRIu64 " is free", d->config->https_port);
	else
		found(d, WARN, "port", "fine if it is nestbox's own nginx, else set https_port", "%" PRIu64 ": %s",
		      d->config->https_port, strerror(errno));
}

static void check_clock(struct doctor *d)
{
	struct timex t = { 0 };
	_cleanup_free_ char *source = NULL;
	size_t n = 0;
	int state = adjtimex(&t);

	if (file_read_at(AT_FDCWD, "/sys/devices/system/clocksource/clocksource0/current_clocksource", 8192, &source, &n, NULL))
		source = NULL;
	if (n)
		source[strcspn(source, "\n")] = '\0';
	if (state < 0 || state == TIME_ERROR)
		found(d, WARN, "clock", "TLS and lifetimes depend on it: run an NTP client", "not synchronized (source %s)",
		      source ? source : "unknown");
	else
		found(d, GOOD, "clock", NULL, "synchronized (source %s)", source ? source : "unknown");
}

static void check_users(struct doctor *d)
{
	const char *const users[] = { d->config->user_api, d->config->user_gateway, d->config->user_egress, d->config->user_ssh };

	for (size_t i = 0; i < ARRAY_SIZE(users); i++)
		if (!getpwnam(users[i]))
			found(d, BAD, "users", "the daemon that runs as it cannot start", "no user '%s'", users[i]);
}

static void check_files(struct doctor *d)
{
	static const char *const parts[] = { "kernel", "initrd", "root.erofs", "image.json" };
	char path[2 * CONFIG_STR_MAX + 32];
	const char *missing = NULL;

	if (access("/sbin/mkfs.ext4", X_OK) < 0)
		found(d, BAD, "programs", "no disk can be made: apt-get install e2fsprogs", "no mkfs.ext4");
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		snprintf(path, sizeof(path), "%s/images/%s/%s", d->config->state_dir, d->config->image, parts[i]);
		if (access(path, R_OK) < 0)
			missing = parts[i];
	}
	if (missing)
		found(d, BAD, "image", "no sandbox can be started: ./bootstrap image", "image '%s' has no %s", d->config->image,
		      missing);
	else
		found(d, GOOD, "image", NULL, "'%s' is there", d->config->image);
}

static void check_names(struct doctor *d)
{
	char name[CONFIG_STR_MAX + 16];
	struct addrinfo *list = NULL;
	int err;

	snprintf(name, sizeof(name), "api.%s", d->config->domain);
	err = getaddrinfo(name, NULL, NULL, &list);
	if (err)
		found(d, WARN, "names", "clients on this host cannot reach it: for *.localhost install libnss-myhostname",
		      "%s: %s", name, gai_strerror(err));
	else
		found(d, GOOD, "names", NULL, "%s is found", name);
	if (list)
		freeaddrinfo(list);
}

static void check_broker(struct doctor *d)
{
	char path[CONFIG_STR_MAX];
	_cleanup_fd_ int fd = -1;
	struct fault f;

	if (path_join(path, sizeof(path), d->config->run_dir, "broker.sock", NULL))
		return;
	if (unix_connect(path, SOCK_SEQPACKET, &fd, &f))
		found(d, WARN, "broker", "nothing works until it runs: ./bootstrap start", "%s", f.text);
	else
		found(d, GOOD, "broker", NULL, "nestboxd runs");
}

int doctor_run(const struct config *config, bool json, FILE *out)
{
	struct doctor d = { .config = config, .out = out, .rows = json ? json_object_new_array() : NULL };

	if (mkdir(config->state_dir, 0755) < 0 && errno != EEXIST)
		found(&d, BAD, "state", "nothing can be kept", "make %s: %s", config->state_dir, strerror(errno));
	check_kvm(&d);
	check_cgroups(&d);
	check_network(&d);
	check_reflink(&d);
	check_memory(&d);
	check_disk(&d);
	check_port(&d);
	check_clock(&d);
	check_users(&d);
	check_files(&d);
	check_names(&d);
	check_broker(&d);
	if (d.rows) {
		fprintf(out, "%s\n", json_object_to_json_string_ext(d.rows, JSON_C_TO_STRING_PRETTY));
		json_object_put(d.rows);
	} else {
		fprintf(out, d.bad ? "%d of these must be mended first\n" : "this host can run nestbox\n", d.bad);
	}
	return d.bad;
}
