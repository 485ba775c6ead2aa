/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All machines: the list, lifetimes, console logs, and what an earlier broker left behind.
 *
 * Lifetimes are wall clock times: one CLOCK_REALTIME timerfd is armed for the earliest, and the kernel moves it when the
 * clock is stepped. A console log is written by a VM process, so its guest could fill the disk with it: every
 * CONSOLE_CHECK_MS the older part of one that grew too long is dropped.
 */
#include "vmm/broker/list.h"

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "vmm/broker/limits.h"
#include "vmm/broker/orphan.h"
#include "vmm/store/copy.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/timerfd.h>

/* --- the list --------------------------------------------------------------------------------------------------- */

size_t machine_after(struct broker *b, const char *after)
{
	size_t low = 0, high = b->n_machines;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (strcmp(b->machines[mid]->id, after) <= 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

struct machine *machine_find(struct broker *b, const char *id)
{
	size_t at = machine_after(b, id);

	return at && !strcmp(b->machines[at - 1]->id, id) ? b->machines[at - 1] : NULL;
}

enum rc machine_list_add(struct broker *b, struct machine *m, struct fault *ret_f)
{
	size_t at;

	if (b->n_machines == b->cap_machines) {
		size_t cap = b->cap_machines ? 2 * b->cap_machines : 16;
		struct machine **mem = reallocarray(b->machines, cap, sizeof(struct machine *));

		if (!mem)
			return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
		b->machines = mem;
		b->cap_machines = cap;
	}
	at = machine_after(b, m->id);
	memmove(b->machines + at + 1, b->machines + at, (b->n_machines - at) * sizeof(struct machine *));
	b->machines[at] = m;
	b->n_machines++;
	return RC_OK;
}

void machine_list_remove(struct broker *b, struct machine *m)
{
	size_t at = machine_after(b, m->id);

	if (!at || b->machines[at - 1] != m)
		return;
	memmove(b->machines + at - 1, b->machines + at, (b->n_machines - at) * sizeof(struct machine *));
	b->n_machines--;
}

uint64_t machine_memory_used(const struct broker *b)
{
	uint64_t sum = b->copies_bytes >> 20;

	for (size_t i = 0; i < b->n_machines; i++)
		sum += b->machines[i]->memory_mib;
	return sum;
}

enum rc machine_disk_free(const struct broker *b, uint64_t *ret_bytes, struct fault *ret_f)
{
	struct statvfs st;

	if (fstatvfs(b->vms_dirfd, &st) < 0)
		return fault_set(ret_f, RC_SYS, errno, "statvfs");
	*ret_bytes = (uint64_t)st.f_bavail * st.f_frsize;
	return RC_OK;
}

bool machine_kept(void *broker, const char *id)
{
	return machine_find(broker, id) != NULL;
}

void machine_gone_note(struct broker *b, const struct gone *g)
{
	b->gone[b->n_gone++ % GONE_KEPT] = *g;
}

const struct gone *machine_gone_find(struct broker *b, const char *id)
{
	/* Newest first: an id may have been used again. */
	for (size_t i = 0; i < GONE_KEPT && i < b->n_gone; i++) {
		const struct gone *g = &b->gone[(b->n_gone - 1 - i) % GONE_KEPT];

		if (!strcmp(g->id, id))
			return g;
	}
	return NULL;
}

void machine_stat(struct machine *m, bool costly, struct broker_vm_stat *ret)
{
	struct engine_stat st = { 0 };

	*ret = (struct broker_vm_stat){ .state = m->state, .flags = m->flags, .memory_mib = m->memory_mib,
					.created_ms = m->created_ms, .stop_at_ms = m->stop_at_ms };
	memcpy(ret->id, m->id, sizeof(ret->id));
	memcpy(ret->reason, m->reason, sizeof(ret->reason));
	if (!m->vm || m->exited || !costly)
		return;
	m->b->engine->ops->stat(m->vm, &st);
	ret->pid = (uint32_t)st.pid;
	ret->memory_private = st.pss_bytes;
	ret->cpu_us = st.cpu_us;
}

/* --- lifetimes -------------------------------------------------------------------------------------------------- */

void machine_timers_update(struct broker *b)
{
	struct itimerspec at = { 0 };
	uint64_t first = UINT64_MAX;

	for (size_t i = 0; i < b->n_machines; i++) {
		const struct machine *m = b->machines[i];

		if (m->stop_at_ms && !m->ending && m->stop_at_ms < first)
			first = m->stop_at_ms;
	}
	if (first != UINT64_MAX) {
		at.it_value.tv_sec = (time_t)MIN_OF(first / 1000, (uint64_t)INT32_MAX);
		at.it_value.tv_nsec = (long)(first % 1000) * 1000000;
		if (!at.it_value.tv_sec && !at.it_value.tv_nsec)
			at.it_value.tv_nsec = 1; /* zero would disarm */
	}
	timerfd_settime(b->stop_timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void on_stop_timer(void *arg, uint32_t events)
{
	struct broker *b = arg;
	uint64_t n, now = wall_ms();

	(void)events;
	if (read(b->stop_timer_fd, &n, sizeof(n)) < 0 && errno == EAGAIN)
		return;
	for (size_t i = 0; i < b->n_machines; i++) {
		struct machine *m = b->machines[i];

		if (m->stop_at_ms && m->stop_at_ms <= now)
			machine_end(m, "its lifetime ended");
	}
	machine_timers_update(b);
}

/* --- console logs ----------------------------------------------------------------------------------------------- */

static void console_trim(struct machine *m, char *mem)
{
	struct stat st;
	ssize_t n;

	if (m->log_fd < 0 || fstat(m->log_fd, &st) < 0 || st.st_size <= CONSOLE_MAX)
		return;
	n = pread(m->log_fd, mem, CONSOLE_KEPT, st.st_size - CONSOLE_KEPT);
	/* Every writer appends, so it goes on at the new end. */
	if (ftruncate(m->log_fd, 0) < 0 || n <= 0)
		return;
	if (write(m->log_fd, mem, (size_t)n) < 0)
		log_warn("console log could not be kept id=%s", m->id);
}

static void on_console_timer(void *arg)
{
	struct broker *b = arg;
	_cleanup_free_ char *mem = malloc(CONSOLE_KEPT);

	for (size_t i = 0; mem && i < b->n_machines; i++)
		console_trim(b->machines[i], mem);
	loop_timer_set(b->console_timer, now_ms() + CONSOLE_CHECK_MS);
}

enum rc machines_init(struct broker *b, struct fault *ret_f)
{
	enum rc rc;

	b->slots = calloc(b->config->vm_max + VM_INTERNAL, 1);
	b->gone = calloc(GONE_KEPT, sizeof(*b->gone));
	if (!b->slots || !b->gone)
		return fault_set(ret_f, RC_NOMEM, 0, "out of memory");
	b->stop_timer_fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
	if (b->stop_timer_fd < 0)
		return fault_set(ret_f, RC_SYS, errno, "timerfd_create");
	rc = loop_fd(b->loop, b->stop_timer_fd, EPOLLIN, on_stop_timer, b, &b->stop_timer, ret_f);
	if (!rc)
		rc = loop_timer(b->loop, now_ms() + CONSOLE_CHECK_MS, on_console_timer, b, &b->console_timer, ret_f);
	return rc;
}

/* --- what an earlier broker left -------------------------------------------------------------------------------- */

static bool adoptable(struct broker *b, const char *id, struct record *ret, struct fault *ret_f)
{
	_cleanup_fd_ int fd = openat(b->vms_dirfd, id, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0 || strlen(id) >= BROKER_ID_MAX) {
		fault_set(ret_f, RC_INVALID, 0, "not a machine's directory");
		return false;
	}
	if (record_read(fd, ret, ret_f))
		return false;
	if (ret->slot >= b->config->vm_max + VM_INTERNAL || b->slots[ret->slot]) {
		fault_set(ret_f, RC_STATE, 0, "its uid is not available any more");
		return false;
	}
	return true;
}

static void leftover_remove(struct broker *b, const char *id, const char *why)
{
	struct gone g = { .created_ms = 0 };
	struct fault f;

	log_warn("machine lost id=%s reason=\"%s\"", id, why);
	if (broker_id_ok(id)) {
		snprintf(g.id, sizeof(g.id), "%s", id);
		snprintf(g.reason, sizeof(g.reason), "lost while the broker was away: %.100s", why);
		machine_gone_note(b, &g);
	}
	orphans_kill(b, id);
	if (tree_remove_at(b->vms_dirfd, id, &f))
		log_fault(LOG_LEVEL_ERROR, &f, "machine %s", id);
}

enum rc machines_adopt(struct broker *b, struct fault *ret_f)
{
	int fd = openat(b->vms_dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!dir) {
		close_fd(&fd);
		return fault_set(ret_f, RC_SYS, errno, "read directory of machines");
	}
	while ((e = readdir(dir))) {
		struct record r;
		struct fault f;

		if (e->d_name[0] == '.')
			continue;
		if (!adoptable(b, e->d_name, &r, &f) || machine_adopt(b, e->d_name, &r, &f))
			leftover_remove(b, e->d_name, f.text);
	}
	closedir(dir);
	/* A machine whose process could not be adopted may still have one. */
	for (size_t i = 0; i < b->n_machines; i++)
		if (b->machines[i]->ending && !b->machines[i]->vm)
			orphans_kill(b, b->machines[i]->id);
	machine_timers_update(b);
	return RC_OK;
}

void machines_free(struct broker *b)
{
	source_drop(&b->stop_timer);
	source_drop(&b->console_timer);
	for (size_t i = 0; i < b->n_machines; i++)
		machine_forget(b->machines[i]);
	close_fd(&b->stop_timer_fd);
	free(b->machines);
	free(b->slots);
	free(b->gone);
}
